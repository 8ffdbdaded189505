"""Training into clusters without changing the training loop: an optimizer adds the penalty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modfast import checks
from modfast._renamed import warn_renamed
from modfast.clusters import Clusters, gradient_of, sums_of
from modfast.reference import ratio
from modfast.training.fused import FusedStep, fusable
from modfast.training.selection import choose_labels

BASES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Modularity(torch.optim.Optimizer):
    """A torch optimizer that also trains chosen weights into clusters.

    One step equals, to rounding, a step of the base optimizer on

        loss - alpha * mean over the chosen layers of C(W),

    C being `modfast.clusterability`. For "sgd", "adam" and "adamw" the penalty's gradient is added,
    and the next step's sums are taken, in the same pass over memory as the update. Schedulers,
    GradScaler, closures and state_dict work as with any torch optimizer; the clusters are kept in
    the state_dict's parameter groups, the rest has the base optimizer's own format.

    Args:
        params: `model.parameters()`, `model.named_parameters()` or parameter groups of either.
        lr: learning rate.
        n_clusters: number of equal clusters of consecutive units, where `clusters` is None.
        alpha: weight of the mean clusterability. Each group has it as `group["alpha"]`, to be
            changed during training if wished; as `group["cluster_alpha"]` where the base has an
            alpha of its own (RMSprop, ASGD).
        layers: names or glob patterns of weights ("fc2", "fc2.weight", "h.*.c_fc"); needs named
            parameters. By default every hidden 2-D weight, all but the first and the last, of
            layers that follow one another; of named parameters never embeddings, recurrent weights
            or a head, and of a transformer its blocks' MLPs alone
            (`modfast.network.weights.hidden_weights`).
        clusters: `Clusters` for every chosen weight, or a dict from its name to `Clusters`. Rows
            are dimension 0 of the weight.
        base: "sgd", "adam", "adamw" or any torch.optim.Optimizer class. Classes other than the
            three, and options that the fused step lacks (amsgrad, maximize, ...), take the base's
            own step with the penalty added to the gradients.
        base_options: passed on to the base optimizer (momentum, weight_decay, betas, ...).

    DTensor weights (FSDP2) count whole: each process moves its shard, two numbers a weight are
    reduced. Weights that a layer computes in each pass (pruned, parametrized, weight-normed) are
    refused where names show them; train those with `modfast.ClusterabilityLoss`.

    A weight whose gradient is None is still moved by the penalty. Writing to a weight through
    `.data` is noticed one step late, since torch does not count such writes; ordinary in-place
    writes and load_state_dict are noticed at once.

    Raises:
        TypeError: `layers` are no names; `base` is neither a known name nor an Optimizer class;
            options that it refuses.
        ValueError: no hidden weight, or it cannot be told which are; unknown names (the nearest are
            listed), clusters that do not fit, weights that are not finite, frozen ones alone, some
            that are no matrices, options that the base refuses.

    Source: N1, the clusterability-training notebook.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 2])
        >>> optimizer = modfast.Modularity(model.parameters(), lr=0.1, n_clusters=2)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(5, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> bool(optimizer.values[0] > 0.9)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        n_clusters: int = 4,
        alpha: float = 20.0,
        layers: str | Sequence[str] | None = None,
        clusters: Clusters | Mapping[str, Clusters] | None = None,
        base: str | type[torch.optim.Optimizer] = "sgd",
        **base_options: Any,
    ) -> None:
        alpha = checks.finite_number("alpha", alpha)
        chosen = _base_class(base)
        with _refusing("params", "lr", *base_options):
            self._base = chosen(params, lr=lr, **base_options)  # type: ignore[call-arg]
        for group in self._base.param_groups:
            for name in group.get("param_names", ()):
                checks.text("params' names", name)
        self._fused: FusedStep | None = None
        self._key = "cluster_alpha" if "alpha" in self._base.defaults else "alpha"
        groups = [self._own(group) for group in self._base.param_groups]
        for group, labels in zip(
            groups, choose_labels(groups, layers, n_clusters, clusters), strict=True
        ):
            group["clusters"] = labels
        super().__init__(groups, {**self._base.defaults, self._key: alpha})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step; returns what `closure` returns at its first call.

        Raises:
            TypeError: `closure` is no function.
        """
        if closure is not None and not callable(closure):
            raise TypeError(f"closure must be a function or None, got {checks.shown(closure)}")
        fits = self._fused is not None and self._fused.still_fits()
        if not fits and not fusable(self._base):
            return self._base_step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            if self._fused is None or not self._fused.still_fits():
                self._fused = FusedStep(self._base, len(self._clustered()))
            self._fused.step()
        return loss

    @property
    def sums(self) -> Tensor:
        """Float64 `[layers, 2]`: squares within clusters, and in total, of the current weights."""
        sums = None if self._fused is None else self._fused.sums()
        if sums is not None:
            return sums
        clustered = self._clustered()
        return sums_of([w for w, _, _ in clustered], [labels for _, labels, _ in clustered])

    @property
    def values(self) -> Tensor:
        """Float64 `[layers]`: each chosen weight's clusterability as it is."""
        return ratio(self.sums)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state_dict of this class, or of the base optimizer (clusters then stay).

        Raises:
            TypeError, ValueError: it is none, or of other parameters.
        """
        with _refusing("state_dict"):
            self._load(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["param_groups"]
        if len(saved) == len(self.param_groups):
            kept = [
                {"clusters": group["clusters"], self._key: group[self._key]}
                for group in self.param_groups
            ]
            renewed = {"cluster_alpha": self._key}  # the key of an older release
            saved = [{renewed.get(key, key): x for key, x in each.items()} for each in saved]
            groups = [{**own, **each} for own, each in zip(kept, saved, strict=True)]
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, without clusters.

        Raises:
            TypeError, ValueError: no group of parameters.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(
                f"param_group must be a dict with 'params', got {checks.shown(param_group)}"
            )
        with _refusing("param_group"):
            super().add_param_group(self._own(dict(param_group)))
        group = self.param_groups[-1]
        group.setdefault("clusters", [None] * len(group["params"]))
        self._fused = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_base": self._base, "_key": self._key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Lets the base optimizer work on this one's groups and state."""
        self.param_groups[:] = map(self._own, self.param_groups)
        self._base.param_groups = self.param_groups
        self._base.state = self.state
        self._fused = None

    def _own(self, group: dict[str, Any]) -> dict[str, Any]:
        return _Group(group) if self._key == "alpha" else group

    def _clustered(self) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
        """The chosen weights, with their labels and groups."""
        return [
            (p, labels.to(p.device), group)
            for group in self.param_groups
            for p, labels in zip(group["params"], group["clusters"], strict=True)
            if labels is not None
        ]

    def _base_step(self, closure: Callable[[], Any] | None) -> Any:
        """The base optimizer's own step, on gradients (and losses) with the penalty in them."""
        if closure is None:
            grads = [(w, w.grad) for w, _, _ in self._clustered()]
            self._add_penalty()
            try:
                return self._base.step()
            finally:
                for w, grad in grads:
                    w.grad = grad
        losses = []

        def with_penalty() -> Any:
            losses.append(closure())
            return losses[-1] + self._add_penalty()

        self._base.step(with_penalty)
        return losses[0]

    @torch.no_grad()
    def _add_penalty(self) -> float:
        """Adds the penalty to the gradients of the chosen weights; returns its value."""
        clustered, sums = self._clustered(), self.sums
        value = 0.0
        for (w, labels, group), each in zip(clustered, sums.split(1), strict=True):
            scale = -group[self._key] / len(clustered)
            value += scale * float(ratio(each))
            if w.requires_grad:
                penalty = gradient_of(w, labels, scale, each)
                w.grad = penalty if w.grad is None else w.grad + penalty
        return value


class _Group(dict[str, Any]):
    """A parameter group in which alpha's old name goes on working, and warns."""

    def __init__(self, group: Mapping[str, Any]) -> None:
        super().__init__()
        self.update(group)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(_new_key(key), value)

    def __missing__(self, key: str) -> Any:  # rather than __getitem__, which each step would feel
        if (new := _new_key(key)) == key:
            raise KeyError(key)
        return self[new]

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_new_key(key), default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        return super().setdefault(_new_key(key), default)

    def update(self, *groups: Any, **values: Any) -> None:
        for key, value in dict(*groups, **values).items():
            self[key] = value


@contextmanager
def _refusing(*arguments: str) -> Iterator[None]:
    """Torch's own errors about these arguments name them."""
    try:
        yield
    except (TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{' or '.join(arguments)} must be another: {error}") from error
    except (ValueError, LookupError) as error:
        raise ValueError(f"{' or '.join(arguments)} must be another: {error}") from error


def _new_key(key: str) -> str:
    if key != "cluster_alpha":
        return key
    warn_renamed('group["cluster_alpha"]', 'group["alpha"]', stacklevel=3)
    return "alpha"


def _base_class(base: str | type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    if isinstance(base, str):
        checks.choice("base", base, BASES)
        return BASES[base]
    if not (isinstance(base, type) and issubclass(base, torch.optim.Optimizer)):
        raise TypeError(f"base must be a name or a torch.optim.Optimizer class, got {base!r}")
    return base
