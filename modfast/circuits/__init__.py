"""Which weights, and which edges between units, does a behavior need?"""

from modfast.circuits.attribution import attribute_edges
from modfast.circuits.curve import FaithfulnessCurve, faithfulness_curve
from modfast.circuits.discovery import discover_circuit
from modfast.circuits.edges import CircuitEvaluation, Edge, EdgeCircuit, EdgeScores
from modfast.circuits.pruning import prune_circuit
from modfast.circuits.result import Circuit, CircuitSizes
from modfast.circuits.search_space import search_space_reduction
from modfast.circuits.sizes import effective_circuit_size
from modfast.circuits.whole_graph import NetworkGraph, network_graph

__all__ = [
    "Circuit",
    "CircuitEvaluation",
    "CircuitSizes",
    "Edge",
    "EdgeCircuit",
    "EdgeScores",
    "FaithfulnessCurve",
    "NetworkGraph",
    "attribute_edges",
    "discover_circuit",
    "effective_circuit_size",
    "faithfulness_curve",
    "network_graph",
    "prune_circuit",
    "search_space_reduction",
]
