"""Does a module know its own next part better than the rest of the layer does?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from modfast import checks, plots
from modfast._renamed import renamed
from modfast.information import notebook, soft
from modfast.information.binning import Binning, Range, matrix
from modfast.information.counts import Terms
from modfast.network.names import nearest
from modfast.network.units import read_indices
from modfast.precision import precise, product
from modfast.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Module: TypeAlias = Mapping[str, Tensor | Sequence[int]]
Estimator: TypeAlias = Literal["binned", "soft"] | Callable[..., Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class ModularityMeasures(Result):
    """The three measures of a module for each pair of sites, `[pairs]`; see `modularity_measures`.

    For a list of modules each is `[modules, pairs]`. They stay on the activations' device; those of
    estimator="soft" have gradients.

    Example:
        >>> import torch
        >>> measures = ModularityMeasures(*torch.zeros(3, 1), pairs=(("fc1", "fc2"),))
        >>> measures.c1
        tensor([0.])
    """

    c1: Tensor
    """H(second | l1 without P) - H(second) = -I(second; l1 without P)."""
    c2: Tensor
    """H(second | l1) - H(second | l1 in P) = I(second; l1 in P) - I(second; l1)."""
    c3: Tensor
    """H(second | l1) - H(second | l1 without P) = I(second; l1 without P) - I(second; l1)."""
    pairs: tuple[tuple[str, str], ...]
    """The pairs' sites."""

    def plot(self, untrained: ModularityMeasures | None = None) -> Figure:
        """Sums over modules as heat maps, beside those of an untrained network if given."""
        if untrained is None:
            return self.overlay({"network": self})
        return self.overlay({"trained": self, "untrained": untrained})

    @classmethod
    def overlay(cls, results: Mapping[str, ModularityMeasures]) -> Figure:
        """Several networks' sums over modules as heat maps, a row for each network.

        Raises:
            TypeError: other values than results.
            ValueError: none, or for different pairs of sites.
        """
        named = cls.by_name(results)
        all_pairs = {each.pairs for each in named.values()}
        if len(all_pairs) > 1:
            raise ValueError(f"results must be for one list of pairs, got {sorted(all_pairs)}")
        return plots.modularity_measures(
            {name: each.c1 for name, each in named.items()},
            {name: each.c2 for name, each in named.items()},
            {name: each.c3 for name, each in named.items()},
            *all_pairs,
        )


@renamed(module="units")
@precise
def modularity_measures(
    activations: Mapping[str, Tensor],
    units: Module | Sequence[Module],
    pairs: Sequence[tuple[str, str]] | None = None,
    estimator: Estimator = "binned",
    **options: Any,
) -> ModularityMeasures:
    """What the units of a module P in one layer tell about its units in a later one, in nats.

    For layers l1, l2 with second = the units of l2 in P:

        C1 = H(second | l1 without P) - H(second)
        C2 = H(second | l1) - H(second | l1 in P)
        C3 = H(second | l1) - H(second | l1 without P)

    Each site's activations are binned once, over all its units, and every entropy is that of pooled
    counts: every unit of second against every unit of the given group (pairing="all" of
    `conditional_entropy`).

    Args:
        activations: `[n, d]` by site, as `capture` gives them.
        units: those of the module, as indices by site, for every site in `pairs`; or a list of
            such modules.
        pairs: pairs of sites; by default each site with the next, then the first with the last.
        estimator: "binned"; "soft", the same with the soft bins of `soft_mutual_information`, and
            differentiable; or any function of two groups `(x [n, dx], y [n, dy])` that gives their
            information as a scalar, such as `gaussian_mutual_information`.
        options: for "binned" `bins`, `range`, `rule` and `outside` of `digitize`. rule="notebook"
            bins each group by itself and pairs second with the first units of it, in the order in
            which `units` names them, as the source notebook did. For "soft" `bins`, `range`,
            `window` and `kernel`. Else options of the function.

    Returns:
        C1, C2 and C3, each `[pairs]`, or `[modules, pairs]` for a list.

    Raises:
        TypeError: activations, units or estimator of another kind.
        ValueError: unknown sites, indices that are out of range, repeated or none, a module that
            is the whole of a first site; what the estimator refuses.

    Source: N0, the modularity-metric notebook.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> fc1 = torch.randn(1000, 4)
        >>> fc2 = torch.cat([fc1[:, :2].sum(1, keepdim=True), torch.randn(1000, 1)], dim=1)
        >>> found = modularity_measures({"fc1": fc1, "fc2": fc2}, {"fc1": [0, 1], "fc2": [0]})
        >>> found.pairs, bool(found.c2 > 0.1), bool(found.c3 < 0)
        ((('fc1', 'fc2'),), True, True)
    """
    sites = _sites(activations)
    chosen_pairs = _pairs(pairs, list(sites))
    if not isinstance(units, (Mapping, Sequence)):
        raise TypeError(f"units must be a mapping or a list of them, got {type(units).__name__}")
    modules = [units] if isinstance(units, Mapping) else list(units)
    if not modules:
        raise ValueError("units must hold at least one module, got an empty list")
    parts = [_parts(each, sites, chosen_pairs) for each in modules]
    checks.estimator(estimator, "binned", "soft")
    if estimator == "binned":
        binning = Binning(**options)
        binned = _notebook if binning.rule == "notebook" else _binned
        information = binned(sites, parts, chosen_pairs, binning)
    elif estimator == "soft":
        information = _soft(sites, parts, chosen_pairs, **options)
    else:
        assert callable(estimator)
        checks.takes_pair("estimator", estimator, options)
        information = _each(sites, parts, chosen_pairs, partial(estimator, **options))
    whole, inside, outside = information.unbind(-1)
    found = -outside, inside - whole, outside - whole
    c1, c2, c3 = (each[0] for each in found) if isinstance(units, Mapping) else found
    return ModularityMeasures(c1, c2, c3, chosen_pairs)


_Parts: TypeAlias = dict[str, Tensor]
"""By site, the indices of units in the module."""
_Pairs: TypeAlias = tuple[tuple[str, str], ...]

_CELLS = 2**22
"""Numbers held at a time for a site: more samples are taken in parts."""


def _binned(
    sites: dict[str, Tensor], modules: list[_Parts], pairs: _Pairs, binning: Binning
) -> Tensor:
    """Information of second with all of l1, with l1 in P and without: `[modules, pairs, 3]`."""
    codes = {site: binning.codes(f"activations[{site!r}]", sites[site]) for site in _used(pairs)}
    rows = max(1, _CELLS // (len(modules) * binning.bins))
    count = partial(_counts, binning.bins)
    tables = sites[pairs[0][0]].new_zeros((), dtype=torch.float64)
    for start in range(0, len(next(iter(codes.values()))), rows):
        part = {site: each[start : start + rows] for site, each in codes.items()}
        tables = tables + _tables(part, modules, pairs, count)
    return Terms.of_counts(tables).mutual


def _counts(bins: int, codes: Tensor, groups: list[Tensor]) -> Tensor:
    """How many units of a group have a code in a sample: `[groups, n, bins]`."""
    n, device = len(codes), codes.device
    sizes = torch.tensor([len(units) for units in groups], device=device)
    owner = torch.arange(len(groups), dtype=torch.int32, device=device).repeat_interleave(sizes)
    cells = torch.arange(0, n * bins, bins, dtype=torch.int32, device=device)[:, None]
    cells = cells + owner * (n * bins) + codes.index_select(1, torch.cat(groups))
    counts = cells.flatten().bincount(minlength=len(groups) * n * bins)
    return counts.double().reshape(len(groups), n, bins)


def _soft(
    sites: dict[str, Tensor],
    modules: list[_Parts],
    pairs: _Pairs,
    bins: int = 10,
    range: Range = "global",
    window: float = 1.0,
    kernel: soft.Kernel = "b-spline",
) -> Tensor:
    """As `_binned`, differentiable."""
    binning = Binning(bins, range)
    weights = {
        site: soft.weights(f"activations[{site!r}]", sites[site], binning, window, kernel)
        for site in _used(pairs)
    }

    def sums(weights: Tensor, groups: list[Tensor]) -> Tensor:
        return torch.stack([weights.index_select(1, units).sum(1) for units in groups])

    return soft.information(_tables(weights, modules, pairs, sums))[1]


def _tables(
    units: dict[str, Tensor],
    modules: list[_Parts],
    pairs: _Pairs,
    sums: Callable[[Tensor, list[Tensor]], Tensor],
) -> Tensor:
    """Tables of second with all of l1, l1 in P and without: `[modules, pairs, 3, bins, bins]`.

    A table of all units of one group with all of another is, over the samples, a product of `sums`:
    how many units of each group lie in each bin, `[groups, n, bins]`.
    """
    inside = {site: sums(each, [parts[site] for parts in modules]) for site, each in units.items()}
    whole = {}
    for first in dict.fromkeys(first for first, _ in pairs):
        every = torch.arange(units[first].shape[1], device=units[first].device)
        whole[first] = sums(units[first], [every])
    tables = []
    for first, second in pairs:
        of_second = inside[second].transpose(1, 2)
        every = whole[first].expand(len(of_second), -1, -1)
        both, own = product(of_second, every), product(of_second, inside[first])
        # Tables add up over units, so that of those outside the module is a difference.
        tables.append(torch.stack([both, own, both - own], dim=1))
    return torch.stack(tables, dim=1)


def _notebook(
    sites: dict[str, Tensor], modules: list[_Parts], pairs: _Pairs, binning: Binning
) -> Tensor:
    """As `_binned`, with H(second) and H(second | ...) of the notebook."""
    entropies = []
    for parts in modules:
        each = {
            site: notebook.entropy(f"activations[{site!r}]", sites[site][:, parts[site]], binning)
            for site in {second for _, second in pairs}
        }
        entropies.append(torch.stack([each[second] for _, second in pairs]))
    conditional = partial(notebook.conditional_entropy, binning=binning)
    return torch.stack(entropies)[..., None] - _each(sites, modules, pairs, conditional)


def _each(
    sites: dict[str, Tensor],
    modules: list[_Parts],
    pairs: _Pairs,
    estimate: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """An estimator's values for all of l1, l1 in P and without: `[modules, pairs, 3]`."""
    found = []
    for parts in modules:
        for first, second in pairs:
            x, y = sites[second].index_select(1, parts[second]), sites[first]
            outside = torch.ones(y.shape[1], dtype=torch.bool, device=y.device)
            outside[parts[first]] = False
            for group in (y, y.index_select(1, parts[first]), y[:, outside]):
                found.append(checks.scalar("estimator", estimate(x, group)))
    return torch.stack(found).reshape(len(modules), len(pairs), 3)


def _used(pairs: _Pairs) -> list[str]:
    return list(dict.fromkeys(site for pair in pairs for site in pair))


def _sites(activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(activations, Mapping):
        raise TypeError(f"activations must be a mapping, got {type(activations).__name__}")
    sites = {
        site: matrix(f"activations[{site!r}]", each, differentiable=True)
        for site, each in activations.items()
    }
    sizes = {site: len(each) for site, each in sites.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"activations must have the same samples at each site, got {sizes}")
    return sites


def _pairs(pairs: Sequence[tuple[str, str]] | None, sites: list[str]) -> _Pairs:
    if pairs is None:
        if len(sites) < 2:
            raise ValueError(f"activations must have at least two sites, got {sites}")
        wide = [(sites[0], sites[-1])] if len(sites) > 2 else []
        return (*pairwise(sites), *wide)
    pairs = checks.several("pairs", pairs)
    if not pairs:
        raise ValueError("pairs must hold at least one pair of sites, got none")
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise TypeError(f"pairs must be pairs of sites, got {pair!r}")
        for site in pair:
            if checks.text("pairs", site) not in sites:
                raise ValueError(f"pairs: no such site {site!r}; {nearest(site, sites)}")
    return tuple((first, second) for first, second in pairs)


def _parts(module: Module, sites: dict[str, Tensor], pairs: _Pairs) -> _Parts:
    if not isinstance(module, Mapping):
        raise TypeError(
            f"units must be a mapping of sites to unit indices, got {type(module).__name__}"
        )
    parts: _Parts = {}
    for site in _used(pairs):
        if site not in module:
            raise ValueError(f"units must name units of site {site!r}, got {list(module)}")
        device, d = sites[site].device, sites[site].shape[1]
        parts[site] = read_indices(f"units[{site!r}]", module[site], d).to(device)
        if len(parts[site]) == d and any(site == first for first, _ in pairs):
            raise ValueError(
                f"units[{site!r}] must leave out some unit of the first site of a pair, got all {d}"
            )
    return parts
