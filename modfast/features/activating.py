"""Which samples activate each unit most?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modfast import checks, ops
from modfast.features.result import TopActivations, joined, taken
from modfast.network.capture import check_batch_first, watching
from modfast.network.dims import NotingUnits, unit_dim
from modfast.network.inputs import Batch, read_batches
from modfast.network.names import unwrapped
from modfast.network.samples import Data, in_order
from modfast.network.sites import Site, resolve_sites
from modfast.ops.top import TOP_DTYPES
from modfast.progress import bar

Reduce = Literal["max", "mean"]
_AT_ONCE = 2**22  # values that are looked through for positions


def max_activating(
    model: nn.Module,
    data: Data,
    sites: str | Sequence[str],
    k: int = 20,
    *,
    reduce: Reduce = "max",
    dim: int | None = None,
    batch_size: int | None = None,
    context: int | None = None,
    progress: bool = True,
) -> dict[str, TopActivations]:
    """The k samples that activate each unit of each site most, in one pass over the data.

    The units of a site are the last dimension of what linear layers, attention and their like take
    and return, dimension 1 of what convolutions do. A sample's activation is the largest over all
    other dimensions, the positions or tokens, and the result tells at which; a sample is among the
    k of a unit once, at most. Positions that an attention mask leaves out do not count. Forward
    passes but the first end where all sites have been reached.

    Args:
        model: runs in eval mode, without gradients, and is left as it was.
        data: samples: a tensor `[n, ...]`, a mapping of keyword inputs, a pair of such inputs and
            targets `[n]`, a Dataset or a DataLoader of such. In what order a DataLoader
            draws does not count: samples are read by their indices in its data set, in
            batches of its size and by as many workers: those that its sampler draws in one pass,
            each once, and those too that it would drop from an incomplete batch. Samples of an
            IterableDataset are numbered as they come. Targets are the samples' labels; integers
            for each position, as of a language model, are none.
        sites: names of places, or patterns of modules, as in `capture`.
        k: samples for each unit, at most as many as there are.
        reduce: "max", or "mean" over the positions.
        dim: of the sites' units, where it is another or, beyond three dimensions, not known.
        batch_size: of data that are no DataLoader; 4096 by default.
        context: of models of tokens: how many tokens to each side of the one that activates a unit
            most the result is to hold, with the unit's activation at each. Tokens are the data's
            `input_ids` (of a decoder with an encoder its own), or the first integers `[n, t]`.
        progress: show a progress bar, where standard error is a terminal.

    Returns:
        The result for each site by name. It is the same for any batch size whose forward passes
        give the same activations, and for any number of threads. Under torch.distributed every
        rank must call, and gets the result for the samples of all: data that are no DataLoader are
        shared out among the ranks, and a DataLoader's sampler (DistributedSampler) says which are
        whose. All ranks run the model equally often.

    Raises:
        TypeError: data of another kind, a site that has no floating tensor.
        ValueError: an unknown site (the nearest are listed), one that is not reached, called
            several times or not batch-first; a dimension of units that is not known; data that the
            model cannot take; `k` above the number of samples; no samples; activations that are
            NaN, or infinite among the largest; `context` for data without tokens, a site without
            one position for each, or means.

    Source: N1, which makes a pass over the data for each unit.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 3])
        >>> x, y = torch.randn(100, 8), torch.arange(100) % 3
        >>> top = modfast.max_activating(model, (x, y), "act1", k=5)["act1"]
        >>> top.indices.shape
        torch.Size([6, 5])
        >>> torch.equal(top.labels, y[top.indices])
        True

        Which tokens, among which others:

        >>> embed, tokens = torch.nn.Sequential(torch.nn.Embedding(50, 4)), torch.arange(40)
        >>> top = modfast.max_activating(embed, tokens.view(4, 10), "0", k=2, context=3)["0"]
        >>> top.positions.shape, top.tokens.shape
        (torch.Size([4, 2]), torch.Size([4, 2, 7]))
        >>> torch.equal(top.tokens[..., 3], 10 * top.indices + top.positions)
        True
    """
    k = checks.count("k", k)
    checks.choice("reduce", reduce, get_args(Reduce))
    if context is not None:
        if checks.integer("context", context) < 0:
            raise ValueError(f"context must be at least 0, got {context!r:.40}")
        if reduce == "mean":
            raise ValueError(
                f"context must be None with reduce='mean', which is of no one token, got {context}"
            )
    places = resolve_sites(model, sites)
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks > 1:
        samples = in_order(data, batch_size, (dist.get_rank(), ranks), _most_of_ranks)
    else:
        samples = in_order(data, batch_size)
        if samples.n is not None and k > samples.n:
            raise ValueError(f"k must be at most {samples.n}, the samples, got {k}")

    inner = unwrapped(model)
    collectors = {
        site.name: _Collector(site, inner.get_submodule(site.module), k, reduce, dim, context)
        for site in places
    }
    targets: list[Tensor] = []
    noting = NotingUnits()
    is_own, first = True, 0

    def see(site: Site, value: Tensor) -> None:
        if is_own:
            collectors[site.name].take(value.detach(), first, batch, noting.dims.of(value))

    shown = bar(samples.batches, "max_activating", progress)
    with watching(model, places, see, to_the_end=ranks > 1, around=noting, argument="data") as run:
        # NaN shows in the activations, where finding it costs nothing.
        for i, batch in enumerate(read_batches(model, shown, finite=False, argument="data")):
            is_own = samples.n_batches is None or i < samples.n_batches
            places = [*run(batch)]
            if is_own:
                if batch.targets is not None and _are_labels(batch.targets):
                    targets.append(batch.targets)
                first += batch.n_samples
    labels = torch.cat(targets).cpu() if targets else None
    found = (
        {site.name: collectors[site.name].result(samples.indices, labels) for site in places}
        if first
        else {}
    )
    lost = {name: collectors[name].n_lost(first) for name in found}
    if ranks > 1:
        found, lost = _of_all_ranks(found, lost, ranks)
    for name, top in found.items():
        if (top.indices < 0).any():
            n = int((top.indices >= 0).sum(1).min())
            if lost[name]:
                raise ValueError(
                    f"the {k} largest activations of {name!r} must be finite, got a unit with only "
                    f"{n} above -infinity"
                )
            raise ValueError(f"k must be at most {n}, the samples, got {k}")
        checks.finite(f"the largest activations of {name!r}", top.values)
    return found


def _are_labels(targets: Tensor) -> bool:
    return targets.dim() == 1 or targets.is_floating_point()


class _Collector:
    """The largest activations of a site so far."""

    def __init__(
        self,
        site: Site,
        module: nn.Module,
        k: int,
        reduce: Reduce,
        dim: int | None,
        context: int | None,
    ) -> None:
        self.site, self.module, self.k = site, module, k
        self.reduce, self.dim, self.context = reduce, dim, context
        self.values: Tensor | None = None
        self.samples: Tensor | None = None
        self.found: dict[str, Tensor] = {}
        """What else is told of each, `[d, k, ...]`: its position and the tokens around."""

    def take(self, value: Tensor, first: int, batch: Batch, known: int | None) -> None:
        """Takes up the site's value for the samples from `first` on."""
        name = self.site.name
        if not value.is_floating_point() or value.dim() < 2:
            raise TypeError(
                f"sites={name!r}: must be a floating tensor [n, ..., units], got {value.dtype} "
                f"of shape {tuple(value.shape)}"
            )
        check_batch_first(self.site, value, batch.n_samples)
        dim = unit_dim(value, self.site, self.module, known, self.dim)
        if dim == 0:
            raise ValueError(f"dim must not be 0, the samples of {name!r}, got {self.dim}")
        every = value if value.dtype in TOP_DTYPES else value.float()
        every = every.movedim(dim, -1)
        activations, mask, tokens = every, None, self._tokens(every, batch)
        if value.dim() > 2:
            mask = batch.mask(decoder="decoder" in self.site.module)
            if mask is not None and (mask.shape != every.shape[:2] or bool(mask.all())):
                mask = None
            activations = self._reduced(every, mask)
        if self.values is None or self.samples is None:
            shape = activations.shape[1], self.k
            self.values = activations.new_full(shape, -torch.inf)
            self.samples = activations.new_full(shape, -1, dtype=torch.int64)
        n_nan = int(ops.update_top_(self.values, self.samples, activations, first))
        if n_nan:
            raise ValueError(
                f"activations of {name!r} must be numbers, got {n_nan} of {activations.numel()} "
                "values NaN"
            )
        if value.dim() > 2 and self.reduce == "max":
            self._locate(every, mask, tokens, first)

    def _tokens(self, every: Tensor, batch: Batch) -> Tensor | None:
        """The tokens that windows are of."""
        if self.context is None:
            return None
        tokens = batch.tokens(decoder="decoder" in self.site.module)
        if tokens is None:
            shapes = [(str(x.dtype).removeprefix("torch."), *x.shape) for x in batch.tensors()]
            raise ValueError(
                f"data must hold tokens, integers [n, t], where context is given, got {shapes[:5]}"
            )
        if every.dim() != 3 or every.shape[:2] != tokens.shape:
            raise ValueError(
                f"sites={self.site.name!r}: must have a position for each of the tokens "
                f"{tuple(tokens.shape)} where context is given, got {tuple(every.shape[:-1])}"
            )
        return tokens

    def _reduced(self, activations: Tensor, mask: Tensor | None) -> Tensor:
        """Over positions: `[n, d]` of `[n, ..., d]`."""
        over = list(range(1, activations.dim() - 1))
        if mask is None:
            return activations.amax(over) if self.reduce == "max" else activations.mean(over)
        if not bool(mask.any(1).all()):
            raise ValueError("data must have positions that count in each sample, got none in one")
        kept = mask.reshape(*mask.shape, *[1] * (activations.dim() - 2))
        if self.reduce == "max":
            return activations.masked_fill(~kept, -torch.inf).amax(over)
        n = mask.sum(1) * activations[0, 0, ..., 0].numel()
        return activations.masked_fill(~kept, 0).sum(over) / n[:, None]

    def _locate(
        self, every: Tensor, mask: Tensor | None, tokens: Tensor | None, first: int
    ) -> None:
        """Finds where each of the largest is, for those alone that this batch has brought."""
        assert self.samples is not None
        d, k, width = *self.samples.shape, 2 * (self.context or 0) + 1
        if not self.found:
            self.found["positions"] = self.samples.new_full((d, k), -1)
        if tokens is not None and "tokens" not in self.found:
            checks.room("context", d * k * width * (8 + every.itemsize))
            self.found["tokens"] = self.samples.new_full((d, k, width), -1)
            self.found["activations"] = every.new_full((d, k, width), torch.nan)
        unit, place = (self.samples >= first).nonzero(as_tuple=True)
        if not len(unit):
            return
        # What stays of a unit's list is its beginning, in the same order.
        changed = unit.unique_consecutive()
        before = ((self.samples[changed] < first).cumsum(1) - 1).clamp(min=0)
        for told in self.found.values():
            told[changed] = taken(told[changed], before)
        row = self.samples[unit, place] - first
        order = row.argsort()  # samples lie one after the other in memory
        n_each = max(1, _AT_ONCE // max(every[0, ..., 0].numel(), width))
        for part in order.split(n_each):
            r, u, where = row[part], unit[part], (unit[part], place[part])
            line = every[r, ..., u]
            if mask is not None:
                kept = mask.reshape(*mask.shape, *[1] * (line.dim() - 2))
                line = line.masked_fill(~kept[r], -torch.inf)
            at = line.flatten(1).argmax(1)
            self.found["positions"][where] = at
            if tokens is None:
                continue
            near = at[:, None] + torch.arange(width, device=at.device) - width // 2
            inside = (near >= 0) & (near < line.shape[1])
            near = near.clamp(0, line.shape[1] - 1)
            if mask is not None:
                inside &= mask[r[:, None], near]
            text = tokens[r[:, None], near].long()
            self.found["tokens"][where] = text.masked_fill(~inside, -1)
            self.found["activations"][where] = line.gather(1, near).masked_fill(~inside, torch.nan)

    def n_lost(self, n: int) -> int:
        """How many places are empty though there were samples: their activations are -inf."""
        assert self.samples is not None
        n_found = int((self.samples >= 0).sum(1).min())
        return min(self.k, n) - n_found

    def result(self, indices: Tensor | None, labels: Tensor | None) -> TopActivations:
        """With the samples' indices and labels for their numbers."""
        assert self.values is not None
        assert self.samples is not None
        values, samples = self.values.cpu(), self.samples.cpu()
        found = samples
        if indices is not None:
            found = indices[samples.clamp(min=0)].masked_fill(samples < 0, -1)
        of_each = None if labels is None else labels[samples.clamp(min=0)]
        more = {name: x.cpu() for name, x in self.found.items()}
        return TopActivations(found, values, of_each, **more, backend="model")


def _most_of_ranks(n: int) -> int:
    gathered = [0] * dist.get_world_size()
    dist.all_gather_object(gathered, n)
    return max(gathered)


def _of_all_ranks(
    found: dict[str, TopActivations], lost: dict[str, int], ranks: int
) -> tuple[dict[str, TopActivations], dict[str, int]]:
    """Objects and not tensors are gathered: a rank without samples does not know any shape."""
    gathered: list[tuple[dict[str, TopActivations], dict[str, int]]] = [({}, {})] * ranks
    dist.all_gather_object(gathered, (found, lost))
    names = dict.fromkeys(name for each, _ in gathered for name in each)
    return (
        {name: joined([each[name] for each, _ in gathered if name in each]) for name in names},
        {name: sum(each.get(name, 0) for _, each in gathered) for name in names},
    )
