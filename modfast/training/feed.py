"""The samples that a network is trained or tested on, in memory or read anew in each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modfast.network.inputs import Batch, tensors_in
from modfast.network.logits import IGNORED
from modfast.network.samples import read_data

_SIZE = 64


class Feed:
    """Batches of samples with targets, on the model's device.

    Raises:
        TypeError, ValueError: as `read_data`; what can be read once only; a batch size beside
            batches; tensors in memory of several numbers of rows.
    """

    def __init__(self, model: nn.Module, data: Any, argument: str, size: int | None = None) -> None:
        self.model, self.data, self.argument = model, data, argument
        if isinstance(data, Iterator):
            raise TypeError(
                f"{argument} must be a pair (inputs, targets), a Dataset or a DataLoader, which "
                f"can be read in each epoch, got {type(data).__name__}"
            )
        if isinstance(data, list) and len(data) == 2 and isinstance(data[0], Tensor):
            data = tuple(data)
        self.whole: Batch | None = None
        """All samples, where they are tensors in memory."""
        self.n: int | None = None
        """How many samples, where that is known and none is left out."""
        self.size: Any = _SIZE if size is None else size
        if isinstance(data, (tuple, Mapping, Tensor)):
            (self.whole,) = read_data(model, data, argument)
            for a, b in pairwise(self.tensors):
                if a.dim() == 0 or b.dim() == 0 or len(a) != len(b):
                    raise ValueError(
                        f"{argument} must have one number of rows, got tensors of shapes "
                        f"{tuple(a.shape)} and {tuple(b.shape)}"
                    )
            self.n = self.whole.n_samples
        elif isinstance(data, Dataset):
            self.n = None if isinstance(data, IterableDataset) else len(data)  # type: ignore[arg-type]
        else:
            if size is not None:
                raise ValueError(
                    f"batch_size must be None where {argument} is a {type(data).__name__}, "
                    f"got {size}"
                )
            self.size = getattr(data, "batch_size", None)
            if isinstance(data, DataLoader) and self.size and not data.drop_last:
                sampler: Any = data.sampler
                self.n = None if isinstance(data.dataset, IterableDataset) else len(sampler)

    @property
    def tensors(self) -> list[Tensor]:
        """Inputs and targets in memory."""
        whole = self.whole
        return [] if whole is None else tensors_in((whole.args, whole.kwargs, whole.targets))

    @property
    def plain(self) -> bool:
        """Whether all its samples are one tensor in memory, and all of them count."""
        whole = self.whole
        y = None if whole is None else whole.targets
        if whole is None or y is None or whole.kwargs or len(whole.args) != 1:
            return False
        classes = y.dtype == torch.int64 and y.dim() == 1 and not bool((y == IGNORED).any())
        return isinstance(whole.args[0], Tensor) and (classes or y.is_floating_point())

    @property
    def leaves_one(self) -> bool:
        """Whether an epoch's last batch is one sample."""
        return bool(self.n and self.size) and (self.n % self.size or min(self.size, self.n)) == 1

    def __iter__(self) -> Iterator[Batch]:
        """All, in order."""
        if self.whole is not None:
            yield self.whole
        else:
            yield from read_data(self.model, self.data, self.argument)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """All once: shuffled by the generator, but for a stream, which has an order of its own."""
        data = self.data
        if self.whole is None and not isinstance(data, Dataset):
            yield from read_data(self.model, data, self.argument)
            return
        own = torch.Generator("cpu")  # so that a loader draws no other random numbers
        if isinstance(data, IterableDataset):
            loader = DataLoader(data, self.size, generator=own)
            yield from read_data(self.model, loader, self.argument)
            return
        assert self.n is not None
        order = torch.randperm(self.n, generator=generator, device="cpu")
        if self.whole is None:
            batches: Any = [each.tolist() for each in order.split(self.size)]
            loader = DataLoader(data, batch_sampler=batches, generator=own)
            yield from read_data(self.model, loader, self.argument)
            return
        args, kwargs, targets = self.whole.args, self.whole.kwargs, self.whole.targets
        assert targets is not None
        order = order.to(targets.device)
        # The smallest networks' steps take little longer than a general reading of inputs.
        x = args[0] if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs else None
        for index in order.split(self.size):
            if x is None:
                yield self.whole.rows(index)
            else:
                yield Batch((x.index_select(0, index),), {}, targets.index_select(0, index))
