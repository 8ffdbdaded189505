"""Operator family `clustered_sgd_`, `clustered_adam_`: optimizer steps that train clusters.

One call updates all weights of a group, adds the clusterability gradient to those that have labels,
and takes the sums of the new weights in the same pass over memory, so that a penalty costs almost
nothing beside the step. The callers (`modfast.Modularity`) own the checks: these run at every step,
and what they cannot take ends in an error of torch's or of the kernel.
"""

from __future__ import annotations

from typing import Any

from modfast._extension import operator


def _fake_step(*arguments: Any, **options: Any) -> None:
    return None


clustered_sgd_ = operator("clustered_sgd_", _fake_step)
clustered_adam_ = operator("clustered_adam_", _fake_step)
