"""The command line: `python -m modfast demo`, `reproduce`, `bench` and `info`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

import modfast
from modfast import _extension, demo, plots, report, reproduce
from modfast.data import NAMES
from modfast.files import replacing

__all__ = ["main"]


class _InputError(Exception):
    """What the user gave cannot work; the message says so in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Instead of printing the usage over the message and exiting."""
        raise _InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name, by default those of this process.

    Returns:
        The exit code: 0 if it went well; 2 for bad input, with one line on standard error; of
        `bench` otherwise pytest's.

    Raises:
        SystemExit: for --help and --version, with code 0.
    """
    try:
        arguments, rest = (parser := _parser()).parse_known_args(argv)
        if arguments.command == "bench":
            return _bench(arguments, rest)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        commands = {"info": _info, "demo": _demo, "reproduce": _reproduce}
        commands[arguments.command](arguments)
    except _InputError as error:
        print(f"modfast: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="modfast", description="Modularity in neural networks.")
    parser.add_argument("--version", action="version", version=f"modfast {modfast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print how this modfast was built and what it runs on")
    run = commands.add_parser(
        "demo",
        help="train a plain and a clustered network and write a report",
        description="Trains a plain and a clustered network from the same start, switches each "
        "cluster off and on, and writes report.html and report.json.",
    )
    run.add_argument("--data", choices=NAMES, default="digits", help="(default: %(default)s)")
    run.add_argument("--root", metavar="DIR", help="folder that holds MNIST/raw, for --data mnist")
    run.add_argument("--epochs", type=int, metavar="N", help=_defaults("epochs"))
    run.add_argument("--clusters", type=int, metavar="K", help=_defaults("clusters"))
    run.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help=f"strength of the clusterability; {_defaults('alpha')}",
    )
    run.add_argument("--weight", type=float, help=argparse.SUPPRESS)
    run.add_argument(
        "--find",
        action="store_true",
        help="train into the clusters that are found in the plain network, not into equal blocks",
    )
    run.add_argument("--seed", type=int, metavar="S", default=0, help="(default: %(default)s)")
    run.add_argument(
        "--out", metavar="DIR", default="modfast-report", help="(default: %(default)s)"
    )
    again = commands.add_parser(
        "reproduce",
        help="print the source notebooks' numbers beside modfast's",
        description="Runs the notebooks' pipelines at their own settings over several seeds, and "
        "writes reproduce.html and reproduce.json.",
    )
    again.add_argument(
        "study",
        nargs="?",
        choices=("all", *reproduce.STUDIES),
        default="all",
        help="(default: %(default)s)",
    )
    again.add_argument("--root", metavar="DIR", help="folder that holds MNIST/raw")
    again.add_argument("--seeds", type=int, metavar="N", default=5, help="(default: %(default)s)")
    again.add_argument(
        "--out", metavar="DIR", default="modfast-report", help="(default: %(default)s)"
    )
    timed = commands.add_parser(
        "bench",
        help="time modfast beside its peers on this machine, in some minutes",
        description="Checks and times a selection of the benchmark suite, and prints a table with "
        "the machine. All other options are pytest's, as --benchmark-json=FILE.json, which also "
        "writes FILE.md, --threads=N, -k WORDS or --collect-only.",
        epilog="MODFAST_MNIST_ROOT names the folder that holds MNIST/raw, which some cases need.",
    )
    timed.add_argument("--all", action="store_true", help="the whole suite")
    timed.add_argument("--targets", action="store_true", help="fail where a target is missed")
    return parser


def _bench(arguments: argparse.Namespace, options: list[str]) -> int:
    """Runs the suite: beside the package in a clone, within it where it was installed."""
    package = Path(modfast.__file__).parent
    places = [folder / "bench" for folder in (package, package.parent)]
    suites = [str(folder) for folder in places if (folder / "bench_ceilings.py").exists()]
    if not suites:
        raise _InputError(f"the benchmark suite is in none of {', '.join(map(str, places))}")
    missing = [x for x in ("pytest", "pytest_benchmark") if importlib.util.find_spec(x) is None]
    if missing:
        raise _InputError(f"bench needs {' and '.join(missing)}: pip install 'modfast[bench]'")
    import pytest

    chosen = [] if arguments.all else ["-m", "short"]
    chosen.append("--targets" if arguments.targets else "--no-targets")
    return int(pytest.main([suites[0], "--benchmark-quiet", *chosen, *options]))


def _defaults(setting: str) -> str:
    each = (f"{getattr(demo.DEFAULTS[name], setting):g} for {name}" for name in NAMES)
    return f"(default: {', '.join(each)})"


def _demo(arguments: argparse.Namespace) -> None:
    """Checks everything that can be checked before it trains."""
    if arguments.weight is not None:  # for one release
        print("modfast: --weight is now --alpha", file=sys.stderr)
        arguments.alpha = arguments.weight
    given = {name: getattr(arguments, name) for name in ("epochs", "clusters", "alpha", "seed")}
    given["find"] = arguments.find
    try:
        settings = replace(
            demo.DEFAULTS[arguments.data],
            **{name: value for name, value in given.items() if value is not None},
        )
        plots.require_plotly()
    except (ValueError, ImportError) as error:
        raise _InputError(error) from error
    if settings.data == "mnist" and arguments.root is None:
        raise _InputError("--data mnist needs --root DIR, the folder that holds MNIST/raw")
    folder = Path(arguments.out)
    _require_writable(folder)
    try:
        result = demo.run(settings, arguments.root)
    except OSError as error:
        raise _no_mnist(arguments.root) from error
    except FloatingPointError as error:
        alpha = f"--alpha {settings.alpha:g}"
        raise _InputError(f"training diverged at {alpha}: {error}") from error
    except (ValueError, ImportError) as error:
        raise _InputError(error) from error
    try:
        written = report.write(result, folder)
    except OSError as error:
        raise _InputError(f"--out {folder} cannot be written to: {error}") from error
    print(_table(result))
    print("report:", *written, sep="\n  ")


def _reproduce(arguments: argparse.Namespace) -> None:
    """Leaves out what lacks something where all is asked for."""
    studies = list(reproduce.STUDIES) if arguments.study == "all" else [arguments.study]
    for needed, there, by in (
        ("--root DIR, the folder that holds MNIST/raw", arguments.root, reproduce.NEEDS_MNIST),
        ("the compiled library, or take hours", _extension.has_ops(), reproduce.NEEDS_LIBRARY),
    ):
        skipped = [name for name in studies if name in by and not there]
        studies = [name for name in studies if name not in skipped]
        if skipped:
            needs = f"{needed}: {', '.join(skipped)}"
            if not studies:
                raise _InputError(f"these need {needs}")
            print(f"left out, for they need {needs}\n")
    folder = Path(arguments.out)
    _require_writable(folder)
    try:
        sections = reproduce.run(studies, arguments.root, arguments.seeds)
    except FileNotFoundError as error:
        raise _no_mnist(arguments.root) from error
    except (ValueError, ImportError) as error:
        raise _InputError(error) from error
    texts = {
        "reproduce.html": reproduce.page(sections),
        "reproduce.json": json.dumps(reproduce.numbers(sections), indent=2) + "\n",
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(reproduce.text(sections))
    print("report:", *(folder / name for name in texts), sep="\n  ")


def _no_mnist(root: str) -> _InputError:
    return _InputError(
        f"--root {root} holds no MNIST that torchvision can read; "
        f"modfast.data.load('mnist', root={root!r}, download=True) puts it there"
    )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _InputError(f"--out {folder} cannot be written to: {error}") from error


def _table(result: demo.DemoResult) -> str:
    s, score = result.settings, result.score
    epochs = "1 epoch" if s.epochs == 1 else f"{s.epochs} epochs"
    lines = [
        f"{s.data}, {'-'.join(map(str, s.sizes))} network, {epochs}, "
        f"{s.clusters} clusters in {demo.LAYER}, alpha {s.alpha:g}, seed {s.seed}",
        "",
        f"{'network':<12}{score:>10}  {'clusterability':>14}",
    ]
    for name, trained in (("plain", result.plain), ("clustered", result.clustered)):
        overall = float(trained.evaluation.accuracy)
        lines.append(f"{name:<12}{overall:>10.4f}  {trained.clusterability:>14.4f}")
    if result.chance is not None:
        own, null = result.chance.clusterability, result.chance.null_clusterability
        lines += [
            "",
            f"found anew in the plain layer {float(own):.4f}, in its shuffled weights "
            f"{float(null.mean()):.4f} ± {float(null.std()):.4f} "
            f"(z {float(result.chance.clusterability_z):+.1f}, "
            f"p {float(result.chance.clusterability_p):.3f})",
        ]
    lines += ["", f"the clustered network's {score} with a cluster"]
    lines += [f"{'':<12}{'off':>10}  {'alone on':>14}"]
    found = result.clustered.evaluation
    for i in range(result.clusters.n_clusters):
        off, on = float(found.off_accuracy[i]), float(found.on_accuracy[i])
        lines.append(f"{f'cluster {i}':<12}{off:>10.4f}  {on:>14.4f}")
    return "\n".join([*lines, ""])


def _info(arguments: argparse.Namespace) -> None:
    """Prints one fact a line: this modfast, then how its library was built."""
    library = _extension.library
    facts: dict[str, object] = {
        "modfast": modfast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiled operators": "not loaded: every operator runs as plain torch",
        "CUDA kernels": "loaded" if _extension.cuda_loaded else "not loaded",
    }
    if library is not None:
        facts["compiled operators"] = f"loaded from {library.__file__}"
        facts |= {f"build: {key}": value for key, value in library.build_info().items()}
    width = max(map(len, facts)) + 2
    for fact, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value or "none"
        print(f"{fact:<{width}}{shown}")
