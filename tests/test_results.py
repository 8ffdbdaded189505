"""What every result can do, shown on one of each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import modfast
from modfast.results import Result

PUBLIC = {name: getattr(modfast, name) for name in modfast.__all__}
KINDS = {
    name: each
    for name, each in PUBLIC.items()
    if dataclasses.is_dataclass(each) and each not in (modfast.Clusters, Result)
}


@cache
def results() -> dict[str, Result]:
    """One of each kind, as the functions make them."""
    torch.manual_seed(0)
    model = modfast.models.MLP([6, 8, 8, 3])
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    grids = modfast.data.physics_grids(6)
    study = modfast.TaskStudy.train(modfast.data.physics(50), n_models=2, epochs=3, progress=False)
    comparison = modfast.compare_tasks(study.model(0), grids, "act1")["act1"]
    gradients = modfast.task_gradients(model, x, "act1")["act1"]
    circuit = modfast.discover_circuit(model, x, x.flip(0), 1e-2, progress=False)
    effective = modfast.effective_information(model, 6)
    top = modfast.max_activating(model, (x, y), "act1", k=3, progress=False)
    sites = {"fc1": x[:, :4], "fc2": x[:, 4:]}
    screened = modfast.ablate_units(model, x, "act1", screen=2).screening
    assert screened is not None
    found = [
        modfast.ablate_units(model, x, "act2", targets=y),
        modfast.ablate_units(model, x, ["act1", "act2"]),
        modfast.attribute_units(model, x, ["act1", "act2"]),
        screened,
        modfast.max_information_direction(model, x, "act2", steps=2, restarts=2, seed=0),
        modfast.evaluate_clusters(model, (x, y), "fc2", modfast.Clusters.equal(8, 8, 2)),
        modfast.modularity_report(model, 2, n_shuffles=2, seed=0, progress=False),
        modfast.prune_circuit(model, x, y, labels=1, progress=False),
        modfast.effective_circuit_size(model, x, y, [1e-3, 1e-2], progress=False),
        modfast.attribute_edges(model, x, x.flip(0), y, method="eap"),
        modfast.network_graph(model, x, "units"),
        modfast.faithfulness_curve([circuit], model, x, x.flip(0), metric="kl", progress=False),
        circuit,
        circuit.evaluate(model, x, x.flip(0), y),
        top["act1"] if isinstance(top, Mapping) else top,
        modfast.label_purity(torch.tensor([[1, 2], [0, 0]]), 3),
        modfast.pairwise_mutual_information(x, n_permutations=2, seed=0),
        modfast.JointHistogram(4, (-3.0, 3.0)).update(x, x).compute(),
        modfast.modularity_measures(sites, {"fc1": [0, 1], "fc2": [0]}),
        modfast.calibrate({"gaussian": modfast.gaussian_mutual_information}, [1], [50], 2),
        effective,
        effective.layers[0],
        modfast.perturbational_ei(model, 6, "fc1", samples=50, tolerance=None, seed=0),
        gradients,
        gradients.distinct(0),
        comparison,
        comparison.similarity(),
        study,
        study.compare(grids, progress=False),
        modfast.fit(model, (x, y), 1, test=(x, y), progress=False),
    ]
    return {type(each).__name__: each for each in found}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return torch.equal(a.nan_to_num(-1e30), b.nan_to_num(-1e30))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value
    return [t for x in inner for t in tensors(x)] if isinstance(value, (dict, tuple)) else []


def test_there_is_one_of_each_kind() -> None:
    assert results().keys() == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_result_is_shown_kept_and_equal_to_itself_alone(name: str, tmp_path: Path) -> None:
    result = results()[name]
    assert isinstance(result, Result)
    text = repr(result)
    assert text.startswith(f"{name}(")
    assert "tensor(" not in text
    assert "[..." not in text
    assert len(text) < 900
    fields = result.to_dict()
    assert list(fields) == [field.name for field in dataclasses.fields(result)]
    assert all(each.device.type == "cpu" for each in tensors(fields))
    result.save(tmp_path / "kept")
    again = type(result).load(tmp_path / "kept")
    assert same(again.to_dict(), fields)
    assert repr(again) == text
    assert again != result
    assert len({again, result, result}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.new = 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"kept' holds no Other .*: its kind is '{name}'"):
        type("Other", (Result,), {}).load(tmp_path / "kept")


@pytest.mark.parametrize("name", ["Circuit", "EdgeCircuit"])
def test_files_of_the_release_before_are_read(name: str, tmp_path: Path) -> None:
    fields = results()[name].to_dict()
    values = {field: value for field, value in fields.items() if field != "backend"}
    torch.save({"format": 2, "kind": name, "values": values}, tmp_path / "old.pt")
    again = type(results()[name]).load(tmp_path / "old.pt")
    assert same(again.to_dict(), fields | {"backend": ""})


@pytest.mark.parametrize("name", KINDS)
def test_a_result_draws_itself_or_says_that_it_does_not(name: str) -> None:
    pytest.importorskip("plotly")
    result = results()[name]
    if name in ("CircuitEvaluation", "DistinctGradients", "LayerInformation", "TaskGradients"):
        with pytest.raises(NotImplementedError, match=f"there is no figure of a {name}"):
            result.plot()
    else:
        inputs = (torch.randn(40, 6),) if name == "TopActivations" else ()
        assert result.plot(*inputs).data


def test_means_over_samples_beside_the_sums() -> None:
    torch.manual_seed(1)
    model, x, y = modfast.models.MLP([6, 8, 3]), torch.randn(40, 6), torch.arange(40) % 3
    result = modfast.ablate_units(model, x, "act1", targets=y)
    each = modfast.ablate_units(model, x, "act1", targets=y, per_sample=True)
    for measure in ("entropy_difference", "kl_ablated_original", "loss", "accuracy"):
        values = getattr(each, measure)
        torch.testing.assert_close(result.mean(measure), values.mean(0))
        torch.testing.assert_close(each.mean(measure), values.mean(0))
    assert torch.equal(result.mean("accuracy"), result.accuracy)
    with pytest.raises(ValueError, match="the measure must be one of .*got 'kl'"):
        result.mean("kl")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inner(Result):
    values: Tensor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Outer(Result):
    pairs: tuple[tuple[str, int], ...]
    inner: tuple[Inner, ...]
    either: Literal["a", "b"] | float | None = None
    anything: Any = None


def test_results_among_fields_and_types_of_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "outer"
    outer = Outer((("x", 1), ("y", 2)), tuple(Inner(torch.ones(i)) for i in range(6)), "b", [1])
    assert repr(outer) == (
        "Outer(pairs=(('x', 1), ('y', 2)), inner=(Inner(values=float32[0]), "
        "Inner(values=float32[1]), Inner(values=float32[2]), Inner(values=float32[3]), "
        "... 6 in all), either='b', anything=[1])"
    )
    outer.save(path)
    found = Outer.load(path)
    assert same(found.to_dict(), outer.to_dict())
    assert all(isinstance(each, Inner) for each in found.inner)
    for wrong, message in (
        ({"pairs": (("x", 1.0),)}, r"pairs\[0\]\[1\] must be int, got float"),
        ({"pairs": (("x", True),)}, r"pairs\[0\]\[1\] must be int, got bool"),
        ({"pairs": (("x",),)}, r"pairs\[0\] must be tuple\[str, int\], got tuple"),
        ({"pairs": [("x", 1)]}, r"pairs must be tuple\[.*\], got list"),
        ({"inner": (Inner([1.0]),)}, r"inner\[0\]\.values must be Tensor, got list"),
        ({"inner": (3,)}, r"inner\[0\] must be Inner, got int"),
        ({"either": "c"}, r"either must be .*Literal\['a', 'b'\].*, got str"),
    ):
        dataclasses.replace(outer, **wrong).save(path)
        with pytest.raises(ValueError, match=f"outer' holds no Outer .*: {message}"):
            Outer.load(path)
