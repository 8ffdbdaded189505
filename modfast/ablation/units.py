"""What breaks when a unit, a direction or a group of units is removed?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import renamed, warn_renamed
from modfast.ablation.changes import Changes, Directions, Groups, Units
from modfast.ablation.result import AblationResult
from modfast.ablation.sweep import Options, mean_of_site, sweep
from modfast.network.inputs import Inputs, Targets
from modfast.network.logits import Output, check_output
from modfast.network.resume import BACKENDS
from modfast.network.units import Units as UnitGroups
from modfast.network.units import read_groups


@renamed(path="backend")
def ablate_units(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    units: Sequence[int] | Tensor | None = None,
    value: float | str | Tensor = 0.0,
    targets: Targets = None,
    *,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult:
    """What each unit of a site does: sets one at a time to a value.

    With p the class probabilities of the whole network on a sample and q those of the ablated one,
    each ablation gets, in nats and summed over the samples, H(p) - H(q), KL(q | p) and KL(p | q),
    and with targets the loss and the accuracies. What comes before the site runs once.

    Args:
        model: any module that returns logits `[n, ..., c]`. It runs in eval mode, without
            gradients, and is left as it was.
        inputs: its input, a tuple of positional inputs or a mapping of keyword inputs, on its
            device; or a DataLoader of such, or of pairs (input, targets), which is streamed.
        site: a place by name: a module's output, its input (`"fc2:input"`), an item of an output
            (`"attn[0]"`), one of several calls (`"relu#1"`), or a torch function called in a
            module's forward (`"layer1/add#0"`). The units are the last dimension of what is there
            `[n, ..., d]`; of convolutions, their pools and norms dimension 1, the channels.
        units: their indices, all by default.
        value: a number, a tensor `[d]` with one for each unit, or `"mean"`, each unit's mean over
            the samples and positions (a DataLoader is then read twice).
        targets: int64 classes, one for each row of logits; -100 for rows that count nowhere.
        output: picks the logits out of what the model returns.
        dim: the dimension of the units, where the above is wrong.
        per_sample: keep the sums' samples apart.
        max_memory: bytes that the ablations may take at a time, 256 MiB by default; one ablation
            of one batch is the least.
        progress: show a progress bar on long sweeps, where standard error is a terminal.
        backend: how the network is resumed from the site: `"fused"` (linear layers, and activations
            between them, up to the logits), `"vmap"` and `"replay"` (what the run did from the site
            on is done again, for many ablations at once or one by one), `"model"` (the model itself
            runs again, with a hook), which give the same numbers; by default the first that is
            shown to give the model's own logits.

    Raises:
        TypeError: arguments of a wrong type, a site or model without a floating tensor as output.
        ValueError: an unknown site (the nearest are listed), one that is not reached or called
            several times, a unit out of range, values that do not fit, inputs, values or logits
            that are not finite, targets out of range.

    Source: N0, which clones the network and runs it whole for each unit, adds 1e-8 to each
    probability under the logarithm, and sums KL(q | p).

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> result = modfast.ablate_units(model, torch.randn(20, 8), "act2")
        >>> result.kl_ablated_original.shape
        torch.Size([6])
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend)
    mean = _mean(model, inputs, site, value, options)

    def make(activations: Tensor) -> Changes:
        d = activations.shape[-1]
        values = _values(value if mean is None else mean, activations)
        if units is None:
            return Units(torch.arange(d, device=values.device), values, in_order=True)
        return Units(_indices("units", units, d).to(values.device), values)

    return sweep(model, inputs, site, make, targets, options)


@renamed(path="backend")
def ablate_directions(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    directions: Tensor,
    targets: Targets = None,
    *,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult:
    """What each direction of a site's activations does: turns a into a - (a·v) v, one at a time.

    `directions` stand one a row, `[a, d]`, and each is divided by its length first. The other
    arguments, the result and the errors are those of `ablate_units`; besides,

    Raises:
        TypeError: directions that are no floating tensor.
        ValueError: directions of another width than the site, not finite, or zero.

    Source: N0, its ablation of random directions.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, eye = torch.randn(20, 8), torch.eye(6)
        >>> directions = modfast.ablate_directions(model, x, "act2", eye)
        >>> units = modfast.ablate_units(model, x, "act2")
        >>> torch.allclose(directions.kl_ablated_original, units.kl_ablated_original)
        True
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend)
    checks.floating("directions", directions)

    def make(activations: Tensor) -> Changes:
        if directions.dim() != 2 or directions.shape[1] != activations.shape[-1]:
            raise ValueError(
                f"directions must have shape [a, {activations.shape[-1]}], the width of "
                f"{site!r}, got {tuple(directions.shape)}"
            )
        if len(directions) == 0:
            raise ValueError("directions must not be empty")
        # In the wider dtype, where no entry is too large or small that was not so before.
        dtype = torch.promote_types(directions.dtype, activations.dtype)
        vectors = directions.detach().to(activations.device, dtype)
        return Directions(_unit_length(vectors).to(activations))

    return sweep(model, inputs, site, make, targets, options)


@renamed(path="backend", groups="units")
def ablate_groups(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    units: UnitGroups,
    keep: bool = False,
    value: float | str | Tensor = 0.0,
    targets: Targets = None,
    *,
    output: Output = None,
    dim: int | None = None,
    per_sample: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
    backend: str | None = None,
) -> AblationResult:
    """What each group of a site's units does: sets all of a group to a value, one at a time.

    `units` are the groups: lists of unit indices, a boolean matrix `[a, d]`, labels `[d]` (-1 for
    "in no group"), a mapping of labels to indices, or `Clusters`, whose rows count; `heads` gives
    those of attention. With `keep` all other units are set instead, so that the group is left
    alone. The other arguments, the result and the errors are those of `ablate_units`;
    `backend="fused"` is for single units.

    Source: N1, its clusters switched on and off, by activations instead of weights.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> result = modfast.ablate_groups(model, torch.randn(20, 8), "act2", [[0, 1, 2], [3, 4]])
        >>> result.labels
        ('group 0', 'group 1')
    """
    options = options_of(output, dim, per_sample, max_memory, progress, backend)
    mean = _mean(model, inputs, site, value, options)

    checks.flag("keep", keep)

    def make(activations: Tensor) -> Changes:
        groups = read_groups("units", units, activations.shape[-1])
        mask = torch.zeros(len(groups), activations.shape[-1], dtype=torch.bool, device="cpu")
        for row, group in zip(mask, groups, strict=True):
            row[group.cpu()] = True
        mask = mask.to(activations.device)
        values = _values(value if mean is None else mean, activations)
        return Groups(~mask if keep else mask, values)

    return sweep(model, inputs, site, make, targets, options)


def _unit_length(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    low, high = (length.item() for length in lengths.aminmax())
    if low < 1e-3 or not high < 1e3:  # also where any is NaN
        checks.finite("directions", vectors)
        # By the largest entry first, so that no square under- or overflows.
        vectors = vectors / vectors.abs().amax(1, keepdim=True)
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        if not lengths.isfinite().all():
            zero = (~lengths[:, 0].isfinite()).nonzero()[0].item()
            raise ValueError(f"directions must not be zero, got zeros in row {zero}")
    found: Tensor = vectors / lengths
    return found


def options_of(
    output: Output,
    dim: int | None,
    per_sample: bool,
    max_memory: int | None,
    progress: bool,
    backend: str | None,
) -> Options:
    """Checked options.

    Raises:
        TypeError, ValueError: one of another kind, or out of range.
    """
    check_output(output)
    dim = None if dim is None else checks.integer("dim", dim)
    memory = None if max_memory is None else checks.count("max_memory", max_memory)
    if isinstance(backend, str) and backend in _OLD_BACKENDS:
        new = _OLD_BACKENDS[backend]
        warn_renamed(f"backend={backend!r}", f"backend={new!r}", stacklevel=3)
        backend = new
    checks.choice("backend", backend, (None, *BACKENDS))
    return Options(output, dim, checks.flag("per_sample", per_sample), memory, progress, backend)


_OLD_BACKENDS = {"split": "replay", "hooks": "model"}


def _mean(
    model: nn.Module, inputs: Inputs, site: str, value: object, options: Options
) -> Tensor | None:
    if not isinstance(value, str):
        return None
    if value != "mean":
        raise ValueError(f"value must be a number, a tensor or 'mean', got {value!r}")
    if isinstance(inputs, Iterator):
        raise TypeError("value='mean' reads inputs twice, so that they must not be an iterator")
    return mean_of_site(model, inputs, site, options)


def _values(value: Any, activations: Tensor) -> Tensor:
    """One value for each unit."""
    d = activations.shape[-1]
    if not isinstance(value, Tensor):
        number = checks.finite_number("value", value)
        if abs(number) > torch.finfo(activations.dtype).max:
            raise ValueError(f"value must be finite in {activations.dtype}, got {number}")
        return activations.new_full((d,), number)
    if value.shape not in ((), (d,)):
        raise ValueError(f"value must have shape [] or [{d}], got {list(value.shape)}")
    checks.dense("value", value)
    values = value.detach().to(activations)
    checks.finite("value", values)
    return values.expand(d)


def _indices(argument: str, units: Sequence[int] | Tensor, d: int) -> Tensor:
    """In the order given, perhaps some of them twice."""
    index = checks.integers(argument, units)
    if index.dim() != 1:
        raise TypeError(f"{argument} must be a list of integers, got {units!r}")
    if index.numel() == 0:
        raise ValueError(f"{argument} must not be empty")
    outside = index[(index < 0) | (index >= d)]
    if len(outside):
        raise ValueError(f"{argument} must be from 0 to {d - 1}, got {outside[0].item()}")
    return index.long()


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
