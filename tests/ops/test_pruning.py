"""prune_layer against modfast.reference, which sets, runs, and restores."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

DTYPES = [torch.float32, torch.float64]
# Relative to the largest logit, or absolute.
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-12}
compiled = pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")


def example(seed: int, dtype: torch.dtype, scale: float = 1.0) -> dict[str, Any]:
    """Groups of samples on networks of one to five layers, of odd sizes, half with biases."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    depth, groups = 1 + seed % 5, 1 + seed % 3
    sizes = torch.tensor([number(1, 40) for _ in range(groups)])
    widths = [number(1, 8), *(number(1, 14) for _ in range(depth))]
    n, weights = int(sizes.sum()), []
    for n_in, n_out in pairwise(widths):
        weights.append(normal(groups, n_out, n_in))
        weights[-1][normal(groups, n_out, n_in) > scale] = 0  # as in a layer pruned before
    order = torch.randperm(widths[0] * widths[1], generator=generator)
    inputs = normal(n, widths[0])
    inputs[:, ::2].relu_()
    biases = [normal(groups, width) * (seed % 2) for width in widths[1:]]
    found = {
        "inputs": inputs,
        "weights": weights,
        "biases": biases,
        "targets": torch.randint(0, widths[-1], (n,), generator=generator),
        "sizes": sizes,
        "order": [torch.arange(len(order)), order, order[: len(order) // 2]][seed % 3],
    }
    # What the network says, so that its weights are of use, but for some samples.
    sure = torch.arange(n) % 5 > 0
    found["targets"][sure] = logits(found).argmax(1)[sure]
    return found


def logits(x: dict[str, Any]) -> Tensor:
    """Of the whole network, in float64."""
    group = torch.arange(len(x["sizes"])).repeat_interleave(x["sizes"])
    z = x["inputs"].double()
    for i, (weight, bias) in enumerate(zip(x["weights"], x["biases"], strict=True)):
        z = (weight.double()[group] @ (z.relu() if i else z)[..., None])[..., 0]
        z += bias.double()[group]
    return z


def on(device: torch.device, x: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else [each.to(device) for each in value]
        for name, value in x.items()
    }


def prune(
    x: dict[str, Any], device: torch.device, original: Tensor | None = None, threshold: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """By the operator of a device; what it finds lies on the CPU."""
    over = None if original is None else original.to(device)
    margins, losses = ops.prune_layer(**on(device, x), original=over, threshold=threshold)
    assert margins.device.type == losses.device.type == device.type
    return margins.cpu(), losses.cpu()


def replayed(
    x: dict[str, Any], margins: Tensor, threshold: float, original: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Margins and losses by brute force in float64, where each visit ends as `margins` say.

    So that decisions within rounding do not make the rest of two runs two different things.
    """
    offset, rest = 0, {name: x[name] for name in ("targets", "order")}
    found: list[list[Tensor]] = [[], []]
    for g, size in enumerate(x["sizes"].tolist()):
        rows = slice(offset, offset + size)
        weights = [weight[g : g + 1].double().clone() for weight in x["weights"]]
        parts: list[list[Tensor]] = [[], []]
        for visit, index in enumerate(rest["order"].tolist()):
            one = reference.prune_layer(
                x["inputs"][rows],
                weights,
                [bias[g : g + 1] for bias in x["biases"]],
                rest["targets"][rows],
                torch.tensor([size]),
                torch.tensor([index]),
                None if original is None else original[g : g + 1],
                threshold,
            )
            parts[0].append(one[0][0, 0])
            parts[1].append(one[1][0, 0])
            if margins[g, visit] <= 0:
                weights[0].view(-1)[index] = 0
        for part, each in zip(parts, found, strict=True):
            each.append(torch.stack(part) if part else torch.empty(0))
        offset += size
    return torch.stack(found[0]), torch.stack(found[1])


def few_visits(x: dict[str, Any], small: bool, n: int = 12) -> dict[str, Any]:
    return x | {"order": x["order"][:n]} if small else x


def check(
    x: dict[str, Any], threshold: float, against: str, close: float, device: torch.device
) -> Tensor:
    """The found margins, which are those of brute force."""
    empty = x | {"order": x["order"][:0]}
    original = prune(empty, device)[1][:, 0] if against == "original" else None
    margins, losses = prune(x, device, original, threshold)
    groups, visits = len(x["sizes"]), len(x["order"])
    assert margins.shape == (groups, visits)
    assert losses.shape == (groups, visits + 1)
    assert margins.dtype == losses.dtype == torch.float64
    wanted, before = replayed(x, margins, threshold, original)
    close *= max(1.0, float(logits(x).abs().max()))
    torch.testing.assert_close(margins, wanted.double(), rtol=0, atol=close)
    torch.testing.assert_close(losses[:, :-1], before.double(), rtol=0, atol=close)
    return margins


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("against", ["running", "original"])
@pytest.mark.slow
def test_random_networks(
    dtype: torch.dtype, against: str, device: torch.device, small: bool
) -> None:
    kept = []
    for seed in range(6 if small else 20):
        x = few_visits(example(seed, dtype), small)
        kept.append(check(x, 10.0 ** -(seed % 4), against, CLOSE[dtype], device) > 0)
    both = torch.cat([each.flatten() for each in kept])
    assert min(both.sum(), (~both).sum()) > (15 if small else 50)


@pytest.mark.parametrize("against", ["running", "original"])
def test_float64_decides_as_brute_force_to_the_end(
    against: str, device: torch.device, small: bool
) -> None:
    for seed in range(42, 44) if small else range(40, 55):
        x = few_visits(example(seed, torch.float64), small)
        empty = x | {"order": x["order"][:0]}
        original = prune(empty, device)[1][:, 0] if against == "original" else None
        found = prune(x, device, original, threshold=1e-2)
        wanted = reference.prune_layer(*x.values(), original, 1e-2)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.slow
def test_every_simd_level(simd: str, dtype: torch.dtype) -> None:
    for seed in range(10):
        check(example(seed, dtype), 1e-2, "running", CLOSE[dtype], torch.device("cpu"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e-2, 10.0, 100.0])
def test_weights_of_any_size(
    dtype: torch.dtype, scale: float, device: torch.device, small: bool
) -> None:
    for seed in range(3, 4) if small else range(5):
        x = few_visits(example(seed, dtype), small)
        x["weights"] = [weight * scale for weight in x["weights"]]
        check(x, 1e-2, "running", CLOSE[dtype], device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pre_activations_that_are_exactly_zero(
    dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    # Small integers: many units stand at the corner of a ReLU, before or while weights go.
    for seed in range(2, 4) if small else range(10):
        x = few_visits(example(seed, dtype), small)
        x["inputs"] = x["inputs"].round()
        x["weights"] = [weight.round() for weight in x["weights"]]
        x["biases"] = [bias.round() for bias in x["biases"]]
        check(x, 1e-1, "running", CLOSE[dtype], device)


def large(n: int, dtype: torch.dtype, widths: tuple[int, ...] = (9, 33, 17, 10)) -> dict[str, Any]:
    torch.manual_seed(n)
    pairs = list(pairwise(widths))
    return {
        "inputs": torch.randn(n, widths[0], dtype=dtype),
        "weights": [torch.randn(1, b, a, dtype=dtype) / a**0.5 for a, b in pairs],
        "biases": [torch.zeros(1, b, dtype=dtype) for _, b in pairs],
        "targets": torch.randint(0, widths[-1], (n,)),
        "sizes": torch.tensor([n]),
        "order": torch.arange(widths[0] * widths[1]),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_several_tiles_of_samples(
    n_layers: int, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    x = large(530 if small else 9000, dtype, (4, 7, 5, 3)[3 - n_layers :])
    check(few_visits(x, small, 6), 1e-3, "running", CLOSE[dtype], device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_wider_than_shared_memory(dtype: torch.dtype, device: torch.device) -> None:
    x = large(3, dtype, (2, 3, 1000, 4))
    check(x, 1e-3, "running", CLOSE[dtype], device)


def test_many_groups(device: torch.device) -> None:
    x = large(50, torch.float32, (3, 2, 3))
    x["sizes"] = torch.tensor([1, 2] * 16 + [2])
    for name in ("weights", "biases"):
        x[name] = [each.expand(33, *each.shape[1:]).contiguous() for each in x[name]]
    check(x, 1e-2, "running", CLOSE[torch.float32], device)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_weight_may_come_again(n_layers: int, device: torch.device) -> None:
    x = large(20, torch.float32, (9, 7, 6, 5)[3 - n_layers :])
    n_in = x["inputs"].shape[1]
    x["order"] = torch.tensor([0, 1, 1, 0, 2, n_in, 0, n_in, n_in + 1, 1])
    check(x, 0.1, "running", CLOSE[torch.float32], device)


def test_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    some = [
        large(9000, torch.float32, (4, 7, 5, 3)),
        *(example(seed, torch.float32) for seed in (2, 5, 8)),
    ]
    found = [ops.prune_layer(**x) for x in some]
    torch.set_num_threads(1)
    for x, pair in zip(some, found, strict=True):
        for a, b in zip(pair, ops.prune_layer(**x), strict=True):
            assert torch.equal(a, b)


def test_groups_do_not_see_each_other(device: torch.device, small: bool) -> None:
    x = few_visits(example(8, torch.float32), small)
    margins, losses = prune(x, device)
    offset = 0
    for g, size in enumerate(x["sizes"].tolist()):
        own = {
            "inputs": x["inputs"][offset : offset + size],
            "weights": [weight[g : g + 1] for weight in x["weights"]],
            "biases": [bias[g : g + 1] for bias in x["biases"]],
            "targets": x["targets"][offset : offset + size],
            "sizes": torch.tensor([size]),
        }
        alone = prune(x | own, device)
        assert torch.equal(alone[0][0], margins[g])
        assert torch.equal(alone[1][0], losses[g])
        offset += size


def test_weights_that_change_nothing_go(device: torch.device, small: bool) -> None:
    x = large(5 if small else 50, torch.float32)
    x["weights"][0][:, 3] = 0  # zero already
    x["weights"][1][:, :, 5] = 0  # nothing reads unit 5
    x["weights"][1][:, 7, 6] = 1
    x["weights"][1][:, :7, 6] = x["weights"][1][:, 8:, 6] = 0
    x["weights"][2][:, :, 7] = 0  # unit 6 is only read by a unit that nothing reads
    x["inputs"][:, 2] = 0  # never on
    margins = prune(x, device, threshold=0.25)[0].view(33, 9)
    assert (margins[[3, 5, 6]] == -0.25).all()
    assert (margins[:, 2] == -0.25).all()
    assert (prune(x, device, threshold=0.0)[0].view(33, 9)[5] == 0).all()  # gone as well


def test_inputs_of_any_strides(device: torch.device) -> None:
    x = few_visits(large(40, torch.float32), small=True)
    wanted = prune(x, device)[0]
    x["inputs"] = x["inputs"].t().contiguous().t()
    x["weights"] = [weight.mT.contiguous().mT for weight in x["weights"]]
    assert torch.equal(prune(x, device)[0], wanted)


@compiled
@pytest.mark.slow
def test_opcheck(device: torch.device, small: bool) -> None:
    for seed in (0, 4, 5):
        x = on(device, few_visits(example(seed, torch.float32), small, 3))
        original = torch.ones(len(x["sizes"]), dtype=torch.float64, device=device)
        for each in (None, original):
            arguments = (*x.values(), each, 0.1)
            torch.library.opcheck(torch.ops.modfast.prune_layer.default, arguments)


def test_compiles_without_graph_breaks(device: torch.device) -> None:
    x = on(device, few_visits(example(2, torch.float32), True, 3))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(inputs: Tensor) -> Tensor:
        return ops.prune_layer(**(x | {"inputs": inputs}))[0] * 2

    torch.testing.assert_close(run(x["inputs"]), ops.prune_layer(**x)[0] * 2)


@compiled
def test_operator_refuses_what_would_reach_memory_wrongly(device: torch.device) -> None:
    x = on(device, large(6, torch.float32))

    def raw(**changed: Any) -> None:
        torch.ops.modfast.prune_layer.default(*(x | changed).values(), None, 0.1)

    with pytest.raises(RuntimeError, match=r"targets\[1\] must be from 0 to 9, got 10"):
        raw(targets=x["targets"].index_fill(0, torch.tensor(1, device=device), 10))
    with pytest.raises(RuntimeError, match=r"order\[0\] must be from 0 to 296, got 297"):
        raw(order=torch.tensor([297], device=device))
    with pytest.raises(RuntimeError, match=r"sizes\[1\] must be at least 1, got 0"):
        raw(sizes=torch.tensor([6, 0], device=device))
    with pytest.raises(RuntimeError, match="sizes must add up to the samples of inputs, 6, got 5"):
        raw(sizes=torch.tensor([5], device=device))
    with pytest.raises(RuntimeError, match=r"weights\[1\] must be contiguous .* shapes"):
        raw(weights=[x["weights"][0], x["weights"][0], x["weights"][2]])
    with pytest.raises(RuntimeError, match=r"weights\[0\] must have the dtype of inputs"):
        raw(inputs=x["inputs"].double())
    with pytest.raises(RuntimeError, match="biases must be as many, got 3 and 2"):
        raw(biases=x["biases"][:2])
    with pytest.raises(RuntimeError, match="targets must be int64"):
        raw(targets=x["targets"].int())
    two = torch.zeros(2, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match=r"original must be float64 of shape \[1\]"):
        torch.ops.modfast.prune_layer.default(*x.values(), two, 0.1)


def test_bad_input() -> None:
    x = large(6, torch.float32)

    def run(**changed: Any) -> None:
        ops.prune_layer(**(x | changed))

    with pytest.raises(TypeError, match="inputs must be float32 or float64.*got torch.float16"):
        run(inputs=x["inputs"].half())
    with pytest.raises(TypeError, match=r"weights\[0\] .*as inputs torch.float64, got torch.fl"):
        run(inputs=x["inputs"].double())
    with pytest.raises(TypeError, match="targets must be int64, got torch.int32"):
        run(targets=x["targets"].int())
    with pytest.raises(TypeError, match="original must be float64, got torch.float32"):
        run(original=torch.zeros(1))
    with pytest.raises(ValueError, match=r"targets must have shape \(6,\), got \(5,\)"):
        run(targets=x["targets"][:5])
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape \(1, 17, 33\)"):
        run(weights=[x["weights"][0], x["weights"][1][..., :5], x["weights"][2]])
    with pytest.raises(ValueError, match="as many, got 3 and 2"):
        run(biases=x["biases"][:2])
    with pytest.raises(ValueError, match="inputs must be .* not empty"):
        run(inputs=x["inputs"][:0])
    with pytest.raises(ValueError, match=r"order must have 1 dimension, got shape \(1, 297\)"):
        run(order=x["order"][None])
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        run(threshold=-1)
    with pytest.raises(ValueError, match="threshold must be finite, got nan"):
        run(threshold=float("nan"))
    with pytest.raises(ValueError, match="inputs requires a gradient, and this operator has none"):
        run(inputs=x["inputs"].clone().requires_grad_())
    with pytest.raises(TypeError, match="order must be a dense tensor in memory, got a meta"):
        run(order=x["order"].to("meta"))
