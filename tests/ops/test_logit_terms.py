"""logit_terms against modfast.reference, on small and on large vocabularies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modfast import ops, reference
from modfast._extension import has_ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Relative to the sum of the samples' absolute terms.
CLOSE = {torch.float32: 3e-6, torch.float64: 1e-13}
# n, ablations, classes: one of each, odd sizes, more ablations than share a block's logits, more
# samples than a tile, nothing.
SHAPES = [(1, 1, 1), (5, 3, 2), (19, 35, 10), (3, 4, 63), (2, 5, 1000), (0, 3, 4), (3, 0, 4)]
# Of vocabularies: just above a block of the CPU at each SIMD level, and GPT-2's.
LARGE = [(2, 3, 2049), (2, 2, 4100), (1, 2, 16_385), (2, 3, 50_257)]


def example(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, change: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    n, a, c = shape
    generator = torch.Generator().manual_seed(n + a + c)
    logits = 3 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    # Few ablations change all classes alike, and some nothing.
    sizes = torch.randn(a, 1, 1, generator=generator, dtype=torch.float64)
    sizes[::3] = 0
    ablated = logits + change * sizes * torch.randn(a, n, c, generator=generator)
    targets = torch.randint(0, c, (n,), generator=generator)
    targets[::2] = logits[::2].argmax(1)
    return logits.to(device, dtype), ablated.to(device, dtype), targets.to(device)


def check(found: tuple[Tensor, Tensor], z: Tensor, w: Tensor, targets: Tensor | None) -> None:
    """Against the oracle in float64."""
    exact, classes = reference.logit_terms(z, w, targets, True)
    wanted = exact if found[0].dim() == 3 else exact.sum(1)
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    scale = exact[:3].abs().sum(1)
    scale = scale.amax(1, keepdim=True) if scale.numel() else scale
    error = (found[0][:3] - wanted[:3]).abs()
    if error.dim() == 3:
        error = error.amax(1) if len(z) else error.sum(1)
    # Entropies near 0 have the rounding of 1, and the reference takes their differences. Where a
    # sample's changes range widely, the terms are differences of numbers as large as that.
    change = (w - z).double().flatten(1)
    wide = (change.amax(1) - change.amin(1)).max().clamp(1, 64) if change.numel() else 1
    one = len(z) * wide * (1.2e-7 if dtype == torch.float32 else 1e-14)
    assert error.numel() == 0 or (error <= CLOSE[dtype] * scale + one).all(), error / scale
    assert (found[0][1:3] >= 0).all()
    assert found[0].dtype == found[1].dtype == torch.float64
    if targets is not None:
        torch.testing.assert_close(found[0][3], wanted[3], rtol=10 * CLOSE[dtype], atol=1e-6)
        assert torch.equal(found[0][4], wanted[4])
        assert torch.equal(found[1], classes)
    else:
        assert found[1].shape == (len(w), 0)


def check_all(z: Tensor, w: Tensor, targets: Tensor, small: bool = False) -> None:
    if small:
        check(ops.logit_terms(z, w, targets), z, w, targets)
        return
    for some in (targets, None):
        for per_sample in (False, True):
            check(ops.logit_terms(z, w, some, per_sample), z, w, some)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LARGE)
def test_matches_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    if small and shape[2] > 1000:
        shape = (1, 1, shape[2])
    z, w, targets = example(shape, dtype, device)
    if small and shape in LARGE:
        check(ops.logit_terms(z, w, targets), z, w, targets)
    else:
        check_all(z, w, targets)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_every_simd_level(simd: str, dtype: torch.dtype) -> None:
    for shape in SHAPES + LARGE:
        check_all(*example(shape, dtype, torch.device("cpu")))
    test_any_size_and_order(dtype, torch.device("cpu"), False)
    test_what_is_not_finite_shows(torch.device("cpu"), False)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_any_size_and_order(dtype: torch.dtype, device: torch.device, small: bool) -> None:
    """Changes from small to far, of logits that rise or fall by more than an exponential bears."""
    n_classes = 1200 if small else 9001
    for change in (1e-4, 0.1, 3.0, 100.0, 1e4, 1e7) if not small else (0.1, 100.0):
        check_all(*example((2, 4, n_classes), dtype, device, change), small)
    slope = torch.linspace(-1, 1, n_classes, dtype=torch.float64)
    z, w, targets = example((2, 4, n_classes), torch.float64, device, 0.5)
    for steep in (-2000.0, -50.0, 50.0, 300.0, 1e6) if not small else (-50.0, 1e6):
        rise = (slope * steep).to(device)
        check_all((z + rise).to(dtype), (w + rise).to(dtype), targets, small)
    # Far in few classes, likely ones and others; and from some class on.
    for first, last in ((0, 1), (n_classes - 1, n_classes), (n_classes // 2, n_classes)):
        for by in (-300.0, -60.0, 0.4, 5.0, 70.0) if not small else (-40.0, 70.0):
            moved = w.clone()
            moved[..., first:last] += by
            check_all(z.to(dtype), moved.to(dtype), targets, small)


@pytest.mark.parametrize("shift", [-130.0, 1000.0])
def test_a_shift_of_all_logits_is_nothing(shift: float, device: torch.device, small: bool) -> None:
    # Of both, as GPT-2's lie about -100, and of the ablated alone.
    shape = (2, 3, 1200 if small else 50_257)
    for dtype in (torch.float32, torch.float64):
        z, w, targets = example(shape, dtype, device, 0.1)
        # As many digits as float32 shifts exactly.
        z, w = ((4096 * x).round() / 4096 for x in (z, w))
        check_all(z + shift, w + shift, targets, small)
        check_all(z, w + shift, targets, small)


def test_small_divergences_are_exact(device: torch.device, small: bool) -> None:
    # Float32 would lose them if they were differences of entropies or of log-sums.
    for scale in (1e-2, 1e-3, 1e-4):
        z, w, _ = example((2, 2, 1200 if small else 50_257), torch.float32, device, scale)
        w[0] = z - scale * z  # not about 0, and not alike in all blocks
        found, _ = ops.logit_terms(z, w, None, True)
        exact, _ = reference.logit_terms(z, w, None, True)
        torch.testing.assert_close(found[1:], exact[1:3], rtol=1e-5, atol=1e-15)


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_nothing_changes_by_nothing(device: torch.device, small: bool) -> None:
    z, _, _ = example((3, 1, 1200 if small else 50_257), torch.float32, device)
    terms, _ = ops.logit_terms(z, z.expand(2, *z.shape))
    assert not terms.any()


def test_the_first_of_the_largest_counts(device: torch.device, small: bool) -> None:
    """Ties within a block, with an earlier one and with a later one."""
    c = 1200 if small else 9001
    z, w, _ = example((4, 6, c), torch.float32, device)
    places = [0, 1, c // 2, c - 2, c - 1]
    for i, place in enumerate(places):
        w[i, :, place] = w[i, :, places[-1 - i]] = 50
    w[5] = 7
    for place in places:
        targets = torch.full((4,), place, device=device)
        terms, classes = ops.logit_terms(z, w, targets, True)
        wanted, by_class = reference.logit_terms(z, w, targets, True)
        assert torch.equal(terms[4], wanted[4])
        assert torch.equal(classes, by_class)


def test_what_is_not_finite_shows(device: torch.device, small: bool) -> None:
    c = 1200 if small else 9001
    z, w, targets = example((3, 2, c), torch.float32, device)
    wanted, _ = ops.logit_terms(z, w, targets, True)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, c // 2, c - 1):
            moved = w.clone()
            moved[1, 2, place] = bad
            found, _ = ops.logit_terms(z, moved, targets, True)
            assert not found[:3, 2, 1].isfinite().all()
            assert torch.equal(found[:, :2], wanted[:, :2])
            assert torch.equal(found[:, 2, 0], wanted[:, 2, 0])


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_half_precision_is_taken_as_float32(
    dtype: torch.dtype, device: torch.device, small: bool
) -> None:
    z, w, targets = example((2, 3, 1001 if small else 50_257), dtype, device)
    found = ops.logit_terms(z, w, targets)
    wanted = ops.logit_terms(z.float(), w.float(), targets)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_same_bits_for_any_number_of_threads(n_threads: int) -> None:
    for shape in ((40, 3, 9001), (1001, 35, 10)):
        z, w, targets = example(shape, torch.float32, torch.device("cpu"))
        torch.set_num_threads(n_threads)
        found = ops.logit_terms(z, w, targets)
        torch.set_num_threads(1)
        for a, b in zip(found, ops.logit_terms(z, w, targets), strict=True):
            assert torch.equal(a, b)


def test_inputs_of_any_strides(device: torch.device) -> None:
    z, w, targets = example((5, 3, 40), torch.float32, device)
    wanted = ops.logit_terms(z, w, targets)
    found = ops.logit_terms(z.t().contiguous().t(), w.mT.contiguous().mT, targets)
    assert torch.equal(found[0], wanted[0])


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.slow
def test_opcheck(device: torch.device) -> None:
    for dtype in DTYPES:
        z, w, targets = example((6, 5, 4), dtype, device)
        for some in (None, targets):
            for per_sample in (False, True):
                arguments = (z, w, some, per_sample)
                torch.library.opcheck(torch.ops.modfast.logit_terms.default, arguments)


@pytest.mark.slow
def test_compiles_without_graph_breaks(device: torch.device) -> None:
    z, w, targets = example((6, 5, 4), torch.float32, device)

    def run(z: Tensor, w: Tensor) -> Tensor:
        return ops.logit_terms(z, w, targets)[0] * 2

    found = torch.compile(run, fullgraph=True, backend="aot_eager")(z, w)
    torch.testing.assert_close(found, run(z, w))


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
def test_operator_refuses_what_would_reach_memory_wrongly(device: torch.device) -> None:
    z, w, targets = example((6, 5, 4), torch.float32, device)
    raw = torch.ops.modfast.logit_terms.default
    for wrong in (w[0], w[:, :5], w[..., :3], w.double(), w.mT.contiguous().mT):
        with pytest.raises(RuntimeError, match=r"ablated must be \[a, 6, 4\]"):
            raw(z, wrong, None, False)
    with pytest.raises(RuntimeError, match="targets must be int64 of shape"):
        raw(z, w, targets[:2], False)


@pytest.mark.skipif(not has_ops(), reason="modfast's library is not built")
@pytest.mark.parametrize("n_classes", [4, 1200])
def test_targets_that_are_no_classes(n_classes: int, device: torch.device, small: bool) -> None:
    z, w, targets = example((6, 2, n_classes), torch.float32, device)
    wanted, _ = ops.logit_terms(z, w, targets, True)
    for wrong in (n_classes, -1, 2**40):
        targets[2] = wrong
        if device.type == "cpu" and not small:
            message = rf"targets\[2\] must be from 0 to {n_classes - 1}, got {wrong}"
            with pytest.raises(RuntimeError, match=message):
                ops.logit_terms(z, w, targets, True)
            continue
        # A GPU is not waited for.
        found, classes = ops.logit_terms(z, w, targets, True)
        others = torch.arange(6, device=device) != 2
        assert torch.equal(found[:, others], wanted[:, others])
        assert torch.equal(found[:3], wanted[:3])
        assert found[3, 2].isnan().all()
        assert not found[4, 2].any()
        assert torch.equal(classes.sum(1), found[4].sum(0))


def test_bad_input() -> None:
    z, w, targets = example((6, 5, 4), torch.float32, torch.device("cpu"))
    message = "logits must be float32, float64, bfloat16 or float16.*got torch.int64"
    with pytest.raises(TypeError, match=message):
        ops.logit_terms(z.long(), w)
    with pytest.raises(TypeError, match="ablated .*as logits torch.float32, got torch.float64"):
        ops.logit_terms(z, w.double())
    with pytest.raises(ValueError, match=r"ablated must be \[a, n, c\], got shape \(4,\)"):
        ops.logit_terms(z, w[0, 0])
    with pytest.raises(ValueError, match=r"ablated must have shape \[a, 6, 4\], got \(6, 4\)"):
        ops.logit_terms(z, w[0])
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        ops.logit_terms(w, w)
    with pytest.raises(ValueError, match=r"targets must have shape \(6,\)"):
        ops.logit_terms(z, w, targets[:3])
