from __future__ import annotations

import math
from collections import Counter, UserList

import pytest
import torch
from torch import Tensor, nn

from modfast import perturbational_ei, sensitivity

QUIET = {"progress": False}
ONE = {"tolerance": None, "progress": False}


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data.copy_(torch.tensor(weight))
    return layer


def entropy(values: list[object]) -> float:
    n = len(values)
    return -sum(c / n * math.log2(c / n) for c in Counter(values).values())


def information(x: list[object], y: list[object]) -> float:
    return entropy(x) + entropy(y) - entropy(list(zip(x, y, strict=True)))


def codes(values: Tensor, low: Tensor | float, high: Tensor | float, bins: int) -> Tensor:
    return ((values.double() - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()


class Recorder(nn.Module):
    """A layer that keeps what went in and what came out, and its inputs' first pass apart."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.seen = layer, UserList()  # lists are put back

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.seen.append((x.detach().clone(), y.detach().clone()))
        return y


def test_parts_equal_counting_pair_by_pair() -> None:
    net, bins = Recorder(nn.Sequential(nn.Linear(3, 2), nn.Tanh())), 6
    options = {"bins": bins, "in_range": (-1.0, 2.0), "correction": None, "seed": 3}
    found = perturbational_ei(net, 3, out_range=(-1.0, 1.0), samples=500, **options, **ONE)
    x, y = net.seen[-1]
    assert len(x) == found.n_samples == 500
    assert x.min() >= -1
    assert x.max() <= 2
    expected = [
        [
            information(codes(x[:, i], -1, 2, bins).tolist(), codes(y[:, j], -1, 1, bins).tolist())
            for j in range(2)
        ]
        for i in range(3)
    ]
    torch.testing.assert_close(found.pairs, torch.tensor(expected, dtype=torch.float64))
    assert found.bits == pytest.approx(float(found.pairs.sum()))
    assert (found.kind, found.converged, len(found.history)) == ("parts", False, 1)
    whole = perturbational_ei(
        net, 3, mode="whole", out_range=(-1.0, 1.0), samples=500, **options, **ONE
    )
    torch.testing.assert_close(net.seen[-1][0], x)
    together = [
        [tuple(row) for row in codes(values, low, high, bins).tolist()]
        for values, low, high in ((x, -1, 2), (y, -1, 1))
    ]
    assert whole.bits == pytest.approx(information(*together))
    assert whole.pairs is None


def test_each_output_has_the_range_of_the_first_samples() -> None:
    net = Recorder(nn.Linear(2, 3))
    options = {"bins": 8, "correction": None, "seed": 0}
    found = perturbational_ei(net, 2, samples=300, max_samples=600, tolerance=1e-9, **options)
    (x0, y0), (x1, y1) = net.seen[-2:]
    assert (len(x0), len(x1), found.n_samples, len(found.history)) == (300, 300, 600, 2)
    low, high = y0.double().amin(0), y0.double().amax(0)
    y = codes(torch.cat([y0, y1]), low, high, 8)
    x = codes(torch.cat([x0, x1]), 0, 1, 8)
    expected = [
        [information(x[:, i].tolist(), y[:, j].tolist()) for j in range(3)] for i in range(2)
    ]
    torch.testing.assert_close(found.pairs, torch.tensor(expected, dtype=torch.float64))


def test_sensitivity_drives_one_input_at_a_time() -> None:
    net = Recorder(nn.Linear(3, 2))
    options = {"bins": 6, "correction": None, "seed": 3, "silent": 0.25}
    found = sensitivity(net, 3, samples=400, **options, **ONE)
    *_, first, second, third = net.seen
    for i, (x, y) in enumerate((first, second, third)):
        others = [j for j in range(3) if j != i]
        assert bool((x[:, others] == 0.25).all())
        torch.testing.assert_close(x[:, i], first[0][:, 0])
        low, high = y.double().amin(0), y.double().amax(0)
        y = codes(y, low, high, 6)
        expected = [
            information(codes(x[:, i], 0, 1, 6).tolist(), y[:, j].tolist()) for j in range(2)
        ]
        torch.testing.assert_close(found.pairs[i], torch.tensor(expected, dtype=torch.float64))
    assert found.kind == "sensitivity"


def test_known_values() -> None:
    wires = linear([[1.0, 0.0], [0.0, 1.0]])
    # With the range of the inputs, so that all bins agree.
    options = {"bins": 8, "out_range": (0.0, 1.0), "seed": 0, **QUIET}
    assert perturbational_ei(wires, 2, **options).bits == pytest.approx(6, abs=0.01)
    whole = perturbational_ei(wires, 2, mode="whole", **options)
    assert whole.bits == pytest.approx(6, abs=0.05)
    assert sensitivity(wires, 2, **options).bits == pytest.approx(6, abs=0.01)

    # An exclusive or: nothing by parts, one bit as a whole.
    def xor(y: Tensor) -> Tensor:
        return ((y[:, :1] > 0.5) ^ (y[:, 1:] > 0.5)).float()

    options = {"activation": xor, "bins": 2, "seed": 0, **QUIET}
    assert perturbational_ei(nn.Identity(), 2, **options).bits == pytest.approx(0, abs=0.01)
    whole = perturbational_ei(nn.Identity(), 2, mode="whole", **options)
    assert whole.bits == pytest.approx(1, abs=0.01)
    # Noise on the other input hides a weak one, which alone is as loud as any.
    weak = linear([[1.0, 0.1]])
    parts = perturbational_ei(weak, 2, bins=8, seed=0, **QUIET).pairs.flatten().tolist()
    alone = sensitivity(weak, 2, bins=8, seed=0, **QUIET).pairs.flatten().tolist()
    assert parts[0] > 1.5
    assert parts[1] < 0.05
    assert alone == pytest.approx([3.0, 3.0], abs=0.02)
    dead = nn.Sequential(nn.Linear(2, 3), nn.Threshold(1e9, 0.0))
    found = perturbational_ei(dead, 2, seed=0, **QUIET)
    assert (found.bits, found.converged) == (0.0, True)


def test_samples_are_doubled_until_little_changes() -> None:
    layer = nn.Linear(5, 4)
    options = {"bins": 16, "correction": None, "seed": 0, **QUIET}
    found = perturbational_ei(layer, 5, samples=1000, tolerance=0.02, **options)
    steps = found.history.diff().abs() / found.history[1:]
    assert found.converged
    assert steps[-1] <= 0.02
    assert bool((steps[:-1] > 0.02).all())
    assert found.n_samples == 1000 * 2 ** (len(found.history) - 1)
    # The bias of plain counts is gone by the end, and the correction takes it away sooner.
    long = perturbational_ei(layer, 5, samples=400_000, **{**options, **ONE})
    assert found.bits == pytest.approx(long.bits, rel=0.04)
    corrected = perturbational_ei(
        layer, 5, samples=4000, **{**options, **ONE, "correction": "miller-madow"}
    )
    plain = perturbational_ei(layer, 5, samples=4000, **{**options, **ONE})
    assert abs(corrected.bits - long.bits) < 0.3 * abs(plain.bits - long.bits)
    capped = perturbational_ei(layer, 5, samples=100, max_samples=300, tolerance=1e-9, **options)
    assert (capped.n_samples, capped.converged) == (200, False)


def test_a_seed_gives_one_result(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for measure in (perturbational_ei, sensitivity):
        one, two = (measure(net, 4, samples=500, seed=5, **ONE) for _ in range(2))
        other = measure(net, 4, samples=500, seed=6, **ONE)
        assert torch.equal(one.pairs, two.pairs)
        assert not torch.equal(one.pairs, other.pairs)
        with monkeypatch.context() as patch:
            patch.setattr("modfast.effective.driven._CELLS_AT_ONCE", 300)
            in_parts = measure(net, 4, samples=500, seed=5, **ONE)
        torch.testing.assert_close(in_parts.pairs, one.pairs)
    torch.manual_seed(1)
    one = perturbational_ei(net, 4, samples=500, **ONE)
    torch.manual_seed(1)
    assert torch.equal(perturbational_ei(net, 4, samples=500, **ONE).pairs, one.pairs)


def test_a_layer_within_a_model() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()).train()
    net.append(nn.Linear(18, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"samples": 300, "seed": 0, **ONE}
    inner = perturbational_ei(net, (1, 5, 5), "4", **options)
    torch.testing.assert_close(inner.pairs, perturbational_ei(net[4], 18, **options).pairs)
    assert perturbational_ei(net, (1, 5, 5), "0", **options).pairs.shape == (25, 18)
    assert sensitivity(net, (1, 5, 5), **options).pairs.shape == (25, 4)
    assert net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_whole_of_many_outputs() -> None:
    net = nn.Linear(2, 60).double()
    found = perturbational_ei(net, 2, mode="whole", bins=4, samples=2000, seed=0, **ONE)
    # So many outputs tell their inputs' cells apart, of which each sample has one.
    assert 3.0 < found.bits <= 4.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"input_shape": 5}, ValueError, r"input_shape=\(5,\) must fit"),
        ({"layer": "fc"}, ValueError, "layer='fc': no such module; there are: '0', '1'"),
        ({"layer": "*"}, ValueError, r"layer='\*' must name one module, got \['0', '1'\]"),
        ({"mode": "half"}, ValueError, "mode must be one of .* got 'half'"),
        ({"in_range": (1.0, 1.0)}, ValueError, "in_range must have lowest < highest"),
        ({"in_range": (0.0, math.inf)}, ValueError, "in_range must be finite, got inf"),
        ({"in_range": 1.0}, TypeError, r"in_range must be \(lowest, highest\), got 1.0"),
        ({"out_range": (0.0,)}, TypeError, "out_range must be"),
        ({"activation": "relu"}, TypeError, "activation must be a function or None, got 'relu'"),
        ({"bins": 1}, ValueError, "bins must be from 2"),
        ({"correction": "shuffle"}, ValueError, "correction must be one of"),
        ({"mode": "whole", "correction": "panzeri-treves"}, ValueError, "correction must be None"),
        (
            {"mode": "whole", "bins": 4000},
            ValueError,
            "cells of the inputs, more than max_samples=1000000: raise max_samples",
        ),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": 2_000_000}, ValueError, "samples must be at most max_samples=1000000"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be above 0, got 0.0"),
        ({"tolerance": math.nan}, ValueError, "tolerance must be finite"),
        ({"seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
        ({"activation": lambda y: y * math.nan}, ValueError, "outputs must be finite"),
        ({"activation": lambda y: y[:1]}, TypeError, "must return a floating tensor with a row"),
        ({"activation": lambda y: (y,)}, TypeError, "must return a floating tensor .* got tuple"),
    ],
)
def test_bad_arguments(change, error, message) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    options = {"model": net, "input_shape": 2, "samples": 100, **QUIET, **change}
    with pytest.raises(error, match=message):
        perturbational_ei(**options)


def test_layers_that_cannot_be_driven() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pair, self.unused = nn.Linear(2, 2), nn.Bilinear(2, 2, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.pair(self.fc(self.fc(x)), x)

    with pytest.raises(ValueError, match="layer='fc' must be called once by the model, got 2"):
        perturbational_ei(Twice(), 2, "fc")
    with pytest.raises(ValueError, match="layer='unused' must be called once by the model, got 0"):
        perturbational_ei(Twice(), 2, "unused")
    with pytest.raises(ValueError, match="layer='pair' must take one floating tensor"):
        perturbational_ei(Twice(), 2, "pair")
    with pytest.raises(ValueError, match="silent must be finite"):
        sensitivity(nn.Linear(2, 2), 2, silent=math.nan)


def test_hooks_inference_mode_and_what_the_layer_keeps() -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.log: list[int] = []
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(len(x))
            self.n += 1
            return super().forward(x)

    net = nn.Sequential(nn.Linear(4, 3), Counts())
    net[1].register_forward_hook(lambda m, args, y: torch.tanh(4 * y))
    options = {"samples": 300, "seed": 0, **ONE}
    found = perturbational_ei(net, 4, "1", **options)
    plain = nn.Linear(3, 2)
    plain.load_state_dict({"weight": net[1].weight, "bias": net[1].bias})
    expected = perturbational_ei(plain, 3, activation=lambda y: torch.tanh(4 * y), **options)
    assert torch.equal(found.pairs, expected.pairs)
    with torch.inference_mode():
        inside = perturbational_ei(net, 4, "1", **options)
    assert torch.equal(found.pairs, inside.pairs)
    compiled = perturbational_ei(torch.compile(net, backend="eager"), 4, "1", **options)
    assert torch.equal(found.pairs, compiled.pairs)
    assert (net[1].log, net[1].n.item()) == ([], 0)


def test_figures() -> None:
    pytest.importorskip("plotly")
    layer = nn.Linear(2, 3)
    found = perturbational_ei(layer, 2, samples=500, seed=0, **ONE)
    figure = found.plot()
    assert figure.data[0].z.tolist() == found.pairs.tolist()
    assert "not converged" in figure.layout.title.text
    assert sensitivity(layer, 2, samples=500, **ONE).plot().layout.title.text.startswith("Sens")
    whole = perturbational_ei(layer, 2, mode="whole", bins=4, samples=500, seed=0, **QUIET)
    line = whole.plot().data[0]
    assert list(line.y) == whole.history.tolist()
    assert line.x[-1] == whole.n_samples
