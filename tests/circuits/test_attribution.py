"""attribute_edges against one whole forward pass per edge, and gradients taken by hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from circuits.networks import CNN, KINDS, NODES, mlp
from circuits.plain import kl
from torch import Tensor, nn
from torch.nn import functional

from modfast import Clusters, EdgeScores, attribute_edges, discover_circuit
from modfast.models import MLP


def metrics(model: nn.Module, clean: Tensor) -> dict[str, tuple[dict[str, Any], Any]]:
    """By name: options of attribute_edges, and the same metric as a function that gives a float."""
    targets = torch.arange(len(clean)) % 3
    return {
        "kl": ({"metric": "kl"}, kl(model.eval()(clean).detach())),
        "loss": (
            {"targets": targets},
            lambda logits: float(functional.cross_entropy(logits, targets)),
        ),
        "function": (
            {"metric": lambda logits: (logits[:, 0] - logits[:, 1] ** 2).mean()},
            lambda logits: float((logits[:, 0] - logits[:, 1] ** 2).mean()),
        ),
    }


def assert_close(scores: EdgeScores, wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    for (pair, found), expected in zip(scores.scores.items(), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=str(pair))


@pytest.mark.parametrize("metric", ["kl", "loss", "function"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_one_forward_pass_for_each_edge(kind: str, metric: str) -> None:
    make, nodes = KINDS[kind]
    model, twin, clean, corrupted = make()
    options, function = metrics(model, clean)[metric]
    wanted = twin.exact(clean, corrupted, function)
    assert max(float(each.abs().max()) for each in wanted) > 1e-4
    for max_memory in (2**26, 1):  # all in one batch; one at a time
        scores = attribute_edges(
            model, clean, corrupted, method="exact", nodes=nodes, max_memory=max_memory, **options
        )
        assert_close(scores, wanted)
        assert scores.value == pytest.approx(function(model(clean).detach()), abs=1e-12)


@pytest.mark.parametrize("nodes", [None, NODES])
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_is_exact_for_a_linear_network_and_metric(method: str, nodes: Any) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    names = dict(zip(("fc1", "fc2", "fc3"), "012", strict=True))
    own = None if nodes is None else {names.get(name, name): x for name, x in nodes.items()}
    clean, corrupted = torch.randn(2, 9, 6).double()
    options = {"metric": lambda logits: (logits @ logits.new_tensor([1.0, -2, 3])).mean()}
    exact = attribute_edges(model, clean, corrupted, method="exact", nodes=own, **options)
    found = attribute_edges(model, clean, corrupted, method=method, nodes=own, **options)
    assert_close(found, list(exact.scores.values()))


@pytest.mark.parametrize("n", [1, 3])
def test_is_exact_for_a_linear_network_of_other_convolutions(n: int) -> None:
    torch.manual_seed(0)
    layers = {1: (nn.Conv1d, nn.AvgPool1d), 3: (nn.Conv3d, nn.AvgPool3d)}
    convolution, pool = layers[n]
    model = nn.Sequential(
        convolution(2, 3, 2), pool(2), convolution(3, 4, 2), nn.Flatten(), nn.Linear(4 * 2**n, 3)
    ).double()
    clean, corrupted = torch.randn(2, 5, 2, *[7] * n).double()
    options = {"metric": lambda logits: (logits @ logits.new_tensor([1.0, -2, 3])).mean()}
    exact = attribute_edges(model, clean, corrupted, method="exact", **options)
    assert_close(attribute_edges(model, clean, corrupted, **options), list(exact.scores.values()))


def test_is_exact_for_a_linear_cnn() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2, dilation=2), nn.Flatten(), nn.Linear(16, 3),
    ).double()  # fmt: skip
    clean, corrupted = torch.randn(2, 5, 2, 8, 8).double()
    options = {"metric": lambda logits: (logits @ logits.new_tensor([1.0, -2, 3])).mean()}
    exact = attribute_edges(model, clean, corrupted, method="exact", **options)
    found = attribute_edges(model, clean, corrupted, **options)
    assert_close(found, list(exact.scores.values()))
    assert [tuple(each.shape) for each in found.scores.values()] == [(2, 3), (3, 4), (4, 3)]


@pytest.mark.parametrize("steps", [1, 4])
def test_gradients_are_those_that_hooks_see(steps: int) -> None:
    model, twin, clean, corrupted = mlp()
    targets = torch.arange(9) % 3
    inputs: list[list[Tensor]] = [[], []]
    for x, seen in zip((clean, corrupted), inputs, strict=True):
        handles = [
            layer.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
            for layer in twin.layers
        ]
        model(x)
        for handle in handles:
            handle.remove()
    wanted = [torch.zeros_like(layer.weight.T) for layer in twin.layers]
    for i in range(1, steps + 1):
        gradients: list[Tensor] = []
        handles = [
            layer.register_full_backward_hook(lambda m, a, g, to=gradients: to.insert(0, g[0]))
            for layer in twin.layers
        ]
        x = corrupted + i / steps * (clean - corrupted)
        functional.cross_entropy(model(x.requires_grad_()), targets).backward()
        for handle in handles:
            handle.remove()
        for level, layer in enumerate(twin.layers):
            change = inputs[1][level] - inputs[0][level]
            slope = torch.einsum("ns,nr->sr", change, gradients[level]) / steps
            wanted[level] = wanted[level] + slope * layer.weight.T
    found = attribute_edges(model, clean, corrupted, targets, method="eap-ig", steps=steps)
    assert_close(found, [each.detach() for each in wanted])
    if steps == 1:
        assert_close(attribute_edges(model, clean, corrupted, targets), list(found.scores.values()))


def test_scores_of_groups_are_sums_of_those_of_units() -> None:
    model, twin, clean, corrupted = KINDS["grouped"][0]()
    targets = torch.arange(9) % 3
    units = attribute_edges(model, clean, corrupted, targets)
    groups = attribute_edges(model, clean, corrupted, targets, nodes=NODES)
    for level, (found, each) in enumerate(
        zip(groups.scores.values(), units.scores.values(), strict=True)
    ):
        senders, receivers = (functional.one_hot(x).double() for x in twin.labels[level:][:2])
        torch.testing.assert_close(found, senders.T @ each @ receivers)
    clusters = Clusters(rows=[0, 1, 0, 1, -1], cols=[0] * 6)
    again = attribute_edges(model, clean, corrupted, targets, nodes={**NODES, "fc1": clusters})
    assert_close(again, list(groups.scores.values()), 0)


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_gradients_follow_exact_ablation_on_trained_digits(method: str) -> None:
    pytest.importorskip("sklearn")
    model, clean, corrupted, targets = trained_digits()
    rows = torch.arange(len(targets))

    def difference(logits: Tensor) -> Tensor:
        """Between the classes of the clean and of the corrupted input, as in the papers."""
        return (logits[rows, targets] - logits[rows, targets.roll(1)]).mean()

    exact = attribute_edges(model, clean, corrupted, method="exact", metric=difference)
    found = attribute_edges(model, clean, corrupted, method=method, metric=difference)
    both = [torch.cat([x.flatten() for x in each.scores.values()]) for each in (exact, found)]
    assert float(torch.stack(both).corrcoef()[0, 1]) > 0.97


def trained_digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A 64-16-16-10 MLP, and test images each of which is compared with another one."""
    from modfast import data, fit

    digits = data.load("digits")
    torch.manual_seed(0)
    model = MLP([64, 16, 16, 10])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    fit(model, digits.train, 10, optimizer=optimizer, seed=0, progress=False)
    x, y = digits.test_x[:60], digits.test_y[:60]
    return model, x, x.roll(1, 0), y


def test_top_edges_and_their_circuit() -> None:
    model, _, clean, corrupted = mlp()
    scores = attribute_edges(model, clean, corrupted, torch.arange(9) % 3)
    edges = scores.top(7)
    sizes = [abs(edge.score) for edge in edges]
    assert sizes == sorted(sizes, reverse=True)
    for edge in edges:
        pair = (edge.sender[0], edge.receiver[0])
        assert float(scores.scores[pair][edge.sender[1], edge.receiver[1]]) == edge.score
    smallest = torch.cat([each.flatten().abs() for each in scores.scores.values()]).sort().values
    assert sizes[-1] == smallest[-7]
    circuit = scores.circuit(7, prune=False)
    assert circuit.n_edges == 7
    assert all(circuit.masks[e.sender[0], e.receiver[0]][e.sender[1], e.receiver[1]] for e in edges)
    with pytest.raises(ValueError, match="k must be at most 62, the edges, got 63"):
        scores.top(63)
    with pytest.raises(ValueError, match="n_edges must be at least 1"):
        scores.circuit(0)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact"])
def test_the_model_is_left_as_it_was(method: str) -> None:
    model = CNN().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(model.__dict__)
    x = torch.randn(2, 5, 2, 7, 7)
    attribute_edges(model, *x, torch.arange(5) % 3, method=method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [model.training, model.norm.training] == [True, False]
    assert set(model.__dict__) == attributes


class Interrupted:
    """A metric during whose nth call the user presses Ctrl-C."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return (logits[:, 0] - logits[:, 1] ** 2).mean()


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_the_model_is_left_as_it_was_by_an_interrupt(n: int) -> None:
    model = CNN().train()
    model.norm.eval()
    before = copy.deepcopy(model)
    attributes = set(model.__dict__)
    clean, corrupted = torch.randn(2, 5, 2, 7, 7)

    def interrupted(find: Callable[..., object], *arguments: Any, **options: Any) -> None:
        metric = Interrupted(n)
        with pytest.raises(KeyboardInterrupt):
            find(model, clean, corrupted, *arguments, metric=metric, **options)
        assert metric.left == 0
        after = dict(model.state_dict())
        assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert [model.training, model.norm.training] == [True, False]
        assert set(model.__dict__) == attributes

    interrupted(attribute_edges, method="eap-ig", steps=20)
    interrupted(attribute_edges, method="exact")
    interrupted(discover_circuit, 1e-3)


def test_progress_bars_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model, _, clean, corrupted = mlp()
    attribute_edges(model, clean, corrupted, method="exact")
    discover_circuit(model, clean, corrupted, 1e-3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_as_on_the_cpu(kind: str, cuda: torch.device) -> None:
    make, nodes = KINDS[kind]
    model, _, clean, corrupted = make()
    targets = torch.arange(len(clean)) % 3
    here = model, clean, corrupted
    there = copy.deepcopy(model).to(cuda), clean.to(cuda), corrupted.to(cuda)
    for method in ("eap", "eap-ig", "exact"):
        wanted = attribute_edges(*here, targets, method=method, nodes=nodes)
        found = attribute_edges(*there, targets.to(cuda), method=method, nodes=nodes)
        assert_close(found, list(wanted.scores.values()), 1e-9)
    circuit, again = (discover_circuit(*each, 1e-3, nodes=nodes) for each in (here, there))
    assert all(torch.equal(again.masks[pair], mask) for pair, mask in circuit.masks.items())
    torch.testing.assert_close(again.logits(*there).cpu(), circuit.logits(*here))


def test_inputs_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4), nn.ReLU(True), nn.Linear(4, 3))
    clean, corrupted = torch.randn(2, 9, 6)
    before = clean.clone(), corrupted.clone()
    for method in ("eap", "eap-ig", "exact"):
        attribute_edges(model, clean, corrupted, torch.arange(9) % 3, method=method)
    discover_circuit(model, clean, corrupted, 1e-3).evaluate(model, clean, corrupted)
    assert torch.equal(clean, before[0])
    assert torch.equal(corrupted, before[1])


def test_eap_takes_the_gradient_at_the_clean_inputs_themselves() -> None:
    # In float32, corrupted + (clean - corrupted) is 0 here.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    clean, corrupted = torch.randn(7, 4), torch.full((7, 4), 1e9)
    far = attribute_edges(model, clean, corrupted, torch.arange(7) % 3)
    exact = copy.deepcopy(model).double()
    wanted = attribute_edges(exact, clean.double(), corrupted.double(), torch.arange(7) % 3)
    for found, expected in zip(far.scores.values(), wanted.scores.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_sixteen_bit_networks() -> None:
    model, _, clean, corrupted = (
        each.bfloat16() if isinstance(each, (Tensor, nn.Module)) else each for each in mlp()
    )
    targets = torch.arange(9) % 3
    exact = copy.deepcopy(model).double()
    wanted = attribute_edges(exact, clean.double(), corrupted.double(), targets)
    found = attribute_edges(model, clean, corrupted, targets)
    for pair, values in wanted.scores.items():
        assert float((found.scores[pair] - values).abs().max() / values.abs().max()) < 0.05
    circuit = discover_circuit(model, clean, corrupted, 1e9)
    torch.testing.assert_close(circuit.logits(model, clean, corrupted), model(corrupted))


def test_figure_shows_the_scores() -> None:
    pytest.importorskip("plotly")
    torch.manual_seed(0)
    model, (clean, corrupted) = MLP([12, 5, 4, 3, 3, 3]), torch.randn(2, 9, 12)
    scores = attribute_edges(model, clean, corrupted, torch.arange(9) % 3)
    figure = scores.plot()
    titles = [note.text for note in figure.layout.annotations]
    for trace, title, (pair, values) in zip(
        figure.data, titles, scores.scores.items(), strict=True
    ):
        torch.testing.assert_close(torch.tensor(trace.z).double(), values)
        assert trace.zmax == -trace.zmin == float(values.abs().max())
        assert title == f"{pair[0]} → {pair[1]}, ±{trace.zmax:.2g}"
    # Four beside each other, and few nodes have a tick each.
    assert figure.layout.yaxis5.domain[1] < figure.layout.yaxis4.domain[0]
    assert [figure.layout.yaxis.dtick, figure.layout.xaxis.dtick] == [None, 1]
