"""Eight threads find what one finds: on models of their own, on one model, on shared layers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from network.snapshot import Snapshot
from state.cases import CALLS, CASES, OTHER, Case, Worn, X, differences, mlp
from torch import Tensor, nn

import modfast

N_THREADS, INPUTS = 8, (X, OTHER)


def in_threads(*jobs: Callable[[], Any]) -> None:
    """Runs jobs at once, each in a thread of its own; raises what one raises."""
    errors: list[BaseException] = []
    together = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> None:
        together.wait()
        try:
            job()
        except BaseException as error:  # told in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if errors:
        raise errors[0]


def rotated(cases: list[Any], i: int) -> list[Any]:
    start = i * len(cases) // N_THREADS
    return cases[start:] + cases[:start]


@pytest.fixture
def state() -> Iterator[None]:
    """What belongs to the process is as it was."""
    torch.manual_seed(11)
    CALLS["data.load"]()  # importing scikit-learn draws a random number
    nothing = nn.Identity()
    before = Snapshot(nothing)
    yield
    assert before.changes(nothing) == []


@pytest.mark.slow
def test_models_of_their_own(state: None) -> None:
    made = threading.RLock()  # the cases' models are made by torch.manual_seed

    def fresh(case: Case) -> nn.Module:
        with made, torch.random.fork_rng([]):
            return case.make()

    models = {(i, str(case)): fresh(case) for i in range(N_THREADS + 1) for case in CASES}
    alone = {str(case): case.call(models[N_THREADS, str(case)]) for case in CASES}
    alone |= {name: call() for name, call in CALLS.items()}
    found: dict[tuple[int, str], Any] = {}

    def work(i: int) -> None:
        for each in rotated([*CASES, *CALLS], i):
            name = str(each)
            is_case = isinstance(each, Case)
            found[i, name] = each.call(models[i, name]) if is_case else CALLS[name]()

    in_threads(*(lambda i=i: work(i) for i in range(N_THREADS)))
    wrong = [
        f"{name} in thread {i}: {each}"
        for (i, name), result in found.items()
        for each in differences(alone[name], result)
    ]
    assert wrong == []
    assert len(found) == N_THREADS * len(alone)


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, Worn])
def test_one_model(make: Callable[[], nn.Module], state: None) -> None:
    # A loss reads its weights as they are, also where another thread prunes them just then.
    cases = [
        case
        for case in CASES
        if case.make is make and not (case.trains or "ClusterabilityLoss" in case.name)
    ]
    with torch.random.fork_rng([]):
        model = make()
    alone = {case.name: case.call(model) for case in cases}
    before, found = Snapshot(model, INPUTS), list[str]()

    def work(i: int) -> None:
        for case in rotated(cases, i):
            found.extend(
                f"{case.name} in thread {i}: {each}"
                for each in differences(alone[case.name], case.call(model))
            )

    in_threads(*(lambda i=i: work(i) for i in range(N_THREADS)))
    assert found == []
    assert before.changes(model, INPUTS) == []


class Waiting:
    """A stream that waits before its second batch."""

    def __init__(self, order: list[str]) -> None:
        self.order, self.reached, self.go_on = order, threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Tensor]:
        yield X
        self.reached.set()
        assert self.go_on.wait(60)
        yield OTHER
        self.order.append("first")  # all of it has run


@pytest.mark.parametrize("shares", ["the model", "a layer"])
def test_another_thread_waits_for_its_turn(shares: str) -> None:
    model = mlp()
    second = model if shares == "the model" else nn.Sequential(model.fc1, nn.Tanh())
    apart, order = mlp(), list[str]()
    stream = Waiting(order)
    site = "fc1" if second is model else "0"
    expected = modfast.capture(second, X, site)[site]

    def first() -> None:
        modfast.capture(model, stream, "act2")

    def later() -> None:
        assert stream.reached.wait(60)
        found = modfast.capture(second, X, site)[site]
        order.append("second")
        assert torch.equal(found, expected)

    def aside() -> None:
        assert stream.reached.wait(60)
        modfast.capture(apart, X, "fc1")
        order.append("aside")
        time.sleep(0.2)  # for the second one to go ahead, if it does
        stream.go_on.set()

    in_threads(first, later, aside)
    assert order == ["aside", "first", "second"]


def test_a_thread_may_take_a_model_again() -> None:
    model = mlp()

    def stream() -> Iterator[Tensor]:
        for x in (X, OTHER):
            yield modfast.capture(model, x, "fc1:input")["fc1:input"] + 1.0

    found = modfast.capture(model, stream(), "act2")["act2"]
    assert torch.equal(found, modfast.capture(model, torch.cat([X, OTHER]) + 1.0, "act2")["act2"])


def test_seeded_training_is_not_disturbed_by_runs_that_draw() -> None:
    """Whose random states are put back, of the whole process."""

    def trained() -> Tensor:
        with torch.random.fork_rng([]):
            model = Worn()
        history = modfast.fit(model, (X, torch.arange(len(X)) % 3), 30, 4, seed=3, progress=False)
        return history.loss

    drawing = nn.Sequential(nn.Linear(6, 4))
    drawing.register_forward_pre_hook(lambda module, args: (args[0] + torch.rand(()),))
    alone, found, over = trained(), list[Tensor](), threading.Event()

    def train() -> None:
        found.append(trained())
        over.set()

    def run() -> None:
        while not over.is_set():
            modfast.capture(drawing, X, "0")

    in_threads(train, run, run)
    assert torch.equal(found[0], alone)
