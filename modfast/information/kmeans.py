"""Information of groups that are quantized to the nearest of k centers."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import checks
from modfast.information.partition import Groups, Partition, standardized
from modfast.ops import information as ops
from modfast.ops.information import MAX_BINS
from modfast.precision import precise
from modfast.reference import code_dtype, compute_dtype

_CELLS = 2**20  # Distances that are held at a time.
_CACHED = 2**14  # Values that are added up at a time: they stay in the cache, and on one thread.
# Lloyd's algorithm stops once its centers move less than this, summed over all squares.
_STILL = 1e-4


@precise
def kmeans_mutual_information(
    x: Tensor, y: Tensor | Partition, k: int = 10, *, max_iterations: int = 100, seed: int = 0
) -> Tensor:
    """I(code of x; code of y), in nats: what groups tell of each other, each quantized to k codes.

    Each group's units are scaled to unit variance (constant ones stay 0), and k-means (k-means++
    and Lloyd's algorithm) finds k centers. A sample's code is that of the nearest one, and the
    information is that of counts of codes, as in `mutual_information`: at most log k, for
    independent groups of n samples about (k - 1)^2 / 2n.

    The source notebook sorted codes (argsort) where it meant to look them up, so that each of its
    2,000 samples had a code of its own and any two groups shared log 2000 = 7.60 nats.

    Args:
        x: floating values `[n, dx]` or `[n]`, or the activations of all units `[n, d]`.
        y: `[n, dy]` or `[n]`, the same samples; or a partition of the units, as in
            `gaussian_mutual_information`.
        k: number of codes of each group, from 2 on. There are fewer where fewer samples differ.
        max_iterations: of Lloyd's algorithm, which stops earlier once its centers hardly move.
        seed: of the first centers.

    Returns:
        A float64 scalar; for a partition the matrix `[m, m]` of all pairs of modules, with each
        module's entropy of codes on the diagonal. The same for any number of threads.

    Raises:
        TypeError: values that do not float, a partition of another kind, a seed that is no integer.
        ValueError: k that is not below n; values that are not finite or require grad; different
            samples; modules that overlap or are empty.

    Source: N3, the mutual-information notebook; Arthur and Vassilvitskii (2007), k-means++.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> angle = torch.rand(5000) * 2 * torch.pi
        >>> x = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> f"{kmeans_mutual_information(x, angle.sin() ** 2):.1f}"
        '0.9'
    """
    groups = Groups.of(x, y)
    k = checks.count("k", k)
    n = len(groups.values)
    if not 2 <= k < min(n, MAX_BINS + 1):
        raise ValueError(f"k must be from 2 to {min(n - 1, MAX_BINS)} for {n} samples, got {k}")
    max_iterations = checks.count("max_iterations", max_iterations)
    seed = checks.seed("seed", seed)
    codes = [
        quantized(standardized(values).to(compute_dtype(values)), k, max_iterations, seed)
        for values in groups.each()
    ]
    every = torch.stack(codes, dim=1)
    if groups.paired:
        return ops.pairwise_information(every[:, :1], every[:, 1:], k, k)[0][0, 0]
    return ops.pairwise_information(every, every, k, k)[0]


def quantized(x: Tensor, k: int, max_iterations: int, seed: int) -> Tensor:
    """Codes `[n]` of values `[n, d]`: which of k centers is nearest."""
    codes, _ = lloyd(x, first_centers(x, k, seed), max_iterations)
    return codes.to(code_dtype(k))


def first_centers(x: Tensor, k: int, seed: int) -> Tensor:
    """k-means++: each center is a sample, drawn by its squared distance to those before it.

    Fewer than k where fewer samples differ.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = torch.rand(k, dtype=torch.float64, generator=generator, device="cpu").tolist()
    centers = [x[int(draws[0] * len(x))]]
    nearest = _distances(x, centers[0][None])[:, 0]
    for draw in draws[1:]:
        reach = nearest.cumsum(0, dtype=torch.float64)
        if reach[-1] == 0:
            break
        # The first sample that lies beyond the draw, so one with a distance.
        centers.append(x[int((reach <= draw * reach[-1]).sum())])
        torch.minimum(nearest, _distances(x, centers[-1][None])[:, 0], out=nearest)
    return torch.stack(centers)


def lloyd(
    x: Tensor, centers: Tensor, max_iterations: int, still: float = _STILL
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on values `[n, d]`: codes `[n]` and centers `[k, d]`.

    A center that is nearest to no sample moves to the sample that is farthest from its own. The
    result is the same for any number of threads: codes are those of exact distances, and sums over
    samples are taken one after the other in float64.
    """
    k, norms = len(centers), x.square().sum(1)
    sums = x.new_zeros(centers.shape, dtype=torch.float64)
    codes = _nearest(x, norms, centers)
    _move(sums, x, torch.arange(len(x), device=x.device), codes)
    for _ in range(max_iterations):
        sizes = codes.bincount(minlength=k)
        moved = (sums / sizes.clamp(min=1)[:, None]).to(x.dtype)
        if not sizes.all():
            _reseed(x, codes, moved, (sizes == 0).nonzero()[:, 0])
        step = (moved - centers).double().square().sum(1).cumsum(0)[-1]
        centers, before = moved, codes
        codes = _nearest(x, norms, centers)
        changed = (codes != before).nonzero()[:, 0]
        if step <= still or not len(changed):
            break
        _move(sums, x, changed, codes, before)
    return codes, centers


def _move(
    sums: Tensor, x: Tensor, samples: Tensor, to: Tensor, before: Tensor | None = None
) -> None:
    """Adds samples to the sums of their codes, one by one, and takes them from those before."""
    for some in samples.split(max(1, _CACHED // x.shape[1])):
        values = x[some].double()
        # Unlike index_add_, this has one order on a GPU too.
        sums.index_put_((to[some],), values, accumulate=True)
        if before is not None:
            sums.index_put_((before[some],), values.neg_(), accumulate=True)


def _reseed(x: Tensor, codes: Tensor, centers: Tensor, empty: Tensor) -> None:
    """Puts centers that have no samples on those that are farthest from their own."""
    far = (x - centers[codes]).double().square().sum(1)
    order = far.sort(descending=True, stable=True).indices[: len(empty)]
    centers[empty[: len(order)]] = x[order]


def _nearest(x: Tensor, norms: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each sample, the first of those that are equally near.

    One product gives all distances up to rounding; what that leaves open is settled in float64.
    """
    k, d = centers.shape
    half = centers.square().sum(1) / 2
    slack = (norms / 2 + 2 * half.amax()).mul_((d + 4) * _epsilon(x.dtype))
    # How many centers may be the nearest, and the sum of their numbers.
    both = torch.stack([x.new_ones(k), torch.arange(k, dtype=x.dtype, device=x.device)])
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    rows = max(1, _CELLS // k)
    scores = x.new_empty((min(rows, len(x)), k))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        out = torch.addmm(half, part, centers.T, beta=-1, out=scores[: len(part)])
        best = out.amax(1).sub_(slack[start : start + rows])
        count, numbers = both @ out.ge_(best[:, None]).T
        own = codes[start : start + rows].copy_(numbers)
        unsettled = (count > 1).nonzero()[:, 0]
        if len(unsettled):
            exact = _distances(part[unsettled].double(), centers.double())
            own[unsettled] = exact.argmin(1)
    return codes


def _epsilon(dtype: torch.dtype) -> float:
    """How far a product of two numbers within a matrix product may be off, relatively."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return torch.finfo(torch.bfloat16).eps
    return torch.finfo(dtype).eps


def _distances(x: Tensor, centers: Tensor) -> Tensor:
    """Squared distances `[n, k]`, each by its differences, so that equal values have none."""
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").square_()
