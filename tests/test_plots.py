from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

import modfast
from modfast import Clusters, History, plots

pytest.importorskip("plotly", reason="plotly is not installed")


def make_history(steps: int, layers: int = 1, evaluations: int = 3) -> History:
    torch.manual_seed(steps)
    return History(
        torch.rand(steps) + 0.5,
        torch.rand(steps, layers).double(),
        torch.rand(evaluations).double(),
        torch.linspace(0, steps, evaluations).long(),
    )


def axis_titles(figure) -> list[str]:
    return [axis.title.text for axis in figure.select_yaxes()]


def test_history_holds_loss_clusterability_and_accuracy():
    run = make_history(20)
    loss, share, accuracy = run.plot().data
    np.testing.assert_allclose(loss.y, run.loss.double())
    np.testing.assert_array_equal(share.y, run.clusterability[:, 0])
    np.testing.assert_array_equal(accuracy.y, run.accuracy)
    np.testing.assert_array_equal(accuracy.x, run.accuracy_steps)


def test_histories_are_overlaid_by_name():
    figure = History.overlay(
        {"plain": make_history(5, layers=0), "clustered": make_history(5)}, "R²"
    )
    assert axis_titles(figure) == ["loss", "clusterability", "test R²"]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["plain", "clustered"]
    assert [trace.name for trace in figure.data if trace.yaxis == "y2"] == ["clustered"]


def test_long_histories_are_drawn_as_means_that_keep_the_total():
    run = make_history(1000)
    loss = run.plot().data[0]
    assert len(loss.y) <= 400
    assert loss.y[0] == pytest.approx(float(run.loss[:3].mean()))
    assert "mean of 3 steps" in axis_titles(run.plot())[0]


def test_history_tells_layers_apart_and_leaves_out_empty_panels():
    figure = make_history(5, layers=2, evaluations=0).plot()
    assert axis_titles(figure) == ["loss", "clusterability"]
    assert [(t.name, t.line.dash) for t in figure.data[1:]] == [
        ("layer 0", "solid"),
        ("layer 1", "dash"),
    ]


def test_loss_has_a_log_axis_only_where_it_spans_decades():
    run = make_history(5)
    assert run.plot().layout.yaxis.type is None
    wide = dataclasses.replace(run, loss=torch.logspace(0, -3, 5))
    assert wide.plot().layout.yaxis.type == "log"
    zero = dataclasses.replace(run, loss=torch.tensor([1.0, 0.0]), clusterability=torch.zeros(2, 0))
    assert zero.plot().layout.yaxis.type is None


def test_weight_matrix_is_ordered_by_cluster():
    torch.manual_seed(0)
    weight = torch.randn(4, 5)
    clusters = Clusters([1, 0, -1, 0], [1, -1, 0, 1, 0])
    figure = plots.weight_matrix(weight, clusters.rows, clusters.cols, "mine")
    rows, cols = [1, 3, 0, 2], [2, 4, 0, 3, 1]
    heat = figure.data[0]
    np.testing.assert_array_equal(heat.z, weight[rows][:, cols])
    assert list(heat.y) == [str(i) for i in rows]
    assert list(heat.x) == [str(i) for i in cols]
    assert heat.zmax == -heat.zmin == weight.abs().max()
    boxes = [(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes]
    assert boxes == [(-0.5, 1.5, -0.5, 1.5), (1.5, 3.5, 1.5, 2.5)]
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "none"]
    assert figure.layout.title.text == "mine"


def test_convolutions_are_drawn_by_their_kernels_norms():
    weight = torch.randn(4, 2, 3, 3)
    z = plots.weight_matrix(weight, [0, 0, 1, 1], [0, 1]).data[0].z
    np.testing.assert_allclose(z, weight.flatten(2).norm(dim=2), rtol=1e-6)


def test_an_all_zero_weight_can_be_drawn():
    labels = [0, 0, 1, 1], [0, 0, 1, 1]
    assert plots.weight_matrix(torch.zeros(4, 4), *labels).data[0].zmax == 1
    lines = [t for t in plots.bipartite(torch.zeros(4, 4), *labels).data if t.mode == "lines"]
    assert not lines


def edges(figure) -> dict[str, int]:
    """How many lines each color has."""
    found: dict[str, int] = {}
    for trace in figure.data:
        if trace.mode == "lines":
            found[trace.line.color] = found.get(trace.line.color, 0) + len(trace.x) // 3
    return found


def test_bipartite_colors_lines_within_clusters():
    weight = torch.tensor([[1.0, 0.1, 0.0], [-0.9, 0.8, 0.01]])
    figure = plots.bipartite(weight, [0, 1], [0, 1, 1])
    colors = {t.name: t.marker.color for t in figure.data if t.mode == "markers"}
    # Between the clusters: .1 and -.9; 0 and what is below a twentieth of the largest is left out.
    gray = (set(edges(figure)) - set(colors.values())).pop()
    assert edges(figure) == {colors["cluster 0"]: 1, colors["cluster 1"]: 1, gray: 2}


def test_bipartite_draws_the_strongest_where_the_units_stand():
    weight = torch.tensor([[0.5, 1.0], [0.9, 0.2]])
    figure = plots.bipartite(weight, [1, 0], [0, 1], n_edges=1)
    (line,) = [t for t in figure.data if t.mode == "lines"]
    # Output 0 is in cluster 1, so it stands second; so does input 1.
    assert list(line.x[:2]) == [0.75, 0.75]
    units = {(t.y[0], t.name): (list(t.x), list(t.customdata)) for t in figure.data[1:]}
    assert units[0, "cluster 1"] == ([0.75], [0])


@pytest.mark.parametrize("draw", [plots.weight_matrix, plots.bipartite])
def test_bad_weights_and_clusters_are_refused(draw):
    labels = torch.arange(4) // 2
    with pytest.raises(TypeError, match="weight must be a tensor, got list"):
        draw([[1.0]], labels, labels)
    with pytest.raises(TypeError, match="cols must be labels, got 2"):
        draw(torch.ones(4, 4), labels, 2)
    with pytest.raises(TypeError, match=r"rows must be integer labels, got torch\.float32"):
        draw(torch.ones(4, 4), labels.float(), labels)
    with pytest.raises(ValueError, match=r"cols must be 3 labels, got \[4\]"):
        draw(torch.ones(4, 3), labels, labels)
    with pytest.raises(ValueError, match="weight must have at least two dimensions"):
        draw(torch.ones(4), labels, labels)
    bad = torch.ones(4, 4).index_put((torch.tensor(0),) * 2, torch.tensor(torch.nan))
    with pytest.raises(ValueError, match="weight must be finite, got 1"):
        draw(bad, labels, labels)


@pytest.mark.parametrize("draw", [plots.weight_matrix, plots.bipartite])
def test_clusters_in_the_place_of_labels_warn(draw):
    weight, clusters = torch.randn(4, 4), Clusters.equal(4, 4, 2)
    wanted = draw(weight, clusters.rows, clusters.cols, "mine")
    with pytest.warns(DeprecationWarning, match=r"clusters\.rows, clusters\.cols"):
        assert draw(weight, clusters, "mine") == wanted
    with pytest.warns(DeprecationWarning, match="weight, clusters"):
        assert draw(weight, clusters=clusters, title="mine") == wanted


def test_results_in_the_place_of_tensors_warn():
    run = make_history(5)
    with pytest.warns(DeprecationWarning, match=r"plots\.history\(result\) is now result\.plot"):
        assert plots.history(run, "R²") == run.plot("R²")
    with pytest.warns(DeprecationWarning, match=r"result\.plot\(\)"):
        assert plots.history(history=run, score="R²") == run.plot("R²")
    named = {"a": run, "b": make_history(6)}
    with pytest.warns(DeprecationWarning, match=r"now History\.overlay\(results\)"):
        assert plots.history(named) == History.overlay(named)


def test_bad_histories_and_counts_are_refused():
    with pytest.raises(TypeError, match=r"results\['a'\] must be a History, got int"):
        History.overlay({"a": 3})
    with pytest.raises(TypeError, match="results must be a mapping, got History"):
        History.overlay(make_history(5))
    with pytest.raises(ValueError, match="results must hold at least one History, got none"):
        History.overlay({})
    with pytest.raises(ValueError, match="loss must hold at least one value"):
        plots.history({}, {}, {}, {})
    with pytest.raises(ValueError, match="n_edges must be at least 0, got -1"):
        plots.bipartite(torch.ones(2, 2), [0, 0], [0, 0], n_edges=-1)


def test_cluster_evaluation_holds_every_value():
    torch.manual_seed(0)
    model = modfast.models.MLP([3, 4, 4, 5])
    # Class 4 has no samples: its accuracy is NaN.
    data = torch.randn(40, 3), torch.arange(40) % 4
    result = modfast.evaluate_clusters(model, data, "fc2", Clusters.equal(4, 4, 2))
    whole, off, on = result.plot().data
    np.testing.assert_array_equal(whole.z[0][0], result.accuracy)
    np.testing.assert_array_equal(off.z[:, 0], result.off_accuracy)
    np.testing.assert_array_equal(off.z[:, 1:], result.off_class_accuracy)
    np.testing.assert_array_equal(on.z[:, 1:], result.on_class_accuracy)
    assert list(on.y) == ["cluster 0", "cluster 1"]
    assert list(on.x) == ["all", *(f"class {i}" for i in range(5))]
    assert [line[-1] for line in on.text] == ["–", "–"]
    assert on.text[0][0] == f"{float(result.on_accuracy[0]):.2f}"
    with pytest.raises(ValueError, match="class_names must be 5 names, got 2"):
        result.plot(class_names=["a", "b"])


def test_results_draw_themselves():
    torch.manual_seed(0)
    model = modfast.models.MLP([4, 8, 8, 2])
    data = modfast.data.physics(100)
    optimizer = modfast.Modularity(model.parameters(), n_clusters=2)
    history = modfast.fit(model, data, epochs=1, optimizer=optimizer, test=data, progress=False)
    assert len(history.plot().data) == 3
    result = modfast.evaluate_clusters(model, data, "fc2", Clusters.equal(8, 8, 2))
    assert len(result.plot().data) == 3


def test_ablations_are_drawn_in_order_and_sorted():
    torch.manual_seed(0)
    model, x = modfast.models.MLP([4, 8, 8, 2]), torch.randn(30, 4)
    result = modfast.ablate_units(model, x, "act2", targets=torch.arange(30) % 2)
    in_order, ranked = result.plot().data
    mean = result.kl_ablated_original / 30
    np.testing.assert_allclose(in_order.y, mean)
    np.testing.assert_allclose(ranked.y, mean.sort(descending=True).values)
    assert ranked.text[0] == f"unit {int(mean.argmax())}"
    np.testing.assert_allclose(result.plot("accuracy").data[0].y, result.accuracy)
    with pytest.raises(ValueError, match="the measure must be one of .*got 'kl'"):
        result.plot("kl")


def test_direction_searches_have_a_line_per_restart():
    torch.manual_seed(0)
    model, x = modfast.models.MLP([4, 8, 8, 2]), torch.randn(30, 4)
    result = modfast.max_information_direction(model, x, "act2", steps=5, restarts=3)
    lines = result.plot().data
    assert len(lines) == 3
    np.testing.assert_allclose(lines[1].y, result.history[:, 1])


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r'pip install "modfast\[report\]"'):
        plots.weight_matrix(torch.ones(2, 2), [0, 0], [0, 0])


def test_tasks_are_drawn_by_site_direction_and_epoch():
    torch.manual_seed(0)
    study = modfast.TaskStudy.train(modfast.data.physics(64), n_models=3, epochs=60, progress=False)
    grids = modfast.data.physics_grids(8)
    found = modfast.compare_tasks(study.model(0), grids, "act1")["act1"]
    *bars, norms = found.plot().data
    assert [bar.name for bar in bars] == ["task 0", "task 1"]
    for bar, variances in zip(bars, found.variances, strict=True):
        np.testing.assert_array_equal(bar.y, variances)
    np.testing.assert_array_equal(norms.y, found.norms)
    assert norms.yaxis == "y2"
    assert norms.x[0] == "task 0, 0"
    (matrix,) = found.similarity().plot().data
    np.testing.assert_array_equal(matrix.z, found.similarity().matrix)
    assert [color for _, color in matrix.colorscale] == ["#2166ac", "#ffffff", "#b2182b"]
    assert matrix.zmax == -matrix.zmin == 1
    result = study.compare(grids, progress=False)
    boxes = result.plot().data
    assert [box.name for box in boxes] == [*result.sites, *result.sites]
    np.testing.assert_array_equal(boxes[1].y, result.capture[:, 1])
    np.testing.assert_array_equal(boxes[3].y, result.overlap[:, 0, 0, 1])
    lines = study.plot().data
    np.testing.assert_allclose(lines[0].y, study.losses.min(0).values)
    np.testing.assert_allclose(lines[2].y, study.losses.median(0).values)


def test_a_heat_map_of_ablations():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, torch.nan]])
    figure = plots.ablation_map(values, ["layer 0", "layer 1"], "head")
    (cells,) = figure.data
    np.testing.assert_array_equal(cells.z, values)
    assert list(cells.y) == ["layer 0", "layer 1"]
    assert (cells.zmin, cells.zmid) == (0, None)
    assert figure.layout.xaxis.title.text == "head"
    assert cells.colorbar.title.text == "KL(ablated | original), nats"
    signed = plots.ablation_map(-values, ["a", "b"], measure="logit_difference").data[0]
    assert signed.zmid == 0
    assert signed.colorbar.title.text == "change of logit_difference"
    with pytest.raises(ValueError, match="rows must name 2 rows of a matrix, got 1 names"):
        plots.ablation_map(values, ["a"])


def of_two_sites() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)
    return torch.nn.Sequential(*layers).double(), torch.randn(7, 3, 5).double()


def test_ablations_at_each_position_are_drawn_as_a_heat_map():
    model, x = of_two_sites()
    found = modfast.ablate_units(model, x, "0", [4, 1], positions="each")
    (cells,) = found.plot().data
    np.testing.assert_array_equal(cells.z, found.kl_ablated_original.reshape(2, 3) / 21)
    assert list(cells.y) == ["unit 4", "unit 1"]
    both = modfast.ablate_units(model, x, {"0": [4, 1], "1": None}, positions="each")
    (cells,) = both.plot().data
    assert list(cells.y) == ["0", "1"]
    np.testing.assert_allclose(cells.z[0], found.grid().sum(0))


def test_ablations_of_several_sites_are_drawn_as_a_heat_map():
    model, x = of_two_sites()
    found = modfast.ablate_units(model, x, {"0": [4, 1], "1": None, "2:input": [0]})
    figure = found.plot("entropy_difference")
    (cells,) = figure.data
    assert cells.z.shape == (3, 6)
    np.testing.assert_array_equal(cells.z[1], found["1"].mean("entropy_difference"))
    np.testing.assert_array_equal(np.isnan(cells.z).sum(1), [4, 0, 5])
    assert figure.layout.xaxis.title.text == "unit"


def test_scores_of_units_are_drawn_as_a_heat_map():
    model, x = of_two_sites()
    found = modfast.attribute_units(model, x, ["0", "2:input"], metric="entropy")
    (cells,) = found.plot().data
    np.testing.assert_allclose(cells.z[1], found.scores["2:input"] / 7)
    each = modfast.attribute_units(model, x, ["0", "1"], positions="each")
    figure = each.plot()
    np.testing.assert_allclose(figure.data[0].z[0], each.scores["0"].sum(0) / 7)
    assert figure.layout.xaxis.title.text == "position"


def test_screening_is_drawn_with_what_was_ablated():
    model, x = of_two_sites()
    told = modfast.ablate_units(model, x, "0", screen=2).screening
    estimates, ablated, drawn = told.plot().data
    np.testing.assert_array_equal(estimates.y, told.estimate.abs().sort(descending=True).values)
    assert list(ablated.x) == [0, 1]
    np.testing.assert_array_equal(ablated.y, told.estimate.abs()[told.units])
    assert len(drawn.x) == 2
    assert min(drawn.x) > 1
