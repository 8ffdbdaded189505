"""The direction in a site's activations that the class probabilities hang on most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from modfast import checks
from modfast.ablation.batches import Inputs
from modfast.ablation.changes import Directions
from modfast.ablation.result import DirectionResult
from modfast.ablation.sweep import NOT_FUSED, Options, Output, Place, as_rows, batches_of, begin
from modfast.sites import in_mode

Objective = Callable[[Tensor], Tensor]


def max_information_direction(
    model: nn.Module,
    inputs: Inputs,
    site: str,
    steps: int = 1000,
    lr: float = 1e-2,
    restarts: int = 8,
    seed: int | None = None,
    *,
    output: Output | None = None,
    dim: int | None = None,
    path: str | None = None,
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
    options = Options(output=output, dim=dim, path=path)
    with in_mode(model, training=False):
        with torch.no_grad():
            places = [
                begin(model, site, batch, options) for batch in batches_of(model, inputs, None)
            ]
            objectives = [_objective(place, path) for place in places]
        activations = places[0].site
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        vectors = torch.randn(restarts, activations.shape[-1], generator=generator)
        return _search(objectives, vectors.to(activations), steps, lr)


def _search(objectives: list[Objective], vectors: Tensor, steps: int, lr: float) -> DirectionResult:
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
                (vectors.grad,) = torch.autograd.grad(kls.sum(), vectors)
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
        best[kls.argmax()].cpu(), kls.max(), torch.stack(history).double().cpu(), best.cpu(), kls
    )


def _objective(place: Place, path: str | None) -> Objective:
    """The sum over samples of KL(ablated | original) for directions `[r, d]`: `[r]`."""
    site, logits = place.site, place.logits()
    log_p = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
    rank_one = _rank_one(place) if path in (None, "fused") else None
    if path == "fused" and rank_one is None:
        raise ValueError(NOT_FUSED)
    ablated = rank_one or (lambda v: vmap(place.resume)(Directions(v).apply(site, slice(None))))

    def kl(units: Tensor) -> Tensor:
        log_q = ablated(units).log_softmax(-1).reshape(len(units), *log_p.shape)
        terms = nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True)
        return terms.sum((1, 2))

    return kl


def _rank_one(place: Place) -> Objective | None:
    """The logits for directions `[r, d]`, where what follows is a chain: `[r, n, c]`."""
    chain = place.start.chain
    if chain is None or not place.is_chain or chain.activations[0] != "identity":
        return None
    site, before = as_rows(place.start.site), as_rows(place.start.outputs[0])
    weight = chain.layers[0].weight.detach()

    def ablated(v: Tensor) -> Tensor:
        scales, updates = (site @ v.T).T, v @ weight.T
        hidden = torch.addcmul(before, scales[..., None], updates[:, None], value=-1)
        return [hidden, *chain.outputs(hidden, 1)][-1]

    return ablated
