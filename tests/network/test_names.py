"""Names in a model of torch.compile: the model's own, and as the wrapper has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import modfast
from modfast.models import MLP
from modfast.network.names import match_names, resolve_modules

CLUSTERS = modfast.Clusters.equal(6, 6, 2)


def compiled() -> tuple[MLP, nn.Module]:
    torch.manual_seed(0)
    model = MLP([8, 6, 6, 3])
    wrapped: Any = torch.compile(model, backend="eager")
    return model, wrapped


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_layers_of_a_compiled_model(prefix: str) -> None:
    model, wrapped = compiled()
    name, x = f"{prefix}fc2", torch.randn(20, 8)
    y = torch.arange(20) % 3
    assert resolve_modules(wrapped, [name, f"{prefix}act*"]) == {
        "act1": model.act1,
        "fc2": model.fc2,
        "act2": model.act2,
    }
    for clusters in (None, {name: CLUSTERS}):
        loss = modfast.ClusterabilityLoss(wrapped, name, 2, clusters)
        assert loss.layers == ("fc2",)
        assert torch.equal(loss(), modfast.ClusterabilityLoss(model, "fc2", 2)())
        optimizer = modfast.Modularity(
            wrapped.named_parameters(), 0.1, 2, layers=name, clusters=clusters
        )
        plain = modfast.Modularity(model.named_parameters(), 0.1, 2, layers="fc2")
        assert torch.equal(optimizer.sums, plain.sums)
    assert modfast.search_space_reduction(
        wrapped, CLUSTERS, layer=name
    ) == modfast.search_space_reduction(model, CLUSTERS, layer="fc2")
    found = modfast.evaluate_clusters(wrapped, (x, y), name, CLUSTERS)
    assert torch.equal(
        found.off_accuracy, modfast.evaluate_clusters(model, (x, y), "fc2", CLUSTERS).off_accuracy
    )
    circuit = modfast.prune_circuit(wrapped, x, y, layers=name, progress=False)
    assert list(circuit.mask) == ["fc2.weight"]


def test_what_is_not_there_is_named() -> None:
    _, wrapped = compiled()
    with pytest.raises(ValueError, match="layers='_orig_mod.fc9': no such module; did you mean"):
        resolve_modules(wrapped, "_orig_mod.fc9")
    assert match_names(["_orig_mod.a.b", "a.c"], "a.*") == ["_orig_mod.a.b", "a.c"]
