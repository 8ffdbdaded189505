from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from modfast.models import MLP
from modfast.passes import capture
from modfast.sites import in_mode, match_names, nearest, resolve_modules


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


def test_nearest_words():
    assert nearest("fc22", ["fc1", "fc2", "conv"]).startswith("did you mean: 'fc2'")
    assert nearest("xyz", ["fc1", "fc2"]) == "there are: 'fc1', 'fc2'"
    assert nearest("xyz", [f"fc{i}" for i in range(9)]).endswith("'fc4', ...")
    assert nearest("xyz", []) == "there are: none"


def test_names_that_look_like_patterns_are_taken_exactly_first():
    names = ["a[0]", "a0", "b"]
    assert match_names(names, "a[0]") == ["a[0]"]
    assert match_names(names, "a?") == ["a0"]


def test_patterns_give_model_order_without_duplicates():
    model = MLP([5, 4, 3, 2])
    modules = resolve_modules(model, ["fc3", "fc*", "act2", "fc1"])
    assert list(modules) == ["fc1", "fc2", "act2", "fc3"]
    assert modules["fc2"] is model.fc2
    assert list(resolve_modules(model, "fc2")) == ["fc2"]


def test_patterns_cross_dots():
    model = Blocks()
    names = [f"h.{i}.mlp.c_fc" for i in range(12)]
    assert list(resolve_modules(model, "h.*.mlp.c_fc")) == names
    assert list(resolve_modules(model, "*c_fc")) == names
    assert list(resolve_modules(model, "h.1?.mlp.c_fc")) == names[10:]
    assert list(resolve_modules(model, ["h.10.mlp.c_fc", "h.2.mlp.c_fc"])) == [names[2], names[10]]


def test_a_shared_module_is_given_once_and_answers_to_each_name():
    model = Shared()
    assert list(resolve_modules(model, "*")) == ["fc", "act", "used_by_weight"]
    assert resolve_modules(model, "alias") == {"alias": model.fc}


def test_predicate_filters():
    select = partial(resolve_modules, MLP([5, 4, 3]), predicate=lambda m: hasattr(m, "weight"))
    assert list(select("*")) == ["fc1", "fc2"]
    with pytest.raises(ValueError, match="layers='act1': no such suitable module"):
        select("act1")


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="weights_of='fcc2': no such module; did you mean: 'fc2'"):
        resolve_modules(MLP([5, 4, 3]), ["fc1", "fcc2"], argument="weights_of")
    with pytest.raises(ValueError, match=r"'transformer.h.0.mlp.c_fc'.*mean: 'h.0.mlp.c_fc'"):
        resolve_modules(Blocks(), "transformer.h.0.mlp.c_fc")
    with pytest.raises(ValueError, match=r"layers='h.\*.attn'"):
        resolve_modules(Blocks(), "h.*.attn")
    with pytest.raises(ValueError, match="layers='': no such module; there are: 'fc1'"):
        resolve_modules(MLP([5, 4]), "")
    with pytest.raises(ValueError, match=r"layers=\[\]: must hold at least one name"):
        resolve_modules(MLP([5, 4]), [])


@pytest.mark.parametrize("patterns", [3, None, [1], ["fc1", None]])
def test_names_of_a_wrong_type(patterns):
    with pytest.raises(TypeError, match="must be a name or a sequence of names") as caught:
        resolve_modules(MLP([5, 4]), patterns)
    assert f"layers={patterns!r}" in str(caught.value)


def test_in_mode_restores_every_flag_also_on_an_exception():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.Linear(3, 3)))
    model.train()
    model[0].eval()
    flags = [module.training for module in model.modules()]
    with in_mode(model, training=False):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == flags
    with pytest.raises(KeyError), in_mode(model, training=False):
        raise KeyError
    assert [module.training for module in model.modules()] == flags


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
    rows: list[int] = []
    model.fc1.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    parts = capture(model, x, "*", batch_size=batch_size)
    assert list(parts) == list(whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert max(rows) == min(batch_size, 10)
    assert sum(rows) == 10


@pytest.mark.parametrize("batch_size", [None, 4])
def test_no_rows(batch_size):
    out = capture(MLP([6, 5, 3]), torch.zeros(0, 6), "fc*", batch_size)
    assert [tuple(value.shape) for value in out.values()] == [(0, 5), (0, 3)]


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
    with pytest.raises(RuntimeError):
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
            torch.testing.assert_close(capture(model, inputs, site, batch_size)[site], expected)


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
        (Shared(), "used_by_weight", ValueError, "sites='used_by_weight': the model never called"),
        (Blocks(), "pair", TypeError, "sites='pair': the Pair returned a tuple, not a tensor"),
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
    with pytest.raises(
        ValueError, match="inputs must be finite, got 3 of 24 values NaN or infinite"
    ):
        capture(MLP([6, 3]), x, "fc1")
    with pytest.raises(ValueError, match=r"inputs\['x'\] must be finite, got 3 of 24"):
        capture(Blocks(), {"x": x}, "pair")
    with pytest.raises(ValueError, match=r"inputs\[1\] must be finite, got 3 of 24"):
        capture(Blocks(), (torch.randn(4, 6), x), "pair")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", True])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match="must be an integer of at least 1") as caught:
        capture(MLP([6, 3]), torch.randn(4, 6), "fc1", batch_size)
    assert f"batch_size={batch_size!r}" in str(caught.value)


def test_inputs_that_cannot_be_cut_into_batches():
    model, x = Blocks(), torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"batch_size=2.*'inputs\[1\]': \[1, 6\]"):
        capture(model, (x, torch.ones(1, 6)), "h.0.mlp.act", batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size=2.*'inputs\[1\]': \[\]"):
        capture(model, (x, torch.tensor(1.0)), "h.0.mlp.act", batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size=2.*got shapes \{\}"):
        capture(model, (), "h.0.mlp.act", batch_size=2)


def test_outputs_that_are_not_batch_first():
    model = nn.Sequential(nn.Flatten(0), nn.Identity())
    with pytest.raises(ValueError, match=r"sites='0'.*batch-first; 2 rows gave shape \[12\]"):
        capture(model, torch.randn(4, 6), "0", batch_size=2)
    assert capture(model, torch.randn(4, 6), "0")["0"].shape == (24,)


@pytest.mark.parametrize("inputs", [[1.0, 2.0], None, 3])
def test_inputs_of_a_wrong_type(inputs):
    with pytest.raises(TypeError, match=f"inputs is a {type(inputs).__name__}: must be"):
        capture(MLP([6, 3]), inputs, "fc1")
