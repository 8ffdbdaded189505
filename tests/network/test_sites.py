"""Where in a network? Names, patterns, and what they match."""

from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from modfast.models import MLP
from modfast.network.names import (
    in_mode,
    match_names,
    nearest,
    resolve_modules,
)
from modfast.network.sites import heads, parse_site, resolve_sites


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


def test_sites_and_patterns_of_all_kinds():
    model = Blocks()
    names = [
        "h.1.mlp.c_fc:input",
        "h.0.mlp:input[x]",
        "pair[1]",
        "h.*.mlp.act#0",
        "/mul#1",
        "input",
    ]
    found = resolve_sites(model, names)
    assert [site.name for site in found] == [
        "/mul#1",
        "input",
        "h.0.mlp:input[x]",
        "h.0.mlp.act#0",
        "h.1.mlp.c_fc:input",
        *(f"h.{i}.mlp.act#0" for i in range(1, 12)),
        "pair[1]",
    ]
    by_name = {site.name: site for site in found}
    assert by_name["pair[1]"].item == 1
    assert by_name["h.0.mlp:input[x]"].key == "x"
    assert by_name["/mul#1"].function == "mul"
    assert by_name["/mul#1"].call == 1
    assert by_name["input"].of_input
    assert by_name["h.0.mlp.act#0"].by_pattern
    assert not by_name["pair[1]"].by_pattern


def test_a_site_named_exactly_stays_so_beside_a_pattern():
    for names in (["h.*", "h.0.mlp"], ["h.0.mlp", "h.*"]):
        (found,) = (site for site in resolve_sites(Blocks(), names) if site.name == "h.0.mlp")
        assert not found.by_pattern
    assert len(resolve_sites(Shared(), ["alias", "*"])) == 3


def test_a_model_and_names_of_a_wrong_kind():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        resolve_sites("model", "fc1")
    with pytest.raises(TypeError, match="site must be a name, got 3"):
        parse_site(MLP([5, 4]), 3)
    with pytest.raises(ValueError, match="site='fc2:input': no such module; did you mean: 'fc1'"):
        parse_site(MLP([5, 4]), "fc2:input")


def test_heads():
    assert heads(6, 2) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="multiple of n_heads=4, got 6"):
        heads(6, 4)
