"""The direction in a site's activations that the class probabilities depend on most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import named, renamed
from modfast.ablation.arguments import options_of
from modfast.ablation.changes import Directions
from modfast.ablation.optimal import resumed
from modfast.ablation.result import DirectionResult
from modfast.ablation.sweep import NOT_FUSED, starts
from modfast.network.chain import Chain
from modfast.network.inputs import Inputs
from modfast.network.logits import Output, log_softmax
from modfast.network.resume import Start, joined
from modfast.network.run import require_differentiable
from modfast.network.sites import parse_site
from modfast.precision import full_precision

Objective = Callable[[Tensor], Tensor]


@renamed(path="backend")
@named("seed")
def max_information_direction(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    steps: int = 1000,
    lr: float = 1e-2,
    restarts: int = 8,
    *,
    seed: int | None = None,
    output: Output = None,
    dim: int | None = None,
    backend: str | None = None,
) -> DirectionResult:
    """The unit direction v whose removal, a - (a·v) v, changes the class probabilities most.

    Maximizes the sum over the samples of KL(q | p), in nats, with p the probabilities before and q
    after, by gradient ascent on the sphere: Adam on an unnormalized v, from random starts, all of
    them at once. A local search: what it returns is the best point that any restart has seen.

    `steps` and `lr` are Adam's, of each of the `restarts`; `seed` decides the starts, which by
    default come from torch's own generator. The other arguments are those of `ablate_units`; of a
    DataLoader's batches everything that follows the site is kept.

    Raises:
        TypeError, ValueError: as `ablate_units`; counts below 1, an `lr` that is not above 0.

    Source: N0, its search for the most informative direction (one start, Adam 1e-2, 1000 steps).

    Example:
        >>> import torch, modfast
        >>> model, x = modfast.models.MLP([8, 6, 6, 3]), torch.randn(20, 8)
        >>> found = modfast.max_information_direction(model, x, "act2", steps=50, seed=0)
        >>> bool(found.kl >= found.history[0].max())
        True
    """
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    seed = None if seed is None else checks.seed("seed", seed)
    if checks.finite_number("lr", lr) <= 0:
        raise ValueError(f"lr must be above 0, got {lr}")
    options = options_of(output, dim, False, None, True, backend)
    checks.module("model", model)
    require_differentiable(model)
    places = [parse_site(model, site)]
    with starts(model, inputs, places, None, options) as every:
        with torch.no_grad():
            each = [found[site] for _, found, _ in every]
            found = [_objective(start, backend) for start in each]
        activations = each[0].features
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        vectors = torch.randn(
            restarts, activations.shape[-1], generator=generator, device="cpu", dtype=torch.float32
        )
        objectives, backends = zip(*found, strict=True)
        backend = joined(backends)
        return _search(list(objectives), site, vectors.to(activations), steps, lr, backend)


def _search(
    objectives: list[Objective], site: str, vectors: Tensor, steps: int, lr: float, backend: str
) -> DirectionResult:
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    best, best_kls = vectors, vectors.new_full((len(vectors),), -torch.inf)
    vectors = vectors.clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=lr, maximize=True, fused=True)
    history = []
    for step in range(steps + 1):
        with torch.enable_grad():
            units = vectors / vectors.norm(dim=1, keepdim=True)
            first, *others = (objective(units) for objective in objectives)
            kls = sum(others, start=first)
            if step < steps:
                try:
                    (vectors.grad,) = torch.autograd.grad(kls.sum(), vectors)
                except RuntimeError as error:
                    raise ValueError(
                        f"site={site!r}: the logits must depend on it through autograd: {error}"
                    ) from error
        with torch.no_grad():
            history.append(kls.detach())
            better = kls > best_kls
            best = torch.where(better[:, None], units, best)
            best_kls = torch.where(better, kls, best_kls)
        if step < steps:
            optimizer.step()
    best = best.detach()
    kls = best_kls.detach().double().cpu()
    return DirectionResult(
        best[kls.argmax()].cpu(),
        kls.max(),
        torch.stack(history).double().cpu(),
        best.cpu(),
        kls,
        backend,
    )


def _objective(start: Start, backend: str | None) -> tuple[Objective, str]:
    """The sum over samples of KL(ablated | original) for directions `[r, d]`: `[r]`; and how."""
    site, rows = start.features, start.rows
    log_p = log_softmax(rows.logits)
    chain = start.chain
    if chain is not None and chain.start == 0 and chain.activations[0] == "identity":
        after, kind, is_rows = _rank_one(start, chain), "fused", True
    elif backend == "fused":
        raise ValueError(NOT_FUSED)
    else:
        resume, kind = resumed(start, backend)
        is_rows = False

        def after(v: Tensor) -> Tensor:
            return resume(Directions(v).apply(site, slice(None)).movedim(-1, start.dim + 1))

    def kl(units: Tensor) -> Tensor:
        ablated = after(units)
        with full_precision():
            # A chain's are the rows that count already.
            log_q = log_softmax(ablated if is_rows else rows.of_each(ablated))
            terms = nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True)
            return terms.sum((1, 2))

    return kl, kind


def _rank_one(start: Start, chain: Chain) -> Objective:
    """The logits for directions `[r, d]`, where what follows is a chain: `[r, n, c]`."""
    site = start.rows.of(start.site)
    before, weight = start.rows.of(start.outputs[0]), chain.weights[0]

    def ablated(v: Tensor) -> Tensor:
        scales, updates = (site @ v.T).T, v @ weight.T
        hidden = torch.addcmul(before, scales[..., None], updates[:, None], value=-1)
        return [hidden, *chain.outputs(hidden, 1)][-1]

    return ablated
