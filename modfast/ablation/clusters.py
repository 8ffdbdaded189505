"""What breaks when a cluster is removed?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from modfast import checks, plots
from modfast._renamed import reordered
from modfast.clusters import Clusters, fit_labels
from modfast.network.inputs import Batch, mapped
from modfast.network.interrupts import under
from modfast.network.logits import Output, check_output, pick, read_rows
from modfast.network.names import unwrapped
from modfast.network.resume import begin, equal_to_rounding, joined
from modfast.network.run import Run, running
from modfast.network.samples import read_data
from modfast.network.sites import Site, resolve_sites
from modfast.network.state import Guard, place_of, targets_of
from modfast.network.visits import EachVisit, Visit, at_sites
from modfast.network.weights import has_weight, input_first, is_plain, plain_layer, weight_of
from modfast.results import Result
from modfast.scores import check_targets, class_scores, scores

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class ClusterEvaluation(Result):
    """What a network can do whole, without each cluster, and with each cluster alone.

    All are float64 tensors on the CPU; k clusters, c classes. For real targets every accuracy is an
    R^2 and classes are outputs (`modfast.scores.scores`).
    """

    accuracy: Tensor
    """Of the whole network: scalar."""
    class_accuracy: Tensor
    """Of the whole network, by class: `[c]`."""
    off_accuracy: Tensor
    """Without cluster i: `[k]`."""
    on_accuracy: Tensor
    """With cluster i as the only one: `[k]`."""
    off_class_accuracy: Tensor
    """Without cluster i, by class: `[k, c]`."""
    on_class_accuracy: Tensor
    """With cluster i as the only one, by class: `[k, c]`."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self, score: str = "accuracy", class_names: Sequence[str] | None = None) -> Figure:
        """Accuracy by class, whole, with each cluster off, and with each alone, as heat maps.

        Args:
            score: what the accuracy is called; "R²" for a regression.
            class_names: `[c]`, by default "class 0", ...

        Raises:
            ValueError: another number of names than classes.
        """
        return plots.cluster_evaluation(
            self.accuracy,
            self.class_accuracy,
            self.off_accuracy,
            self.off_class_accuracy,
            self.on_accuracy,
            self.on_class_accuracy,
            score,
            class_names,
        )


@reordered("layer", "clusters", "data")
@under(torch.no_grad)
def evaluate_clusters(
    model: nn.Module,
    data: tuple[Any, Any] | Dataset[Any] | Iterable[Any],
    layer: str,
    clusters: Clusters,
    *,
    output: Output = None,
) -> ClusterEvaluation:
    """Accuracy with each cluster of a layer off, and with it as the only one on.

    Off: the weight's rows of the cluster's outputs and columns of its inputs are zero. On: the rows
    and columns of every other cluster are. Units in no cluster stay in both. Only the weight is
    changed, as the layer computes with it (pruned, normed, of a parametrization): a bias stays, and
    so does what a subclass adds, such as LoRA's. The layer is changed in all of its calls, other
    layers that share its weight are not.

    Args:
        model: any network; runs in eval mode and is left as it was.
        data: samples with targets: a pair, a Dataset, a DataLoader or another iterable of batches,
            whose inputs may be tuples or mappings too. Targets are integer classes, one for each
            row of logits `[n, ..., n_outputs]` (-100 counts nowhere, nor do positions that an
            `attention_mask` leaves out), or real `[n, n_outputs]` for a regression.
        layer: name of the clustered layer, a Linear, convolution or transformers Conv1D.
        clusters: labels of its outputs and inputs.
        output: picks the logits in what the model returns: a function, or a key; by default the
            output itself, or its `logits`.

    Returns:
        Also in `backend` how the variants were run: "replay", what follows the layer, or "model".

    Raises:
        TypeError: a layer without such a weight; targets of another kind.
        ValueError: an unknown layer (the nearest are listed) or one that is not called, clusters
            that do not fit it, no samples, samples or weights that are not finite, classes out of
            range, a weight that its layer does not use by torch's functions.

    Source: N1, the clusterability-training notebook.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> data = torch.randn(20, 8), torch.arange(20) % 3
        >>> result = modfast.evaluate_clusters(model, data, "fc2", modfast.Clusters.equal(6, 6, 2))
        >>> result.off_class_accuracy.shape
        torch.Size([2, 3])
    """
    checks.module("model", model)
    check_output(output)
    site = _site_of(model, layer)
    module = unwrapped(model).get_submodule(site.module)
    found: list[list[Tensor]] = []
    targets: list[Tensor] = []
    backends: list[str] = []
    n_outputs = 0
    with running(model) as run:
        weight = weight_of(module, site.name).detach()
        labels = fit_labels(clusters, weight, f"the weight of {site.name!r}", input_first(module))
        rows, cols = labels[: len(weight)], labels[len(weight) :]
        variants = [*_off(weight, rows, cols, clusters), *_on(weight, rows, cols, clusters)]
        changed = _Changed(run, model, site, module, weight, output)
        for batch in read_data(model, data):
            outputs, y, backend = changed.outputs(batch, variants)
            n_outputs = outputs[0].shape[1]
            if targets and y.is_floating_point() != targets[0].is_floating_point():
                raise ValueError("data must have classes in all batches, or real targets in all")
            # Of classes the largest logits are enough, and small.
            found.append(outputs if y.is_floating_point() else [x.argmax(1) for x in outputs])
            targets.append(y)
            backends.append(backend)
    y = torch.cat(targets)
    each = [torch.cat(parts) for parts in zip(*found, strict=True)]
    found_scores = [
        scores(x, y) if y.is_floating_point() else class_scores(x, y, n_outputs) for x in each
    ]
    overall = torch.stack([each for each, _ in found_scores]).cpu()
    split = torch.stack([each for _, each in found_scores]).cpu()
    k = clusters.n_clusters
    return ClusterEvaluation(
        overall[0],
        split[0],
        overall[1 : k + 1],
        overall[k + 1 :],
        split[1 : k + 1],
        split[k + 1 :],
        joined(backends),
    )


def _site_of(model: nn.Module, layer: str) -> Site:
    sites = resolve_sites(model, layer, "layer")
    if len(sites) > 1:
        raise ValueError(f"layer must name one layer, got {layer!r}, which matches several")
    (site,) = sites
    module = unwrapped(model).get_submodule(site.module)
    if site != Site(site.name, site.module) or not has_weight(module):
        raise TypeError(
            f"layer={layer!r}: must be a Linear, convolution or transformers Conv1D, got "
            f"{type(module).__name__}"
        )
    return replace(site, raw=True)


class _Changed:
    """A model of which one layer computes with other weights."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        site: Site,
        module: nn.Module,
        weight: Tensor,
        output: Output,
    ) -> None:
        self.run, self.model, self.site, self.module = run, model, site, module
        self.weight, self.output = weight, output

    def outputs(self, batch: Batch, variants: list[Tensor]) -> tuple[list[Tensor], Tensor, str]:
        """Rows of the model's own logits and of each variant's, the targets, and the backend."""
        y = batch.targets
        if y is None:
            raise ValueError("data must be samples with targets, got a batch without")
        real = y.is_floating_point()
        plain = Batch(batch.args, batch.kwargs, None if real else y)
        seen: list[tuple[Tensor, bool, torch.dtype]] = []

        def see(x: Tensor) -> None:
            # A copy, because what follows may work on it in place.
            with torch._C.DisableTorchFunction():
                kind = x.device.type
                cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
                seen[:] = [(x.detach().clone(), *cast)]

        entry = EachVisit(self._at_input(), see, "layer")
        start = None
        with at_sites(self.model, [entry]):
            try:
                # Nothing is asked about units, so any dimension will do.
                start = begin(
                    self.run,
                    self.model,
                    self.site,
                    plain,
                    output=self.output,
                    dim=0,
                    argument="layer",
                )
            except ValueError:
                if entry.n_calls < 2:
                    raise

        def value(weight: Tensor) -> Tensor:
            ((x, enabled, dtype),) = seen
            bias: Any = self.module.bias
            with torch.autocast(x.device.type, dtype, enabled=enabled):
                found: Tensor = plain_layer(self.module, weight, bias).forward(x)
            return found

        def resume(weight: Tensor) -> Tensor:
            if direct:
                assert start is not None
                return start.resume(value(weight))
            return self._with_weight(plain, weight)

        rows = read_rows(self._logits(plain), plain) if start is None else start.rows
        direct = start is not None and is_plain(self.module)
        if direct:
            assert start is not None
            direct = equal_to_rounding(value(self.weight), start.site)
        backend = "replay" if direct and start is not None and start.tape is not None else "model"
        logits = rows.logits
        if real:
            y = rows.of(y)
            check_targets("data", y, len(logits), logits.shape[1])
        else:
            assert rows.targets is not None
            y = rows.targets
        return [logits, *(rows.of(resume(variant)) for variant in variants)], y, backend

    def _at_input(self) -> Site:
        return replace(self.site, of_input=True)

    def _logits(self, batch: Batch, mode: Guard | None = None) -> Tensor:
        found: Tensor = self.run(batch, lambda result: pick(result, self.output, batch), mode)
        checks.finite("the model's logits", found)
        return found

    def _with_weight(self, batch: Batch, weight: Tensor) -> Tensor:
        """The logits of the model itself, while its layer finds another weight than its own."""
        mode = _Swapped(self.run.guard(batch).tensors, self.weight, weight)
        parametrizations = self.module._modules.get("parametrizations")
        if isinstance(parametrizations, nn.ModuleDict) and "weight" in parametrizations:
            place = f"{self.site.module}.parametrizations.weight"
            visits: list[Visit] = [EachVisit(Site(place, place), lambda own: mode.instead())]
        else:
            visits = [
                EachVisit(self._at_input(), lambda x: mode.begin(self.module.weight)),
                EachVisit(self.site, lambda x: mode.begin(None)),
            ]
        with at_sites(self.model, visits):
            logits = self._logits(batch, mode)
        if not mode.n_uses:
            raise ValueError(
                f"layer={self.site.name!r}: the weight must be used by torch's functions in the "
                f"layer's own forward, got a {type(self.module).__name__} in which it is not seen"
            )
        return logits


class _Swapped(Guard):
    """Puts another weight in a layer's place while that layer runs."""

    def __init__(self, tensors: Sequence[Tensor], own: Tensor, weight: Tensor) -> None:
        super().__init__(tensors)
        self.own, self.weight = own, weight
        self.old: Any = None
        self.n_uses = 0

    def before(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """As `Guard.before`; ValueError for the weight itself, of which another stands in."""
        places = [place_of(x) for x in targets_of(args, kwargs)]
        if place_of(self.own) in places:
            raise ValueError(
                "layer must have a weight that the model's forward pass does not write to, got "
                f"one written to by {name}"
            )
        super().before(name, args, kwargs)

    def begin(self, old: Any) -> None:
        """From now on `old` is what is replaced; None, nothing is."""
        self.old = old

    def instead(self) -> Tensor:
        """The other weight, for one use."""
        self.n_uses += 1
        return self.weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.old is not None:
            with torch._C.DisableTorchFunction():
                args, kwargs = mapped(
                    lambda x: self.instead() if x is self.old else x, (args, kwargs or {})
                )
        return super().__torch_function__(func, types, args, kwargs)


def _off(weight: Tensor, rows: Tensor, cols: Tensor, clusters: Clusters) -> list[Tensor]:
    return [
        _keep(weight, rows != cluster, cols != cluster) for cluster in range(clusters.n_clusters)
    ]


def _on(weight: Tensor, rows: Tensor, cols: Tensor, clusters: Clusters) -> list[Tensor]:
    return [
        _keep(weight, (rows == cluster) | (rows < 0), (cols == cluster) | (cols < 0))
        for cluster in range(clusters.n_clusters)
    ]


def _keep(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return torch.where((rows[:, None] & cols[None, :]).reshape(weight.shape), weight, 0.0)
