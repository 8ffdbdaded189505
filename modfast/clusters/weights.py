"""How the outputs and inputs of a layer lie in its weight.

Rows are outputs and columns are inputs, as in torch.nn.Linear; a convolution's kernel positions
all belong to their input channel. transformers' Conv1D and the transposed convolutions keep inputs
first.
"""

from __future__ import annotations

from torch import Tensor, nn

from modfast import checks
from modfast.clusters.labels import Clusters

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def has_weight(module: nn.Module) -> bool:
    """Whether the module's weight joins outputs to inputs, so that it can have clusters."""
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or _is_conv1d(module)


def input_first(module: nn.Module) -> bool:
    """Whether dimension 0 of the module's weight runs over inputs rather than outputs."""
    return isinstance(module, _TRANSPOSED) or _is_conv1d(module)


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The weight of a module that `has_weight`.

    Raises:
        ValueError: a grouped convolution, whose columns mean other inputs in each group; entries
            that are not finite.
    """
    if getattr(module, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} must not be a grouped convolution, got {module}")
    weight = module.weight
    assert isinstance(weight, Tensor)
    checks.finite(f"the weight of {name!r}", weight.detach())
    return weight


def fit_labels(
    clusters: Clusters, weight: Tensor, name: str, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Labels of the weight's matrix view: of dimension 0, and of all the others flattened.

    Args:
        clusters: labels of outputs and inputs.
        weight: `[n_out, n_in, *kernel]`, or `[n_in, n_out, *kernel]` if `transposed`.
        name: how messages call the weight.
        transposed: whether dimension 0 runs over inputs.

    Raises:
        ValueError: a weight of fewer than two dimensions, or of other sizes than the clusters.
    """
    if weight.dim() < 2:
        raise ValueError(
            f"{name} must have at least two dimensions, got shape {tuple(weight.shape)}"
        )
    rows, cols = clusters.rows, clusters.cols
    if transposed:
        rows, cols = cols, rows
    if (len(rows), len(cols)) != tuple(weight.shape[:2]):
        raise ValueError(
            f"clusters for {len(clusters.rows)} outputs and {len(clusters.cols)} inputs do not fit "
            f"{name} of shape {tuple(weight.shape)}"
        )
    kernel = weight[0, 0].numel() if weight.dim() > 2 and rows.numel() and cols.numel() else 1
    if kernel != 1:
        cols = cols.repeat_interleave(kernel)
    return rows.to(weight.device), cols.to(weight.device)


def equal_clusters(weight: Tensor, k: int, name: str, transposed: bool = False) -> Clusters:
    """`Clusters.equal` for the weight's sizes; see `fit_labels` for the arguments."""
    if weight.dim() < 2:
        raise ValueError(
            f"{name} must have at least two dimensions, got shape {tuple(weight.shape)}"
        )
    n_out, n_in = weight.shape[:2]
    if transposed:
        n_out, n_in = n_in, n_out
    try:
        return Clusters.equal(n_out, n_in, k)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_conv1d(module: nn.Module) -> bool:
    # transformers' class, told by its look so that transformers need not be installed.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
