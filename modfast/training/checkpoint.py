"""The file from which a killed training run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modfast.files import load_values, save_values
from modfast.training.feed import Feed

_KIND = "checkpoint of a training run"


class Run(Protocol):
    """What a checkpoint holds of a training run."""

    model: nn.Module
    feed: Feed
    test: Feed | None
    seed: int | None
    optimizer: torch.optim.Optimizer
    regularizer: Any
    generator: torch.Generator
    epoch: int
    losses: list[Tensor]
    sums: list[Tensor]
    accuracies: list[Tensor]
    accuracy_steps: list[int]


def save_checkpoint(path: Path, run: Run) -> None:
    """Writes the whole state of a run, under a temporary name first."""
    save_values(path, _KIND, _state(run))


def _state(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = {
        "run": _identity(run),
        "epoch": run.epoch,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "global_random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "losses": run.losses,
        "sums": run.sums,
        "accuracies": run.accuracies,
        "accuracy_steps": run.accuracy_steps,
    }
    if isinstance(run.regularizer, nn.Module):
        state["regularizer"] = run.regularizer.state_dict()
    return state


def load_checkpoint(path: Path, run: Run, epochs: int) -> None:
    """Puts a run into the state that `save_checkpoint` wrote.

    Raises:
        ValueError: the file is of another run: other data, batch size, seed, optimizer or model, or
            of more epochs; or of something else. The run is then as it was.
    """
    state = load_values(path, _KIND)
    _require_whole(path, state, run)
    here = _identity(run)
    for key, value in here.items():
        # Files of older releases know less of their run.
        if key in state["run"] and state["run"][key] != value:
            raise ValueError(
                f"checkpoint {path} is of another run: its {key} is {state['run'].get(key)!r}, "
                f"this one's is {value!r}; name another file or delete it"
            )
    if state["epoch"] > epochs:
        raise ValueError(
            f"epochs must be at least the {state['epoch']} that checkpoint {path} has, got {epochs}"
        )
    try:
        # It refuses what does not fit before it changes anything.
        run.optimizer.load_state_dict(state["optimizer"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} must hold the optimizer's state, got another: {error!r}"
        ) from error
    run.model.load_state_dict(state["model"])
    if isinstance(run.regularizer, nn.Module):
        run.regularizer.load_state_dict(state["regularizer"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["global_random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    run.epoch = state["epoch"]
    for name in ("losses", "sums", "accuracies", "accuracy_steps"):
        setattr(run, name, state[name])


def _require_whole(path: Path, state: Mapping[str, Any], run: Run) -> None:
    """Refuses what is not the state of such a run.

    Raises:
        ValueError: a field is missing, or of another type, length or shape.
    """
    own = _state(run)
    n = state.get("epoch")
    # Lists of a length of its own: each loss and each sum is an epoch's.
    kinds = {"losses": Tensor, "sums": Tensor, "accuracies": Tensor, "accuracy_steps": int}
    for name, value in own.items():
        found = state.get(name)
        if name in kinds:
            whole = isinstance(found, list) and all(type(x) is kinds[name] for x in found)
            whole = whole and (name != "losses" or len(found or ()) == n)
        elif name in ("run", "optimizer"):  # the one may have fewer keys, the other more
            whole = isinstance(found, Mapping)
        elif name == "cuda_random":
            whole = isinstance(found, list) and all(isinstance(x, Tensor) for x in found)
        elif name == "epoch":
            whole = type(found) is int and found >= 0
        else:
            whole = _form(found) == _form(value)
        if not whole:
            raise ValueError(f"checkpoint {path} must hold a whole run, got no right {name!r}")


def _form(value: Any) -> Any:
    """Names, shapes and dtypes of a state's tensors."""
    if isinstance(value, Mapping):
        return {name: _form(each) for name, each in value.items()}
    return (value.dtype, value.shape) if isinstance(value, Tensor) else type(value)


def _identity(run: Run) -> dict[str, Any]:
    """What must be equal for a checkpoint to continue a run."""
    tensors = run.feed.tensors
    return {
        "samples": list(tensors[0].shape) if tensors else [run.feed.n],
        "batch size": run.feed.size,
        "optimizer": type(run.optimizer).__name__,
        "regularizer": type(run.regularizer).__name__,
        "parameters": [[name, list(p.shape)] for name, p in run.model.named_parameters()],
        "seed": run.seed,
        "data": _digest(*tensors),
        "test data": None if run.test is None else _digest(*run.test.tensors),
    }


def _digest(*tensors: Tensor) -> str:
    found = hashlib.blake2b(digest_size=16)
    for each in tensors:
        found.update(each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
