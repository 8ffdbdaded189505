"""Many networks trained at once, against modfast.reference and one torch.optim.Adam for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast import ops, reference
from modfast._extension import has_ops
from modfast.models import MLP

DTYPES = [torch.float32, torch.float64]
# The task networks, one layer, odd widths and rest tiles, deep and narrow, wide.
SIZES = [(4, 16, 16, 2), (3, 1), (1, 1, 1), (5, 7, 3, 9, 2), (6, 5, 5, 5, 5, 4), (20, 70, 3)]
# One sample, less than a block, a whole block, blocks and a rest.
SAMPLES = [1, 7, 256, 600]


def example(
    sizes: tuple[int, ...], n: int, dtype: torch.dtype, n_models: int = 3
) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(n, sizes[-1], generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(0)
    models = [MLP(sizes).to(dtype) for _ in range(n_models)]
    rows = [nn.utils.parameters_to_vector(m.parameters()).detach() for m in models]
    state = [torch.zeros(n_models, len(rows[0]), dtype=dtype) for _ in range(2)]
    return x, y, [torch.stack([*rows]), *state]


def run_reference(x: Tensor, y: Tensor, sizes: Any, tensors: list[Tensor], *rest: Any) -> Tensor:
    return reference.train_mlps_(x, y, sizes, *tensors, *rest, 1e-2, 0.9, 0.999, 1e-8)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SAMPLES)
@pytest.mark.parametrize("sizes", SIZES)
def test_matches_reference(
    sizes: tuple[int, ...], n: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, y, ours = example(sizes, n, dtype)
    exact = [t.double().clone() for t in ours]
    x, y, ours = x.to(device), y.to(device), [t.to(device) for t in ours]
    found = ops.train_mlps_(x, y, sizes, *ours, epochs=3)
    wanted = run_reference(x.cpu().double(), y.cpu().double(), sizes, exact, 0, 3)
    assert found.dtype == torch.float64
    # Adam divides by the root of a squared gradient: in float32 a small one has few digits.
    close = (
        {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    )
    torch.testing.assert_close(found.cpu(), wanted, **close)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, **close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [600])
def test_every_simd_level(simd: str, n: int, dtype: torch.dtype) -> None:
    for sizes in SIZES:
        test_matches_reference(sizes, n, dtype, torch.device("cpu"))


@pytest.mark.parametrize("sizes", SIZES)
def test_matches_autograd_and_torch_adam(sizes: tuple[int, ...]) -> None:
    x, y, tensors = example(sizes, 200, torch.float64)
    starts = tensors[0].clone()
    losses = ops.train_mlps_(x, y, sizes, *tensors, epochs=50)
    for i, start in enumerate(starts):
        model = MLP(sizes).double()
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for epoch in range(50):
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(loss.detach(), losses[i, epoch], rtol=1e-9, atol=0)
        trained = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(tensors[0][i], trained, rtol=1e-7, atol=1e-9)


def test_calls_add_up_and_threads_change_no_bit(n_threads: int) -> None:
    x, y, once = example((4, 16, 16, 2), 300, torch.float32, n_models=5)
    several = [t.clone() for t in once]
    losses = ops.train_mlps_(x, y, (4, 16, 16, 2), *once, epochs=20)
    parts = [
        ops.train_mlps_(x, y, (4, 16, 16, 2), *several, step=step, epochs=5)
        for step in range(0, 20, 5)
    ]
    assert torch.equal(torch.cat(parts, dim=1), losses)
    one_by_one = [t.clone() for t in example((4, 16, 16, 2), 300, torch.float32, n_models=5)[2]]
    for i in range(5):
        rows = [t[i : i + 1] for t in one_by_one]
        assert torch.equal(ops.train_mlps_(x, y, (4, 16, 16, 2), *rows, epochs=20)[0], losses[i])
    for a, b, c in zip(once, several, one_by_one, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_divergence_shows(value: float) -> None:
    x, y, tensors = example((4, 16, 16, 2), 300, torch.float32)
    tensors[0][1, 3] = value  # a weight of the first layer
    losses = ops.train_mlps_(x, y, (4, 16, 16, 2), *tensors, epochs=3)
    assert losses[[0, 2]].isfinite().all()
    assert not losses[1, 1:].isfinite().any()
    assert not tensors[0][1].isfinite().all()


def test_nothing_to_do_and_strided_samples() -> None:
    x, y, tensors = example((4, 5, 2), 50, torch.float64)
    before = [t.clone() for t in tensors]
    assert ops.train_mlps_(x, y, (4, 5, 2), *tensors, epochs=0).shape == (3, 0)
    assert all(map(torch.equal, tensors, before))
    assert ops.train_mlps_(x, y, (4, 5, 2), *(t[:0] for t in tensors), epochs=2).shape == (0, 2)
    wide, tall = x.repeat(1, 2)[:, ::1][:, :4], y.T.contiguous().T
    found = ops.train_mlps_(wide, tall, (4, 5, 2), *tensors, epochs=2)
    assert torch.equal(found, ops.train_mlps_(x, y, (4, 5, 2), *before, epochs=2))


@pytest.mark.skipif(not has_ops(), reason="the compiled library is not built")
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x, y, tensors = example((4, 5, 2), 50, dtype)
    arguments = (x, y, [4, 5, 2], *tensors, 0, 2, 1e-2, 0.9, 0.999, 1e-8)
    torch.library.opcheck(torch.ops.modfast.train_mlps_.default, arguments)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    def run(x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        return 2 * ops.train_mlps_(2 * x, y, (4, 5, 2), *tensors, epochs=2)

    x, y, tensors = example((4, 5, 2), 50, torch.float64)
    again = [t.clone() for t in tensors]
    found = torch.compile(run, fullgraph=True)(x, y, *tensors)
    torch.testing.assert_close(found, run(x, y, *again))
    torch.testing.assert_close(tensors, again)


def test_bad_input() -> None:
    x, y, (parameters, *state) = example((4, 5, 2), 50, torch.float64)

    def train(**changes: Any) -> Tensor:
        named = {"x": x, "y": y, "sizes": (4, 5, 2), "parameters": parameters}
        named |= {"exp_avgs": state[0], "exp_avg_sqs": state[1]}
        return ops.train_mlps_(**{**named, **changes})

    with pytest.raises(ValueError, match=r"sizes must hold at least two widths, got \[4\]"):
        train(sizes=[4])
    with pytest.raises(ValueError, match=r"sizes\[1\] must be at least 1, got 0"):
        train(sizes=[4, 0, 2])
    with pytest.raises(TypeError, match=r"sizes\[0\] must be an integer, got 4.0"):
        train(sizes=[4.0, 2])
    with pytest.raises(ValueError, match=r"x must have at least one sample, got shape \(0, 4\)"):
        train(x=x[:0])
    with pytest.raises(ValueError, match=r"x must have shape \(50, 4\), got \(50, 3\)"):
        train(x=x[:, :3])
    with pytest.raises(ValueError, match=r"y must have shape \(50, 2\), got \(49, 2\)"):
        train(y=y[:49])
    with pytest.raises(TypeError, match="y must be float32 or float64, and as x torch.float64"):
        train(y=y.float())
    with pytest.raises(TypeError, match="x must be float32 or float64.*got torch.int64"):
        train(x=x.long())
    with pytest.raises(ValueError, match=r"exp_avgs must have shape \(3, 37\), got \(2, 37\)"):
        train(exp_avgs=state[0][:2])
    with pytest.raises(ValueError, match="parameters must be contiguous"):
        train(parameters=parameters.T.contiguous().T)
    with pytest.raises(ValueError, match="parameters requires a gradient"):
        train(parameters=parameters.clone().requires_grad_())
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        train(epochs=-1)
    with pytest.raises(TypeError, match="step must be an integer, got 1.5"):
        train(step=1.5)
    with pytest.raises(ValueError, match=r"betas\[1\] must be .*below 1, got 1.0"):
        train(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="lr must be finite, got nan"):
        train(lr=float("nan"))


@pytest.mark.skipif(not has_ops(), reason="the compiled library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly() -> None:
    x, y, (p, *state) = example((4, 5, 2), 50, torch.float64)

    def run(*tensors: Any, step: int = 0, epochs: int = 1) -> None:
        torch.ops.modfast.train_mlps_(*tensors, step, epochs, 1e-2, 0.9, 0.999, 1e-8)

    for tensors, message in [
        ((x, y, [4, 6, 2], p, *state), "parameters must have shape"),
        ((x, y, [4], p, *state), "sizes must hold at least two"),
        ((x, y, [4, 0, 2], p, *state), "sizes must be at least 1"),
        ((x[:, :3], y, [4, 5, 2], p, *state), "x must have shape"),
        ((x, y[:9], [4, 5, 2], p, *state), "y must have shape"),
        ((x, y.float(), [4, 5, 2], p, *state), "y must have shape"),
        ((x.half(), y, [4, 5, 2], p, *state), "x must be float32 or float64"),
        ((x[:0], y[:0], [4, 5, 2], p, *state), "at least one row"),
        ((x, y, [4, 5, 2], p, state[0][:1], state[1]), "exp_avgs must have shape"),
        ((x, y, [4, 5, 2], p, state[0], state[1].T.contiguous().T), "exp_avg_sqs must have shape"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            run(*tensors)
    with pytest.raises(RuntimeError, match="must be at least 0"):
        run(x, y, [4, 5, 2], p, *state, epochs=-1)
