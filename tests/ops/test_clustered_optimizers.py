"""The fused optimizer steps against modfast.reference, which follows torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Two roundings apart at most, after one step from equal states.
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2**-6, torch.float16: 2**-8}
SHAPES = [(5, 7), (64, 64), (1, 1), (3, 17_000), (0, 4)]
SGD = [
    {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "first": False},
    {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False, "first": False},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "nesterov": False, "first": True},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "nesterov": False, "first": False},
    {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": True, "first": False},
]
ADAM = [
    {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False},
    {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1, "decoupled": False},
    {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True},
]
Lists = dict[str, Any]


def example(dtype: torch.dtype, device: torch.device, n_states: int) -> Lists:
    """Clustered weights of each shape, and as many without clusters."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    n_labels = sum(map(sum, SHAPES))
    labels = torch.randint(-1, 4, (n_labels,), generator=generator, dtype=torch.int32).to(device)
    weights = [normal(s) for s in SHAPES * 2]
    return {
        "weights": weights,
        "grads": [normal(s) for s in SHAPES * 2],
        # Away from 0: Adam divides by the root of one, which would only magnify rounding.
        "states": [[normal(s).abs() + 0.5 for s in SHAPES * 2] for _ in range(n_states)],
        "labels": labels,
        "sums": ops.cluster_sums(weights[: len(SHAPES)], labels),
    }


def copied(lists: Lists) -> Lists:
    def copy(x: Any) -> Any:
        return [copy(y) for y in x] if isinstance(x, list) else x.clone()

    return {name: copy(x) for name, x in lists.items()}


def run(op: Any, lists: Lists, options: dict[str, Any], steps: list[Tensor] | None = None) -> None:
    states = [*lists["states"], *([] if steps is None else [steps])]
    op(
        lists["weights"],
        lists["grads"],
        *states,
        lists["labels"],
        lists["sums"],
        -0.7,
        0.05,
        *options.values(),
    )


def compare(found: Lists, wanted: Lists, old: Lists, dtype: torch.dtype) -> None:
    torch.testing.assert_close(
        found["states"], wanted["states"], rtol=CLOSE[dtype], atol=CLOSE[dtype]
    )
    for new, expected, before in zip(
        found["weights"], wanted["weights"], old["weights"], strict=True
    ):
        # A step of Adam may be far larger than the weight that is left of it.
        size = 1 + before.double().abs() + (expected.double() - before.double()).abs()
        error = (new.double() - expected.double()).abs() / size
        assert not (error > CLOSE[dtype]).any(), error.max()
    after = ops.cluster_sums(found["weights"][: len(SHAPES)], found["labels"])
    torch.testing.assert_close(found["sums"], after, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SGD)
def test_sgd(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    found = example(dtype, device, 1)
    wanted, old = copied(found), copied(found)
    run(ops.clustered_sgd_, found, options)
    run(reference.clustered_sgd_, wanted, options)
    compare(found, wanted, old, dtype)
    if options["momentum"] == 0:
        assert torch.equal(found["states"][0][0], example(dtype, device, 1)["states"][0][0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ADAM)
def test_adam(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    found = example(dtype, device, 2)
    wanted, old = copied(found), copied(found)
    steps = [torch.tensor(float(i % 3)) for i in range(2 * len(SHAPES))]
    wanted_steps = [s.clone() for s in steps]
    run(ops.clustered_adam_, found, options, steps)
    run(reference.clustered_adam_, wanted, options, wanted_steps)
    compare(found, wanted, old, dtype)
    assert torch.equal(torch.stack(steps), torch.stack(wanted_steps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_simd_level(simd: str, dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    for options in SGD:
        test_sgd(options, dtype, cpu)
    for options in ADAM:
        test_adam(options, dtype, cpu)


def test_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    found = example(torch.float32, torch.device("cpu"), 2)
    again = copied(found)
    count = len(found["weights"])
    run(ops.clustered_adam_, found, ADAM[0], [torch.tensor(0.0) for _ in range(count)])
    torch.set_num_threads(1)
    run(ops.clustered_adam_, again, ADAM[0], [torch.tensor(0.0) for _ in range(count)])
    assert torch.equal(found["sums"], again["sums"])
    assert all(map(torch.equal, found["weights"], again["weights"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lr", [0.5, 0.125, 1 + 2**-11, 3.7, 1e-3, 1e4])
def test_16_bit_numbers_are_rounded_to_nearest_even(dtype: torch.dtype, lr: float) -> None:
    # Every number there is, times lr: ties, subnormals, overflows, infinities and NaN among them.
    grad = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    weight = torch.zeros_like(grad)
    none = torch.empty(0, dtype=torch.int32)
    sums = torch.zeros(0, 2, dtype=torch.float64)
    options = (0.0, 0.0, 0.0, False, False)
    ops.clustered_sgd_([weight], [grad], [], none, sums, 1.0, -lr, *options)
    expected = (torch.tensor(lr, dtype=torch.float32) * grad.float()).to(dtype)
    torch.testing.assert_close(weight, expected, rtol=0, atol=0, equal_nan=True)


def test_zero_weight_takes_the_plain_step(device: torch.device) -> None:
    lists = example(torch.float32, device, 1)
    lists["weights"][1].zero_()
    lists["sums"][1] = 0
    run(ops.clustered_sgd_, lists, SGD[0])
    torch.testing.assert_close(lists["weights"][1], -0.05 * lists["grads"][1])


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    lists = example(torch.float32, device, 2)
    labels = (lists["labels"], lists["sums"], -0.7, 0.05)
    head = lists["weights"], lists["grads"]
    torch.library.opcheck(
        torch.ops.modfast.clustered_sgd_.default,
        (*head, lists["states"][0], *labels, *SGD[3].values()),
    )
    steps = [torch.tensor(1.0) for _ in lists["weights"]]
    torch.library.opcheck(
        torch.ops.modfast.clustered_adam_.default,
        (*head, *lists["states"], steps, *labels, *ADAM[0].values()),
    )


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly(device: torch.device) -> None:
    lists = example(torch.float32, device, 1)
    op = torch.ops.modfast.clustered_sgd_.default

    def refused(match: str, options: dict[str, Any] = SGD[0], **changes: Any) -> None:
        with pytest.raises(RuntimeError, match=match):
            run(op, {**lists, **changes}, options)

    grads = lists["grads"]
    refused(r"grads\[0\] has 42 elements, its weight 35", grads=[grads[0].new_ones(42), *grads[1:]])
    refused(r"grads\[0\] is Double, its weight Float", grads=[grads[0].double(), *grads[1:]])
    refused("grads must have one entry per weight", grads=grads[1:])
    refused("sums must be contiguous float64", sums=lists["sums"].float())
    refused("labels must have one entry per row and column", sums=lists["sums"][1:])
    refused("too few for weights", labels=lists["labels"][1:])
    refused("labels must be int32", labels=lists["labels"].long())
    refused("at most one row per weight", sums=lists["sums"].new_zeros(11, 2))
    refused("momentum_buffers must have one entry", options=SGD[3], states=[[]])
