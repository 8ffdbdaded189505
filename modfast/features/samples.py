"""Samples in the order of their data set, whatever the order in which a loader draws them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from modfast import checks

# A loader's options that say how samples are read, and not which.
_READING = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "prefetch_factor"),
)

Data: TypeAlias = Tensor | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]


@dataclass(frozen=True)
class Samples:
    """Batches of samples, and which they are."""

    batches: Iterable[Any]
    n: int | None
    """How many samples; None of a stream."""
    indices: Tensor | None
    """Each one's index in the data set, int64 `[n]`, ascending; None for 0, 1, ..."""


def in_order(data: Data, batch_size: int | None, share: tuple[int, int] = (0, 1)) -> Samples:
    """The samples of `data` in the order of their indices, each once.

    Of (part, of) = `share`, every `of`-th batch from batch `part` on; of a DataLoader its sampler
    already says which samples are this process's.

    Raises:
        TypeError: data of another kind.
        ValueError: no samples; a DataLoader that leaves batching to its data set; a batch size
            beside a DataLoader; a stream to be shared.
    """
    part, of = share
    loader = data if isinstance(data, DataLoader) else None
    if loader is not None and batch_size is not None:
        raise ValueError(f"batch_size must be None with a DataLoader, got {batch_size}")
    size = 4096 if batch_size is None else checks.count("batch_size", batch_size)
    dataset = _dataset(data)
    if isinstance(dataset, IterableDataset):
        if of > 1:
            raise ValueError(
                "data must not be an IterableDataset under torch.distributed: its samples have no "
                "indices that the ranks agree on"
            )
        return Samples(DataLoader(dataset, size) if loader is None else loader, None, None)
    batches: Sequence[range | Tensor]
    indices = None
    if loader is not None:
        batches = drawn = _drawn(loader)
        indices = torch.cat(drawn)
    else:
        batches = ranges = _split(_size(dataset), size)[part::of]
        if of > 1:
            every = torch.arange(_size(dataset))
            indices = torch.cat([every[:0], *(every[each.start : each.stop] for each in ranges)])
    n = sum(map(len, batches))
    whole = loader is None or loader.collate_fn is default_collate
    if type(dataset) is TensorDataset and whole:
        return Samples(_Slices(dataset, batches), n, indices)
    options: dict[str, Any] = {}
    if loader is not None:
        options = {name: getattr(loader, name) for name in _READING}
    # A generator of its own: torch's global one is left alone.
    generator = torch.Generator()
    order: Any = [torch.as_tensor(batch).tolist() for batch in batches]
    reader = DataLoader(dataset, batch_sampler=order, generator=generator, **options)
    return Samples(reader, n, indices)


@dataclass(frozen=True)
class _Slices:
    """Batches of a data set that is tensors in memory."""

    dataset: TensorDataset
    batches: Sequence[range | Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.batches:
            first, last = int(batch[0]), int(batch[-1])
            together = last - first + 1 == len(batch)
            chosen = slice(first, last + 1) if together else batch
            yield tuple(tensor[chosen] for tensor in self.dataset.tensors)


def _dataset(data: Data) -> Dataset[Any]:
    for tensor in data if isinstance(data, tuple) else (data,):
        if isinstance(tensor, Tensor) and tensor.dim() == 0:
            raise ValueError("data must have a row for each sample, got a tensor of no dimension")
    if isinstance(data, Tensor):
        return TensorDataset(data)
    if isinstance(data, DataLoader):
        found: Dataset[Any] = data.dataset
        return found
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple):
        x, y = checks.pair("data", data)
        if len(x) != len(y):
            raise ValueError(f"data must be as many samples as targets, got {len(x)} and {len(y)}")
        return TensorDataset(x, y)
    raise TypeError(
        "data must be a tensor, a pair of tensors (samples, targets), a Dataset or a DataLoader, "
        f"got {type(data).__name__}"
    )


def _split(n: int, size: int) -> list[range]:
    """0 to n - 1 in batches. The first is what the others leave over, as its pass takes longest."""
    ends = range((n - 1) % size + 1, n + 1, size)
    return [range(max(0, end - size), end) for end in ends]


def _size(dataset: Any) -> int:
    n = len(dataset)
    if n == 0:
        raise ValueError("data must not be empty, got 0 samples")
    return n


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
    if not order:
        raise ValueError("data must not be empty, got a DataLoader without samples")
    return tuple(torch.tensor(order).unique().split(size))
