"""What `data` are: samples with targets, as a pair, a data set or a loader. The one reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from modfast import checks
from modfast.network.inputs import Batch, mapped, read_batches, tensors_in

# A loader's options that say how samples are read, and not which.
_READING = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "prefetch_factor"),
)
_SIZE = 4096  # of batches, where nothing says it

Data: TypeAlias = Tensor | tuple[Any, Any] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]


def read_data(
    model: nn.Module, data: Data | Iterable[Any], argument: str = "data"
) -> Iterator[Batch]:
    """Batches of samples with targets, on the model's device.

    Args:
        model: what they are for.
        data: a pair (inputs, targets), or a mapping of inputs with `labels`, which make one batch;
            a Dataset, of which batches are made in its order; a DataLoader, whose batches come as
            it draws them, or any iterable of batches. Inputs are what `read_batches` takes.
        argument: the caller's name for the data.

    Raises:
        TypeError, ValueError: as `read_batches`; a batch without targets, another number of
            samples than of targets.
    """
    stream: Any = data
    if isinstance(data, Dataset):
        stream = DataLoader(data, _SIZE, generator=torch.Generator("cpu"))
    elif isinstance(data, (tuple, Mapping)):
        if isinstance(data, tuple) and len(data) != 2:
            raise TypeError(f"{argument} must be a pair (inputs, targets), got {len(data)} of them")
        stream = [data]
    elif isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"{argument} must be a pair (inputs, targets), a Dataset or a DataLoader, "
            f"got {type(data).__name__}"
        )
    for batch in read_batches(model, stream, argument=argument):
        if batch.targets is None:
            raise ValueError(f"{argument} must be samples with targets, got a batch without")
        if batch.targets.is_complex() or batch.targets.dtype == torch.bool:
            raise TypeError(
                f"{argument} must have integer classes or real values as targets, "
                f"got {batch.targets.dtype}"
            )
        n = next((len(x) for x in batch.tensors() if x.dim()), 0)
        if n == 0:
            raise ValueError(f"{argument} must not be empty, got no tensor with a row per sample")
        if batch.targets.dim() == 0 or n != len(batch.targets):
            raise ValueError(
                f"{argument} must be as many samples as targets, got {n} and "
                f"{tuple(batch.targets.shape)}"
            )
        yield batch


@dataclass(frozen=True)
class Samples:
    """Batches of samples, and which they are."""

    batches: Iterable[Any]
    n: int | None
    """How many samples; None of a stream."""
    indices: Tensor | None
    """Each one's index in the data set, int64 `[n]`, ascending; None for 0, 1, ..."""
    n_batches: int | None = None
    """How many batches are this process's own. The others do what other processes do meanwhile."""


def in_order(
    data: Data,
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
    most: Callable[[int], int] = lambda n: n,
) -> Samples:
    """The samples of `data` in the order of their indices, each once, with targets or without.

    Of (part, of) = `share`, every `of`-th batch from batch `part` on; of a DataLoader its sampler
    already says which samples are this process's. `most` gives the largest number of batches of any
    process: as many are made, of the data set's first sample where there are no others.

    Raises:
        TypeError: data of another kind.
        ValueError: no samples; a DataLoader that leaves batching to its data set; a batch size
            beside a DataLoader; a stream to be shared.
    """
    part, of = share
    loader = data if isinstance(data, DataLoader) else None
    if loader is not None and batch_size is not None:
        raise ValueError(f"batch_size must be None with a DataLoader, got {batch_size}")
    size = _SIZE if batch_size is None else checks.count("batch_size", batch_size)
    held = _held(data)
    for tensor in () if held is None else tensors_in(held):
        checks.dense("data", tensor)
    dataset: Any = data if loader is None else loader.dataset
    if isinstance(dataset, IterableDataset):
        if of > 1:
            raise ValueError(
                "data must not be an IterableDataset under torch.distributed: its samples have no "
                "indices that the ranks agree on"
            )
        return Samples(DataLoader(dataset, size) if loader is None else loader, None, None)
    batches: list[range | Tensor]
    indices = None
    if loader is not None:
        drawn = _drawn(loader)
        batches = [*drawn]
        indices = torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *drawn])
    else:
        n = len(dataset) if held is None else len(tensors_in(held)[0])
        batches = [*_split(n, size)[part::of]]
        if of > 1:
            every = torch.arange(n, device="cpu")
            indices = torch.cat([every[:0], *(every[x.start : x.stop] for x in batches)])  # type: ignore[union-attr]
    n, n_batches = sum(map(len, batches)), len(batches)
    n_most = most(n_batches)
    if n_most == 0:
        kind = "0 samples" if loader is None else "a DataLoader without samples"
        raise ValueError(f"data must not be empty, got {kind}")
    batches += [range(1)] * (n_most - n_batches)
    if held is not None:
        return Samples(_Slices(held, batches), n, indices, n_batches)
    options: dict[str, Any] = {}
    if loader is not None:
        options = {name: getattr(loader, name) for name in _READING}
    # A generator of its own: torch's global one is left alone.
    generator = torch.Generator("cpu")
    order: Any = [torch.as_tensor(batch, device="cpu").tolist() for batch in batches]
    reader = DataLoader(dataset, batch_sampler=order, generator=generator, **options)
    return Samples(reader, n, indices, n_batches)


@dataclass(frozen=True)
class _Slices:
    """Batches of tensors in memory."""

    held: Any
    batches: Sequence[range | Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            first, last = int(batch[0]), int(batch[-1])
            together = last - first + 1 == len(batch)
            chosen = slice(first, last + 1) if together else batch
            yield mapped(lambda tensor: tensor[chosen], self.held)  # noqa: B023


def _held(data: Data) -> Any:
    """Data that are tensors in memory, as one batch of all samples; None of others.

    Raises:
        TypeError: data of another kind.
        ValueError: tensors without rows, or of several numbers of them.
    """
    found: Any = None
    if isinstance(data, DataLoader):
        whole = data.collate_fn is default_collate and type(data.dataset) is TensorDataset
        return data.dataset.tensors if whole and isinstance(data.dataset, TensorDataset) else None
    if isinstance(data, Dataset):
        return data.tensors if type(data) is TensorDataset else None
    if isinstance(data, Tensor):
        found = (data,)
    elif isinstance(data, Mapping):
        found = dict(data)
    elif isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor):
        found = data
    else:
        raise TypeError(
            "data must be a tensor, a pair (inputs, targets), a mapping of inputs, a Dataset or a "
            f"DataLoader, got {type(data).__name__}"
        )
    tensors = tensors_in(found)
    if any(tensor.dim() == 0 for tensor in tensors):
        raise ValueError("data must have a row for each sample, got a tensor of no dimension")
    numbers = list(dict.fromkeys(map(len, tensors)))
    if len(numbers) != 1:
        what = "as many samples as targets" if isinstance(data, tuple) else "one number of rows"
        raise ValueError(f"data must have {what}, got {' and '.join(map(str, numbers)) or 'none'}")
    return found


def _split(n: int, size: int) -> list[range]:
    """0 to n - 1 in batches. The first is what the others leave over, as its pass takes longest."""
    ends = range((n - 1) % size + 1, n + 1, size) if n else ()
    return [range(max(0, end - size), end) for end in ends]


def _drawn(loader: DataLoader[Any]) -> tuple[Tensor, ...]:
    """The samples that a loader would give in one pass, in order, in batches of its size.

    Those that it would drop since they do not fill a batch are among them.
    """
    if loader.batch_sampler is None:
        raise ValueError("data must be a DataLoader that makes batches, got one of batch_size=None")
    if loader.batch_size is None:
        drawn = [list(batch) for batch in loader.batch_sampler]
        size, order = max(map(len, drawn), default=1), list(chain.from_iterable(drawn))
    else:
        size, order = loader.batch_size, list(loader.sampler)
    return torch.tensor(order, device="cpu").unique().split(size) if order else ()
