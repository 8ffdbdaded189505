from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from modfast import ClusterabilityLoss, Clusters, Modularity, search_space_reduction
from modfast.models import MLP
from modfast.network.weights import (
    current_weight,
    has_weight,
    hidden_weights,
    input_first,
    require_matrix,
    weight_of,
)


def old(name: str, layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made: nn.Module = getattr(torch.nn.utils, name)(layer)
    return made


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


def pruned_twice(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(prune.l1_unstructured(layer, "weight", 7), "weight", 5)


class ScaledHook:
    """As in networks with an equalized learning rate."""

    def compute_weight(self, module: Any) -> Tensor:
        weight: Tensor = module.weight_raw * 0.5
        return weight

    def __call__(self, module: Any, inputs: Any) -> None:
        module.weight = self.compute_weight(module)


def scaled(layer: nn.Module) -> nn.Module:
    raw = layer._parameters.pop("weight")
    layer.register_parameter("weight_raw", raw)
    ScaledHook()(layer, None)
    layer.register_forward_pre_hook(ScaledHook())
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda layer: layer,
    "prune": pruned_twice,
    "old weight_norm": lambda layer: old("weight_norm", layer),
    "old spectral_norm": lambda layer: old("spectral_norm", layer),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two parametrizations": lambda layer: doubled(parametrizations.spectral_norm(layer)),
    "equalized": scaled,
}


def computed(layer: nn.Module) -> Tensor:
    """The weight that the layer multiplies with, by what it makes of the identity."""
    before = layer.training
    layer.eval()
    found: Tensor = layer(torch.eye(6, dtype=torch.float64)).T
    layer.train(before)
    return found.detach()


def moved(layer: nn.Module) -> nn.Module:
    """After a training pass and a step, so that what a hook left is the last pass's."""
    layer(torch.ones(2, 6, dtype=torch.float64)).square().sum().backward()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.1 * torch.randn_like(p)
    layer.zero_grad()
    return layer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [True, False])
def test_is_what_the_next_pass_computes_with(way: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = moved(WAYS[way](nn.Linear(6, 6, bias=False).double())).train(training)
    buffers = {name: b.clone() for name, b in layer.named_buffers()}
    state = {name: id(x) for name, x in layer.named_parameters()}
    flags = [m.training for m in layer.modules()]
    found = current_weight(layer)
    assert all(torch.equal(b, buffers[name]) for name, b in layer.named_buffers())
    assert {name: id(x) for name, x in layer.named_parameters()} == state
    assert [m.training for m in layer.modules()] == flags
    torch.testing.assert_close(found.detach(), computed(layer), rtol=1e-12, atol=1e-12)
    assert (found is layer.weight) == (way == "plain")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
def test_gradients_reach_the_parameters_behind_it(way: str) -> None:
    torch.manual_seed(0)
    layer = moved(WAYS[way](nn.Linear(6, 6, bias=False).double())).eval()
    parameters = list(layer.parameters())
    identity = torch.eye(6, dtype=torch.float64)
    expected = torch.autograd.grad(layer(identity).pow(3).sum(), parameters)
    for _ in range(2):  # each call has a graph of its own
        found = torch.autograd.grad(current_weight(layer).pow(3).sum(), parameters)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("way", ["spectral_norm", "old spectral_norm"])
def test_a_training_pass_in_between_leaves_the_gradient(way: str) -> None:
    layer = WAYS[way](nn.Linear(6, 6)).train()
    value = current_weight(layer).sum()
    layer(torch.ones(1, 6))  # moves the power iteration in place
    value.backward()
    assert any(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("way", ["spectral_norm", "old spectral_norm", "orthogonal"])
def test_autocast_has_no_say(way: str) -> None:
    layer = WAYS[way](nn.Linear(6, 6))
    expected = current_weight(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(current_weight(layer), expected)


def test_a_convolution_with_norms() -> None:
    layer = parametrizations.spectral_norm(nn.ConvTranspose1d(3, 4, 2))
    assert has_weight(layer)
    assert input_first(layer)
    assert torch.equal(weight_of(layer, "up"), layer.eval().weight)


def test_lora_has_its_base_weight() -> None:
    class Lora(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.sum(-1, keepdim=True)

    layer = Lora(3, 2)
    assert current_weight(layer) is layer.weight


def test_peft_layers_have_their_base_weight_under_its_own_name() -> None:
    peft = pytest.importorskip("peft")
    plain = MLP([6, 8, 8, 3])
    base = plain.fc2.weight
    config = peft.LoraConfig(target_modules=["fc2"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(plain, config)
    (name,) = [n for n, m in model.named_modules() if n.endswith("fc2.base_layer")]
    assert current_weight(model.get_submodule(name)) is base
    reg = ClusterabilityLoss(model, name, 2, alpha=1.0)
    squares = base.detach().double().square()
    expected = squares[Clusters.equal(8, 8, 2).mask()].sum() / squares.sum()
    torch.testing.assert_close(reg.values[0], expected)
    # Its base weights are frozen: there is nothing for an optimizer to cluster.
    with pytest.raises(ValueError, match="layers must name weights to train, got frozen ones"):
        Modularity(model.named_parameters(), n_clusters=2)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
def test_the_search_space_is_counted_without_moving_anything(way: str) -> None:
    model = MLP([6, 6, 6, 3])
    clusters = Clusters.equal(6, 6, 2)
    expected = search_space_reduction(model, clusters, layer="fc2")
    model.fc2 = WAYS[way](model.fc2)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    assert search_space_reduction(model, clusters, layer="fc2") == expected
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_unknown_hooks_and_weights_are_refused() -> None:
    layer = nn.Linear(3, 3)
    raw = layer._parameters.pop("weight")
    layer.register_parameter("raw", raw)

    def hook(module: Any, inputs: Any) -> None:
        module.weight = module.raw * 2

    hook(layer, None)
    layer.register_forward_pre_hook(hook)
    with pytest.raises(
        ValueError, match="weight of 'fc' must be a parameter, a parametrization or"
    ):
        weight_of(layer, "fc")
    with pytest.raises(ValueError, match="must not be a grouped convolution"):
        weight_of(nn.Conv2d(4, 4, 1, groups=2), "conv")
    with pytest.raises(ValueError, match="weight of 'fc' must be a dense tensor.* a lazy one"):
        weight_of(nn.LazyLinear(3), "fc")
    with pytest.raises(ValueError, match="a meta one"):
        weight_of(nn.Linear(3, 3, device="meta"), "fc")
    eight = nn.Linear(3, 3)
    eight.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="weight of 'fc' must be a floating tensor, got torch.int8"):
        weight_of(eight, "fc")


def hidden(model: nn.Module) -> list[str]:
    return hidden_weights(dict(model.named_parameters()))


def test_hidden_weights_of_plain_networks() -> None:
    assert hidden(MLP([4, 5, 6, 7, 3])) == ["fc2.weight", "fc3.weight"]
    sizes = {str(i): p for i, p in enumerate(MLP([4, 5, 6, 3]).parameters())}
    assert hidden_weights(sizes, named=False) == ["2"]
    named_head = nn.ModuleDict(
        {"head": nn.Linear(6, 2), "a": nn.Linear(4, 5), "b": nn.Linear(5, 6)}
    )
    assert hidden(named_head) == ["b.weight"]
    words = nn.ModuleDict(
        {"tok_emb": nn.Embedding(9, 4), "a": nn.Linear(4, 5), "b": nn.Linear(5, 2)}
    )
    assert hidden(words) == ["a.weight"]
    recurrent = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "a": nn.Linear(4, 5), "b": nn.Linear(5, 2)})
    assert hidden(recurrent) == ["a.weight"]
    classifier = nn.ModuleDict({"classifier": nn.Sequential(*MLP([4, 5, 6, 3]).children())})
    assert hidden(classifier) == ["classifier.2.weight"]


def tiny(name: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    sizes |= {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    family, _, _ = name.partition("For")
    family = family.removesuffix("LMHeadModel")
    config = getattr(transformers, f"{family}Config")(**(sizes | options))
    model: nn.Module = getattr(transformers, name)(config)
    return model


MOE = {"num_key_value_heads": 2, "num_local_experts": 4}
MLPS = {
    "GPT2LMHeadModel": (["mlp.c_fc", "mlp.c_proj"], {}),
    "GPTNeoXForCausalLM": (["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"], {}),
    "LlamaForCausalLM": (["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"], {}),
    "BertForSequenceClassification": (["intermediate.dense", "output.dense"], {}),
    "ViTForImageClassification": (["mlp.fc1", "mlp.fc2"], {"image_size": 8, "patch_size": 4}),
}


@pytest.mark.parametrize("name", MLPS)
def test_hidden_weights_of_transformers_are_their_mlps(name: str) -> None:
    wanted, options = MLPS[name]
    found = [each.removesuffix(".weight").split(".") for each in hidden(tiny(name, **options))]
    assert [".".join(each[-2:]) for each in found] == wanted * 2
    blocks = [next(part for part in each if part.isdigit()) for each in found]
    assert blocks == ["0"] * len(wanted) + ["1"] * len(wanted)


def test_encoder_layers_of_torch() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "head": nn.Linear(8, 2)})
    assert hidden(model) == ["layers.0.linear1.weight", "layers.0.linear2.weight"]


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer's MLPs, but params has none"):
        hidden(tiny("MixtralForCausalLM", **MOE))
    gpt2 = {str(i): p for i, p in enumerate(tiny("GPT2LMHeadModel").parameters())}
    with pytest.raises(ValueError, match=r"pass model.named_parameters\(\) as params, or name the"):
        hidden_weights(gpt2, named=False)
    with pytest.raises(ValueError, match="only 2 2-D weights; name the layers"):
        hidden(MLP([4, 5, 3]))
    skip = nn.ModuleDict(
        {n: nn.Linear(*s) for n, s in zip("abc", [(4, 5), (4, 6), (11, 2)], strict=True)}
    )
    with pytest.raises(ValueError, match="of which each reads what the one before it gives"):
        hidden(skip)
    for way in ("prune", "weight_norm", "old weight_norm", "spectral_norm"):
        model = MLP([6, 6, 6, 3])
        model.fc2 = WAYS[way](model.fc2)
        with pytest.raises(ValueError, match="parameter 'fc2.*must be a weight itself"):
            hidden(model)


def test_stacked_matrices_are_refused_by_name() -> None:
    names = dict(tiny("MixtralForCausalLM", **MOE).named_parameters())
    stacked = [name for name, p in names.items() if p.dim() == 3]
    assert len(stacked) == 4
    for name in stacked:
        with pytest.raises(ValueError, match=r"must be one weight, got stacked ones of shape \(4,"):
            require_matrix(name, names[name])
    require_matrix("conv.weight", nn.Conv1d(3, 4, 2).weight)
    with pytest.raises(ValueError, match="must be one weight"):
        require_matrix("blocks.0.attn.W_Q", torch.ones(2, 8, 4))


def test_a_router_is_no_hidden_weight() -> None:
    names = {
        "h.0.attn.weight": (4, 4),
        "h.0.mlp.gate.weight": (2, 4),
        "h.0.mlp.experts.0.w1.weight": (8, 4),
        "h.0.mlp.experts.1.w1.weight": (8, 4),
        "h.1.mlp.gate.weight": (8, 4),  # of a gated MLP: no experts beside it
    }
    found = hidden_weights({name: torch.ones(shape) for name, shape in names.items()})
    assert found == [name for name in names if "experts" in name or "h.1" in name]
