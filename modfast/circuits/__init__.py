"""Which weights, and which edges between units, does a behavior need?"""

from modfast.circuits.attribution import attribute_edges
from modfast.circuits.discovery import discover_circuit
from modfast.circuits.edges import CircuitEvaluation, Edge, EdgeCircuit, EdgeScores

__all__ = [
    "CircuitEvaluation",
    "Edge",
    "EdgeCircuit",
    "EdgeScores",
    "attribute_edges",
    "discover_circuit",
]
