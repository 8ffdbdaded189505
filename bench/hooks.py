"""GPT-2 and what a researcher writes without modfast: hooks, a forward pass for each ablation."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LOOP = "loop of hooks"
Change = Callable[[Tensor], Tensor]


def gpt2(**config: Any) -> nn.Module:
    """GPT-2 small with random weights, unless `config` says otherwise."""
    import transformers

    torch.manual_seed(0)
    found = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False, **config))
    return found.eval()


def tokens(n: int, t: int, vocabulary: int = 50_257) -> Tensor:
    return torch.randint(0, vocabulary, (n, t), generator=torch.Generator().manual_seed(1))


def hook(model: nn.Module, site: str, change: Change) -> Any:
    """Puts `change` of a site in its place until it is removed."""
    module = model.get_submodule(site.removesuffix(":input"))
    if site.endswith(":input"):
        return module.register_forward_pre_hook(lambda m, given: (change(given[0]), *given[1:]))
    return module.register_forward_hook(lambda m, given, output: change(output))


@torch.no_grad()
def loop(
    model: nn.Module,
    inputs: dict[str, Any],
    ablations: Iterable[tuple[str, Change]],
    before: Tensor,
    metric: Change | None = None,
    exact: bool = False,
) -> Tensor:
    """What each ablation does to logits: KL(q | p), H(p) - H(q), KL(p | q), and to a metric.

    `before` are the logits without, `[n, t, c]`; the result is `[3, a]`, or `[4, a]`. Measured in
    float32, as one would, or where it is `exact` in float64: differences of entropies lose digits.
    """
    before = before.double() if exact else before
    log_p = before.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum()
    found = []
    for site, change in ablations:
        handle = hook(model, site, change)
        logits = model(**inputs).logits
        logits = logits.double() if exact else logits
        handle.remove()
        log_q = logits.log_softmax(-1)
        q, gap = log_q.exp(), log_q - log_p
        each = [(q * gap).sum(), entropy + (q * log_q).sum(), -(p * gap).sum()]
        if metric is not None:
            each.append((metric(logits) - metric(before)).sum())
        found.append(torch.stack(each))
    return torch.stack(found, 1)


def put(units: Sequence[int] | slice, value: Tensor | float, dim: int = -1) -> Change:
    """Puts a value in the place of some units, the last dimension of a copy."""

    def change(a: Tensor) -> Tensor:
        a = a.clone()
        a[..., units] = value
        return a

    return change


def memory(call: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes that are taken at most, beyond what is held before: Linux tells.

    In a process of its own, where `call(*arguments)` prepares and gives what is to be measured.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_memory, call, torch.get_num_threads(), arguments).result()


def _memory(call: Callable[..., Callable[[], object]], threads: int, arguments: Any) -> int:
    torch.set_num_threads(threads)
    measured = call(*arguments)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    measured()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(field + ":"))
    return 1024 * int(found)
