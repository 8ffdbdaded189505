"""The report of a demo: one HTML page that opens offline, and its numbers as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import modfast
from modfast import checks, plots
from modfast.ablation import AblationResult
from modfast.circuits import CircuitSizes
from modfast.demo import LAYER, DemoResult, Trained
from modfast.files import replacing
from modfast.results import Result
from modfast.training import History

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["numbers", "page", "write"]


def write(
    result: DemoResult,
    folder: str | os.PathLike[str],
    more: Mapping[str, Result] | None = None,
) -> tuple[Path, Path]:
    """Writes `report.html` and `report.json` into a folder, which is made if need be.

    Each file is complete or, if anything fails, what it was before. `more` is as in `page`.

    Returns:
        The paths of the two files.

    Raises:
        ImportError: plotly is missing.
        OSError: the folder cannot be made or written to.
    """
    target = Path(folder)
    texts = {
        "report.html": page(result, more),
        "report.json": json.dumps(numbers(result), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with replacing(target / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return target / "report.html", target / "report.json"


def numbers(result: DemoResult) -> dict[str, Any]:
    """What `report.json` holds: plain Python values, with None for what is undefined.

    Keys: `plain` and `clustered` (accuracy, clusterability, class_accuracy, and unit_kl: for each
    unit of the layer KL(without it | whole), mean over samples; and circuit_sizes: thresholds, and
    how many weights of the total are kept at each for each class; both null for a regression),
    `clusters` (off_accuracy and on_accuracy `[k]`, off_class_accuracy and on_class_accuracy
    `[k][c]`) and `settings`. For a regression accuracies are R² and classes are outputs.
    """
    found = result.clustered.evaluation

    def network(trained: Trained) -> dict[str, Any]:
        return {
            "accuracy": _json(trained.evaluation.accuracy),
            "clusterability": trained.clusterability,
            "class_accuracy": _json(trained.evaluation.class_accuracy),
            "unit_kl": None
            if trained.units is None
            else _json(trained.units.mean("kl_ablated_original")),
            "circuit_sizes": None if trained.circuits is None else _sizes(trained.circuits),
        }

    return {
        "plain": network(result.plain),
        "clustered": network(result.clustered),
        "clusters": {
            "off_accuracy": _json(found.off_accuracy),
            "on_accuracy": _json(found.on_accuracy),
            "off_class_accuracy": _json(found.off_class_accuracy),
            "on_class_accuracy": _json(found.on_class_accuracy),
        },
        "settings": {
            **asdict(result.settings),
            "layer": LAYER,
            "accuracy_is": result.score,
            "modfast": modfast.__version__,
            "torch": torch.__version__,
        },
    }


def page(result: DemoResult, more: Mapping[str, Result] | None = None) -> str:
    """The HTML page, with figures and plotly's own script in it.

    Args:
        result: of a demo.
        more: further results that draw themselves, such as the heat maps of `SiteAblations` and
            `UnitScores`, by their headings.

    Raises:
        TypeError: `more` has something else than results.
        ImportError: plotly is missing.
    """
    plots.require_plotly()
    from plotly.offline import get_plotlyjs

    settings, data, clusters = result.settings, result.data, result.clusters
    score, names = result.score, result.class_names
    plain, clustered = result.plain, result.clustered
    rows, cols = clusters.rows, clusters.cols
    histories = {"plain": plain.history, "clustered": clustered.history}
    figures = {
        "history": History.overlay(histories, score),
        "plain_matrix": plots.weight_matrix(plain.weight, rows, cols, "Plain network"),
        "clustered_matrix": plots.weight_matrix(clustered.weight, rows, cols, "Clustered network"),
        "plain_graph": plots.bipartite(plain.weight, rows, cols, "Plain network"),
        "clustered_graph": plots.bipartite(clustered.weight, rows, cols, "Clustered network"),
        "evaluation": clustered.evaluation.plot(score, names),
    }
    words = {
        "data": data.name,
        "layer": LAYER,
        "score": score,
        "Score": score[:1].upper() + score[1:],
        "k": str(clusters.n_clusters),
        "which": "equal blocks" if result.chance is None else "found in the plain network",
        "n_train": f"{len(data.train_x):,}",
        "n_test": f"{len(data.test_x):,}",
        "shape": f"{clusters.shape[1]} inputs and {clusters.shape[0]} outputs",
        "alpha": f"{settings.alpha:g}",
        "chance": f"{float(clusters.mask().double().mean()):.2f}",
        "plain_score": f"{float(plain.evaluation.accuracy):.4f}",
        "clustered_score": f"{float(clustered.evaluation.accuracy):.4f}",
        "plain_share": f"{plain.clusterability:.4f}",
        "clustered_share": f"{clustered.clusterability:.4f}",
        "kind": "class" if data.is_classification else "task",
        "what": _CLASSES if data.is_classification else _OUTPUTS,
    }
    markup = {
        "plotly": get_plotlyjs(),
        "findings": "\n".join(f"<li>{escape(line)}</li>" for line in _findings(result)),
        "settings": "\n".join(
            f"<tr><th>{escape(key)}</th><td>{escape(_shown(value))}</td></tr>"
            for key, value in numbers(result)["settings"].items()
        ),
        **{name: _embedded(name, figure) for name, figure in figures.items()},
        "units": _units_section(plain, clustered),
        "circuits": _circuits_section(plain, clustered),
        "more": _more_sections(more or {}),
    }
    escaped = {key: escape(value) for key, value in words.items()}
    return _PAGE.substitute(escaped | markup)


def _findings(result: DemoResult) -> list[str]:
    """One sentence for each cluster: what is lost without it, what is left with it alone."""
    found, names = result.clustered.evaluation, result.class_names
    kind = "class " if result.data.is_classification else ""
    lines = []
    for i in range(result.clusters.n_clusters):
        off, on = found.off_class_accuracy[i], found.on_class_accuracy[i]
        # A class without samples has NaN, and can be neither lost nor kept.
        lost = int((found.class_accuracy - off).nan_to_num(nan=-math.inf).argmax())
        kept = int(on.nan_to_num(nan=-math.inf).argmax())
        lines.append(
            f"Without cluster {i}: {float(found.off_accuracy[i]):.2f} in all; hit hardest is "
            f"{kind}{names[lost]} ({float(found.class_accuracy[lost]):.2f} → "
            f"{float(off[lost]):.2f}). Cluster {i} alone: {float(found.on_accuracy[i]):.2f} in "
            f"all; best is {kind}{names[kept]} ({float(on[kept]):.2f})."
        )
    return lines


def _units_section(plain: Trained, clustered: Trained) -> str:
    """What each unit does, in markup; empty for a regression."""
    if plain.units is None or clustered.units is None:
        return ""
    figure = AblationResult.overlay({"plain": plain.units, "clustered": clustered.units})
    return _UNITS.substitute(layer=LAYER, figure=_embedded("units", figure))


def _more_sections(more: Mapping[str, Result]) -> str:
    """Further results, each under its heading, in markup."""
    found = []
    for i, (heading, result) in enumerate(more.items()):
        if not isinstance(result, Result):
            raise TypeError(f"more must have results, got {checks.shown(result)}")
        figure = _embedded(f"more{i}", result.plot())
        found.append(
            f"<section>\n<h2>{escape(heading)}</h2>\n"
            f'<div class="figure">{figure}</div>\n</section>\n'
        )
    return "".join(found)


def _sizes(circuits: CircuitSizes) -> dict[str, Any]:
    return {
        "thresholds": circuits.thresholds.tolist(),
        "classes": list(circuits.labels),
        "kept": circuits.kept.tolist(),
        "total": circuits.total,
    }


def _circuits_section(plain: Trained, clustered: Trained) -> str:
    """How many weights each class needs, in markup; empty where that was not measured."""
    if plain.circuits is None or clustered.circuits is None:
        return ""
    sizes = {"plain": plain.circuits, "clustered": clustered.circuits}
    middle = len(plain.circuits.thresholds) // 2
    return _CIRCUITS.substitute(
        {name: f"{float(each.kept[middle].double().mean()):,.0f}" for name, each in sizes.items()},
        total=f"{plain.circuits.total:,}",
        threshold=f"{float(plain.circuits.thresholds[middle]):g}",
        figure=_embedded("circuits", CircuitSizes.overlay(sizes)),
    )


def _embedded(name: str, figure: Figure) -> str:
    """A figure's markup; a fixed id, so that the same result gives the same page."""
    markup: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=f"{figure.layout.height}px",
        config={"responsive": True, "displaylogo": False},
    )
    return markup


def _json(values: Tensor) -> Any:
    """Nested lists (a number for a scalar) with None for NaN and infinities."""
    if values.dim():
        return [_json(each) for each in values]
    return float(values) if math.isfinite(values) else None


def _shown(value: object) -> str:
    return " – ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_CLASSES = "Accuracy is the share of test samples whose class the network names rightly."
_OUTPUTS = (
    "This is a regression, so R² stands where accuracy would: 1 is a perfect prediction, 0 one no "
    "better than always saying the mean, below 0 a worse one. Its classes are the outputs, each a "
    "task of its own."
)
_UNITS = Template("""<section>
<h2>What each unit does</h2>
<p>Each unit of $layer alone was set to zero, and the class probabilities compared with those of
the whole network: the Kullback–Leibler divergence of those without the unit from those with it,
mean over the test samples. On the right the same units, strongest first.</p>
<div class="figure">$figure</div>
</section>
""")
_CIRCUITS = Template("""<section>
<h2>How many weights each class needs</h2>
<p>For each class by itself, the network's $total weights were set to zero one by one, from the last
layer to the first, and put back where the mean loss on the class's test samples rose by more than a
threshold. What is left is the class's circuit. At $threshold nats circuits hold $plain weights in
the plain network and $clustered in the clustered one, mean over the classes. Thin lines are
classes, thick ones their mean.</p>
<div class="figure">$figure</div>
</section>
""")
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>modfast: a network trained into clusters ($data)</title>
<style>
:root { --ink: #1f2937; --soft: #5b6472; --line: #e5e7eb; --mark: #d55e00; }
* { box-sizing: border-box; }
html { overflow-y: scroll; } /* a scroll bar that came later would take the figures' width */
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.55 system-ui,
  -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 0 0 8px; }
p, ul { max-width: 75ch; margin: 0 0 12px; }
ul { padding-left: 22px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 24px; margin-top: 20px; }
.soft { color: var(--soft); }
.pair { display: grid; gap: 16px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 28px 7px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.headline td { font-size: 24px; }
.headline thead th, .settings th { font-weight: 500; color: var(--soft); }
.headline tbody tr:last-child > * { color: var(--mark); border-bottom: 0; }
.settings { font-size: 14px; }
@media (max-width: 900px) {
  .pair { grid-template-columns: minmax(0, 1fr); }
  main { padding: 20px 10px 40px; }
  section { padding: 18px 14px; }
}
</style>
<script>$plotly</script>
</head>
<body>
<main>
<h1>A network trained into clusters</h1>
<p class="soft">Data: $data, $n_train training and $n_test test samples. Clustered layer: $layer,
with $shape, in $k clusters, $which.</p>

<section>
<h2>The two networks</h2>
<div class="pair">
<div><table class="headline">
<thead><tr><th></th><th>test $score</th><th>clusterability of $layer</th></tr></thead>
<tbody>
<tr><th>plain</th><td>$plain_score</td><td>$plain_share</td></tr>
<tr><th>clustered</th><td>$clustered_score</td><td>$clustered_share</td></tr>
</tbody>
</table></div>
<div><p>Both networks started from the same weights and saw the same batches in the same order,
with the same optimizer. The clustered one was also rewarded for <em>clusterability</em>: $alpha
times it was taken off its loss. Nothing told a cluster what it should do.</p>
<p>Clusterability is the share of the layer's squared weights that join an input and an output of
the same cluster: 1 means that the clusters are cut off from each other, and about $chance is what
weights without any clusters have. $what</p></div>
</div>
</section>

<section>
<h2>How they were trained</h2>
<p>The loss is shown without the reward for clusterability, so that the two curves compare.</p>
<div class="figure">$history</div>
</section>

<section>
<h2>The weights of the layer</h2>
<p>Each cell is one weight: a row is an output of the layer, a column an input. Both are ordered by
cluster, and each frame is a cluster. In a clustered layer, what lies outside the frames is near
zero (white). Each map has its own color scale.</p>
<div class="pair"><div>$plain_matrix</div><div>$clustered_matrix</div></div>
</section>

<section>
<h2>The layer as a graph</h2>
<p>The same weights as lines between inputs (above) and outputs (below); only the strongest are
drawn. Lines within a cluster have its color, lines between clusters are gray.</p>
<div class="pair"><div>$plain_graph</div><div>$clustered_graph</div></div>
</section>

<section>
<h2>What each cluster does</h2>
<p>The clustered network, tested again with parts of the layer switched off: without one cluster
(all of its weights in the layer set to zero), and with one cluster alone (all other clusters set to
zero). A column that turns pale in one row is a $kind that needs this cluster.</p>
<div class="figure">$evaluation</div>
<ul>
$findings
</ul>
</section>

$units
$circuits
$more
<section>
<h2>Settings</h2>
<table class="settings">
$settings
</table>
</section>
</main>
</body>
</html>
""")
