"""Random calls of everything public: a right-looking result, or an error that names the argument.

The calls are the same each time. The long run prints how many came to what (`pytest -s`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fuzz import calls, judge, valid, valid_models, valid_ops  # noqa: F401  (the last three fill the table)
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

CALLS, LONG = 1_000, 20_000
STRICT = settings(
    derandomize=True,
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


def attack(data: st.DataObject, seen: Counter[str]) -> None:
    """One random call."""
    found = judge.draw(lambda options: data.draw(st.sampled_from(options)))
    if found is None:
        seen["no such mutation"] += 1
        return
    words, call, mutated = found
    note(words)
    seen[judge.judge(call, mutated)] += 1


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calls write files."""
    monkeypatch.chdir(tmp_path)


def test_random_calls() -> None:
    seen: Counter[str] = Counter()
    given(st.data())(settings(STRICT, max_examples=CALLS)(lambda data: attack(data, seen)))()
    assert seen["refused"] > CALLS / 4
    assert seen["result"] > CALLS / 10


@pytest.mark.fuzz
def test_many_random_calls() -> None:
    seen: Counter[str] = Counter()
    given(st.data())(settings(STRICT, max_examples=LONG)(lambda data: attack(data, seen)))()
    print(dict(seen))
