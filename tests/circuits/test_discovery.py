"""discover_circuit against its algorithm with a whole forward pass for each edge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from circuits.networks import KINDS, mlp
from circuits.plain import Plain, identity, kl
from torch import nn
from torch.nn import functional

from modfast import EdgeCircuit, discover_circuit, prune_circuit
from modfast.models import MLP


@pytest.mark.parametrize("tau", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_those_of_one_edge_after_the_other(kind: str, tau: float) -> None:
    make, nodes = KINDS[kind]
    model, twin, clean, corrupted = make()
    whole = model.eval()(clean).detach()
    wanted = twin.acdc(clean, corrupted, kl(whole), tau)
    for max_memory in (2**26, 1):
        circuit = discover_circuit(model, clean, corrupted, tau, nodes=nodes, max_memory=max_memory)
        for mask, expected in zip(circuit.masks.values(), wanted, strict=True):
            assert torch.equal(mask, expected)
    targets = torch.arange(len(clean)) % 3
    found = circuit.evaluate(model, clean, corrupted, targets)
    logits = twin.logits(clean, corrupted, wanted)
    torch.testing.assert_close(circuit.logits(model, clean, corrupted), logits)
    assert found.kl == pytest.approx(kl(whole)(logits), abs=1e-12)
    assert found.corrupted_kl == pytest.approx(kl(whole)(model(corrupted).detach()))
    assert found.faithfulness == pytest.approx(1 - found.kl / found.corrupted_kl)
    assert found.loss == pytest.approx(functional.cross_entropy(logits, targets).item())
    assert found.accuracy == (logits.argmax(1) == targets).double().mean()


@pytest.mark.parametrize("metric", ["loss", "function"])
def test_other_metrics(metric: str) -> None:
    model, twin, clean, corrupted = mlp(bias=False)
    targets = torch.arange(9) % 3

    def function(logits: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets)

    options = {"targets": targets} if metric == "loss" else {"metric": function}
    wanted = twin.acdc(clean, corrupted, lambda logits: float(function(logits)), 1e-3)
    circuit = discover_circuit(model, clean, corrupted, 1e-3, **options)
    assert 0 < circuit.n_edges < circuit.n_total
    for mask, expected in zip(circuit.masks.values(), wanted, strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.slow
def test_long_runs_of_edges_of_one_kind() -> None:
    # Batches grow beyond their first size, and go against the guess in the middle.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    clean, corrupted = torch.randn(2, 7, 60).double()
    with torch.no_grad():
        model[0].weight[:, 5:30] *= 1e-4  # go
        model[0].weight[:, 30:50] *= 20  # stay
        model[0].weight[0, 17] = 3.0
    twin = Plain([model[0], model[2]], [torch.tanh, identity])
    wanted = twin.acdc(clean, corrupted, kl(model(clean).detach()), 1e-3)
    circuit = discover_circuit(model, clean, corrupted, 1e-3)
    for mask, expected in zip(circuit.masks.values(), wanted, strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_are_the_network_and_none_the_corrupted_run(kind: str) -> None:
    make, nodes = KINDS[kind]
    model, _, clean, corrupted = make()
    model.eval()
    targets = torch.arange(len(clean)) % 3
    every = discover_circuit(model, clean, corrupted, -1e9, nodes=nodes)
    assert every.n_edges == every.n_total
    found = every.evaluate(model, clean, corrupted, targets)
    assert found.kl == pytest.approx(0, abs=1e-12)
    assert found.faithfulness == pytest.approx(1)
    assert found.loss == pytest.approx(functional.cross_entropy(model(clean), targets).item())
    assert found.loss == pytest.approx(found.whole_loss)
    right = (model(clean).argmax(1) == targets).double().mean()
    assert found.accuracy == found.whole_accuracy == right
    none = discover_circuit(model, clean, corrupted, 1e9, nodes=nodes)
    assert none.n_edges == 0
    torch.testing.assert_close(none.logits(model, clean, corrupted), model(corrupted))
    found = none.evaluate(model, clean, corrupted)
    assert found.kl == pytest.approx(found.corrupted_kl)
    assert found.faithfulness == pytest.approx(0)
    assert found.loss is None


def test_same_inputs_need_no_edges() -> None:
    model, _, clean, _ = mlp()
    circuit = discover_circuit(model, clean, clean, 1e-9)
    assert circuit.n_edges == 0
    assert circuit.evaluate(model, clean, clean).faithfulness == 1


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, _, clean, corrupted = mlp()
    circuit = discover_circuit(model, clean, corrupted, 1e-3)
    circuit.save(tmp_path / "circuit.pt")
    again = EdgeCircuit.load(tmp_path / "circuit.pt")
    assert list(again.masks) == list(circuit.masks)
    assert all(torch.equal(again.masks[pair], mask) for pair, mask in circuit.masks.items())
    assert all(torch.equal(again.nodes[name], x) for name, x in circuit.nodes.items())
    measured = circuit.evaluate(model, clean, corrupted).to_dict()
    assert again.evaluate(model, clean, corrupted).to_dict() == measured
    assert [file.name for file in tmp_path.iterdir()] == ["circuit.pt"]


def test_files_that_are_no_edge_circuits(tmp_path: Path) -> None:
    model, _, clean, _ = mlp()
    prune_circuit(model, clean, torch.arange(9) % 3, "fc3").save(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="its kind is 'Circuit'"):
        EdgeCircuit.load(tmp_path / "weights.pt")
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt' holds no EdgeCircuit that modfast saved"):
        EdgeCircuit.load(tmp_path / "model.pt")


def test_masks_that_are_no_circuit() -> None:
    pair, nodes = ("input", "fc"), {"input": torch.arange(2), "fc": torch.tensor([0, 1, 1])}
    assert EdgeCircuit({pair: torch.ones(2, 2).bool()}, nodes).n_total == 4
    with pytest.raises(TypeError, match=r"masks\[.*\] must be a bool tensor, got torch.float32"):
        EdgeCircuit({pair: torch.ones(2, 2)}, nodes)
    with pytest.raises(ValueError, match=r"masks\[.*\] must be \(2, 2\), got \(2, 3\)"):
        EdgeCircuit({pair: torch.ones(2, 3).bool()}, nodes)
    with pytest.raises(ValueError, match=r"masks must be of \[\('input', 'fc'\)\], got \[\]"):
        EdgeCircuit({}, nodes)
    with pytest.raises(TypeError, match="nodes\\['fc'\\] must be int64"):
        EdgeCircuit({pair: torch.ones(2, 2).bool()}, {**nodes, "fc": [0, 1]})  # type: ignore


def test_figure_shows_the_edges() -> None:
    pytest.importorskip("plotly")
    model, _, clean, corrupted = mlp()
    circuit = discover_circuit(model, clean, corrupted, 1e-3)
    figure = circuit.plot()
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [len(line.x) // 3 for line in lines] == [int(m.sum()) for m in circuit.masks.values()]
    assert f"{circuit.n_edges} of 62" in figure.layout.title.text
    told = [f"{int(m.sum())} of {m.numel()}" for m in circuit.masks.values()]
    assert [note.text for note in figure.layout.annotations] == told


def test_figure_says_that_it_draws_only_some_edges() -> None:
    pytest.importorskip("plotly")
    nodes = {"input": torch.arange(90), "fc": torch.arange(50)}
    figure = EdgeCircuit({("input", "fc"): torch.ones(90, 50).bool()}, nodes).plot()
    assert figure.layout.annotations[0].text == "4,500 of 4,500, 2,250 drawn"
    assert len(figure.data[0].x) // 3 == 2250


def test_bad_input() -> None:
    model, _, clean, corrupted = mlp()
    with pytest.raises(ValueError, match="threshold must be finite, got nan"):
        discover_circuit(model, clean, corrupted, float("nan"))
    with pytest.raises(TypeError, match="threshold must be a number, got '1'"):
        discover_circuit(model, clean, corrupted, "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="corrupted must be as clean"):
        discover_circuit(model, clean, corrupted[1:], 0.1)
    circuit = discover_circuit(model, clean, corrupted, 1e-3)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        circuit.evaluate([], clean, corrupted)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clean must be as the model, torch.float64 on cpu, got"):
        circuit.evaluate(model, clean.float(), corrupted.float())
    with pytest.raises(ValueError, match="targets must have classes from 0 to 2"):
        circuit.evaluate(model, clean, corrupted, torch.full((9,), 3))
    other = MLP([6, 5, 5, 3]).double()
    with pytest.raises(ValueError, match="model must have the circuit's layers and units"):
        circuit.evaluate(other, clean, corrupted)
