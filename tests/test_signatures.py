"""One rule for the signatures of all public functions, and every exception with its reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import modfast

# First what is asked, then of what, then where in it; all else comes later.
ORDER = (
    {"model", "module"},
    {"inputs", "data", "train", "clean", "corrupted", "inputs_by_task", "input_shape"},
    {"site", "sites", "layer", "layers"},
)
# By keyword only, with these defaults.
OPTIONS: dict[str, Any] = {
    "output": None,
    "seed": None,
    "max_memory": None,
    "progress": True,
    "backend": None,
    "dim": None,
    "per_sample": False,
}
# What has one name has no other.
OLD_WORDS = {
    **dict.fromkeys(("cluster_alpha", "lam", "lambda_", "reward"), "alpha"),
    **dict.fromkeys(("tau", "cutoff"), "threshold"),
    **dict.fromkeys(("against", "reference"), "baseline"),
    **dict.fromkeys(("groups", "partition", "nodes"), "units"),
    **dict.fromkeys(("labels", "classes"), "targets"),
    **dict.fromkeys(("random_state", "generator"), "seed"),
    **dict.fromkeys(("path", "method", "mode", "engine"), "backend"),
    **dict.fromkeys(("memory", "memory_limit"), "max_memory"),
    **dict.fromkeys(("verbose", "quiet"), "progress"),
}
EXCEPTIONS = {
    ("Modularity", "layers"): "after lr and the like, as in torch's own optimizers; often left out",
    ("last_token", "output"): "what a model returned: the function itself is an `output=`",
    ("search_space_reduction", "layer"): "the last: it says which layer, where there are several",
    ("prune_circuit", "layers"): "after the targets, as 0.1 had it; by default all layers",
    ("kmeans_mutual_information", "seed"): "0: estimates of the same samples are the same",
    ("ksg_mutual_information", "seed"): "0: estimates of the same samples are the same",
    ("ablate_units", "seed"): "0: the same samples are taken, the same units drawn, each time",
    ("ablate_groups", "seed"): "0: the same samples are taken each time",
    ("ablate_directions", "seed"): "0: the same samples are taken each time",
    ("attribute_units", "seed"): "0: estimates of the same samples are the same",
    ("ablate_groups", "groups"): "the word for heads; the same as units",
    ("attribute_units", "groups"): "what is changed together, in place of single units",
    ("TaskStudy.train", "seed"): "0: network i is made from seed + i",
    ("entropy_bits", "dim"): "of a tensor of probabilities, and no dimension of a site",
    ("attribute_edges", "nodes"): "what edges join: groups of units, by layer",
    ("discover_circuit", "nodes"): "what edges join: groups of units, by layer",
    ("network_graph", "nodes"): "what edges join: layers, heads, units, or groups of these",
    ("faithfulness_curve", "model"): "after the scores, or circuits, that it is of",
    ("faithfulness_curve", "clean"): "after the scores, or circuits, that it is of",
    ("faithfulness_curve", "corrupted"): "after the scores, or circuits, that it is of",
    ("find_clusters", "method"): "other clusters, not another way to the same",
    ("attribute_edges", "method"): "other numbers (EAP, exact), not another way to the same",
    ("perturbational_ei", "mode"): "other numbers (parts, whole), not another way to the same",
    ("effective_circuit_size", "labels"): "which classes get a circuit; `targets` are the samples'",
    ("prune_circuit", "labels"): "which classes get a circuit; `targets` are the samples'",
}
# Results are made by the package, and their fields are named as files of them are.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: thing
    for name in modfast.__all__
    if callable(thing := getattr(modfast, name))
    and not (isinstance(thing, type) and issubclass(thing, modfast.Result))
}
FUNCTIONS |= {
    f"{name}.{method}": getattr(getattr(modfast, name), method)
    for name, method in (
        ("TaskStudy", "train"),
        ("TaskStudy", "compare"),
        ("EdgeCircuit", "logits"),
        ("EdgeCircuit", "evaluate"),
    )
}


def faults(function: Callable[..., Any]) -> list[tuple[str, str]]:
    """Arguments that are off the rule, and how."""
    arguments = inspect.signature(function).parameters
    found = []
    positional = [
        word for word, each in arguments.items() if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    positional = [word for word in positional if word != "self"]
    place = 0
    for words in ORDER:
        for word in [each for each in positional if each in words]:
            if positional.index(word) == place:
                place += 1
            else:
                found.append((word, f"must be argument {place}"))
    for word, argument in arguments.items():
        if word in OPTIONS and argument.kind is not argument.KEYWORD_ONLY:
            found.append((word, "must be keyword-only"))
        elif word in OPTIONS and argument.default is not OPTIONS[word]:
            found.append((word, f"must be {OPTIONS[word]} by default"))
        if word in OLD_WORDS:
            found.append((word, f"must be called {OLD_WORDS[word]}"))
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_rule(name: str) -> None:
    found = faults(FUNCTIONS[name])
    assert [each for each in found if (name, each[0]) not in EXCEPTIONS] == []


def test_every_exception_is_one() -> None:
    found = {(name, word) for name in FUNCTIONS for word, _ in faults(FUNCTIONS[name])}
    assert EXCEPTIONS.keys() - found == set()


def test_functions_that_run_a_model_take_output() -> None:
    # These give what a network has at a site, or what its wiring does, and need no logits.
    none_needed = {
        *("ClusterabilityLoss", "capture", "max_activating", "jacobian_mutual_information"),
        *("effective_information", "determinism", "degeneracy", "search_space_reduction"),
        *("modularity_report", "split_clusters"),
    }
    arguments = {name: inspect.signature(each).parameters for name, each in FUNCTIONS.items()}
    without = {name for name, each in arguments.items() if "model" in each and "output" not in each}
    assert without == none_needed


def test_what_is_off_is_seen() -> None:
    def off(site: str, model: nn.Module, seed: int = 0, *, progress: bool = False, tau: int = 0):
        """Off in every way."""

    assert {word for word, _ in faults(off)} == {"model", "seed", "progress", "tau"}
