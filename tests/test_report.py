from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import modfast
from modfast import demo, report

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def result() -> demo.DemoResult:
    return demo.run(replace(demo.DEFAULTS["digits"], epochs=10), progress=False)


@pytest.fixture(scope="module")
def numbers(result, tmp_path_factory):
    _, path = report.write(result, tmp_path_factory.mktemp("report"))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def html(result) -> str:
    return report.page(result)


def test_json_has_the_keys_and_sizes(numbers):
    assert set(numbers) == {"plain", "clustered", "clusters", "settings"}
    for network in ("plain", "clustered"):
        keys = {"accuracy", "clusterability", "class_accuracy", "unit_kl", "circuit_sizes"}
        assert set(numbers[network]) == keys
        assert len(numbers[network]["unit_kl"]) == 64
        if modfast.has_ops():
            sizes = numbers[network]["circuit_sizes"]
            assert sizes["classes"] == list(range(10))
            assert sizes["total"] == 64 * 64 * 2 + 640
            kept = torch.tensor(sizes["kept"])
            assert kept.shape == (len(sizes["thresholds"]), 10)
            assert (kept.sum(1).diff() < 0).all()
        values = [numbers[network]["accuracy"], *numbers[network]["class_accuracy"]]
        assert all(0 <= value <= 1 for value in values)
        assert len(values) == 11
    off, on = (numbers["clusters"][f"{side}_class_accuracy"] for side in ("off", "on"))
    assert {len(line) for line in [*off, *on]} == {10}
    for side in ("off", "on"):
        assert len(numbers["clusters"][f"{side}_accuracy"]) == 4
        assert len(numbers["clusters"][f"{side}_class_accuracy"]) == 4
    assert numbers["settings"]["sizes"] == [64, 64, 64, 10]
    assert numbers["settings"]["alpha"] == 15.0


def test_the_clustered_network_is_clustered_and_as_good(numbers):
    assert numbers["clustered"]["clusterability"] > 0.99
    assert numbers["plain"]["clusterability"] < 0.4
    assert numbers["clustered"]["accuracy"] > 0.9
    assert abs(numbers["clustered"]["accuracy"] - numbers["plain"]["accuracy"]) < 0.03
    assert max(numbers["clusters"]["off_accuracy"]) < numbers["clustered"]["accuracy"]


def test_both_networks_start_alike(result):
    plain, clustered = result.plain.history, result.clustered.history
    assert plain.loss[0] == clustered.loss[0]
    assert plain.clusterability[0] == clustered.clusterability[0]
    assert plain.accuracy[0] == clustered.accuracy[0]


def test_the_plain_network_is_what_torch_alone_trains(result):
    settings = result.settings
    torch.manual_seed(settings.seed)
    model = modfast.models.MLP(settings.sizes, bias=settings.bias)
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum)
    data = result.data
    modfast.fit(model, data.train, settings.epochs, 64, optimizer, seed=0, progress=False)
    torch.testing.assert_close(result.plain.weight, model.fc2.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(tmp_path):
    settings = replace(demo.DEFAULTS["digits"], epochs=1, seed=5)
    before = torch.get_rng_state(), torch.get_num_threads()
    texts = []
    for name in ("first", "second"):
        torch.randn(3)  # The global random state is none of the demo's business.
        files = report.write(demo.run(settings, progress=False), tmp_path / name)
        texts.append([file.read_bytes() for file in files])
    assert texts[0] == texts[1]
    assert torch.get_num_threads() == before[1]
    other = demo.run(replace(settings, seed=6), progress=False)
    assert report.numbers(other)["plain"] != json.loads(texts[0][1])["plain"]


@pytest.mark.slow
def test_physics_is_reported_as_a_regression():
    settings = replace(demo.DEFAULTS["physics"], epochs=2)
    result = demo.run(settings, progress=False)
    assert (result.score, result.class_names) == ("R²", ["task A", "task B"])
    assert report.numbers(result)["settings"]["accuracy_is"] == "R²"
    assert len(report.numbers(result)["clusters"]["off_class_accuracy"][0]) == 2
    assert "This is a regression" in report.page(result)
    assert report.numbers(result)["plain"]["unit_kl"] is None
    assert report.numbers(result)["plain"]["circuit_sizes"] is None
    assert "What each unit does" not in report.page(result)
    assert "How many weights each class needs" not in report.page(result)


def test_the_page_shows_what_each_unit_does(html):
    assert "What each unit does" in html
    assert 'id="units"' in html


@pytest.mark.skipif(not modfast.has_ops(), reason="the compiled library is not built")
def test_the_page_shows_how_many_weights_each_class_needs(html):
    assert "How many weights each class needs" in html
    assert 'id="circuits"' in html
    assert "8,832 weights" in html


def test_circuits_are_left_out_without_the_compiled_library(monkeypatch):
    monkeypatch.setattr(modfast._extension, "library", None)
    result = demo.run(replace(demo.DEFAULTS["digits"], epochs=1), progress=False)
    assert result.plain.circuits is None
    assert report.numbers(result)["plain"]["circuit_sizes"] is None
    assert "How many weights each class needs" not in report.page(result)


def test_undefined_numbers_are_null(result):
    evaluation = result.clustered.evaluation
    gap = evaluation.class_accuracy.clone()
    gap[3] = math.nan
    clustered = replace(result.clustered, evaluation=replace(evaluation, class_accuracy=gap))
    odd = replace(result, clustered=clustered)
    text = json.dumps(report.numbers(odd), allow_nan=False)
    assert json.loads(text)["clustered"]["class_accuracy"][3] is None
    assert "(nan" not in report.page(odd)


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere, and counts its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.in_style = False
        self.style = ""

    def handle_starttag(self, tag, attrs):
        self.loaded += [
            (tag, key, value) for key, value in attrs if key in ("src", "href", "srcset", "data")
        ]
        if tag == "script":
            self.scripts.append("")
        self.in_style = tag == "style"

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data
        elif self.in_style:
            self.style += data


def test_the_page_is_self_contained(html):
    page = Outside()
    page.feed(html)
    assert page.loaded == []
    assert "url(" not in page.style
    assert "@import" not in page.style
    # plotly.js weighs millions of characters; everything else together far less.
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1
    figures = sum("Plotly.newPlot(" in script for script in page.scripts if len(script) < 10**6)
    assert figures == 7 + modfast.has_ops()  # the circuits' sizes take the compiled library


def test_the_page_shows_the_numbers(html, numbers):
    for network in ("plain", "clustered"):
        for key in ("accuracy", "clusterability"):
            assert f"<td>{numbers[network][key]:.4f}</td>" in html
    assert "Without cluster 3:" in html
    assert "$" not in html[html.index("<main>") :].partition("<script")[0]


def test_the_page_holds_heat_maps_of_what_else_was_found(result):
    model, x = result.clustered.model, result.data.test_x[:50]
    sites = ["act1", "act2"]
    more = {
        "Units <all>": modfast.ablate_units(model, x, sites),
        "Scores": modfast.attribute_units(model, x, sites),
    }
    html = report.page(result, more)
    assert "<h2>Units &lt;all&gt;</h2>" in html
    assert html.index('id="more0"') < html.index("<h2>Scores</h2>") < html.index('id="more1"')
    assert '"type":"heatmap"' in html[html.index('id="more1"') :]
    with pytest.raises(TypeError, match="more must have results, got"):
        report.page(result, {"a": 3})


def test_foreign_strings_are_escaped(result):
    wild = replace(
        result,
        data=replace(result.data, name="<script>alert(1)</script>"),
        settings=result.settings,
    )
    html = report.page(wild)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_a_failed_write_leaves_the_old_report(result, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        report.write(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    monkeypatch.setattr(report, "page", lambda *_: (_ for _ in ()).throw(ImportError("plotly")))
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ImportError):
        report.write(result, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
