"""A run recorded from a site on: what is done again, and what must not be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modfast.network.inputs import Batch
from modfast.network.resume import Start, begin
from modfast.network.run import running
from modfast.network.sites import parse_site
from modfast.network.visits import Visit, at_sites

X = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).double()


class Two(nn.Module):
    """fc1, something in between, fc2."""

    def __init__(self, between: Callable[[Two, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.fc2 = nn.Linear(8, 6).double(), nn.Linear(6, 3).double()
        self.register_buffer("table", torch.randn(6, 6).double())
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self, self.fc1(x)))


def by_hooks(model: nn.Module, value: Tensor) -> Tensor:
    handle = model.get_submodule("fc1").register_forward_hook(lambda *_: value.clone())
    try:
        return model(X)
    finally:
        handle.remove()


def started(model: nn.Module, backend: str | None = None) -> tuple[Start, Tensor, Tensor]:
    """The start, and the logits for another value of fc1: resumed, and by hooks."""
    with torch.no_grad(), running(model) as run:
        start = begin(run, model, parse_site(model, "fc1"), Batch((X,), {}), backend=backend)
        value = torch.randn(7, 6, generator=torch.Generator().manual_seed(2)).double()
        return start, start.resume(value), by_hooks(model, value)


def outside(h: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(h.detach().numpy()))


def write_rows(model: Two, h: Tensor) -> Tensor:
    kept = torch.zeros(7, 6, dtype=h.dtype)
    kept[:, :3] = h[:, 3:]
    return kept + h


def write_to_site(model: Two, h: Tensor) -> Tensor:
    twice = h * 2
    h.relu_().add_(twice)
    return h


def through_a_view(model: Two, h: Tensor) -> Tensor:
    view = h[:, :2]
    view.mul_(3)
    return h.tanh()


AGAIN = {
    "residual": lambda model, h: h + h.relu() @ model.table,
    "written in place": write_to_site,
    "a constant is written to": write_rows,
    "through a view": through_a_view,
    "shapes": lambda model, h: h.view(h.size(0), -1) / len(h),
    "lists": lambda model, h: torch.cat([h[:, 2:], h[:, :2]], dim=1),
    "split": lambda model, h: torch.stack(h.split(2, dim=1), 2).flatten(1),
    "an attribute": lambda model, h: (h.T * 2).T,
    "out=": lambda model, h: torch.mul(h, 2, out=torch.empty_like(h)),
}
NOT_AGAIN = {
    "a branch": lambda model, h: -h if h.sum() > 0 else h,
    "item": lambda model, h: h * h.amax().item(),
    "numpy": lambda model, h: outside(h),
    "a mask": lambda model, h: h * len(h[h > 0]),
    "nonzero": lambda model, h: h * len(h.nonzero()),
    "random": lambda model, h: nn.functional.dropout(h, 0.5, training=True),
}


@pytest.mark.parametrize("kind", AGAIN)
def test_what_followed_is_done_again(kind: str) -> None:
    start, found, wanted = started(Two(AGAIN[kind]))
    assert start.backend == "replay"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", NOT_AGAIN)
def test_what_looks_at_values_is_run_by_the_model(kind: str) -> None:
    model = Two(NOT_AGAIN[kind])
    state = torch.get_rng_state()
    start, found, wanted = started(model)
    assert start.backend == "model"
    if kind != "random":
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="backend='replay': cannot be taken at 'fc1': "):
        started(model, "replay")


def test_calls_that_are_not_seen_are_proved_by_a_changed_site() -> None:
    def hidden(model: Two, h: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as compiled code is not seen
            other = h.tanh()
        return other + h

    start, found, wanted = started(Two(hidden))
    assert start.backend == "model"
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    kept = torch.ones(6).double()  # from nowhere, but it does not depend on the site
    assert started(Two(lambda model, h: h * kept))[0].backend == "replay"


def test_chains_are_found_and_are_the_run_itself() -> None:
    start, found, wanted = started(Two(lambda model, h: torch.relu(h)))
    assert start.backend == "fused"
    assert start.chain is not None
    assert start.chain.activations == ("relu",)
    torch.testing.assert_close(start.outputs[-1], start.rows.logits)
    torch.testing.assert_close(found, wanted)
    others: list[Callable[[Two, Tensor], Tensor]] = [
        lambda model, h: torch.relu(h) * 2,
        lambda model, h: torch.relu(h).tanh(),
        lambda model, h: torch.relu(h) + h,
    ]
    for between in others:
        assert started(Two(between))[0].chain is None


def test_everything_is_put_back() -> None:
    class Stateful(Two):
        def __init__(self) -> None:
            super().__init__(lambda model, h: h)
            self.log: list[Tensor] = []
            self.seen = {"n": 0}
            self.last: Tensor | None = None
            self.register_buffer("count", torch.zeros(1))
            self.norm = nn.BatchNorm1d(8).double()

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(x)
            self.seen["n"] += 1
            self.count += 1
            self.last = x
            x.mul_(2)  # the caller's own tensor
            torch.rand(3)
            return super().forward(self.norm(x))

    model, x = Stateful(), X.clone()
    model.norm.eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad(), running(model) as run:
        place = parse_site(model, "fc1")
        start = begin(run, model, place, Batch((x,), {}))
        start.resume(start.site)
    assert torch.equal(x, X)
    assert (model.log, model.seen, model.last) == ([], {"n": 0}, None)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_sites_are_visited_after_the_users_own_hooks() -> None:
    model = Two(lambda model, h: h)
    model.fc1.register_forward_hook(lambda m, args, out: out + 1)
    seen: list[Tensor] = []
    with torch.no_grad(), running(model) as run:
        visit = Visit(parse_site(model, "fc1"), lambda value: seen.append(value.clone()))
        with at_sites(model, [visit]):
            run(Batch((X,), {}))
    torch.testing.assert_close(seen[0], nn.functional.linear(X, *model.fc1.parameters()) + 1)
