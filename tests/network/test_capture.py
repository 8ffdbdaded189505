"""capture against the formula, and against what plain hooks see."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modfast import capture
from modfast.models import MLP


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Blocks(nn.Module):
    """Named as a transformer is, with keyword inputs, a mask and a tuple output."""

    width = 6

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(
            nn.ModuleDict({"mlp": nn.ModuleDict({"c_fc": nn.Linear(6, 6), "act": nn.GELU()})})
            for _ in range(12)
        )
        self.pair = Pair()

    def forward(self, x, mask=None, *, scale=1.0):
        for block in self.h:
            x = x + block["mlp"]["act"](block["mlp"]["c_fc"](x))
        if mask is not None:
            x = x * mask
        return self.pair(x * scale)[0]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Shared(nn.Module):
    """One activation used twice, a layer used by its weight alone, a name for the same layer."""

    width = 4

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.used_by_weight = nn.Linear(4, 4)
        self.alias = self.fc

    def forward(self, x):
        x = self.act(self.act(self.fc(x)))
        return nn.functional.linear(x, self.used_by_weight.weight)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_capture_equals_the_formula():
    model = MLP([6, 5, 4, 3])
    x = torch.randn(7, 2, 3)
    out = capture(model, x, ["fc*", "act1"])
    assert list(out) == ["fc1", "act1", "fc2", "fc3"]
    fc1 = model.fc1(x.flatten(1))
    torch.testing.assert_close(out["fc1"], fc1.detach())
    torch.testing.assert_close(out["act1"], fc1.relu().detach())
    torch.testing.assert_close(out["fc3"], model(x).detach())
    assert not any(value.requires_grad for value in out.values())


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_batches_give_what_one_pass_gives(batch_size):
    model = MLP([6, 5, 3])
    x = torch.randn(10, 6)
    whole = capture(model, x, "*")
    rows = []
    model.fc1.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    parts = capture(model, x, "*", batch_size=batch_size)
    assert list(parts) == list(whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert max(rows) == min(batch_size, 10)
    assert sum(rows) == 10


@pytest.mark.parametrize("batch_size", [None, 4])
def test_no_rows(batch_size):
    with pytest.raises(ValueError, match=r"inputs must not be empty, got shape \(0, 6\)"):
        capture(MLP([6, 5, 3]), torch.zeros(0, 6), "fc*", batch_size=batch_size)


def test_work_in_place_does_not_show():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    x = torch.randn(50, 6)
    out = capture(model, x, ["0", "1"])
    assert out["0"].min() < 0
    torch.testing.assert_close(out["0"], model[0](x).detach())
    assert torch.equal(out["1"], out["0"].relu())


def test_results_are_copies():
    x = torch.randn(3, 4)
    out = capture(nn.Sequential(nn.Identity(), nn.Flatten()), x, "*")
    assert len({value.data_ptr() for value in (x, *out.values())}) == 3


def test_dropout_is_off_and_batch_norm_untouched():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(8, 4)
    out = capture(model, x, ["1", "2"], batch_size=3)
    assert torch.equal(out["1"], out["2"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert hooks(model) == 0


def test_everything_is_restored_when_the_model_fails():
    model = MLP([6, 5, 3]).train()
    model.act1.eval()
    model.fc1.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match="inputs must fit the model, .*: mat1 and mat2 shapes"):
        capture(model, torch.randn(4, 7), "*")
    assert hooks(model) == 1
    assert model.training
    assert not model.act1.training
    assert torch.is_grad_enabled()


def test_the_callers_hooks_run_first():
    model = MLP([6, 3])
    model.fc1.register_forward_hook(lambda module, args, output: output * 0)
    assert not capture(model, torch.randn(4, 6), "fc1")["fc1"].any()


def test_tuples_are_positional_and_mappings_keyword_inputs():
    model = Blocks()
    x, mask = torch.randn(7, 6), torch.randint(0, 2, (7, 6))
    site = "h.11.mlp.act"
    expected = capture(model, x, site)[site]
    for batch_size in (None, 2):
        for inputs in ((x, mask), (x, None), {"x": x, "mask": mask, "scale": 2.0}):
            torch.testing.assert_close(
                capture(model, inputs, site, batch_size=batch_size)[site], expected
            )


def test_integer_inputs():
    model = nn.Sequential(nn.Embedding(10, 3), nn.Linear(3, 2))
    tokens = torch.randint(0, 10, (5, 4))
    out = capture(model, tokens, "*", batch_size=2)
    assert torch.equal(out["0"], model[0](tokens))
    assert out["1"].shape == (5, 4, 2)


def test_a_site_inside_torchs_transformer_is_reached():
    # In eval mode torch would take a fused path around the submodules, were they not hooked.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    out = capture(layer, torch.randn(3, 5, 8), ["linear1", "norm2"])
    assert [tuple(value.shape) for value in out.values()] == [(3, 5, 16), (3, 5, 8)]


@pytest.mark.parametrize(
    ("model", "site", "error", "message"),
    [
        (Shared(), "fcc", ValueError, "sites='fcc': no such module; did you mean: 'fc'"),
        (Shared(), "act", ValueError, "sites='act': called 2 times"),
        (
            Shared(),
            "used_by_weight",
            ValueError,
            "sites='used_by_weight': not reached, the model never called",
        ),
        (
            Blocks(),
            "pair",
            TypeError,
            "sites='pair': returned a tuple, not a tensor; name one of its items: .*pair",
        ),
    ],
)
def test_a_site_without_one_output(model, site, error, message):
    with pytest.raises(error, match=message):
        capture(model, torch.randn(3, model.width), site)
    assert hooks(model) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(bad):
    x = torch.randn(4, 6)
    x[1, :3] = bad
    for model, inputs in (
        (MLP([6, 3]), x),
        (Blocks(), {"x": x}),
        (Blocks(), (x, torch.ones(4, 6))),
    ):
        with pytest.raises(
            ValueError, match="inputs must be finite, got 3 of 24 values NaN or inf"
        ):
            capture(model, inputs, "*")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", True])
def test_bad_batch_size(batch_size):
    kind = ValueError if type(batch_size) is int else TypeError
    with pytest.raises(kind, match="batch_size must be (at least 1|an integer), got"):
        capture(MLP([6, 3]), torch.randn(4, 6), "fc1", batch_size=batch_size)


def test_inputs_that_cannot_be_cut_into_batches():
    model, x = Blocks(), torch.randn(4, 6)
    for other in (torch.ones(1, 6), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="batch_size needs inputs with one number of rows"):
            capture(model, (x, other), "h.0.mlp.act", batch_size=2)
    with pytest.raises(ValueError, match=r"one number of rows, got shapes \[\]"):
        capture(model, (), "h.0.mlp.act", batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be None where inputs is a stream"):
        capture(model, [x], "h.0.mlp.act", batch_size=2)


def test_values_that_are_not_batch_first():
    model = nn.Sequential(nn.Flatten(0), nn.Identity())
    with pytest.raises(ValueError, match=r"sites='0'.*batch-first; 2 rows gave shape \(12,\)"):
        capture(model, torch.randn(4, 6), "0", batch_size=2)
    assert capture(model, torch.randn(4, 6), "0")["0"].shape == (24,)
    tokens = [torch.zeros(2, t, dtype=torch.long) for t in (3, 4)]
    with pytest.raises(ValueError, match=r"values of one shape, got \[\(2, 3, 2\), \(2, 4, 2\)\]"):
        capture(nn.Sequential(nn.Embedding(3, 2)), tokens, "0")


@pytest.mark.parametrize("inputs", [None, 3])
def test_inputs_of_a_wrong_type(inputs):
    with pytest.raises(TypeError, match=f"inputs must be a tensor, .*{type(inputs).__name__}"):
        capture(MLP([6, 3]), inputs, "fc1")
    with pytest.raises(TypeError, match="a batch of inputs must be a tensor, .*got float"):
        capture(MLP([6, 3]), [1.0, 2.0], "fc1")


# ---------------------------------------------------------------------------- places of all kinds


class Everything(nn.Module):
    """Tuples, mappings, dataclasses, calls by number and functions."""

    @dataclass
    class Out:
        hidden: Tensor
        n: int = 3

    class Named(nn.Module):
        def forward(self, x):
            return Everything.Out(x * 2)

    class Mapped(nn.Module):
        def forward(self, x):
            return {"a": x, "b": x - 1, "n": len(x)}

    class First(nn.Module):
        def forward(self, x, *, scale):
            return x * scale, None, torch.arange(3)

    width = 6

    def __init__(self):
        super().__init__()
        self.rnn, self.act = nn.LSTM(6, 6, batch_first=True), nn.Tanh()
        self.named, self.mapped, self.first = self.Named(), self.Mapped(), self.First()

    def forward(self, x):
        x, (h, c) = self.rnn(x)
        x = self.named(self.act(x) + 1).hidden
        x = self.first(self.mapped(x)["b"], scale=torch.tensor(0.5))[0]
        return self.act(x) + h[0][:, None] - c[0][:, None]


def test_places_of_all_kinds():
    model, x = Everything().double(), torch.randn(4, 5, 6).double()
    rnn, _ = model.rnn(x)
    tanh = rnn.tanh()
    wanted = {
        "input": x,
        "rnn:input": x,
        "rnn[0]": rnn,
        "act#0": tanh,
        "/add#0": tanh + 1,
        "named": (tanh + 1) * 2,
        "named['hidden']": (tanh + 1) * 2,
        "mapped[b]": (tanh + 1) * 2 - 1,
        "mapped:input": (tanh + 1) * 2,
        "first": (tanh + 1) - 0.5,
        "first:input[scale]": torch.tensor(0.5),
        "act#1:input": None,
        "act#1": ((tanh + 1) - 0.5).tanh(),
    }
    del wanted["act#1:input"]
    found = capture(model, x, list(wanted))
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach(), check_dtype=name[-7:] != "[scale]")
    with pytest.raises(ValueError, match="sites='act': called 2 times in one pass; 'act#0' to"):
        capture(model, x, "act")
    with pytest.raises(ValueError, match="called 2 times, from #0 to #1"):
        capture(model, x, "act#2")
    with pytest.raises(TypeError, match=r"sites='mapped': returned a dict.*mapped\['a'\]"):
        capture(model, x, "mapped")
    with pytest.raises(ValueError, match="the dict there has no item 'c'; there are"):
        capture(model, x, "mapped['c']")
    with pytest.raises(ValueError, match=r"no such input; there are \[0, 'scale'\]"):
        capture(model, x, "first:input[factor]")


def test_a_pattern_leaves_out_what_has_no_one_tensor():
    model, x = Everything(), torch.randn(4, 5, 6)
    assert list(capture(model, x, "*")) == ["named", "first"]
    assert list(capture(model, [x, x], ["*", "/add#0"])) == ["/add#0", "named", "first"]
    with pytest.raises(TypeError, match="sites='mapped': returned a dict"):
        capture(model, x, "map*")


@pytest.mark.slow
def test_every_block_of_gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=8, n_head=2, n_positions=8, vocab_size=11, use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    inputs = {"input_ids": torch.randint(0, 11, (3, 5)), "labels": torch.randint(0, 11, (3, 5))}
    found = capture(model, inputs, "transformer.h.*")
    assert {"transformer.h.0", "transformer.h.1.attn", "transformer.h.1.mlp.act"} <= set(found)
    hidden = model(inputs["input_ids"], output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(found["transformer.h.0"], hidden.detach())
    encoded = transformers.BatchEncoding({"input_ids": inputs["input_ids"]})
    torch.testing.assert_close(
        capture(model, encoded, "transformer.h.0")["transformer.h.0"], hidden.detach()
    )


# ------------------------------------------------------------------------------ ways to run a model


def test_streams_are_put_together():
    model, x, y = MLP([6, 5, 3]), torch.randn(10, 6), torch.arange(10) % 3
    whole = capture(model, x, "*")
    data = TensorDataset(x, y)
    pairs = DataLoader(data, batch_size=4)
    alone = DataLoader(x, batch_size=4)
    for stream in (pairs, alone, list(pairs), (batch for batch in pairs)):
        found = capture(model, stream, "*", progress=False)
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value)
    mappings = [{"x": rows, "mask": None} for rows in x.split(4)]
    torch.testing.assert_close(
        capture(Blocks(), mappings, "h.0.mlp.c_fc")["h.0.mlp.c_fc"].shape, torch.Size([10, 6])
    )
    with pytest.raises(ValueError, match="inputs must not be empty, got no batches"):
        capture(model, [], "*")


def test_a_stream_stops_at_its_sites_and_gives_the_same():
    ends = []
    model, x = MLP([6, 5, 3]), torch.randn(9, 6)
    model.fc2.register_forward_hook(lambda *_: ends.append(1))
    found = capture(model, x, "act1", batch_size=2)["act1"]
    assert len(ends) == 1
    torch.testing.assert_close(found, model.act1(model.fc1(x)).detach())


def test_inference_mode_and_inputs_made_in_it():
    model, x = MLP([6, 5, 3]), torch.randn(4, 6)
    wanted = capture(model, x, "*")
    with torch.inference_mode():
        own = x.clone()
        inside = capture(model, own, "*")
    for found in (inside, capture(model, own, "*")):
        for name, value in wanted.items():
            assert not found[name].is_inference()
            torch.testing.assert_close(found[name], value)


def test_autocast_gives_the_models_dtype():
    model, x = MLP([6, 5, 3]), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = capture(model, x, "fc*")
        wanted = model.fc1(x)
    assert found["fc1"].dtype == found["fc2"].dtype == torch.bfloat16
    assert torch.equal(found["fc1"], wanted.detach())


@pytest.mark.slow
def test_a_compiled_model_has_its_own_names():
    model, x = MLP([6, 5, 3]), torch.randn(4, 6)
    wanted = capture(model, x, ["fc1", "input"])
    found = capture(torch.compile(model), x, ["fc1", "input"])
    assert list(found) == ["input", "fc1"]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_the_encoders_fast_path_is_not_taken():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = capture(model, torch.randn(3, 5, 8), "layers.*.linear1")
    assert [tuple(value.shape) for value in found.values()] == [(3, 5, 16)] * 2
    assert torch.backends.mha.get_fastpath_enabled()


def test_arguments_with_state_and_inputs_are_left_alone():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.seen = nn.Linear(6, 6), []

        def forward(self, x, cache):
            cache.append(self.fc(x.mul_(2)))
            self.seen.append(len(cache))
            return sum(cache)

    model, x, cache = Cached(), torch.randn(4, 6), [torch.ones(4, 6)]
    before = x.clone()
    for _ in range(2):
        found = capture(model, (x, cache), "fc")["fc"]
        torch.testing.assert_close(found, model.fc(before * 2).detach())
    assert torch.equal(x, before)
    assert len(cache) == 1
    assert model.seen == []


# ------------------------------------------------------------------------- inputs that do not fit


class Refusing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.fc, self.error = nn.Linear(6, 3), error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return self.fc(x)[:, :, 0]


def test_inputs_that_the_model_cannot_take_are_named():
    embedding, norm = nn.Sequential(nn.Embedding(4, 2)), nn.Sequential(nn.BatchNorm1d(6))
    cases = [
        (MLP([6, 3]), torch.randn(4, 7), RuntimeError, "mat1 and mat2 shapes"),
        (MLP([6, 3]), torch.randn(4, 6).double(), RuntimeError, "dtype"),
        (MLP([6, 3]), torch.tensor(1.0), IndexError, "Dimension out of range"),
        (MLP([6, 3]), torch.randn(6), IndexError, "Dimension out of range"),
        (MLP([6, 3]), {"y": torch.randn(4, 6)}, TypeError, "unexpected keyword argument 'y'"),
        (MLP([6, 3]), (torch.randn(4, 6),) * 2, TypeError, "positional argument"),
        (embedding, torch.tensor([7]), IndexError, "index out of range"),
        (embedding, torch.randn(3), RuntimeError, "indices"),
        (norm, torch.randn(6), ValueError, "expected 2D or 3D input"),
        (Refusing(None), torch.randn(4, 6), IndexError, "too many indices"),
    ]
    for model, inputs, kind, words in cases:
        with pytest.raises(ValueError, match=f"inputs must fit the model, .*{words}") as caught:
            capture(model, inputs, "*")
        assert type(caught.value.__cause__) is kind
    # Of a stream too, in whatever batch.
    with pytest.raises(ValueError, match="inputs must fit the model"):
        capture(MLP([6, 3]), [torch.randn(4, 6), torch.randn(4, 7)], "fc1")


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, ValueError, TypeError, IndexError])
def test_what_a_models_own_code_raises_comes_through(kind):
    error = kind("mine")
    with pytest.raises(kind) as caught:
        capture(Refusing(error), torch.randn(4, 6), "fc")
    assert caught.value is error
    model = MLP([6, 3])

    def hook(*_):
        raise error

    model.fc1.register_forward_hook(hook)
    with pytest.raises(kind) as caught:
        capture(model, torch.randn(4, 6), "fc1")
    assert caught.value is error
    assert hooks(model) == 1
