"""Valid calls of the operators, of data, files and helpers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fuzz.calls import entry
from fuzz.valid import FOLDER, clusters, distinct, history
from torch import Tensor

import modfast


def logits() -> dict[str, Tensor]:
    return {"logits": torch.randn(5, 3), "targets": torch.arange(5) % 3}


@entry("ops.ablation_sweep", nan=True, errors=(RuntimeError,))
def _() -> dict[str, Any]:
    change = {"scales": torch.randn(5, 4), "updates": torch.randn(4, 3)}
    return {**logits(), **change, "per_sample": False}


@entry("ops.ablation_sweep_hidden", nan=True, errors=(RuntimeError,))
def _() -> dict[str, Any]:
    change = {"hidden": torch.randn(5, 6), "scales": torch.randn(5, 4)}
    change |= {"updates": torch.randn(4, 6), "weight": torch.randn(3, 6)}
    return {**logits(), **change, "activation": "relu", "per_sample": False}


@entry("ops.logit_terms", nan=True, errors=(RuntimeError,))
def _() -> dict[str, Any]:
    return {**logits(), "ablated": torch.randn(4, 5, 3), "per_sample": False}


def labeled() -> dict[str, Any]:
    weights = [torch.randn(6, 5), torch.randn(6, 5)]
    return {"weights": weights, "labels": clusters().labels.repeat(2)}


@entry("ops.cluster_penalty", nan=True)
def _() -> dict[str, Any]:
    return {**labeled(), "scale": 1.5}


@entry("ops.cluster_penalty_gradient", nan=True)
def _() -> dict[str, Any]:
    return {**labeled(), "scale": 1.5, "sums": torch.ones(2, 2, dtype=torch.float64)}


@entry("ops.cluster_sums", nan=True)
def _() -> dict[str, Any]:
    return labeled()


@entry("ops.binned_histogram")
def _() -> dict[str, Any]:
    limits = torch.tensor([[-2.0, 2.0]])
    values = {"x": torch.randn(9, 3), "y": torch.randn(9, 3)}
    return {**values, "bins": 4, "range_x": limits, "range_y": limits, "rule": "uniform"}


@entry("ops.digitize", nan=True)  # of a range, which is not checked and given back
def _() -> dict[str, Any]:
    more = {"range": torch.tensor([[-2.0, 2.0]]), "per_column": False, "rule": "uniform"}
    return {"x": torch.randn(9, 3), "bins": 4, **more}


@entry("ops.digitize_edges")
def _() -> dict[str, Any]:
    return {"x": torch.randn(9, 3), "edges": torch.tensor([[-1.0, 0.0, 1.0]])}


def codes() -> dict[str, Any]:
    x, y = torch.randint(4, (2, 9, 3), dtype=torch.uint8)
    return {"x_codes": x, "y_codes": y, "bins_x": 4, "bins_y": 4}


@entry("ops.joint_histogram", errors=(RuntimeError,))
def _() -> dict[str, Any]:
    return {**codes(), "pairing": "pairwise"}


@entry("ops.pairwise_information", errors=(RuntimeError,))
def _() -> dict[str, Any]:
    return {**codes(), "correction": "miller-madow"}


@entry("ops.permuted_information", errors=(RuntimeError,))
def _() -> dict[str, Any]:
    orders = torch.stack([torch.randperm(9) for _ in range(3)])
    return {**codes(), "permutations": orders, "observed": torch.zeros(3, 3).double()}


@entry("ops.prune_layer", nan=True, errors=(RuntimeError,))
def _() -> dict[str, Any]:
    layers = {"weights": [torch.randn(2, 3, 4), torch.randn(2, 3, 3)]}
    layers["biases"] = [torch.randn(2, 3), torch.randn(2, 3)]
    more = {"targets": torch.arange(6) % 3, "sizes": torch.tensor([2, 4])}
    rest = {"order": torch.arange(12), "original": torch.ones(2).double(), "threshold": 1e-3}
    return {"inputs": torch.randn(6, 4), **layers, **more, **rest}


STATE = frozenset({"parameters", "exp_avgs", "exp_avg_sqs"})


@entry("ops.train_mlps_", nan=True, moves=STATE, work=frozenset({"epochs"}))
def _() -> dict[str, Any]:
    data = {"x": torch.randn(5, 4), "y": torch.randn(5, 2), "sizes": [4, 3, 2]}
    state = {"parameters": torch.randn(2, 23)} | {k: torch.zeros(2, 23) for k in ("exp_avgs",)}
    state["exp_avg_sqs"] = torch.zeros(2, 23)
    more = {"step": 0, "epochs": 2, "lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}
    return {**data, **state, **more}


@entry("ops.update_top_", moves=frozenset({"top_values", "top_indices"}))
def _() -> dict[str, Any]:
    best = {"top_values": torch.full((3, 2), -torch.inf)}
    best["top_indices"] = torch.full((3, 2), -1)
    return {**best, "values": torch.randn(5, 3), "first": 0}


@entry("ops.wiring_sums", nan=True, errors=(RuntimeError,))
def _() -> dict[str, Any]:
    weight = {"weight": torch.randn(1, 3, 2, 1), "scale": torch.ones(1, 3).double()}
    one = torch.ones(1).double()
    more = {"sources": torch.zeros(1, 1, dtype=torch.int64), "n_in": one, "n_out": one}
    return {**weight, **more, "norm": "linear", "blocks": 1, "ins": 2, "outs": 2}


def stepped() -> dict[str, Any]:
    found = labeled()
    sums = modfast.ops.cluster_sums(found["weights"], found["labels"])
    grads = [torch.randn(6, 5) for _ in range(2)]
    return {"*0": found["weights"], "*1": grads, "labels": found["labels"], "sums": sums}


# The operators themselves, whose errors are torch's dispatcher's.
@entry("ops.clustered_sgd_", moves=frozenset({"*0", "*2", "*4"}), errors=(Exception,))
def _() -> dict[str, Any]:
    found = stepped()
    tensors = [found["*0"], found["*1"], [torch.zeros(6, 5)] * 2, found["labels"], found["sums"]]
    values = [*tensors, 1.5, 0.1, 0.9, 0.0, 0.01, False, True]
    return {f"*{i}": each for i, each in enumerate(values)}


@entry("ops.clustered_adam_", moves=frozenset({"*0", "*2", "*3", "*4", "*6"}), errors=(Exception,))
def _() -> dict[str, Any]:
    found = stepped()
    state = [[torch.zeros(6, 5) for _ in range(2)] for _ in range(2)]
    steps = [torch.ones(()) for _ in range(2)]
    tensors = [found["*0"], found["*1"], *state, steps, found["labels"], found["sums"]]
    values = [*tensors, 1.5, 0.1, 0.9, 0.999, 1e-8, 0.01, False]
    return {f"*{i}": each for i, each in enumerate(values)}


@entry("data.load", errors=(FileNotFoundError, ImportError))
def _() -> dict[str, Any]:
    return {"name": "physics", "root": None, "download": False}


@entry("data.physics", work=frozenset({"n"}))
def _() -> dict[str, Any]:
    return {"n": 10, "eps": 0.5, "seed": 0}


@entry("data.physics_grids", work=frozenset({"points"}))
def _() -> dict[str, Any]:
    return {"points": 4, "fixed": 0.5}


@entry("models.MLP", work=frozenset({"sizes"}))
def _() -> dict[str, Any]:
    return {"sizes": [5, 4, 3], "bias": True}


@entry("Result.by_name")
def _() -> dict[str, Any]:
    return {"results": {"a": history()}}


@entry("Result.save", errors=(OSError,))
def _() -> dict[str, Any]:
    return {"self": history(), "path": Path(FOLDER.name) / "history.safetensors"}


@entry("Result.load", errors=(OSError,), aliases=("holds no",))
def _() -> dict[str, Any]:
    path = Path(FOLDER.name) / "nothing.safetensors"
    modfast.Result().save(path)
    return {"path": str(path)}


@entry("Result.plot", errors=(NotImplementedError,))
def _() -> dict[str, Any]:
    return {"self": distinct(), "*0": 1}


@entry("heads", work=frozenset({"width"}))
def _() -> dict[str, Any]:
    return {"width": 6, "n_heads": 3}


@entry("last_token", nan=True, aliases=("the model's logits",))
def _() -> dict[str, Any]:
    return {"output": torch.rand(2, 4, 3), "mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}
