"""Where in a sample a unit is most active, and among which tokens: against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import modfast
from modfast import TopActivations, capture, max_activating
from modfast.files import save_values
from modfast.models import MLP


class Reader(nn.Module):
    """Activations of few values, the same in any batch: equal ones within samples and between."""

    def __init__(self, vocabulary: int = 9, units: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding.from_pretrained(torch.randint(-3, 4, (vocabulary, units)).float())
        self.act = nn.ReLU()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.act(self.embed(input_ids))


def text(n: int = 30, t: int = 7) -> tuple[Tensor, Tensor]:
    """Tokens, and which of them count: neither the first of all samples nor the last."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (n, t), generator=generator)
    first = torch.randint(0, 3, (n, 1), generator=generator)
    last = torch.randint(3, t + 1, (n, 1), generator=generator)
    return ids, (torch.arange(t) >= first) & (torch.arange(t) < last)


def looked_up(
    values: Tensor, ids: Tensor, mask: Tensor, k: int, context: int
) -> dict[str, np.ndarray]:
    """Sample by sample and token by token."""
    n, t, d = values.shape
    found: dict[str, list[Any]] = {}
    for unit in range(d):
        best = []
        for i in range(n):
            at = max((p for p in range(t) if mask[i, p]), key=lambda p: (values[i, p, unit], -p))
            best.append((-float(values[i, at, unit]), i, at))
        rows: dict[str, list[Any]] = {}
        for value, i, at in sorted(best)[:k]:
            around = [p if 0 <= p < t and mask[i, p] else None
                      for p in range(at - context, at + context + 1)]  # fmt: skip
            told = {
                "indices": i,
                "values": -value,
                "positions": at,
                "tokens": [-1 if p is None else int(ids[i, p]) for p in around],
                "activations": [
                    float("nan") if p is None else float(values[i, p, unit]) for p in around
                ],
            }
            for name, each in told.items():
                rows.setdefault(name, []).append(each)
        for name, each in rows.items():
            found.setdefault(name, []).append(each)
    return {name: np.array(each) for name, each in found.items()}


def assert_same(top: TopActivations, wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        np.testing.assert_array_equal(getattr(top, name), values, err_msg=name)
    for name in ("indices", "positions", "tokens"):
        assert getattr(top, name).dtype == torch.int64
    assert top.activations is not None
    assert top.activations.dtype == top.values.dtype


@pytest.mark.parametrize("batch_size", [1, 4, 30])
@pytest.mark.parametrize(("k", "context"), [(1, 0), (6, 2), (30, 9)])
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_and_those_around(batch_size: int, k: int, context: int, masked: bool) -> None:
    model, (ids, mask) = Reader(), text()
    mask = mask if masked else torch.ones_like(mask)
    data = {"input_ids": ids, "attention_mask": mask.long()} if masked else ids
    found = max_activating(model, data, "*", k, batch_size=batch_size, context=context)
    for site, values in capture(model, ids, "*").items():
        assert_same(found[site], looked_up(values, ids, mask, k, context))
    plain = max_activating(model, data, "act", k, batch_size=batch_size)["act"]
    assert torch.equal(plain.positions, found["act"].positions)
    assert plain.tokens is plain.activations is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_int32_tokens(dtype: torch.dtype) -> None:
    model, (ids, mask) = Reader().to(dtype), text()
    values = capture(model, ids, "embed")["embed"]
    data = {"attention_mask": mask, "input_ids": ids.int()}
    top = max_activating(model, data, "embed", 5, context=1)["embed"]
    assert_same(top, looked_up(values.double(), ids, mask, 5, 1))


def test_pixels_are_numbered_row_by_row() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(2), nn.Conv1d(6, 4, 2))
    x = torch.randn(50, 1, 7, 9).round()
    found = max_activating(model, x, "*", 8, batch_size=50)
    for site, values in capture(model, x, "*").items():
        top, units = found[site], values.movedim(-1, 1) if site == "2" else values
        flat = units.flatten(2)
        assert top.positions is not None
        for unit in range(flat.shape[1]):
            rows = flat[top.indices[unit], unit]
            assert torch.equal(rows.argmax(1), top.positions[unit])  # the first
            assert torch.equal(rows.gather(1, top.positions[unit, :, None])[:, 0], top.values[unit])
    # As few as one sample at a time is looked through.
    many = torch.zeros(3, 1, 1500, 1500)
    many[0, 0, 1499, 7], many[1, 0, 3, 4] = 2.0, 1.0
    top = max_activating(nn.Sequential(nn.MaxPool2d(1)), many, "0", 3)["0"]
    assert top.positions is not None
    assert top.positions.tolist() == [[7 + 1499 * 1500, 4 + 3 * 1500, 0]]


def test_where_there_is_no_position() -> None:
    x, model = torch.randn(20, 6), MLP([6, 5, 3])
    assert max_activating(model, x, "fc1", 3)["fc1"].positions is None
    ids, _ = text()
    assert max_activating(Reader(), ids, "act", 3, reduce="mean")["act"].positions is None


def test_parts_are_merged_with_what_is_told_of_each(tmp_path: Path) -> None:
    model, ids = Reader(), text()[0]
    data = TensorDataset(ids)

    def of(rows: range, context: int | None = 2) -> TopActivations:
        loader = DataLoader(data, batch_size=4, sampler=list(rows))
        return max_activating(model, loader, "act", 9, context=context)["act"]

    whole = of(range(30))
    for merged in (of(range(18)).merge(of(range(12, 30))), of(range(12, 30)).merge(of(range(18)))):
        for name in ("indices", "values", "positions", "tokens", "activations"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    whole.save(tmp_path / "top")
    again = TopActivations.load(tmp_path / "top")
    np.testing.assert_array_equal(again.activations, whole.activations)
    # Of a release that knew no positions.
    old = {"indices": whole.indices, "values": whole.values, "labels": None, "backend": "model"}
    save_values(tmp_path / "old", "TopActivations", old)
    before = TopActivations.load(tmp_path / "old")
    assert before.positions is before.tokens is None
    with pytest.raises(ValueError, match="other must have positions just where this one has them"):
        before.merge(whole)
    with pytest.raises(ValueError, match="other must have tokens just where"):
        whole.merge(of(range(30), None))
    with pytest.raises(ValueError, match=r"other must have tokens of shape \(5, 9, 5\), got"):
        whole.merge(of(range(30), 1))


class Translator(nn.Module):
    """An encoder and a decoder, each with tokens and a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Reader(), Reader()

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        return self.encoder(input_ids).sum() + self.decoder(decoder_input_ids)


class Alone(nn.Module):
    """A decoder without an encoder, as GPT's kin, named so."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Reader()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.decoder(input_ids)


def test_decoders_have_their_own_tokens_and_masks() -> None:
    model, (ids, mask), (other, other_mask) = Translator(), text(), text(30, 5)
    other = (other + 1) % 9
    data = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": other,
        "decoder_attention_mask": other_mask,
    }
    found = max_activating(model, data, ["encoder.act", "decoder.act"], 6, context=1)
    values = model.encoder(ids)
    assert_same(found["encoder.act"], looked_up(values, ids, mask, 6, 1))
    values = model.decoder(other)
    assert_same(found["decoder.act"], looked_up(values, other, other_mask, 6, 1))
    alone = {"input_ids": ids, "attention_mask": mask}
    top = max_activating(Alone(), alone, "decoder.act", 6, context=1)["decoder.act"]
    assert_same(top, looked_up(model.encoder(ids), ids, mask, 6, 1))


def test_what_has_no_tokens_is_refused() -> None:
    ids, _ = text()
    for model, data, site in (
        (MLP([6, 5, 3]), torch.randn(20, 6), "fc1"),
        (nn.Sequential(nn.Linear(6, 5)), torch.randn(20, 4, 6), "0"),
    ):
        with pytest.raises(ValueError, match="data must hold tokens, .* got .*'float32', 20"):
            max_activating(model, data, site, 3, context=2)
    model = nn.Sequential(
        nn.Embedding(9, 7), nn.Flatten(1), nn.Unflatten(1, (7, 7)), nn.Conv1d(7, 3, 2)
    )
    for site, shape in (("1", "(30,)"), ("3", "(30, 6)")):
        words = f"sites='{site}': must have a position for each of the tokens (30, 7) .* {shape}"
        with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
            max_activating(model, ids, site, 3, context=2)
    with pytest.raises(ValueError, match="context must be None with reduce='mean'"):
        max_activating(Reader(), ids, "act", 3, context=2, reduce="mean")
    with pytest.raises(ValueError, match="context must be at least 0, got -1"):
        max_activating(Reader(), ids, "act", 3, context=-1)
    with pytest.raises(TypeError, match="context must be an integer, got 1.5"):
        max_activating(Reader(), ids, "act", 3, context=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context must fit into memory"):
        max_activating(Reader(), ids, "act", 3, context=2**60)


# ------------------------------------------------------------------------------------------ figures


class Decoding:
    def decode(self, ids: list[int]) -> str:
        return f"<{ids[0]}>\n$"


class Converting:
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"a word of {i}" for i in ids]


def drawn(**options: Any) -> tuple[TopActivations, Any]:
    pytest.importorskip("plotly")
    model, (ids, mask) = Reader(), text()
    data = {"input_ids": ids, "attention_mask": mask}
    top = max_activating(model, data, "embed", 6, context=2)["embed"]
    (heat,) = top.plot(units=[3, 0], n_samples=4, **options).data
    return top, heat


def test_figure_shows_tokens_by_their_activation() -> None:
    top, heat = drawn()
    assert top.tokens is not None
    assert top.activations is not None
    assert top.positions is not None
    assert np.shape(heat.z) == np.shape(heat.text) == (2 * 5 - 1, 5)
    for row, unit, i in ((0, 3, 0), (3, 3, 3), (5, 0, 0), (8, 0, 3)):
        tokens = top.tokens[unit, i].tolist()
        assert [*heat.text[row]] == ["" if token < 0 else str(token) for token in tokens]
        np.testing.assert_allclose(heat.z[row], top.activations[unit, i] / top.values[unit, 0])
        value, at = float(top.values[unit, i]), int(top.positions[unit, i])
        sample = int(top.indices[unit, i])
        assert heat.customdata[row][2] == (
            f"{tokens[2]}<br>activation {value:.4g}<br>sample {sample}, token {at}"
        )
        if tokens[1] >= 0:
            assert heat.customdata[row][1].endswith(f", token {at - 1}")
    assert np.isnan(heat.z[4]).all()  # between two units
    assert (heat.zmin, heat.zmax) == (0, 1)


@pytest.mark.parametrize(
    ("tokenizer", "short", "whole"),
    [
        (Decoding(), "&lt;{}&gt;\u21b5&#36;", "&lt;{}&gt;\u21b5&#36;"),
        (Converting(), "a word of {}", "a word of {}"),
        (
            lambda token: f"{token} is long, is it not?",
            "{} is long, \u2026",
            "{} is long, is it not?",
        ),
    ],
)
def test_figure_reads_tokens(tokenizer: Any, short: str, whole: str) -> None:
    top, heat = drawn(tokenizer=tokenizer)
    assert top.tokens is not None
    token = int(top.tokens[3, 0, 2])
    assert heat.text[0][2] == short.format(token)
    assert heat.customdata[0][2].startswith(f"{whole.format(token)}<br>")


def test_figure_refuses_what_does_not_read_tokens() -> None:
    with pytest.raises(TypeError, match="tokenizer must have decode or .* got 'gpt2'"):
        drawn(tokenizer="gpt2")
    with pytest.raises(TypeError, match="tokenizer must give strings, got 3.0"):
        drawn(tokenizer=lambda token: 3.0)
    top, _ = drawn()
    ids, _ = text()
    (strips,) = top.plot(ids, units=[3], n_samples=4).data  # as ever, where inputs are given
    assert np.shape(strips.z) == (4, 7)
    with pytest.raises(ValueError, match="tokenizer must be None where no tokens are drawn"):
        top.plot(ids, tokenizer=str)
    alone = max_activating(MLP([6, 5, 3]), torch.randn(20, 6), "fc1", 3)["fc1"]
    with pytest.raises(TypeError, match="inputs must be a tensor or a data set, got None"):
        alone.plot()


def test_a_dead_units_tokens_are_white() -> None:
    pytest.importorskip("plotly")
    zeros, tokens = torch.zeros(1, 1), torch.tensor([[[4, 5, -1]]])
    activations = torch.tensor([[[-1.0, 0.0, torch.nan]]])
    top = TopActivations(
        zeros.long(), zeros, positions=zeros.long() + 1, tokens=tokens, activations=activations
    )
    (heat,) = top.plot().data
    np.testing.assert_array_equal(np.nan_to_num(heat.z, nan=7.0) <= 0, [[True, True, False]])


@pytest.mark.slow
def test_gpt2_and_a_tokenizer_of_its_library() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=11, use_cache=False
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids, mask = torch.randint(0, 11, (20, 12)), torch.ones(20, 12, dtype=torch.int64)
    mask[:5, 8:] = 0
    site = "transformer.h.0.mlp.act"
    data = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    top = modfast.max_activating(model, data, site, 4, context=2, batch_size=20)[site]
    inputs = {"input_ids": ids, "attention_mask": mask}
    values = capture(model, inputs, site)[site]
    wanted = looked_up(values, ids, mask.bool(), 4, 2)
    np.testing.assert_array_equal(top.indices, wanted["indices"])
    np.testing.assert_array_equal(top.positions, wanted["positions"])
    np.testing.assert_array_equal(top.tokens, wanted["tokens"])
    np.testing.assert_allclose(top.activations, wanted["activations"], rtol=1e-5, atol=1e-6)
