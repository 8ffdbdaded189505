"""Which weights does a behavior need?"""

from modfast.circuits.pruning import prune_circuit
from modfast.circuits.result import Circuit, CircuitSizes
from modfast.circuits.search_space import search_space_reduction
from modfast.circuits.sizes import effective_circuit_size

__all__ = [
    "Circuit",
    "CircuitSizes",
    "effective_circuit_size",
    "prune_circuit",
    "search_space_reduction",
]
