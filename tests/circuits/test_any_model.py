"""Models as they are found: what decides is always the model itself with a weight zeroed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from circuits.models import MODELS, Logs, Net, hooked, with_other_layer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from modfast import (
    Circuit,
    Clusters,
    attribute_edges,
    discover_circuit,
    effective_circuit_size,
    prune_circuit,
    search_space_reduction,
)
from modfast.models import MLP


def by_hand(model: nn.Module, x: Tensor, y: Tensor, name: str, threshold: float) -> Tensor:
    """Which weights are kept, each tried by a whole pass of the model."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    weight = model.get_submodule(name).weight

    def loss() -> float:
        found = model(x)
        logits = found if isinstance(found, Tensor) else found.logits
        return float(functional.cross_entropy(logits.double(), y))

    before = weight.detach().clone()
    kept = torch.ones(weight.shape, dtype=torch.bool)
    with torch.no_grad():
        running = loss()
        for at in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
            value = weight[tuple(at)].item()
            weight[tuple(at)] = 0
            if (now := loss()) - running <= threshold:
                running, kept[tuple(at)] = now, False
            else:
                weight[tuple(at)] = value
        weight.copy_(before)
    for module, training in flags:
        module.training = training
    return kept


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(40, 5, generator=generator).double(), torch.arange(40) % 3


@pytest.mark.parametrize("name", MODELS)
def test_decisions_are_those_of_the_model(name: str) -> None:
    make, layer, backend = MODELS[name]
    torch.manual_seed(0)
    model = make().double().train()
    x, y = data()
    inner = getattr(model, "_orig_mod", model)
    wanted = by_hand(
        copy.deepcopy(inner) if name in ("plain", "lora") else inner, x, y, layer, 1e-3
    )
    assert 0 < int(wanted.sum()) < wanted.numel()
    getattr(inner, "log", []).clear()
    state = {key: value.clone() for key, value in inner.state_dict().items()}
    versions = {key: value._version for key, value in inner.named_parameters()}
    for chosen in (None, "model"):
        found = prune_circuit(model, x, y, layer, threshold=1e-3, backend=chosen)
        assert torch.equal(found.mask[f"{layer}.weight"], wanted)
        assert found.backend == (chosen or backend)
    with torch.inference_mode():
        again = prune_circuit(model, x, y, layer, threshold=1e-3)
    assert torch.equal(again.mask[f"{layer}.weight"], wanted)
    assert all(torch.equal(value, state[key]) for key, value in inner.state_dict().items())
    assert versions == {key: value._version for key, value in inner.named_parameters()}
    assert all(module.training for module in model.modules())
    assert getattr(inner, "log", []) == []


def test_the_layer_itself_must_have_free_weights() -> None:
    x, y = data()
    for wrap in (
        nn.utils.weight_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda each: prune.l1_unstructured(each, "weight", 9),
    ):
        model = with_other_layer(wrap)().double()
        with pytest.raises(ValueError, match="layers='a': its weight must be a parameter, but"):
            prune_circuit(model, x, y)


def test_what_is_wrong_with_a_layer_is_said_of_layers() -> None:
    x, y = data()
    model = nn.Sequential(nn.Linear(x.shape[1], 4)).double()
    model[0].spare = nn.Linear(2, 2).double()
    with pytest.raises(ValueError, match="cannot be taken: layers='0.spare': not reached"):
        prune_circuit(model, x, y, layers="0.spare", backend="replay")


def test_a_model_changed_between_calls() -> None:
    torch.manual_seed(0)
    x, y = data()
    model = Net().double()
    prune_circuit(model, x, y, "b")
    model.load_state_dict(Net().double().state_dict(), assign=True)
    wanted = by_hand(model, x, y, "b", 1e-3)
    assert torch.equal(prune_circuit(model, x, y, "b", threshold=1e-3).mask["b.weight"], wanted)
    model.a.register_forward_hook(lambda module, args, output: output.tanh())
    wanted = by_hand(model, x, y, "b", 1e-3)
    assert torch.equal(prune_circuit(model, x, y, "b", threshold=1e-3).mask["b.weight"], wanted)


@pytest.mark.parametrize("name", ["old weight_norm", "pruned", "hooks"])
def test_apply_keeps_the_rest(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name][0]().double().eval()
    x, y = data()
    circuit = prune_circuit(model, x, y, ["b", "c"], threshold=1e-2)
    alone = circuit.apply(model)
    found = functional.cross_entropy(alone(x), y).detach()
    torch.testing.assert_close(found, circuit.loss)
    assert (alone.b.weight == 0).sum() >= (~circuit.mask["b.weight"]).sum() > 0
    assert len(alone.b._forward_hooks) == len(model.b._forward_hooks)


def test_targets_among_the_inputs_and_positions_that_do_not_count() -> None:
    torch.manual_seed(0)
    model = Net().double()
    x, y = data()
    plain = prune_circuit(model, x, y, labels="all", threshold=1e-3)
    for targets, extra in ((None, {"labels": y}), ("y", {"y": y}), (y.int(), {})):
        found = prune_circuit(model, {"x": x, **extra}, targets, labels="all", threshold=1e-3)
        for label, circuit in plain.items():
            assert torch.equal(found[label].loss_path, circuit.loss_path)
    # Positions: the same samples, four in a row.
    rows = prune_circuit(model, x.view(10, 4, 5), y.view(10, 4), labels="all", threshold=1e-3)
    for label, circuit in plain.items():
        torch.testing.assert_close(rows[label].loss_path, circuit.loss_path)
        assert rows[label].n_samples == circuit.n_samples
    ignored = y.masked_fill(y == 2, -100)
    some = prune_circuit(model, x, ignored, threshold=1e-3)
    wanted = prune_circuit(model, x[y != 2], y[y != 2], threshold=1e-3)
    torch.testing.assert_close(some.loss_path, wanted.loss_path)
    with pytest.raises(TypeError, match="targets must be a tensor, or among the inputs"):
        prune_circuit(model, x)
    with pytest.raises(ValueError, match="inputs must fit the model"):
        prune_circuit(model, x[:, 1:], y)


@dataclass
class Out:
    scores: Tensor


class Returns(Net):
    def forward(self, x: Tensor) -> Any:
        return Out(super().forward(x))


def test_output_picks_the_logits() -> None:
    torch.manual_seed(0)
    model, plain = Returns().double(), Net().double()
    plain.load_state_dict(model.state_dict())
    x, y = data()
    with pytest.raises(TypeError, match="output= must pick the logits"):
        prune_circuit(model, x, y)
    found = prune_circuit(model, x, y, output="scores")
    assert torch.equal(found.loss_path, prune_circuit(plain, x, y).loss_path)
    sizes = effective_circuit_size(model, x, y, [1e-3], output=lambda o: o.scores)
    assert torch.equal(sizes.kept, effective_circuit_size(plain, x, y, [1e-3]).kept)
    assert sizes.backend == "fused"
    args = x, x.flip(0)
    edges = attribute_edges(model, *args, y, output="scores")
    for pair, each in attribute_edges(plain, *args, y).scores.items():
        assert torch.equal(edges.scores[pair], each)
    circuit = discover_circuit(model, *args, 1e-3, output="scores")
    assert circuit.evaluate(model, *args, y, output="scores").backend == circuit.backend == "replay"


def test_autocast() -> None:
    torch.manual_seed(0)
    x, y = data()
    model, x = Net(), x.float()
    edges = attribute_edges(model, x, x.flip(0), y)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # which leaves casts of the weights
        wanted = by_hand_autocast(model, x, y)
        found = prune_circuit(model, x, y, "b", threshold=1e-3)
        again = attribute_edges(model, x, x.flip(0), y)
    assert torch.equal(found.mask["b.weight"], wanted)
    assert found.backend == "model"
    for pair, each in edges.scores.items():
        assert torch.equal(each, again.scores[pair])


def by_hand_autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model = copy.deepcopy(model).requires_grad_(False)  # of such, casts are not kept
    return by_hand(model, x, y, "b", 1e-3)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact"])
def test_edges_in_inference_mode_and_of_what_is_logged(method: str) -> None:
    torch.manual_seed(0)
    model, plain = Logs().double(), Net().double()
    plain.load_state_dict(model.state_dict())
    x, y = data()
    wanted = attribute_edges(plain, x, x.flip(0), y, method=method)
    with torch.inference_mode():
        inside = x.clone(), x.flip(0), y.clone()
        fresh = copy.deepcopy(plain)
        found = [
            attribute_edges(model, *inside, method=method),
            attribute_edges(fresh, *inside, method=method),
        ]
    found.append(attribute_edges(model, *inside, method=method))
    for each in found:
        for pair, scores in wanted.scores.items():
            torch.testing.assert_close(each.scores[pair], scores)
    assert model.log == []


def test_edges_of_a_model_with_scaling_hooks() -> None:
    torch.manual_seed(0)
    x, y = data()
    model, plain = hooked(), nn.Sequential()
    model.b._forward_pre_hooks.clear()
    model, x = model.double(), x
    found = attribute_edges(model, x, x.flip(0), y, method="exact")
    # The same, with the hook's arithmetic in the weights.
    plain = Net().double()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain.b.weight.mul_(2)
        plain.b.bias.mul_(2).add_(1)
    wanted = attribute_edges(plain, x, x.flip(0), y, method="exact")
    for pair, scores in wanted.scores.items():
        torch.testing.assert_close(found.scores[pair], scores)


def test_search_space_moves_no_buffer() -> None:
    model = MLP([6, 6, 6, 3]).train()
    parametrizations.spectral_norm(model.fc2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    search_space_reduction(model, Clusters.equal(6, 6, 2), layer="fc2")
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_old_names_warn() -> None:
    x, y = data()
    model = Net().double()
    with pytest.warns(DeprecationWarning, match="against=.* is now .*baseline="):
        old: Circuit = prune_circuit(model, x, y, against="original")  # type: ignore[call-overload]
    assert old.against == "original"
    with pytest.warns(DeprecationWarning, match="path=.* is now .*backend="):
        prune_circuit(model, x, y, path="fused")  # type: ignore[call-overload]
    with pytest.warns(DeprecationWarning, match="backend='modules' is now backend='replay'"):
        assert prune_circuit(model, x, y, backend="modules").backend == "replay"
    with pytest.warns(DeprecationWarning, match="tau=.* is now .*threshold="):
        discover_circuit(model, x, x.flip(0), tau=1e-3)  # type: ignore[call-arg]
