from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from training.stepping import batch, closure, network, no_term, trained

import modfast
from modfast import ClusterabilityLoss, Clusters, Modularity
from modfast.models import MLP

BASES: list[tuple[Any, type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ("adam", torch.optim.Adam, {"weight_decay": 0.01}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
    # Without a fused step: torch's own.
    ("adam", torch.optim.Adam, {"amsgrad": True}),
    ("sgd", torch.optim.SGD, {"maximize": True}),
    (torch.optim.RMSprop, torch.optim.RMSprop, {}),
    (torch.optim.LBFGS, torch.optim.LBFGS, {"max_iter": 3}),
]


@pytest.mark.parametrize(("base", "torch_class", "options"), BASES)
def test_equals_base_plus_loss(
    base: Any, torch_class: Any, options: dict[str, Any], device: torch.device
) -> None:
    ours = network(torch.float64, device)
    theirs = copy.deepcopy(ours)
    optimizer = Modularity(ours.parameters(), 0.01, 3, alpha=5.0, base=base, **options)
    expected = torch_class(theirs.parameters(), lr=0.01, **options)
    reg = ClusterabilityLoss(theirs, ["fc2", "fc3"], 3, alpha=5.0)
    trained(optimizer, closure(ours, optimizer, no_term), 100)
    trained(expected, closure(theirs, expected, reg), 100)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_sgd_in_float32_equals_base_plus_loss(options: dict[str, Any]) -> None:
    ours, theirs = network(), network()
    optimizer = Modularity(ours.parameters(), 0.01, 3, alpha=5.0, **options)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.01, **options)
    reg = ClusterabilityLoss(theirs, ["fc2", "fc3"], 3, alpha=5.0)
    trained(optimizer, closure(ours, optimizer, no_term), 100)
    trained(expected, closure(theirs, expected, reg), 100)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p - q).norm() <= 1e-5 * q.norm()


@pytest.mark.parametrize("base", ["adam", "adamw"])
def test_adam_in_float32_equals_base_plus_loss(base: str) -> None:
    # Adam divides by the gradient's size: an entry whose gradient is rounding noise moves at full
    # step in a random direction, in torch's own as in ours. So the gradients are given, and large.
    ours, theirs = network(), network()
    torch_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[base]
    optimizer = Modularity(ours.parameters(), 0.001, 3, alpha=5.0, base=base)
    expected = torch_class(theirs.parameters(), lr=0.001)
    reg = ClusterabilityLoss(theirs, ["fc2", "fc3"], 3, alpha=5.0)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator) for p in ours.parameters()]
    for _ in range(100):
        expected.zero_grad()
        reg().backward()
        for p, q, d in zip(ours.parameters(), theirs.parameters(), directions, strict=True):
            noise = d.sign() + 0.1 * torch.randn(d.shape, generator=generator)
            p.grad = noise
            q.grad = noise if q.grad is None else q.grad + noise
        optimizer.step()
        expected.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p - q).norm() <= 1e-5 * q.norm()


def test_default_takes_every_hidden_matrix() -> None:
    model = network()
    for params in (model.parameters(), model.named_parameters()):
        optimizer = Modularity(params, n_clusters=3)
        expected = [
            modfast.clusterability(fc.weight, Clusters.equal(*fc.weight.shape, 3)).detach()
            for fc in (model.fc2, model.fc3)
        ]
        torch.testing.assert_close(optimizer.values.float(), torch.stack(expected))


def test_layers_by_name_pattern_and_clusters() -> None:
    model = network()
    clusters = {"fc2.weight": Clusters.equal(13, 17, 2), "fc1": Clusters.equal(17, 20, 5)}
    for layers in (["fc1", "fc2"], "fc[12]", "fc[12].weight"):
        optimizer = Modularity(model.named_parameters(), layers=layers, clusters=clusters)
        expected = [
            modfast.clusterability(model.fc1.weight, clusters["fc1"]).detach(),
            modfast.clusterability(model.fc2.weight, clusters["fc2.weight"]).detach(),
        ]
        torch.testing.assert_close(optimizer.values.float(), torch.stack(expected))


def test_parameter_groups_scheduler_and_alpha() -> None:
    ours, theirs = network(torch.float64), network(torch.float64)

    def groups(model: MLP) -> list[dict[str, Any]]:
        return [
            {"params": list(model.fc1.parameters()), "lr": 0.1},
            {"params": [*model.fc2.parameters(), *model.fc3.parameters()]},
            {"params": list(model.fc4.parameters()), "weight_decay": 0.5},
        ]

    optimizer = Modularity(groups(ours), 0.01, 3, alpha=5.0, momentum=0.9)
    expected = torch.optim.SGD(groups(theirs), 0.01, momentum=0.9)
    reg = ClusterabilityLoss(theirs, ["fc2", "fc3"], 3, alpha=5.0)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.05, 60) for o in (optimizer, expected)]
    for step in range(50):
        if step == 25:
            reg.alpha = 1.0
            for group in optimizer.param_groups:
                group["alpha"] = 1.0
        trained(optimizer, closure(ours, optimizer, no_term), 1)
        trained(expected, closure(theirs, expected, reg), 1)
        for scheduler in schedulers:
            scheduler.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_tells_autograd_of_its_writes() -> None:
    model = network()
    optimizer = Modularity(model.parameters(), n_clusters=3)
    out = model(batch()[0]).sum()
    before = model.fc2.weight._version
    trained(optimizer, closure(model, optimizer, no_term), 1)
    assert model.fc2.weight._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_missing_and_frozen_gradients() -> None:
    model = network()
    optimizer = Modularity(model.parameters(), 0.1, 3, alpha=5.0)
    model.fc3.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.fc4(torch.ones(2, 11)).sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # fc2 by its penalty alone.
    assert moved == {"fc2.weight", "fc4.weight", "fc4.bias"}
    optimizer.zero_grad()
    trained(optimizer, closure(model, optimizer, no_term), 1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {"fc3.weight"}


def test_gradients_are_left_as_they_were() -> None:
    for base in ("sgd", torch.optim.RMSprop):
        model = network()
        optimizer = Modularity(model.parameters(), 0.1, 3, base=base)
        closure(model, optimizer, no_term)()
        grad = model.fc2.weight.grad
        assert grad is not None
        kept = grad.clone()
        optimizer.step()
        assert model.fc2.weight.grad is grad
        assert torch.equal(grad, kept)


def test_closure_returns_its_own_loss() -> None:
    for base in ("sgd", "adam", torch.optim.LBFGS):
        model = network()
        optimizer = Modularity(model.parameters(), 0.1, 3, base=base)
        evaluate = closure(model, optimizer, no_term)
        assert torch.equal(optimizer.step(evaluate), closure(network(), optimizer, no_term)())


def test_grad_scaler() -> None:
    ours, theirs = network(), network()
    optimizer = Modularity(ours.parameters(), 0.01, 3, alpha=5.0)
    expected = Modularity(theirs.parameters(), 0.01, 3, alpha=5.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch()
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(ours(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        trained(expected, closure(theirs, expected, no_term), 1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_train(dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = Modularity(model.parameters(), 0.02, 3, alpha=5.0, momentum=0.9)
    trained(optimizer, closure(model, optimizer, no_term), 100)
    assert (optimizer.values > 0.95).all()


def test_weights_that_are_not_contiguous() -> None:
    ours, theirs = network(torch.float64), network(torch.float64)
    ours.fc2.weight = nn.Parameter(ours.fc2.weight.detach().T.contiguous().T)
    optimizer = Modularity(ours.parameters(), 0.01, 3)
    expected = Modularity(theirs.parameters(), 0.01, 3)
    trained(optimizer, closure(ours, optimizer, no_term), 5)
    trained(expected, closure(theirs, expected, no_term), 5)
    torch.testing.assert_close(ours.fc2.weight, theirs.fc2.weight)


def test_added_groups_have_no_clusters() -> None:
    model = network()
    optimizer = Modularity(
        [*model.fc1.parameters(), *model.fc2.parameters(), model.fc3.weight], 0.1
    )
    optimizer.add_param_group({"params": list(model.fc4.parameters())})
    before = model.fc4.weight.detach().clone()
    trained(optimizer, closure(model, optimizer, no_term), 1)
    assert len(optimizer.values) == 1
    assert not torch.equal(before, model.fc4.weight)


def test_default_on_a_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = Modularity(model.named_parameters(), 0.1, 2, alpha=5.0)
    expected = []
    for block in model.transformer.h:
        for layer in (block.mlp.c_fc, block.mlp.c_proj):
            mask = Clusters.equal(*layer.weight.shape, 2).mask()
            squares = layer.weight.detach().double().square()
            expected.append(squares[mask].sum() / squares.sum())
    torch.testing.assert_close(optimizer.values, torch.stack(expected))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()  # without gradients the penalty alone moves weights
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[-2] for name in moved} == {"c_fc", "c_proj"}
    assert all(".mlp." in name for name in moved)
    assert len(moved) == 4


def test_weights_that_are_no_matrices_are_refused() -> None:
    model = network()
    prune.l1_unstructured(model.fc2, "weight", 3)
    for layers in (None, "fc2*", ["fc3", "fc2.weight_orig"]):
        with pytest.raises(ValueError, match="'fc2.weight_orig' must be a weight.*Clusterability"):
            Modularity(model.named_parameters(), n_clusters=3, layers=layers)
    experts = {"experts.up": torch.ones(4, 6, 6, requires_grad=True)}
    with pytest.raises(ValueError, match=r"'experts.up' must be one weight, got stacked ones"):
        Modularity(experts.items(), n_clusters=2, layers="experts.*")
    with pytest.raises(TypeError, match="layers=.* must be a name or a sequence of names"):
        Modularity(network().named_parameters(), layers=[0])  # type: ignore[list-item]
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="layers must name weights to train, got frozen ones: fc2"):
        Modularity(frozen.named_parameters(), n_clusters=3)
    # Groups in another order than layers run, without names that say so.
    fc1, _, *others = network().parameters()
    with pytest.raises(ValueError, match="of which each reads what the one before it gives"):
        Modularity([*others, fc1], n_clusters=3)


def test_bad_input() -> None:
    model = network()
    named = list(model.named_parameters())
    with pytest.raises(ValueError, match="only 2 2-D weights; name the layers"):
        Modularity(MLP([4, 4, 4]).parameters())
    with pytest.raises(ValueError, match="layers='fc2' needs names"):
        Modularity(model.parameters(), layers="fc2")
    with pytest.raises(ValueError, match="'fc22': no such weight; did you mean: 'fc2'"):
        Modularity(named, layers="fc22")
    with pytest.raises(ValueError, match="layers="):
        Modularity(named, layers=[])
    with pytest.raises(ValueError, match="clusters has 'fc9'.*'fc2'"):
        Modularity(named, layers="fc2", clusters={"fc9": Clusters.equal(13, 17, 2)})
    with pytest.raises(ValueError, match=r"parameter 'fc2' of shape \(13, 17\)"):
        Modularity(named, layers="fc2", clusters=Clusters.equal(13, 16, 2))
    with pytest.raises(TypeError, match="clusters must be a Clusters, got list"):
        Modularity(named, layers="fc2", clusters=[[0, 1]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clusters must be a Clusters, got list"):
        Modularity(named, layers="fc2", clusters={"fc2": []})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="n_clusters must be at least 1, got 0"):
        Modularity(named, n_clusters=0)
    with pytest.raises(TypeError, match="n_clusters must be an integer, got '4'"):
        Modularity(named, n_clusters="4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 14 clusters for a 13 x 17 weight"):
        Modularity(named, n_clusters=14)
    with pytest.raises(ValueError, match="base must be one of 'sgd', 'adam', 'adamw'.*'sdg'"):
        Modularity(named, base="sdg")
    with pytest.raises(TypeError, match="base must be a name or a torch.optim.Optimizer class"):
        Modularity(named, base=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be finite, got inf"):
        Modularity(named, alpha=float("inf"))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        Modularity(named, lr=-1.0)
    with pytest.raises(TypeError, match="momentun"):
        Modularity(named, momentun=0.9)
    with torch.no_grad():
        model.fc3.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="parameter 'fc3' must be finite, got 1 of 143"):
        Modularity(named, n_clusters=3)
