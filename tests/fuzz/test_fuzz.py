"""Random calls of everything public: a right-looking result, or an error that names the argument.

The calls are the same each time. What is not allowed is listed at the end; `pytest -rP` shows how
many calls came to what.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fuzz import calls, judge, valid, valid_models, valid_ops  # noqa: F401  (the last three fill the table)
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

CALLS, LONG = 1_000, 20_000
BLOCKS = 20
"""Of the long run, each with calls of its own: processes share them."""
STRICT = settings(
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
    print_blob=False,
)


def test_everything_public_has_a_valid_call() -> None:
    assert calls.BUILDERS.keys() == calls.PUBLIC.keys()


@pytest.mark.parametrize("name", calls.BUILDERS)
def test_the_valid_call_is_valid(name: str) -> None:
    call = calls.BUILDERS[name]()
    outcome = judge.judge(call, {})
    assert outcome == ("documented" if name == "Result.plot" else "result")
    known = calls.BUILDERS[name]().parameters()
    assert not (options := [each for each in known if each not in call.arguments]), options


def attack(block: int, n: int) -> Counter[str]:
    """n random calls, the same for a block each time: how many came to what."""
    seen: Counter[str] = Counter()
    refuted: dict[str, str] = {}

    def attempt(data: st.DataObject) -> None:
        found = judge.draw(lambda options: data.draw(st.sampled_from(options)))
        assume(found is not None)  # there is such a mutation of this value
        assert found is not None
        words, call, mutated = found
        try:
            seen[judge.judge(call, mutated)] += 1
        except judge.NotAllowedError as error:  # kept, so that the others are made as well
            seen["not allowed"] += 1
            refuted[words] = str(error)

    seed(block)(given(st.data())(settings(STRICT, max_examples=n)(attempt)))()
    print(dict(seen))
    assert not refuted, "\n".join(f"{words}: {what}" for words, what in refuted.items())
    assert seen.total() >= n
    return seen


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calls write files."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_random_calls() -> None:
    seen = attack(BLOCKS, CALLS)
    assert seen["refused"] > CALLS / 4
    assert seen["result"] > CALLS / 10


@pytest.mark.fuzz
@pytest.mark.parametrize("block", range(BLOCKS))
def test_many_random_calls(block: int) -> None:
    attack(block, LONG // BLOCKS)
