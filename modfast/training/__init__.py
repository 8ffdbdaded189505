"""How do I train a network to fall into clusters?"""

from modfast.training.fit import History, fit
from modfast.training.loss import ClusterabilityLoss
from modfast.training.optimizer import Modularity

__all__ = ["ClusterabilityLoss", "History", "Modularity", "fit"]
