"""How much information does the wiring itself carry?"""

from modfast.effective.dense import connectivity_matrix, entropy_bits, normalize_rows
from modfast.effective.information import (
    EffectiveInformation,
    LayerInformation,
    degeneracy,
    determinism,
    effective_information,
)
from modfast.effective.perturbation import (
    PerturbationalInformation,
    perturbational_ei,
    sensitivity,
)

__all__ = [
    "EffectiveInformation",
    "LayerInformation",
    "PerturbationalInformation",
    "connectivity_matrix",
    "degeneracy",
    "determinism",
    "effective_information",
    "entropy_bits",
    "normalize_rows",
    "perturbational_ei",
    "sensitivity",
]
