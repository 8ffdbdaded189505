"""Information from distances to nearest neighbors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from modfast import checks
from modfast.information.partition import Groups, Partition, standardized
from modfast.precision import precise

Variant: TypeAlias = Literal[1, 2]
_Counts: TypeAlias = tuple[Tensor, Tensor]

_CELLS = 2**22  # Distances that are held at a time.
# Of 5,000 samples of 8 units trees find the neighbors 4 times as fast as all distances do, of 32
# units 4 times as slowly.
_TREE_UNITS = 12


@precise
def ksg_mutual_information(
    x: Tensor,
    y: Tensor | Partition,
    k: int = 3,
    *,
    variant: Variant = 1,
    jitter: float = 1e-10,
    seed: int = 0,
) -> Tensor:
    """I(x; y) by the estimator of Kraskov, Stögbauer and Grassberger, in nats.

    Distances are largest differences over units of unit variance, in the space of both groups the
    larger of the two. With eps_i the distance of sample i to its k-th neighbor, and n_x, n_y how
    many other samples are nearer than that in x and in y alone, variant 1 is

        I = psi(k) + psi(n) - mean(psi(n_x + 1) + psi(n_y + 1))

    In variant 2 eps_i is the largest difference among the k neighbors in x and in y by itself, n_x
    and n_y count samples up to it, and

        I = psi(k) - 1 / k + psi(n) - mean(psi(n_x) + psi(n_y))

    Few units have their neighbors found by k-d trees on the CPU, where scipy is installed; else
    they come from all distances, some samples at a time. Both count the same.

    Args:
        x: floating values `[n, dx]` or `[n]`, or the activations of all units `[n, d]`.
        y: `[n, dy]` or `[n]`, the same samples; or a partition of the units, as in
            `gaussian_mutual_information`.
        k: how many neighbors; more of them mean less spread and more bias.
        variant: 1, or 2, which has less bias in few dimensions and more spread.
        jitter: standard deviation of noise that is added to the scaled units, so that equal samples
            have neighbors at different distances.
        seed: of the noise.

    Returns:
        A float64 scalar, which may be below 0; for a partition the matrix `[m, m]` of all pairs of
        modules, infinite on the diagonal. The same for any number of threads.

    Raises:
        TypeError: values that do not float, a partition of another kind, a seed that is no integer.
        ValueError: k that is not below n; more than k equal samples with jitter=0; values that are
            not finite or require grad; different samples; modules that overlap or are empty.

    Source: Kraskov, Stögbauer and Grassberger (2004), Estimating mutual information.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(5000)
        >>> y = 0.6 * x + 0.8 * torch.randn(5000)
        >>> f"{ksg_mutual_information(x, y):.1f}"
        '0.2'
    """
    groups = Groups.of(x, y)
    checks.choice("variant", variant, get_args(Variant))
    n, k = len(groups.values), checks.count("k", k)
    if k >= n:
        raise ValueError(f"k must be below the number of samples, {n}, got {k}")
    jitter = checks.finite_number("jitter", jitter)
    if jitter < 0:
        raise ValueError(f"jitter must be at least 0, got {jitter}")
    generator = torch.Generator("cpu").manual_seed(checks.seed("seed", seed))
    points = []
    for values in groups.each():
        noise = torch.randn(values.shape, dtype=torch.float64, generator=generator, device="cpu")
        points.append(standardized(values) + jitter * noise.to(values.device))

    def information(i: int, j: int) -> Tensor:
        # How many samples are as near, each itself among them.
        near_x, near_y = _counts(points[i], points[j], k, variant)
        itself = variant - 1
        # One after the other, so that no number of threads changes the sum.
        psi = torch.digamma((near_x - itself).double()) + torch.digamma((near_y - itself).double())
        known = psi.new_tensor([k, n]).double().digamma().sum() - itself / k
        return known - psi.cumsum(0)[-1] / n

    return groups.pairs(information)


def _counts(x: Tensor, y: Tensor, k: int, variant: int) -> _Counts:
    if x.device.type == "cpu" and x.shape[1] + y.shape[1] <= _TREE_UNITS and _has_scipy():
        return counts_by_trees(x, y, k, variant)
    return counts_by_distances(x, y, k, variant)


def _has_scipy() -> bool:
    return find_spec("scipy") is not None


def counts_by_trees(x: Tensor, y: Tensor, k: int, variant: int) -> _Counts:
    """How many samples lie in x and in y within what k neighbors span, each itself among them."""
    from scipy.spatial import KDTree

    sides, workers = [x.numpy(), y.numpy()], torch.get_num_threads()
    joint = np.concatenate(sides, axis=1)
    reach, index = KDTree(joint).query(joint, k + 1, p=np.inf, workers=workers)
    _refuse_equal(torch.from_numpy(reach[:, -1]))
    counts = []
    for side in sides:
        if variant == 1:
            span = np.nextafter(reach[:, -1], 0)
        else:
            span = np.abs(side[index] - side[:, None]).max((1, 2))
        within = KDTree(side).query_ball_point(
            side, span, p=np.inf, workers=workers, return_length=True
        )
        counts.append(torch.from_numpy(within))
    return counts[0], counts[1]


def counts_by_distances(x: Tensor, y: Tensor, k: int, variant: int) -> _Counts:
    """As `counts_by_trees`, from all distances."""
    counts = []
    for rows in torch.arange(len(x), device=x.device).split(max(1, _CELLS // len(x))):
        sides = [torch.cdist(side[rows], side, p=torch.inf) for side in (x, y)]
        reach, index = torch.maximum(*sides).topk(k + 1, largest=False)
        _refuse_equal(reach[:, -1])
        if variant == 1:
            below = torch.nextafter(reach[:, -1], torch.zeros_like(reach[:, -1]))
            spans = [below, below]
        else:
            spans = [side.gather(1, index).amax(1) for side in sides]
        within = [(side <= span[:, None]).sum(1) for side, span in zip(sides, spans, strict=True)]
        counts.append(torch.stack(within))
    near_x, near_y = torch.cat(counts, dim=1)
    return near_x, near_y


def _refuse_equal(reach: Tensor) -> None:
    wrong = int((reach == 0).sum())
    if wrong:
        raise ValueError(
            f"x and y must not repeat a sample more than k times with jitter=0, got {wrong} "
            "samples that are repeated"
        )
