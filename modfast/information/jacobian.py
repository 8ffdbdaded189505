"""Information of groups of units through a network's own Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap

from modfast import checks
from modfast._renamed import renamed
from modfast.information import gaussian
from modfast.information.partition import Partition, module_names
from modfast.network.capture import capture
from modfast.network.inputs import Batch, Inputs, read_batches
from modfast.network.run import Run, require_differentiable, running
from modfast.network.sites import Site, resolve_sites
from modfast.network.units import read_groups
from modfast.network.visits import Visit, at_sites
from modfast.precision import full_precision
from modfast.progress import bar

_MAX_MEMORY = 2**28


@renamed(partition="units")
def jacobian_mutual_information(
    model: nn.Module,
    inputs: Inputs,
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
    `gaussian_mutual_information` with the covariance W W^T, for any samples.

    Args:
        model: any module that torch.func can differentiate. It runs in eval mode and is left as it
            was.
        inputs: its one input `[n, ...]`, one sample a row; or a stream of such batches.
        sites: names of places or patterns of modules, as in `capture`; the units are all of their
            values, flattened, the sites in the order in which the model registers them.
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
        TypeError: inputs or a site's value are no floating tensor; a partition of another kind.
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
    checks.flag("total", total)
    found: _Units | None = None
    parts = []
    with running(model) as run, torch.no_grad():
        require_differentiable(model)
        for batch in read_batches(model, inputs):
            x = _samples(batch)
            found = found or _Units(model, run, x, sites, units, 1 if total else 2)
            # Jacobians in the network's type and in float64, and three matrices of d units.
            d, n_in = found.d, x[0].numel()
            rows = max(1, limit // (d * n_in * (3 * x.itemsize + 8) + 3 * 8 * d * d))
            starts = range(0, len(x), rows)
            for start in bar(
                starts, "Jacobians", checks.flag("progress", progress) and len(starts) > 1
            ):
                jacobian = found.jacobians(x[start : start + rows])
                with full_precision():
                    parts.append(found.information(jacobian, total, start))
    return torch.cat(parts).mean(0)


def _samples(batch: Batch) -> Tensor:
    """The one input."""
    tensors = batch.tensors()
    if len(tensors) != 1 or batch.args != (tensors[0],) or not tensors[0].is_floating_point():
        found = tensors[0].dtype if tensors else "none"
        raise TypeError(
            f"inputs must be one tensor of floating values, got {found} first of {len(tensors)}"
        )
    x = tensors[0].detach()
    if x.dim() < 2:
        raise ValueError(f"inputs must be [n, ...] and not empty, got shape {tuple(x.shape)}")
    return x


class _Units:
    """All units of the sites, one after the other, as a function of one sample."""

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        x: Tensor,
        sites: str | Sequence[str],
        units: Partition | None,
        least: int,
    ) -> None:
        captured = capture(model, x[:1], sites)
        for site, value in captured.items():
            if not value.is_floating_point() or value.shape[:1] != (1,):
                raise TypeError(
                    f"sites={site!r}: must give floating values, one row for one sample, got "
                    f"{value.dtype} of shape {tuple(value.shape)}"
                )
        self.model, self.run = model, run
        self.sites = [site for site in resolve_sites(model, sites) if site.name in captured]
        sizes = [value.numel() for value in captured.values()]
        self.d = sum(sizes)
        if units is None:
            units = [
                list(range(end - size, end))
                for size, end in zip(sizes, accumulate(sizes), strict=True)
            ]
        groups = read_groups("units", units, self.d, overlap=False, least=least)
        self.members = [each.to(x.device) for each in groups]
        # Under autocast some are computed with fewer digits than the inputs have.
        self.eps = max(torch.finfo(value.dtype).eps for value in (x, *captured.values()))
        guard = run.guard(batch := Batch((x[:1],), {}))
        run(batch, mode=guard)
        self.writes = guard.has_written
        """Whether passes change inputs or weights, which torch.func does not bear."""
        self.transform = jacrev if self.d <= x[0].numel() else jacfwd

    def __call__(self, sample: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}

        def keep(site: Site, value: Tensor) -> None:
            values[site.name] = value.clone()  # what follows may work in place

        visits = [Visit(site, partial(keep, site), "sites") for site in self.sites]
        with at_sites(self.model, visits):
            mode = None if self.writes else nullcontext()
            self.run(Batch((sample[None],), {}), mode=mode)
        return torch.cat([values[site.name].flatten() for site in self.sites])

    def jacobians(self, x: Tensor) -> Tensor:
        """`[n, d, inputs]` in float64."""
        if self.writes:
            return torch.stack([self._rows(sample) for sample in x]).flatten(2).double()
        try:
            found: Tensor = vmap(self.transform(self))(x)
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            # torch.func knows nothing of a branch, an LSTM, a buffer that is written to, ...
            found = torch.stack([self._rows(sample) for sample in x])
        return found.flatten(2).double()

    def _rows(self, sample: Tensor) -> Tensor:
        """One sample's, by a backward pass for each unit: `[d, ...]`."""
        with torch.enable_grad():
            x = sample.detach().clone().requires_grad_()
            units = self(x)
            if not units.requires_grad:
                raise ValueError("model must be differentiable from its inputs to the sites")
            rows = [
                torch.autograd.grad(
                    unit, x, retain_graph=True, allow_unused=True, materialize_grads=True
                )[0]
                for unit in units
            ]
        return torch.stack(rows)

    def information(self, jacobian: Tensor, total: bool, start: int) -> Tensor:
        """Of each sample; `start` is the first one's number."""
        correlation = gaussian.scaled(jacobian @ jacobian.mT)
        epsilon = max(self.eps**2, torch.finfo(torch.float64).eps)
        noise = gaussian.SLACK * max(jacobian.shape[1:]) * epsilon
        of = gaussian.total if total else gaussian.pair_matrix
        names = module_names(self.members)
        return of(correlation, self.members, correlation.new_full((self.d,), noise), names, start)
