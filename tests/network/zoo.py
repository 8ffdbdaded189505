"""Small models, each with something that a way of running networks may get wrong.

`NAMES` lists them; `build(name)` makes one with its inputs, always the same.
"""

from __future__ import annotations

import network.zoo_altered
import network.zoo_forwards
import network.zoo_layers
import network.zoo_states
import network.zoo_transformers  # noqa: F401  (each puts its models into the zoo)
from network.zoo_case import BUILDERS, Case, build

__all__ = ["NAMES", "Case", "build"]

NAMES: tuple[str, ...] = tuple(BUILDERS)
