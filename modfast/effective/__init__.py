"""How much information does the wiring itself carry?"""

from modfast.effective.dense import connectivity_matrix, entropy_bits, normalize_rows
from modfast.effective.information import (
    EffectiveInformation,
    LayerInformation,
    degeneracy,
    determinism,
    effective_information,
)

__all__ = [
    "EffectiveInformation",
    "LayerInformation",
    "connectivity_matrix",
    "degeneracy",
    "determinism",
    "effective_information",
    "entropy_bits",
    "normalize_rows",
]
