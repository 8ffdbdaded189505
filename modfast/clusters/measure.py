"""How strongly a weight falls into given clusters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from modfast.clusters.fitting import fit_labels
from modfast.clusters.labels import Clusters
from modfast.clusters.sharded import penalty_of
from modfast.network.weights import require_dense
from modfast.ops.clusterability import WEIGHT_DTYPES, penalty
from modfast.precision import precise


@precise
def clusterability(weight: Tensor, clusters: Clusters) -> Tensor:
    """The share of a weight's squared entries that lies within clusters.

    C(W) = (sum of W_ij^2 over i, j of one cluster) / (sum of W_ij^2)

    It is about 1/k for k equal clusters of a random weight, and 1 for a block-diagonal one.
    Differentiable (twice, too, but for a DTensor). An all-zero weight has clusterability 0 and
    gradient 0. A weight with a NaN or infinite entry gives NaN, as any torch loss would.

    Args:
        weight: `[n_out, n_in, ...]`, float32, float64, bfloat16 or float16; a convolution's kernel
            positions belong to their input channel. A DTensor (FSDP2) counts whole, and all its
            processes must call; of a layer whose weight is recomputed in each pass, take
            `modfast.network.weights.current_weight(layer)`.
        clusters: labels of its outputs and inputs. Labels on another device are copied to the
            weight's at each call; `clusters.to(device)` does so once.

    Returns:
        A scalar tensor, float64 for a float64 weight, else float32. Sums are taken in float64.

    Raises:
        TypeError: `weight` is not a floating tensor, or `clusters` not a `Clusters`.
        ValueError: sizes do not match; a sparse or meta tensor.

    Source: N1, the clusterability-training notebook.

    Example:
        >>> import torch
        >>> from modfast import Clusters, clusterability
        >>> clusterability(torch.ones(4, 4), Clusters.equal(4, 4, k=2))
        tensor(0.5000)
    """
    if (
        type(clusters) is Clusters
        and type(weight) in (Tensor, Parameter)
        and weight.layout is torch.strided
        and not weight.is_nested
        and weight.shape == clusters.shape
        and weight.device == clusters.labels.device
        and weight.dtype in WEIGHT_DTYPES
        and weight.is_contiguous()
    ):
        # Nothing left to check. Doing so once more takes longer than a small weight's sums.
        return penalty(clusters.labels, 1.0, weight)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    require_dense("weight", weight)
    return penalty_of([weight], [fit_labels(clusters, weight, "weight")], 1.0)
