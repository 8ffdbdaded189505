"""Which samples activate each unit most?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from modfast import checks, ops
from modfast.ablation.batches import Batch, read_batches
from modfast.features.result import TopActivations, joined
from modfast.features.samples import Data, in_order
from modfast.ops.top import TOP_DTYPES
from modfast.passes import check_batch_first, watching
from modfast.progress import bar
from modfast.sites import resolve_modules, unit_dim

Reduce = Literal["max", "mean"]


def max_activating(
    model: nn.Module,
    data: Data,
    sites: str | Sequence[str],
    k: int = 20,
    *,
    reduce: Reduce = "max",
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, TopActivations]:
    """The k samples that activate each unit of each site most, in one pass over the data.

    The units of a site are the last dimension of its output `[n, ..., d]`; of one with four
    dimensions or more, and of a Conv1d's, dimension 1, the channels. A sample's activation is the
    largest over all other dimensions, the positions or tokens. Forward passes but the first end
    where all sites have been reached.

    Args:
        model: runs in eval mode, without gradients, and is left as it was.
        data: samples as a tensor `[n, ...]`, a pair of tensors (samples, targets), a Dataset or a
            DataLoader, of samples or of pairs. Whatever the order in which a DataLoader draws,
            samples are read in the order of their indices in its data set, in batches of its size
            and by as many workers: those that its sampler draws in one pass, each once, and those
            too that it would drop from an incomplete batch. Samples of an IterableDataset are
            numbered as they come.
        sites: names or patterns of modules.
        k: samples for each unit, at most as many as there are.
        reduce: "max", or "mean" over the positions.
        batch_size: of data that are no DataLoader; 4096 by default.
        progress: show a progress bar, where standard error is a terminal.

    Returns:
        The result for each site by name. It is the same for any batch size whose forward passes
        give the same activations, and for any number of threads. Under torch.distributed every
        rank must call, and gets the result for the samples of all: data that are no DataLoader are
        shared out among the ranks, and a DataLoader's sampler (DistributedSampler) says which are
        whose.

    Raises:
        TypeError: data of another kind, a site that returns no floating tensor.
        ValueError: an unknown site (the nearest are listed), one that is not reached, called
            several times or not batch-first; `k` above the number of samples; no samples;
            activations that are NaN, or infinite among the largest.

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
    """
    k = checks.count("k", k)
    if reduce not in get_args(Reduce):
        raise ValueError(f"reduce must be one of {get_args(Reduce)}, got {reduce!r}")
    modules = resolve_modules(model, sites, "sites")
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    samples = in_order(data, batch_size, (dist.get_rank(), ranks) if ranks > 1 else (0, 1))
    if ranks == 1 and samples.n is not None and k > samples.n:
        raise ValueError(f"k must be at most {samples.n}, the samples, got {k}")

    collectors = {name: _Collector(name, each, k, reduce) for name, each in modules.items()}
    targets: list[Tensor] = []
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    first = 0

    def see(name: str, output: Tensor) -> None:
        collectors[name].take(output, first, n)

    if samples.n != 0:
        shown = bar(samples.batches, "max_activating", progress)
        with watching(model, modules, see) as run:
            # NaN shows in the activations, where finding it costs nothing.
            for batch in read_batches(shown, None, device, finite=False):
                n = _rows(batch)
                run(*batch.args, **batch.kwargs)
                if batch.targets is not None:
                    targets.append(batch.targets)
                first += n
    labels = torch.cat(targets).cpu() if targets else None
    found = {
        name: each.result(samples.indices, labels)
        for name, each in collectors.items()
        if each.values is not None
    }
    if ranks > 1:
        found = _of_all_ranks(found, ranks)
    for name, top in found.items():
        if (top.indices < 0).any():
            most = int((top.indices >= 0).sum(1).min())
            raise ValueError(f"k must be at most {most}, the samples, got {k}")
        checks.finite(f"the largest activations of {name!r}", top.values)
    return found


class _Collector:
    """The largest activations of a site so far."""

    def __init__(self, name: str, module: nn.Module, k: int, reduce: Reduce) -> None:
        self.name, self.module, self.k, self.reduce = name, module, k, reduce
        self.values: Tensor | None = None
        self.positions: Tensor | None = None

    def take(self, output: Tensor, first: int, n: int) -> None:
        """Takes up the site's output for the samples from `first` on."""
        name = self.name
        if not output.is_floating_point() or output.dim() < 2:
            raise TypeError(
                f"sites={name!r}: must return a floating tensor [n, ..., units], got "
                f"{output.dtype} of shape {list(output.shape)}"
            )
        check_batch_first(name, output, n)
        activations = output if output.dtype in TOP_DTYPES else output.float()
        dim = unit_dim(output, self.module)
        positions = [d for d in range(1, output.dim()) if d != dim]
        if positions:
            over = activations.amax if self.reduce == "max" else activations.mean
            activations = over(positions)
        if self.values is None or self.positions is None:
            shape = activations.shape[1], self.k
            self.values = activations.new_full(shape, -torch.inf)
            self.positions = activations.new_full(shape, -1, dtype=torch.int64)
        n_nan = int(ops.update_top_(self.values, self.positions, activations, first))
        if n_nan:
            raise ValueError(
                f"activations of {name!r} must be numbers, got {n_nan} of {activations.numel()} "
                "values NaN"
            )

    def result(self, indices: Tensor | None, labels: Tensor | None) -> TopActivations:
        """With the indices and labels of the samples in place of their positions."""
        assert self.values is not None
        assert self.positions is not None
        values, positions = self.values.cpu(), self.positions.cpu()
        found = positions
        if indices is not None:
            found = indices[positions.clamp(min=0)].masked_fill(positions < 0, -1)
        of_each = None if labels is None else labels[positions.clamp(min=0)]
        return TopActivations(found, values, of_each)


def _rows(batch: Batch) -> int:
    tensors = [x for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor)]
    if not tensors or tensors[0].dim() == 0:
        raise TypeError("data must give tensors with a row for each sample")
    return len(tensors[0])


def _of_all_ranks(own: dict[str, TopActivations], ranks: int) -> dict[str, TopActivations]:
    """Objects and not tensors are gathered: a rank without samples does not know any shape."""
    gathered: list[dict[str, TopActivations]] = [{}] * ranks
    dist.all_gather_object(gathered, own)
    names = dict.fromkeys(name for each in gathered for name in each)
    return {name: joined([each[name] for each in gathered if name in each]) for name in names}
