"""How much does one group of units tell about another?"""

from modfast.information.binning import digitize
from modfast.information.entropies import (
    conditional_entropy,
    entropy,
    joint_entropy,
    joint_histogram,
    mutual_information,
)
from modfast.information.modularity import ModularityMeasures, modularity_measures
from modfast.information.pairwise import PairwiseInformation, pairwise_mutual_information
from modfast.information.soft import soft_conditional_entropy, soft_mutual_information
from modfast.information.streaming import JointHistogram, JointInformation

__all__ = [
    "JointHistogram",
    "JointInformation",
    "ModularityMeasures",
    "PairwiseInformation",
    "conditional_entropy",
    "digitize",
    "entropy",
    "joint_entropy",
    "joint_histogram",
    "modularity_measures",
    "mutual_information",
    "pairwise_mutual_information",
    "soft_conditional_entropy",
    "soft_mutual_information",
]
