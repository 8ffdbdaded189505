"""How much does one group of units tell about another?"""

from modfast.information.binning import Binning, digitize
from modfast.information.calibration import Calibration, calibrate
from modfast.information.copula import copula_mutual_information
from modfast.information.counts import entropies_of_counts
from modfast.information.entropies import (
    conditional_entropy,
    entropy,
    joint_entropy,
    joint_histogram,
    mutual_information,
)
from modfast.information.gaussian import gaussian_mutual_information
from modfast.information.jacobian import jacobian_mutual_information
from modfast.information.kmeans import kmeans_mutual_information
from modfast.information.modularity import ModularityMeasures, modularity_measures
from modfast.information.neighbors import ksg_mutual_information
from modfast.information.pairwise import PairwiseInformation, pairwise_mutual_information
from modfast.information.soft import soft_conditional_entropy, soft_mutual_information
from modfast.information.streaming import JointHistogram, JointInformation
from modfast.information.total import total_correlation

__all__ = [
    "Binning",
    "Calibration",
    "JointHistogram",
    "JointInformation",
    "ModularityMeasures",
    "PairwiseInformation",
    "calibrate",
    "conditional_entropy",
    "copula_mutual_information",
    "digitize",
    "entropies_of_counts",
    "entropy",
    "gaussian_mutual_information",
    "jacobian_mutual_information",
    "joint_entropy",
    "joint_histogram",
    "kmeans_mutual_information",
    "ksg_mutual_information",
    "modularity_measures",
    "mutual_information",
    "pairwise_mutual_information",
    "soft_conditional_entropy",
    "soft_mutual_information",
    "total_correlation",
]
