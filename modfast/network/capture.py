"""Running a model to see what it has at some sites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.network.inputs import Batch, Inputs, Targets, is_stream, read_batches
from modfast.network.names import modules_of
from modfast.network.run import running
from modfast.network.sites import Site, resolve_sites
from modfast.network.state import AllSeenError
from modfast.network.stored import storing
from modfast.network.visits import Visit, at_sites, checked
from modfast.progress import bar

See = Callable[[Site, Tensor], None]


def capture(
    model: nn.Module,
    inputs: Inputs,
    sites: str | Sequence[str],
    *,
    batch_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """What a model has at chosen sites.

    The model runs in eval mode and without gradients, with its hooks, under the caller's autocast,
    and is left as it was. The results are copies: what the model later does to a value in place
    (``ReLU(inplace=True)``) does not show in them.

    Args:
        model: any module.
        inputs: one batch: a tensor, a tuple of positional inputs or a mapping of keyword inputs;
            or a stream of batches, whose values are put together. Targets are not needed.
        sites: names of places, or patterns of modules. A pattern leaves out what it matches that
            the model does not call just once, or that returns no one tensor.
        batch_size: rows in one pass; by default one pass takes a whole batch. All tensors among
            the inputs are cut along dimension 0, everything else goes into each pass as it is.
        out: a folder, for values that do not fit in memory. Each site's go batch by batch into a
            file of NumPy's there, `numpy.load(path, mmap_mode="r")`, named by
            `urllib.parse.quote(site, safe="")` and `.npy`. Files of these names are replaced, all
            at the end; nothing is left of a call that fails. What NumPy has no dtype for, such as
            bfloat16, is there in bits: `torch.from_numpy(bits).view(torch.bfloat16)`.
        progress: show a progress bar over a stream, where standard error is a terminal.

    Returns:
        Each site's value by name, with the model's dtype, in the order in which modules register:
        after ``[n, ...]`` flattened inputs ``[n, d]``, of a convolution ``[n, c, h, w]``. With
        `out`, on the CPU and mapped into memory: what is done to them does not reach the files.

    Raises:
        OSError: the files of `out` cannot be written, as where the disk is full; it names one.
        TypeError: inputs or sites of another type, a site that has no one tensor.
        ValueError: an unknown site (the nearest are listed), one that is not reached or several
            times; inputs that are empty, not finite or that the model cannot take; a batch size
            beside a stream, or where inputs differ in rows; values of several passes that are not
            batch-first.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 5, 3])
        >>> found = modfast.capture(model, torch.zeros(100, 8), ["fc1:input", "fc*"], batch_size=32)
        >>> {name: tuple(value.shape) for name, value in found.items()}
        {'fc1:input': (100, 8), 'fc1': (100, 5), 'fc2': (100, 3)}

        Of a DataLoader, or any other stream, to files:

        >>> import tempfile
        >>> stream, folder = (torch.randn(10, 8) for _ in range(7)), tempfile.mkdtemp()
        >>> modfast.capture(model, stream, "fc1", out=folder)["fc1"].shape
        torch.Size([70, 5])
    """
    folder = None if out is None else checks.path("out", out, folder=True)
    places = resolve_sites(model, sites)
    parts: dict[str, list[Tensor]] = {site.name: [] for site in places}

    def keep(site: Site, value: Tensor) -> None:
        parts[site.name].append(value.clone())

    whole = batch_size is None and not is_stream(inputs)
    store = nullcontext() if folder is None else storing(folder)
    with store as stored, watching(model, places, keep) as run:
        for batch in read_passes(model, inputs, None, batch_size, progress):
            found = run(batch)
            for site in found:
                if not whole:
                    value, n = parts[site.name][-1], batch.n_samples
                    check_batch_first(site, value, n, "of several passes, ")
                if stored is not None:
                    stored.add(site.name, parts[site.name].pop())
        if stored is not None:
            stored.keep([site.name for site in found])
    if stored is not None:
        return {site.name: stored.tensor(site.name) for site in found}
    return {site.name: _joined(site, parts[site.name]) for site in found}


def _joined(site: Site, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = list(dict.fromkeys(tuple(part.shape) for part in parts))
        raise ValueError(
            f"sites={site.name!r}: batches must give values of one shape, got {shapes[:5]}"
        )
    return torch.cat(parts)


@contextmanager
def watching(
    model: nn.Module,
    sites: Sequence[Site],
    see: See,
    *,
    to_the_end: bool = False,
    around: AbstractContextManager[object] | None = None,
    argument: str = "inputs",
) -> Iterator[Callable[[Batch], Sequence[Site]]]:
    """Gives a function that runs the model on a batch and shows what it has at sites.

    After a first pass has shown that each is reached just once, a pass ends where all have been,
    and what would follow them is spared.

    Args:
        model: is run as `running` says, without gradients.
        sites: as `modfast.network.sites.resolve_sites` gives them. The function returns those that
            have a value.
        see: is called with each site and its value, which it must not keep: what follows may work
            on it in place.
        to_the_end: no pass ends early, as where processes run one model together.
        around: is entered around each run, and may be again and again.
        argument: the caller's name for the inputs.
    """
    each_once = False
    visits: list[Visit] = []

    def do(site: Site, value: Tensor) -> None:
        with torch._C.DisableTorchFunction():  # what is seen is no part of the run
            see(site, value)
        if each_once and all(each.n_calls for each in visits):
            raise AllSeenError

    with running(model, argument=argument) as run, torch.no_grad():
        hooks = _Early(modules_of(model))

        def once(batch: Batch) -> Sequence[Site]:
            nonlocal sites, each_once
            visits[:] = [Visit(site, partial(do, site), "sites") for site in sites]
            with hooks, around or nullcontext(), at_sites(model, visits):
                run(batch)
            if not hooks.early:
                sites = [each.site for each in checked(visits)]
                each_once = not to_the_end and all(site.call is None for site in sites)
            return sites

        yield once


class _Early:
    """Lets a pass end early, and puts back hooks that the rest of it would have taken off."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.hooks = [
            (own, own.copy())
            for module in modules
            for own in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.early = False
        """Whether the last pass did."""

    def __enter__(self) -> None:
        self.early = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is not None:
            for own, before in self.hooks:
                if own != before:
                    own.clear()
                    own.update(before)
        self.early = kind is AllSeenError
        return self.early


def read_passes(
    model: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    batch_size: int | None = None,
    progress: bool = False,
    argument: str = "inputs",
) -> Iterator[Batch]:
    """The batches of a stream, or those of `batch_size` rows into which one batch is cut.

    Raises:
        TypeError, ValueError: as `read_batches`; a batch size beside a stream, or below 1; tensors
            of several numbers of rows.
    """
    if is_stream(inputs):
        if batch_size is not None:
            raise ValueError(
                f"batch_size must be None where {argument} is a stream, got {batch_size!r}"
            )
        yield from read_batches(model, bar(inputs, "batches", progress), targets, argument=argument)
        return
    size = None if batch_size is None else checks.count("batch_size", batch_size)
    (batch,) = read_batches(model, inputs, targets, argument=argument)
    if size is None:
        yield batch
        return
    shapes = [tuple(tensor.shape) for tensor in batch.tensors()]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            f"batch_size needs {argument} with one number of rows, got shapes {shapes}"
        )
    for start in range(0, shapes[0][0], size):
        yield batch.rows(slice(start, start + size))


def check_batch_first(site: Site, value: Tensor, n: int, why: str = "") -> None:
    """Refuses a site's value that has not one row for each of the input's.

    Raises:
        ValueError: it has another number of rows.
    """
    if value.shape[:1] != (n,):
        raise ValueError(
            f"sites={site.name!r}: {why}values must be batch-first; {n} rows gave shape "
            f"{tuple(value.shape)}"
        )
