"""What does a unit respond to?"""

from modfast.features.activating import max_activating
from modfast.features.purity import LabelPurity, label_purity
from modfast.features.result import TopActivations

__all__ = ["LabelPurity", "TopActivations", "label_purity", "max_activating"]
