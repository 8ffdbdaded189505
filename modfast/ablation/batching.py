"""How many ablations are run at a time, and whether all at once."""

from __future__ import annotations

import torch

from modfast.network.chain import weights_read
from modfast.network.resume import Start

MAX_MEMORY = 2**28
# More falls out of a processor's cache, and goes back to the system each time.
CPU_BLOCK = 2**24
# Bytes of one ablation's suffix above which doing several at once gains nothing on a CPU.
CPU_VMAP = 2**20
# torch.vmap has no batched kernel of these, and loops or refuses.
_LOOPED = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru"})


def chunks_of(n: int, each: int, memory: int) -> list[slice]:
    """Slices of n ablations that take `each` bytes apiece, as many at a time as may be."""
    size = max(1, memory // max(each, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def gains_by_vmap(start: Start, peak: int, backend: str | None) -> bool:
    """Whether ablations are run together, if a backend does not say so: each takes `peak` bytes."""
    if backend is not None or start.backend == "model":
        return backend == "vmap"
    # Below float32 its other order of sums shows.
    if start.rows.logits.dtype not in (torch.float32, torch.float64):
        return False
    if start.tape is None or any(call.name in _LOOPED for call in start.tape.calls):
        return False
    if start.site.device.type != "cpu" or peak <= CPU_VMAP:
        return True
    # A head of many classes, say: to read its weights takes longer than what is done with them.
    names = {call.name for call in start.tape.calls}
    return not any("conv" in name for name in names) and weights_read(start.tape) > 8 * peak
