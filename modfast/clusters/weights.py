"""The old place of modfast.network.weights; to go when nothing imports it."""

from modfast.clusters.fitting import equal_clusters, fit_labels
from modfast.network.weights import has_weight, input_first, weight_of

__all__ = ["equal_clusters", "fit_labels", "has_weight", "input_first", "weight_of"]
