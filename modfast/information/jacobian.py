"""Information of groups of units through a network's own Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, vmap

from modfast import checks
from modfast._renamed import renamed
from modfast.information import gaussian
from modfast.information.partition import Partition, module_names
from modfast.network.units import read_groups
from modfast.passes import capture
from modfast.precision import precise
from modfast.progress import bar
from modfast.sites import in_mode, resolve_modules

_MAX_MEMORY = 2**28


@renamed(partition="units")
@precise
def jacobian_mutual_information(
    model: nn.Module,
    inputs: Tensor,
    sites: str | Sequence[str],
    units: Partition | None = None,
    *,
    total: bool = False,
    max_memory: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Information of groups of units when a network's inputs are jittered by independent noise.

    With J the Jacobian of the units with respect to one sample's inputs, units that are given
    standard normal noise through J have the covariance J J^T, and the groups a and b share

        -1/2 (log|J J^T of a and b| - log|J J^T of a| - log|J J^T of b|)

    nats, of which the mean over the samples is taken. For a linear network it is that of
    `gaussian_mutual_information` with the covariance W W^T, whatever the samples.

    Args:
        model: any module that torch.func can differentiate. It runs in eval mode and is left as it
            was.
        inputs: its input `[n, ...]`, one sample a row.
        sites: names or patterns of modules; the units are all of their outputs, flattened, the
            sites in the order in which the model registers them.
        units: groups of them, as in `gaussian_mutual_information`; by default each site is a
            module.
        total: gives the total correlation of all modules instead of pairs.
        max_memory: bytes that the Jacobians may take at a time, 256 MiB by default; those of one
            sample are the least.
        progress: show a progress bar on long runs, where standard error is a terminal.

    Returns:
        float64 `[m, m]`, infinite on the diagonal and where one group is known from another; with
        `total` a scalar.

    Raises:
        TypeError: inputs or a site's output are no floating tensor; a partition of another kind.
        ValueError: unknown sites, or ones that are not called once; a group whose J J^T is singular
            at a sample, as those of units are that a ReLU holds at 0, or that are more than the
            inputs (group, sample and unit are named); a partition as in
            `gaussian_mutual_information`.

    Source: N3, the mutual-information notebook.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        >>> found = jacobian_mutual_information(model, torch.randn(5, 2), "0", [[0], [1]])
        >>> f"{found[0, 1]:.4f}"
        '0.2231'
    """
    limit = _MAX_MEMORY if max_memory is None else checks.count("max_memory", max_memory)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a tensor of floating values, got {found}")
    if inputs.dim() < 2 or not inputs.numel():
        raise ValueError(f"inputs must be [n, ...] and not empty, got shape {tuple(inputs.shape)}")
    checks.finite("inputs", inputs)
    inputs = inputs.detach()
    captured = capture(model, inputs[:1], sites)
    for site, output in captured.items():
        if not output.is_floating_point() or output.shape[:1] != (1,):
            raise TypeError(
                f"sites={site!r}: must give floating values, one row for one sample, got "
                f"{output.dtype} of shape {tuple(output.shape)}"
            )
    sizes = [output.numel() for output in captured.values()]
    d, n_in = sum(sizes), inputs[0].numel()
    if units is None:
        units = torch.arange(len(sizes), device="cpu").repeat_interleave(
            torch.tensor(sizes, device="cpu")
        )
    members = [
        each.to(inputs.device)
        for each in read_groups("units", units, d, overlap=False, least=1 if total else 2)
    ]
    # Jacobians in the network's type and in float64, and three matrices of d units.
    n_bytes = d * n_in * (3 * inputs.itemsize + 8) + 3 * 8 * d * d
    rows = max(1, limit // n_bytes)
    function, names = _units(model, list(captured)), module_names(members)
    transform = jacrev if d <= n_in else jacfwd
    information = gaussian.total if total else gaussian.pair_matrix
    parts = []
    with in_mode(model, training=False):
        starts = bar(range(0, len(inputs), rows), "Jacobians", progress and len(inputs) > rows)
        for start in starts:
            jacobian = vmap(transform(function))(inputs[start : start + rows]).flatten(2)
            epsilon = max(torch.finfo(jacobian.dtype).eps ** 2, torch.finfo(torch.float64).eps)
            jacobian = jacobian.double()
            correlation = gaussian.scaled(jacobian @ jacobian.mT)
            noise = correlation.new_full((d,), gaussian.SLACK * max(d, n_in) * epsilon)
            parts.append(information(correlation, members, noise, names, start))
    return torch.cat(parts).mean(0)


def _units(model: nn.Module, sites: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """The function from one sample to all units of the sites, one after the other."""
    watched = resolve_modules(model, sites, argument="sites")
    state = {
        name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())
    }

    def units(sample: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: object, output: Tensor) -> None:
            # A copy, because the modules that follow may work in place.
            outputs[name] = output.clone()

        with ExitStack() as stack:
            for name, module in watched.items():
                stack.enter_context(module.register_forward_hook(partial(keep, name)))
            functional_call(model, state, (sample[None],))
        return torch.cat([outputs[name].flatten() for name in watched])

    return units
