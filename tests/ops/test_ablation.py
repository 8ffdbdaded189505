"""ablation_sweep and ablation_sweep_hidden against modfast.reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

DTYPES = [torch.float32, torch.float64]
# Relative to the samples' absolute terms.
CLOSE = {torch.float32: 3e-6, torch.float64: 1e-13}
# n, ablations, classes, hidden units: one of each, odd sizes, several tiles, nothing.
SHAPES = [(1, 1, 2, 1), (5, 3, 1, 4), (19, 70, 10, 18), (3, 33, 70, 5)]
LARGE = [(64, 128, 10, 32), (601, 37, 11, 19)]
EMPTY = [(0, 4, 3, 2), (4, 0, 3, 2), (4, 0, 12, 2), (0, 4, 12, 2), (4, 3, 2, 0), (4, 3, 12, 0)]
ACTIVATIONS = sorted(reference.ACTIVATIONS)


def example(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, scale: float = 2.0
) -> dict[str, Tensor]:
    n, a, c, m = shape
    generator = torch.Generator().manual_seed(n + a)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=generator).double() * scale).to(device, dtype)

    found = {
        "logits": normal(n, c),
        "hidden": normal(n, m),
        "scales": normal(n, a) / 2,
        "updates": normal(a, m) / 2,
        "weight": normal(c, m) / (2 * m**0.5),
        "jumps": normal(a, c) / 2,
    }
    found["scales"][::3] = 0  # units that are off
    targets = torch.randint(0, c, (n,), generator=generator)
    return found | {"targets": targets.to(device)}


def check(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """`exact` holds terms per sample."""
    terms, classes = found
    scale = exact[0].abs().sum(1)
    wanted = exact[0] if terms.dim() == 3 else exact[0].sum(1)
    scale = scale[:3].max(1, keepdim=True).values if scale.numel() else scale[:3]
    error = (terms[:3] - wanted[:3]).abs()
    if terms.dim() == 3:
        error = error.amax(1) if error.numel() else error.sum(1)
    # Entropies near 0 have the rounding of 1, and the reference takes their differences.
    one = exact[0].shape[1] * (1e-7 if dtype == torch.float32 else 1e-14)
    assert (error <= CLOSE[dtype] * scale + one).all(), (error / scale).max()
    if len(terms) == 5:
        torch.testing.assert_close(terms[3], wanted[3], rtol=10 * CLOSE[dtype], atol=1e-6)
        assert torch.equal(terms[4], wanted[4])
        assert torch.equal(classes, exact[1])
    assert terms.dtype == classes.dtype == torch.float64
    assert terms.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LARGE + EMPTY)
@pytest.mark.parametrize("with_targets", [True, False])
def test_logits_match_reference(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    with_targets: bool,
    device: torch.device,
    small: bool,
) -> None:
    if small and shape in LARGE:
        pytest.skip("takes long here")
    x = example(shape, dtype, device)
    targets = x["targets"] if with_targets else None
    arguments = x["logits"], x["scales"], x["jumps"], targets
    exact = reference.ablation_sweep(*arguments, True)
    for per_sample in (False, True):
        check(ops.ablation_sweep(*arguments, per_sample), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LARGE + EMPTY)
@pytest.mark.parametrize("with_targets", [True, False])
def test_hidden_matches_reference(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    with_targets: bool,
    device: torch.device,
    small: bool,
) -> None:
    if small and shape in LARGE:
        pytest.skip("takes long here")
    x = example(shape, dtype, device)
    targets = x["targets"] if with_targets else None
    arguments = (
        *(x[name] for name in ("logits", "hidden", "scales", "updates")),
        "relu",
        x["weight"],
        targets,
    )
    exact = reference.ablation_sweep_hidden(*arguments, True)
    for per_sample in (False, True):
        check(ops.ablation_sweep_hidden(*arguments, per_sample), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [1100, 50_257])
@pytest.mark.slow
def test_many_classes(
    n_classes: int, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    if small and n_classes > 1100:
        pytest.skip("takes long here")
    for with_targets in (True, False):
        shape = (2, 5, n_classes, 3)
        test_logits_match_reference(shape, dtype, with_targets, device, small)
        test_hidden_matches_reference(shape, dtype, with_targets, device, small)


@pytest.mark.parametrize("shape", [(50, 600, 2, 5), (5, 600, 11, 64)])
@pytest.mark.slow
def test_more_than_is_done_at_once(
    shape: tuple[int, int, int, int], device: torch.device, small: bool
) -> None:
    # More blocks than a multiprocessor holds; changes of more pairs than are kept for one.
    test_logits_match_reference(shape, torch.float32, True, device, small)
    test_hidden_matches_reference(shape, torch.float32, True, device, small)


# Of the CPU before a ReLU: no units, whole words of units and lanes of ablations and one more, more
# tiles than share tables, the most classes and one more, and more units than get tables.
RELU_SHAPES = [
    (80, 5, 3, 0),
    (65, 16, 10, 64),
    (70, 33, 11, 65),
    (2400, 17, 4, 130),
    (67, 20, 64, 7),
    (67, 20, 65, 7),
    (64, 3, 64, 330),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
@pytest.mark.slow
def test_units_that_stay_on_or_off(simd: str, share: float, dtype: torch.dtype) -> None:
    """From nearly all units, whose changes are linear or nothing, to few."""
    cpu = torch.device("cpu")
    for shape in RELU_SHAPES:
        x = example(shape, dtype, cpu)
        for targets in (x["targets"], None):
            arguments = (
                *(x["logits"], x["hidden"], x["scales"] * share, x["updates"]),
                *("relu", x["weight"], targets),
            )
            exact = reference.ablation_sweep_hidden(*arguments, True)
            for per_sample in (False, True):
                check(ops.ablation_sweep_hidden(*arguments, per_sample), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_changes_that_just_reach_zero(simd: str, dtype: torch.dtype) -> None:
    # Small integers and halves: |h| is often just the largest |s u|, or 0, or u or s is.
    generator = torch.Generator().manual_seed(0)

    def integers(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, size, generator=generator).to(dtype)

    n, a, c, m = 200, 35, 7, 70
    hidden, scales, updates = integers(-3, 3, n, m), integers(-2, 2, n, a), integers(-3, 3, a, m)
    scales[: n // 2, : a // 2] = 0
    updates[: a // 2, ::3] = 0
    hidden[-1] = 0
    weight, logits = integers(-2, 2, c, m) / 32, integers(-2, 2, n, c)
    arguments = logits, hidden, scales, updates / 2, "relu", weight
    exact = reference.ablation_sweep_hidden(*arguments, None, True)
    for per_sample in (False, True):
        check(ops.ablation_sweep_hidden(*arguments, None, per_sample), exact, dtype)
    terms, _ = ops.ablation_sweep_hidden(*arguments, None, True)
    assert not terms[:, scales == 0].any()


def test_products_too_large_for_a_float(simd: str) -> None:
    # u W overflows, s u W does not.
    x = example((80, 20, 6, 18), torch.float32, torch.device("cpu"))
    factors = {"scales": 1e-40, "updates": 1e25, "hidden": 1e-15, "weight": 1e15}
    x |= {name: x[name] * factor for name, factor in factors.items()}
    names = ("logits", "hidden", "scales", "updates")
    arguments = (*(x[name] for name in names), "relu", x["weight"])
    exact = reference.ablation_sweep_hidden(*arguments, None, True)
    check(ops.ablation_sweep_hidden(*arguments), exact, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(
    activation: str, dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    for scale in (0.1, 2.0, 30.0):
        x = example((9 if small else 40, 20, 6, 18), dtype, device, scale)
        names = ("logits", "hidden", "scales", "updates")
        arguments = (*(x[name] for name in names), activation, x["weight"], None)
        exact = reference.ablation_sweep_hidden(*arguments, True)
        found = ops.ablation_sweep_hidden(*arguments)
        wanted = exact[0].sum(1)
        bound = 20 * CLOSE[dtype] * exact[0].abs().sum(1).max(1, keepdim=True).values + 1e-12
        assert ((found[0] - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_simd_level(simd: str, dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    for shape in SHAPES + LARGE:
        for with_targets in (True, False):
            test_logits_match_reference(shape, dtype, with_targets, cpu, False)
            test_hidden_matches_reference(shape, dtype, with_targets, cpu, False)
    for activation in ACTIVATIONS:
        test_every_activation(activation, dtype, cpu, False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2, 1e4, 1e7])
@pytest.mark.parametrize("shape", [(50, 40, 7, 9), (3, 6, 70, 9), (2, 5, 1100, 3)])
def test_any_size_of_logits_and_changes(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    scale: float,
    device: torch.device,
    small: bool,
) -> None:
    x = example(shape, dtype, device)
    for z, u in [(x["logits"] * scale, x["jumps"] * scale), (x["logits"], x["jumps"] * scale)]:
        found = ops.ablation_sweep(z, x["scales"], u)
        check(found, reference.ablation_sweep(z, x["scales"], u, None, True), dtype)
        assert (found[0][1:] >= 0).all()


def test_small_divergences_are_exact(device: torch.device) -> None:
    # Float32 would lose them if they were differences of entropies or of log-sums.
    x = example((50, 40, 7, 9), torch.float32, device)
    for scale in (1e-2, 1e-4, 1e-6):
        found, _ = ops.ablation_sweep(x["logits"], x["scales"] * scale, x["jumps"])
        z, s, u = (x[k].double() for k in ("logits", "scales", "jumps"))
        p = z.softmax(1)
        moved = (s.float() * scale).double()[..., None] * u
        moved = moved - (p[:, None] * moved).sum(-1, keepdim=True)
        second = (p[:, None] * moved.square()).sum((0, 2)) / 2
        torch.testing.assert_close(found[1], second, rtol=50 * scale + 1e-5, atol=0)
        torch.testing.assert_close(found[2], second, rtol=50 * scale + 1e-5, atol=0)


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_nothing_changes_by_nothing(device: torch.device) -> None:
    x = example((50, 40, 7, 9), torch.float32, device)
    zero = torch.zeros_like(x["scales"])
    assert not ops.ablation_sweep(x["logits"], zero, x["jumps"])[0].any()
    for activation in ACTIVATIONS:
        terms, _ = ops.ablation_sweep_hidden(
            x["logits"], x["hidden"], zero, x["updates"], activation, x["weight"]
        )
        assert not terms.any()


def test_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    x = example((3001, 130, 10, 16), torch.float32, torch.device("cpu"))
    names = ("logits", "hidden", "scales", "updates")

    def both() -> list[Tensor]:
        one = ops.ablation_sweep(x["logits"], x["scales"], x["jumps"], x["targets"])
        two = ops.ablation_sweep_hidden(
            *(x[name] for name in names), "relu", x["weight"], x["targets"]
        )
        return [*one, *two]

    found = both()
    torch.set_num_threads(1)
    for a, b in zip(found, both(), strict=True):
        assert torch.equal(a, b)


def test_inputs_of_any_strides(device: torch.device) -> None:
    x = example((33, 20, 5, 8), torch.float32, device)
    wanted = ops.ablation_sweep(x["logits"], x["scales"], x["jumps"])
    turned = {name: value.t().contiguous().t() for name, value in x.items() if value.dim() == 2}
    found = ops.ablation_sweep(turned["logits"], turned["scales"], turned["jumps"])
    assert torch.equal(found[0], wanted[0])


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    x = example((6, 5, 4, 3), torch.float32, device)
    raw = torch.ops.modfast
    for targets in (None, x["targets"]):
        for per_sample in (False, True):
            arguments = (x["logits"], x["scales"], x["jumps"], targets, per_sample)
            torch.library.opcheck(raw.ablation_sweep.default, arguments)
            arguments = (
                *(x[name] for name in ("logits", "hidden", "scales", "updates")),
                *("relu", x["weight"], targets, per_sample),
            )
            torch.library.opcheck(raw.ablation_sweep_hidden.default, arguments)


@pytest.mark.slow
def test_compiles_without_graph_breaks(device: torch.device) -> None:
    x = example((6, 5, 4, 3), torch.float32, device)

    def sweep(z: Tensor, s: Tensor, u: Tensor) -> Tensor:
        return ops.ablation_sweep(z, s, u)[0] * 2

    def sweep_hidden(z: Tensor, h: Tensor, s: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return ops.ablation_sweep_hidden(z, h, s, u, "gelu", w)[0] * 2

    for run, names in (
        (sweep, ("logits", "scales", "jumps")),
        (sweep_hidden, ("logits", "hidden", "scales", "updates", "weight")),
    ):
        arguments = [x[name] for name in names]
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(found, run(*arguments))


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_operators_refuse_what_would_reach_memory_wrongly(device: torch.device) -> None:
    x = example((6, 5, 4, 3), torch.float32, device)
    raw = torch.ops.modfast.ablation_sweep.default
    z, s, u, y = x["logits"], x["scales"], x["jumps"], x["targets"]
    with pytest.raises(RuntimeError, match=r"scales must have shape \[6, 5\], got \[5, 5\]"):
        raw(z, s[:5], u, None, False)
    with pytest.raises(RuntimeError, match=r"updates must be float32, as logits, got Double"):
        raw(z, s, u.double(), None, False)
    with pytest.raises(RuntimeError, match="targets must be int64 of shape"):
        raw(z, s, u, y[:2], False)
    with pytest.raises(RuntimeError, match="activation must be one of .*, got 'mish'"):
        torch.ops.modfast.ablation_sweep_hidden.default(
            z, x["hidden"], s, x["updates"], "mish", x["weight"], None, False
        )


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.parametrize("n_classes", [4, 12])
def test_targets_that_are_no_classes(n_classes: int, device: torch.device, small: bool) -> None:
    x = example((6, 5, n_classes, 3), torch.float32, device)
    targets = x["targets"].clone()
    wanted, _ = ops.ablation_sweep(x["logits"], x["scales"], x["jumps"], targets, True)
    for wrong in (n_classes, -1, 2**40):
        targets[2] = wrong
        arguments = x["logits"], x["scales"], x["jumps"], targets, True
        if device.type == "cpu" and not small:
            message = rf"targets\[2\] must be from 0 to {n_classes - 1}, got {wrong}"
            with pytest.raises(RuntimeError, match=message):
                ops.ablation_sweep(*arguments)
            continue
        # A GPU is not waited for.
        found, classes = ops.ablation_sweep(*arguments)
        others = torch.arange(6, device=device) != 2
        assert torch.equal(found[:, others], wanted[:, others])
        assert torch.equal(found[:3], wanted[:3])
        assert found[3, 2].isnan().all()
        assert not found[4, 2].any()
        assert torch.equal(classes.sum(1), found[4].sum(0))


def test_bad_input() -> None:
    x = example((6, 5, 4, 3), torch.float32, torch.device("cpu"))
    z, s, u = x["logits"], x["scales"], x["jumps"]
    with pytest.raises(TypeError, match="logits must be float32 or float64.*got torch.int64"):
        ops.ablation_sweep(z.long(), s, u)
    with pytest.raises(TypeError, match="scales .*as logits torch.float32, got torch.float64"):
        ops.ablation_sweep(z, s.double(), u)
    with pytest.raises(ValueError, match=r"updates must have shape \(5, 4\), got \(4, 4\)"):
        ops.ablation_sweep(z, s, u[:4])
    with pytest.raises(ValueError, match="scales must have 2 dimensions"):
        ops.ablation_sweep(z, s[0], u)
    with pytest.raises(ValueError, match="updates requires a gradient, and this operator has none"):
        ops.ablation_sweep(z, s, u.requires_grad_())
    u = u.detach()
    with pytest.raises(TypeError, match="targets must be int64, got torch.int32"):
        ops.ablation_sweep(z, s, u, x["targets"].int())
    with pytest.raises(ValueError, match=r"targets must have shape \(6,\)"):
        ops.ablation_sweep(z, s, u, x["targets"][:3])
    with pytest.raises(TypeError, match="scales must be a dense tensor in memory, got a meta"):
        ops.ablation_sweep(z, s.to("meta"), u)
    with pytest.raises(ValueError, match="activation must be one of .*got 'mish'"):
        ops.ablation_sweep_hidden(z, x["hidden"], s, x["updates"], "mish", x["weight"])
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 3\), got \(3, 3\)"):
        ops.ablation_sweep_hidden(z, x["hidden"], s, x["updates"], "relu", x["weight"][:3])
