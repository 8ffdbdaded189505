"""Every operator in plain, readable torch: the oracle of the tests, never optimized.

It also runs where no compiled kernel is: without the library, and on devices that it does not
cover. Names, arguments and results are those of `csrc/schema.cpp`.

A weight is read as a matrix, dimension 0 by all the others. Rows and columns carry integer cluster
labels, -1 for none: `labels` holds the row labels and then the column labels of each weight, one
after the other. All sums are taken in float64.

Codes are integers in [0, bins), `[n, d]`: uint8 up to 256 bins, int16 beyond. Counts are int64,
entropies and information float64, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def same_cluster(rows: Tensor, cols: Tensor) -> Tensor:
    """Boolean `[len(rows), len(cols)]`: which entries join a row and a column of one cluster."""
    return (rows[:, None] == cols[None, :]) & (rows[:, None] >= 0)


def cluster_sums(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Sum of squares within clusters, and in total: float64 `[2]`."""
    squares = weight.reshape(len(rows), len(cols)).double().square()
    return torch.stack([(squares * same_cluster(rows, cols)).sum(), squares.sum()])


def ratio(sums: Tensor) -> Tensor:
    """Clusterability from sums `[..., 2]`: within / total.

    0 for an all-zero weight, NaN for one with NaN or infinite entries.
    """
    within, total = sums.unbind(-1)
    zero = total == 0
    found = torch.where(zero, torch.zeros_like(within), within / torch.where(zero, 1.0, total))
    return torch.where(total.isinf(), torch.nan, found)


def split_labels(weights: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each weight's row and column labels."""
    sizes = [size for w in weights for size in (w.shape[0], w.shape[1:].numel())]
    pieces = iter(labels.split(sizes))
    return list(zip(pieces, pieces, strict=True))


def cluster_penalty(
    weights: Sequence[Tensor], labels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """scale * (sum of the weights' clusterabilities), and the float64 sums `[n, 2]`.

    The value is float64 if any weight is, else float32.
    """
    pairs = zip(weights, split_labels(weights, labels), strict=True)
    sums = torch.stack([cluster_sums(w, rows, cols) for w, (rows, cols) in pairs])
    double = any(w.dtype == torch.float64 for w in weights)
    value = scale * ratio(sums).sum()
    return value.to(torch.float64 if double else torch.float32), sums


def cluster_penalty_backward(
    grad: Tensor, weights: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """Gradient of `cluster_penalty`'s value, times `grad`, for each weight.

    With C = S/T: dC/dw = 2 w (m - C) / T, m being 1 inside clusters and 0 outside.
    """
    return [
        (_penalty_gradient(w, rows, cols, s, scale) * grad.double()).to(w.dtype)
        for w, (rows, cols), s in zip(weights, split_labels(weights, labels), sums, strict=True)
    ]


def _penalty_gradient(
    weight: Tensor, rows: Tensor, cols: Tensor, sums: Tensor, scale: float
) -> Tensor:
    """Float64 gradient of scale * clusterability, in the weight's shape; 0 for a zero weight."""
    total = sums[1]
    mask = same_cluster(rows, cols).double().reshape(weight.shape)
    slope = 2 * scale * (mask - ratio(sums)) / torch.where(total == 0, 1.0, total)
    return weight.double() * slope


def _total_gradients(
    weights: Sequence[Tensor], grads: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """The loss's gradients plus the penalty's, in the precision in which updates are computed."""
    totals = [g.double() if g.dtype == torch.float64 else g.float() for g in grads]
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        penalty = _penalty_gradient(weights[i], rows, cols, sums[i], scale)
        totals[i] = totals[i] + penalty.to(totals[i].dtype)
    return totals


def _retake(weights: Sequence[Tensor], labels: Tensor, sums: Tensor) -> None:
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        sums[i] = cluster_sums(weights[i], rows, cols)


def clustered_sgd_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None:
    """One torch.optim.SGD step on loss + scale * sum of clusterabilities, in place.

    `sums` `[k, 2]` holds the cluster sums of the first k weights on entry and those of the new
    weights on return; `labels` are of these k, the others take the plain step. `first` sets the
    momentum buffers instead of reading them; without momentum they may be an empty list.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, step) in enumerate(zip(weights, totals, strict=True)):
        step = step + weight_decay * w.to(step.dtype)
        if momentum != 0:
            buffer = momentum_buffers[i]
            old = buffer.to(step.dtype)
            new = step if first else momentum * old + (1 - dampening) * step
            buffer.copy_(new)
            step = step + momentum * new if nesterov else new
        w.copy_(w.to(step.dtype) - lr * step)
    _retake(weights, labels, sums)


def clustered_adam_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One torch.optim.Adam (`decoupled`: AdamW) step on loss + scale * clusterabilities, in place.

    `steps` are float32 scalars on the CPU, counted up here. For the rest see `clustered_sgd_`.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, grad) in enumerate(zip(weights, totals, strict=True)):
        steps[i] += 1
        step = steps[i].item()
        old = w.to(grad.dtype)
        if decoupled:
            old = old * (1 - lr * weight_decay)
        else:
            grad = grad + weight_decay * old
        mean = beta1 * exp_avgs[i].to(grad.dtype) + (1 - beta1) * grad
        square = beta2 * exp_avg_sqs[i].to(grad.dtype) + (1 - beta2) * grad.square()
        exp_avgs[i].copy_(mean)
        exp_avg_sqs[i].copy_(square)
        denominator = square.sqrt() / (1 - beta2**step) ** 0.5 + eps
        w.copy_(old - lr / (1 - beta1**step) * mean / denominator)
    _retake(weights, labels, sums)


def split_mlps(parameters: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The layers of MLPs, views of their parameters `[m, p]`.

    Returns:
        Weights `[m, outputs, inputs]` and biases `[m, outputs]`, from the first layer to the last,
        which is also their order in a row of the parameters.
    """
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    pieces = iter(parameters.split([k for a, b in shapes for k in (a * b, a)], dim=1))
    return [(next(pieces).unflatten(1, shape), next(pieces)) for shape in shapes]


def run_mlps(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What goes into each layer of MLPs with ReLU, `[m, n, inputs]`, and their output."""
    units = [x.expand(len(layers[0][0]), -1, -1)]
    for weight, bias in layers:
        last = len(units) == len(layers)
        out = torch.baddbmm(bias[:, None], units[-1], weight.mT)
        units.append(out if last else out.relu())
    return units


def train_mlps_(
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    parameters: Tensor,
    exp_avgs: Tensor,
    exp_avg_sqs: Tensor,
    step: int,
    epochs: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """Full-batch torch.optim.Adam on the mean squared error of MLPs with ReLU, in place.

    Each row of the parameters and of Adam's state is one network's, see `split_mlps`; `step` counts
    the steps before. Returns the losses before each step, float64 `[m, epochs]`.
    """
    losses = [x.new_empty((len(parameters), 0), dtype=torch.float64)]
    for t in range(step + 1, step + epochs + 1):
        layers = split_mlps(parameters, sizes)
        *units, output = run_mlps(x, layers)
        error = output - y
        losses.append(error.double().square().mean((1, 2))[:, None])
        slope = error * (2 / y.numel())
        gradients: list[Tensor] = []
        for (weight, _), unit in zip(reversed(layers), reversed(units), strict=True):
            gradients = [(slope.mT @ unit).flatten(1), slope.sum(1), *gradients]
            slope = (slope @ weight) * (unit > 0)
        gradient = torch.cat(gradients, dim=1)
        exp_avgs.copy_(beta1 * exp_avgs + (1 - beta1) * gradient)
        exp_avg_sqs.copy_(beta2 * exp_avg_sqs + (1 - beta2) * gradient.square())
        denominator = exp_avg_sqs.sqrt() / (1 - beta2**t) ** 0.5 + eps
        parameters.sub_(lr / (1 - beta1**t) * exp_avgs / denominator)
    return torch.cat(losses, dim=1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which values of x are compared with edges: float32 for 16-bit numbers."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def code_dtype(bins: int) -> torch.dtype:
    """The type of codes in [0, bins)."""
    return torch.uint8 if bins <= 256 else torch.int16


def inner_edges(limits: Tensor, bins: int) -> Tensor:
    """The edges between `bins` equal-width bins, `[r, bins - 1]`, from ranges `[r, 2]`.

    lo + i * step, as numpy.linspace computes them in the ranges' own type.
    """
    lo, hi = limits[:, :1], limits[:, 1:]
    i = torch.arange(1, bins, dtype=limits.dtype, device=limits.device)
    step = (hi - lo) / bins
    step = torch.where(step.isfinite(), step, hi / bins - lo / bins)
    # A range of a few subnormals has no step; one that overflows is taken by halves.
    edges = torch.where(step == 0, i / bins * (hi - lo), i * step) + lo
    return torch.where((hi - lo).isfinite(), edges, 2 * (i * (step / 2) + lo / 2))


def digitize_edges(x: Tensor, edges: Tensor) -> Tensor:
    """Codes: how many of a column's edges are <= x. `edges` is `[1 or d, m]`, ascending."""
    columns = x.to(edges.dtype).t().contiguous()
    edges = edges.expand(len(columns), -1).contiguous()
    codes = torch.searchsorted(edges, columns, right=True).t().contiguous()
    return codes.to(code_dtype(edges.shape[1] + 1))


def digitize(
    x: Tensor, bins: int, range: Tensor | None, per_column: bool, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x, the ranges that they divide `[1 or d, 2]`, and each column's NaN and inf.

    The range is that of the finite values, of all columns or of each, unless it is given; values
    outside go to the nearest bin. rule="uniform": equal-width bins, each without its right edge but
    the last; a constant goes to bin 0. rule="notebook": with e = linspace(lo, hi, bins), the number
    of edges < x, less one; the minimum's -1 wraps to bins - 1. NaN and inf have code 0.
    """
    values = x.to(compute_dtype(x))
    finite = values.isfinite()
    if range is None:
        columns = values if per_column else values.reshape(-1, 1)
        known = columns.isfinite()
        lo = torch.where(known, columns, torch.inf)
        hi = torch.where(known, columns, -torch.inf)
        inf = torch.full_like(columns.new_empty(1, columns.shape[1]), torch.inf)
        limits = torch.stack([torch.cat([lo, inf]).amin(0), torch.cat([hi, -inf]).amax(0)], 1)
        limits[limits[:, 0] > limits[:, 1]] = 0
    else:
        limits = range.clone()
    lo, hi = limits[:, 0], limits[:, 1]
    values = torch.where(finite, values, lo).clamp(lo, hi)
    if rule == "uniform":
        codes = digitize_edges(values, inner_edges(limits, bins)).long()
        codes = torch.where(lo == hi, 0, codes)
    else:
        edges = limits.new_empty(len(limits), bins)
        for row, (a, b) in zip(edges, limits.tolist(), strict=True):
            row.copy_(torch.linspace(a, b, bins, dtype=limits.dtype))
        columns = values.t().contiguous()
        edges = edges.expand(len(columns), -1).contiguous()
        codes = torch.searchsorted(edges, columns).t().contiguous() - 1
        codes = torch.where(codes < 0, bins - 1, codes)
    codes = torch.where(finite, codes, 0)
    return codes.to(code_dtype(bins)), limits, (~finite).sum(0)


def joint_histogram(
    x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, pairing: str
) -> Tensor:
    """Counts of pairs of codes.

    pairing="aligned": column j of x with column j of y, pooled, `[bins_x, bins_y]`; "all": every
    column of x with every column of y, pooled; "pairwise": the same apart,
    `[dx, dy, bins_x, bins_y]`.
    """
    if pairing == "aligned":
        cells = x_codes.long() * bins_y + y_codes.long()
        return cells.reshape(-1).bincount(minlength=bins_x * bins_y).reshape(bins_x, bins_y)
    # Counts below 2^53 are exact in float64.
    x = one_hot(x_codes, bins_x)
    y = one_hot(y_codes, bins_y)
    counts = torch.einsum("nia,njb->ijab", x, y).long()
    return counts.sum((0, 1)) if pairing == "all" else counts


def one_hot(codes: Tensor, bins: int) -> Tensor:
    """Float64 `[n, d, bins]`."""
    return (codes.long()[:, :, None] == torch.arange(bins, device=codes.device)).double()


def binned_histogram(
    x: Tensor,
    y: Tensor,
    bins: int,
    range_x: Tensor | None,
    range_y: Tensor | None,
    rule: str,
) -> tuple[Tensor, Tensor]:
    """Counts `[bins, bins]` of x's values with y's, pooled, and how many of each are NaN or inf."""
    x_codes, _, bad_x = digitize(x, bins, range_x, False, rule)
    y_codes, _, bad_y = digitize(y, bins, range_y, False, rule)
    counts = joint_histogram(x_codes, y_codes, bins, bins, "aligned")
    return counts, torch.stack([bad_x.sum(), bad_y.sum()])


def information(counts: Tensor) -> Tensor:
    """Mutual information of the tables `[..., bins_x, bins_y]`, 0 of an empty one."""
    n = counts.double()
    total = n.sum((-2, -1), keepdim=True)
    independent = n.sum(-1, keepdim=True) * n.sum(-2, keepdim=True)
    logs = torch.where(n > 0, n * total / independent, 1).log()
    return (n * logs).sum((-2, -1)) / total[..., 0, 0].clamp(min=1)


def relevant_bins(counts: list[int]) -> float:
    """How many bins can be filled: at least those that are, at most all (Panzeri & Treves, 1996).

    A prior that gives each filled bin one more sample, and the empty ones a common share, grows by
    one empty bin at a time while the number of bins that it expects to see filled nears that seen.
    """
    filled = [n for n in counts if n > 0]
    n_filled, total = len(filled), sum(filled)
    expected = sum(1 - (1 - n / total) ** total for n in filled)
    error, before, extra = n_filled - expected, float(len(counts)), 0
    while error < before and n_filled + extra < len(counts):
        extra += 1
        share = extra * (1 - (total / (total + n_filled)) ** (1 / total))
        rest = (1 - share) / (total + n_filled)
        expected = sum(1 - (1 - (n + 1) * rest) ** total for n in filled)
        expected += extra * (1 - (1 - share / extra) ** total)
        error, before = abs(n_filled - expected), error
    return n_filled + (extra if error < before or extra == 0 else extra - 1)


def information_bias(counts: Tensor, correction: str | None) -> Tensor:
    """The expected excess of `information` over the truth, to first order in 1 / N.

    "miller-madow": from the numbers of filled cells, rows and columns. "panzeri-treves": x given
    each value of y against x, with `relevant_bins` of each. None: 0.
    """
    bias = torch.zeros(counts.shape[:-2], dtype=torch.float64)
    total = counts.sum((-2, -1)).clamp(min=1).double().cpu()
    if correction == "miller-madow":
        cells = (counts > 0).sum((-2, -1))
        rows = (counts.sum(-1) > 0).sum(-1)
        cols = (counts.sum(-2) > 0).sum(-1)
        bias = (cells - rows - cols + (cells > 0)).cpu() / (2 * total)
    elif correction == "panzeri-treves":
        for i, table in enumerate(counts.flatten(0, -3).cpu() if counts.numel() else []):
            given = sum(relevant_bins(y) - 1 for y in table.t().tolist() if any(y))
            x = table.sum(1).tolist()
            bias.view(-1)[i] = given - (relevant_bins(x) - 1 if any(x) else 0)
        bias = bias / (2 * total)
    return bias.to(counts.device)


def pairwise_information(
    x_codes: Tensor, y_codes: Tensor, bins_x: int, bins_y: int, correction: str | None
) -> tuple[Tensor, Tensor]:
    """Mutual information of every column of x with every column of y, and its bias."""
    counts = joint_histogram(x_codes, y_codes, bins_x, bins_y, "pairwise")
    return information(counts), information_bias(counts, correction)


# Two values of information of the same counts differ by rounding less than this.
INFORMATION_ROUNDING = 1e-12


def permuted_information(
    x_codes: Tensor,
    y_codes: Tensor,
    bins_x: int,
    bins_y: int,
    permutations: Tensor,
    observed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pairwise_information` with y's rows in each of the orders `permutations` `[p, n]`.

    How many are >= observed (up to rounding), their mean, and their sum of squared deviations.
    """
    shape = x_codes.shape[1], y_codes.shape[1]
    nulls = [
        pairwise_information(x_codes, y_codes[order], bins_x, bins_y, None)[0]
        for order in permutations
    ]
    if not nulls:
        zero = torch.zeros(shape, dtype=torch.float64, device=x_codes.device)
        return zero.long(), zero, zero.clone()
    null = torch.stack(nulls)
    at_least = (null >= observed - INFORMATION_ROUNDING).sum(0)
    mean = null.mean(0)
    return at_least, mean, (null - mean).square().sum(0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


def ablation_terms(logits: Tensor, ablated: Tensor, targets: Tensor | None = None) -> Tensor:
    """What an ablation does to each sample: float64 `[k, ..., n]` from `[n, c]` and `[..., n, c]`.

    With p and q the class probabilities before and after: H(p) - H(q), KL(q | p), KL(p | q); with
    targets `[n]` also the loss -log q(target), and 1 where the target has the first largest logit.
    """
    log_p, log_q = logits.double().log_softmax(-1), ablated.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    change = log_q - log_p
    terms = [
        (q * log_q).sum(-1) - (p * log_p).sum(-1),
        (q * change).sum(-1),
        -(p * change).sum(-1),
    ]
    if targets is not None:
        chosen = targets.expand(log_q.shape[:-1])
        terms.append(-log_q.gather(-1, chosen[..., None])[..., 0])
        terms.append((ablated.argmax(-1) == chosen).double())
    return torch.stack(terms)


def class_sums(correct: Tensor, targets: Tensor | None, n_classes: int) -> Tensor:
    """Of `correct` `[n, a]`, the sum over the samples of each class: `[a, n_classes]`."""
    if targets is None:
        return correct.new_empty(correct.shape[1], 0)
    return correct.new_zeros(n_classes, correct.shape[1]).index_add(0, targets, correct).T


def _collected(
    terms: Sequence[Tensor], logits: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """One `[k, n]` per ablation, as the operators return them."""
    n_terms = 3 if targets is None else 5
    found = torch.stack([*terms], -1) if terms else logits.new_empty(n_terms, len(logits), 0)
    found = found.double()
    classes = class_sums(found[-1], targets, logits.shape[1]).contiguous()
    return (found if per_sample else found.sum(1)), classes


def ablation_sweep(
    logits: Tensor, scales: Tensor, updates: Tensor, targets: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """Ablations that change the logits by a rank-1 term: logits + scales[:, a] updates[a].

    Takes `[n, c]`, `[n, a]`, `[a, c]` and targets `[n]`. Returns the sums of `ablation_terms` over
    the samples, float64 `[k, a]` (`per_sample`: the terms, `[k, n, a]`), and the correct samples of
    each class, float64 `[a, c]` (`[a, 0]` without targets).
    """
    z = logits.double()
    found = [
        ablation_terms(z, z + torch.outer(scale, update), targets)
        for scale, update in zip(scales.double().T, updates.double(), strict=True)
    ]
    return _collected(found, logits, targets, per_sample)


def ablation_sweep_hidden(
    logits: Tensor,
    hidden: Tensor,
    scales: Tensor,
    updates: Tensor,
    activation: str,
    weight: Tensor,
    targets: Tensor | None,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    """Ablations that change the last hidden layer's pre-activations by a rank-1 term.

    The logits become logits + (act(hidden + scales[:, a] updates[a]) - act(hidden)) weightᵀ, with
    hidden `[n, m]`, scales `[n, a]`, updates `[a, m]`, weight `[c, m]`. Returns what
    `ablation_sweep` does.
    """
    act = ACTIVATIONS[activation]
    z, p, w = logits.double(), hidden.double(), weight.double()
    before = act(p)
    found = [
        ablation_terms(z, z + (act(p + torch.outer(scale, update)) - before) @ w.T, targets)
        for scale, update in zip(scales.double().T, updates.double(), strict=True)
    ]
    return _collected(found, logits, targets, per_sample)


def update_top_(top_values: Tensor, top_indices: Tensor, values: Tensor, first: int) -> Tensor:
    """Takes up the largest of `values` `[n, d]`, sample i being index first + i; how many are NaN.

    `top_values` and `top_indices` `[d, k]` hold the largest so far of each column, strongest first;
    places that are still free hold -inf and -1. Of equal values the one that came first is kept.
    """
    nan = values.isnan()
    index = torch.arange(first, first + len(values), device=values.device).expand(values.T.shape)
    # -inf stays behind the free places.
    every_value = torch.cat([top_values, values.where(~nan, -torch.inf).T], 1)
    every_index = torch.cat([top_indices, index], 1)
    k = top_values.shape[1]
    largest, order = every_value.sort(dim=1, descending=True, stable=True)
    top_values.copy_(largest[:, :k])
    top_indices.copy_(every_index.gather(1, order[:, :k]))
    return nan.sum()


def prune_layer(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    sizes: Tensor,
    order: Tensor,
    original: Tensor | None,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """Greedy pruning of single weights of one layer, by brute force in float64.

    The layer has weight `weights[0]` `[g, n_out, n_in]`; those after it, with ReLU in between,
    have the others. Group i of samples, of `sizes` `[g]`, has weights `[i]` and goes by itself. In
    `order` `[v]`, of indices into the flattened weight, each is zeroed, and put back if the loss
    rises by more than the threshold over the running loss, or over `original` `[g]` if given.

    Returns each visit's margin, the rise less the threshold, `[g, v]`: a weight stays zero where it
    is at most 0; and the loss before and after each visit, `[g, v + 1]`.
    """
    all_margins, all_losses = [], []
    parts = zip(inputs.split(sizes.tolist()), targets.split(sizes.tolist()), strict=True)
    for group, (x, y) in enumerate(parts):
        layers = [
            (weight[group].double().clone(), bias[group].double())
            for weight, bias in zip(weights, biases, strict=True)
        ]

        def loss(x: Tensor = x, y: Tensor = y, layers: Sequence[Any] = layers) -> float:
            z = x.double()
            for i, (weight, bias) in enumerate(layers):
                z = functional.linear(z.relu() if i else z, weight, bias)
            return float(functional.cross_entropy(z, y))

        running, margins = loss(), []
        losses, first = [running], layers[0][0].view(-1)
        for index in order.tolist():
            kept = float(first[index])
            first[index] = 0.0
            after = loss()
            over = running if original is None else float(original[group])
            margins.append(after - over - threshold)
            if margins[-1] > 0.0:
                first[index] = kept
            else:
                running = after
            losses.append(running)
        all_margins.append(margins)
        all_losses.append(losses)
    found = torch.tensor(all_margins, dtype=torch.float64).view(len(sizes), len(order))
    return found.to(inputs.device), torch.tensor(all_losses, dtype=torch.float64).to(inputs.device)


_ABSENT = {"linear": 0.0, "softmax": 1.0, "sigmoid": 0.5}
_WIRING_CELLS = 2**22


def wiring_sums(
    weight: Tensor,
    scale: Tensor | None,
    sources: Tensor,
    n_in: Tensor,
    n_out: Tensor,
    norm: str,
    blocks: int,
    ins: int,
    outs: int,
) -> Tensor:
    """Sums over a layer's rows and columns of normalized weights, without its dense matrix.

    A layer is a matrix of in-units by out-units. A connection of weight w counts as f(w), an absent
    one as the constant z = f(0), and row i is divided by its sum R_i. With Q = 1 / R:

        R_i = sum over i's connections of f(w) + z * (absent connections of i)
        H_i = ln R_i - (sum over them of f ln f + z ln z * (absent connections of i)) / R_i
        c_j = sum over j's connections of f(w_ij) Q_i + z * (sum of Q_i over those not connected)

    f is ReLU, exp or sigmoid. A row that is all zeros stays so, and has no entropy.

    The weight is `[groups, outputs, inputs, taps]`; `scale`, `[groups, outputs]`, multiplies it.
    Every pair of positions is joined by at most one tap, and positions are of kinds, as many of
    each as `n_in` `[C]` and `n_out` `[O]` say: an out-position of kind k gets through tap t what
    comes from an in-position of kind `sources[t, k]`, or nothing where that is C. All is repeated
    `blocks` times for other in- and out-units, and within a block with `ins` copies of each in-unit
    and `outs` of each out-unit. Weights are finite, and for softmax from -600 to 600.

    Returns the sums of H_i, of c_j and of c_j ln c_j, in nats: float64 `[3]`.
    """
    groups, outputs, _, taps = weight.shape
    z, n_kinds = _ABSENT[norm], len(n_in)
    # [t, c] and [k, c]: whether a tap leads from there, how many in-positions are connected.
    ones = torch.ones_like(sources, dtype=torch.float64)
    leads = ones.new_zeros(taps, n_kinds + 1).scatter_(1, sources, ones)[:, :-1]
    reached = ones.new_zeros(len(n_out), n_kinds + 1).scatter_add_(1, sources.T, ones.T)[:, :-1]
    absent = outs * outputs * (blocks * groups * n_out.sum() - leads.sum(0))
    entropy, column = ones.new_zeros(()), ones.new_zeros(groups, outputs, len(n_out))
    q_sum = ones.new_zeros(groups, n_kinds)
    # By parts of the inputs, as a weight in float64, several times, may not fit.
    for part in weight.split(max(1, _WIRING_CELLS // max(1, groups * outputs * taps)), dim=2):
        w = part.double() if scale is None else part.double() * scale[:, :, None, None]
        if norm == "linear":
            f = w.relu()
            f_log_f = torch.special.xlogy(f, f)
        elif norm == "softmax":
            f = w.exp()
            f_log_f = w * f
        else:
            f = w.sigmoid()
            f_log_f = functional.logsigmoid(w) * f
        row = outs * f.sum(1) @ leads + z * absent
        term = outs * f_log_f.sum(1) @ leads + (z * math.log(z) if z else 0.0) * absent
        some = row > 0
        q = row.reciprocal().where(some, 0.0)
        entropy += ((row.log() - term * q).where(some, 0.0) * n_in).sum()
        q_sum += q.sum(1)
        from_sources = functional.pad(q, (0, 1))[:, :, sources]
        column += f.flatten(2) @ from_sources.flatten(1, 2)
    own = q_sum @ n_in
    others = blocks * own.sum() - own
    column += z * (others[:, None] + q_sum @ (n_in - reached).T)[:, None]
    column *= ins
    by_kind = [each.sum((0, 1)) @ n_out for each in (column, torch.special.xlogy(column, column))]
    return torch.stack([blocks * ins * entropy, *(blocks * outs * each for each in by_kind)])
