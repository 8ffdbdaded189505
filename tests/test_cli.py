from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import modfast
from modfast import _extension, reproduce
from modfast.cli import main


def needs_plotly() -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")


def one_line(capsys) -> str:
    """What stands on standard error: one line."""
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


def test_old_name_of_alpha(capsys):
    assert main(["demo", "--weight", "-1"]) != 0
    assert capsys.readouterr().err.splitlines() == [
        "modfast: --weight is now --alpha",
        "modfast: error: alpha must be at least 0, got -1.0",
    ]


@pytest.mark.slow
def test_demo_trains_writes_and_tells(tmp_path, capsys):
    needs_plotly()
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    out = tmp_path / "deep" / "report"
    chosen = ["--epochs", "2", "--clusters", "3", "--alpha", "20", "--seed", "7"]
    assert main(["demo", *chosen, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((out / "report.json").read_text(encoding="utf-8"))
    settings = numbers["settings"]
    assert [settings[key] for key in ("data", "epochs", "clusters", "alpha", "seed")] == [
        "digits",
        2,
        3,
        20.0,
        7,
    ]
    for network in ("plain", "clustered"):
        found = numbers[network]
        assert (
            f"{network:<12}{found['accuracy']:>10.4f}  {found['clusterability']:>14.4f}" in printed
        )
    for i in range(3):
        off, on = (numbers["clusters"][f"{side}_accuracy"][i] for side in ("off", "on"))
        assert f"cluster {i}   {off:>10.4f}  {on:>14.4f}" in printed
    assert str(out / "report.html") in printed
    assert (out / "report.html").stat().st_size > 1_000_000


def test_demo_on_physics_says_that_it_prints_r2(tmp_path, capsys):
    needs_plotly()
    assert main(["demo", "--data", "physics", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert "R²" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_finds_clusters_in_the_plain_network(tmp_path, capsys):
    needs_plotly()
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    assert main(["demo", "--find", "--epochs", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert numbers["settings"]["find"] is True
    # Found ones hold more than a quarter by chance alone, which is told.
    assert numbers["plain"]["clusterability"] > 0.35
    assert "in its shuffled weights 0." in printed
    assert "found in the plain network" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo_on_mnist(mnist_root, tmp_path):
    needs_plotly()
    arguments = ["--data", "mnist", "--root", str(mnist_root), "--epochs", "3"]
    assert main(["demo", *arguments, "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert numbers["clustered"]["clusterability"] > 0.98
    assert numbers["clustered"]["accuracy"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["demos"], "invalid choice: 'demos'"),
        (["demo", "--data", "cifar"], "invalid choice: 'cifar'"),
        (["demo", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["demo", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["demo", "--clusters", "0"], "clusters must be at least 1, got 0"),
        (["demo", "--clusters", "65"], "clusters must be at most 64"),
        (["demo", "--data", "physics", "--clusters", "17"], "clusters must be at most 16"),
        (["demo", "--alpha", "nan"], "alpha must be finite, got nan"),
        (["demo", "--alpha", "-1"], "alpha must be at least 0, got -1.0"),
        (["demo", "--seed", "-1"], "seed must be from 0"),
        (["demo", "--seed", str(2**64)], "seed must be from 0"),
        (["demo", "--data", "mnist"], "--data mnist needs --root DIR"),
    ],
)
def test_bad_input_ends_with_one_line_before_training(arguments, message, capsys, monkeypatch):
    needs_plotly()
    monkeypatch.setattr(modfast.demo, "run", None)
    assert main(arguments) == 2
    line = one_line(capsys)
    assert line.startswith("modfast: error: ")
    assert message in line


def test_reproduce_runs_writes_and_tells(tmp_path, capsys, monkeypatch):
    """All without --root: what needs none, and which are left out."""
    monkeypatch.setattr(reproduce.tasks, "N_MODELS", 2)
    assert main(["reproduce", "--seeds", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "left out, for they need --root DIR, the folder that holds MNIST/raw: "
        "metric, ablation, clusterability, circuits\n" in printed
    )
    found = json.loads((tmp_path / "reproduce.json").read_text(encoding="utf-8"))
    titles = [section["title"] for section in found["sections"]]
    assert [title.split(":")[0] for title in titles] == ["N2", "N3", "N4"]
    page = (tmp_path / "reproduce.html").read_text(encoding="utf-8")
    for title in titles:
        assert f"{title} (" in printed
        assert f"<h2>{title}</h2>" in page
    assert str(tmp_path / "reproduce.html") in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modularity"], "invalid choice: 'modularity'"),
        (["tasks", "--seeds", "few"], "--seeds: invalid int value: 'few'"),
        (["tasks", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["circuits"], "these need --root DIR, the folder that holds MNIST/raw: circuits"),
    ],
)
def test_bad_input_to_reproduce_ends_with_one_line(arguments, message, tmp_path, capsys):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in one_line(capsys)


def test_reproduce_says_what_needs_the_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_extension, "library", None)
    assert main(["reproduce", "circuits", "--root", ".", "--out", str(tmp_path)]) == 2
    assert "these need the compiled library, or take hours: circuits" in one_line(capsys)


@pytest.mark.usefixtures("torchvision")
def test_a_root_without_mnist_is_named_by_reproduce(tmp_path, capsys):
    root = tmp_path / "nothing"
    assert main(["reproduce", "metric", "--root", str(root), "--out", str(tmp_path)]) == 2
    assert f"--root {root} holds no MNIST" in one_line(capsys)


@pytest.mark.usefixtures("torchvision")
def test_a_root_without_mnist_is_named(tmp_path, capsys):
    needs_plotly()
    root, out = tmp_path / "nothing", tmp_path / "out"
    assert main(["demo", "--data", "mnist", "--root", str(root), "--out", str(out)]) == 2
    assert f"--root {root} holds no MNIST" in one_line(capsys)


def test_an_out_that_cannot_be_written_to_is_named(tmp_path, capsys, monkeypatch):
    needs_plotly()
    monkeypatch.setattr(modfast.demo, "run", None)
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert f"--out {tmp_path / 'file'} cannot be written to" in one_line(capsys)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("plotly.graph_objects", [], "modfast[report]"),
        ("sklearn.datasets", [], "modfast[analysis]"),
        ("torchvision.datasets", ["--data", "mnist", "--root", "."], "modfast[train]"),
    ],
)
def test_missing_extras_are_named(missing, arguments, extra, tmp_path, capsys, monkeypatch):
    if missing != "plotly.graph_objects":
        needs_plotly()
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", *arguments, "--out", str(tmp_path)]) == 2
    assert f'pip install "{extra}"' in one_line(capsys)


def test_training_that_diverges_is_told_in_one_line(tmp_path, capsys):
    needs_plotly()
    arguments = ["--data", "physics", "--epochs", "1", "--alpha", "1e300"]
    assert main(["demo", *arguments, "--out", str(tmp_path)]) == 2
    assert "training diverged at --alpha 1e+300: the loss became" in one_line(capsys)


def test_info_tells_the_build(capsys):
    assert main(["info"]) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["modfast"] == modfast.__version__
    assert facts["torch"] == torch.__version__
    assert facts["CUDA kernels"] == ("loaded" if _extension.cuda_loaded else "not loaded")
    if _extension.library is None:
        assert facts["compiled operators"].startswith("not loaded")
    else:
        assert facts["compiled operators"] == f"loaded from {_extension.library.__file__}"
        for key in _extension.library.build_info():
            assert facts[f"build: {key}"]


def test_help_and_version_exit_with_zero(capsys):
    for arguments in (["--help"], ["demo", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    assert modfast.__version__ in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_runs_as_a_program(tmp_path):
    # The folder that this modfast was imported from, wherever the program runs.
    path = os.pathsep.join([str(Path(modfast.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "modfast", "demo", "--epochs", "0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "modfast: error: epochs must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())
