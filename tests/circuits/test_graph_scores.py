"""attribute_edges on networks that are no chains, against whole forward passes with plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from circuits.tiny import KINDS, metric, tiny
from torch import Tensor, nn

import modfast
from modfast import EdgeScores, attribute_edges


def flat(scores: EdgeScores) -> dict[Any, float]:
    return {
        ((pair[0], s), (pair[1], r)): float(each[s, r])
        for pair, each in scores.scores.items()
        for s in range(each.shape[0])
        for r in range(each.shape[1])
    }


def assert_same(found: EdgeScores, wanted: dict[Any, float], tolerance: float = 1e-10) -> None:
    mine = flat(found)
    assert mine.keys() == wanted.keys()
    assert max(map(abs, wanted.values())) > 1e-3
    for edge, value in wanted.items():
        assert mine[edge] == pytest.approx(value, rel=1e-9, abs=tolerance), edge


@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_path_patching_by_hooks(kind: str) -> None:
    case = tiny(kind)
    found = attribute_edges(
        case.model, case.clean, case.corrupted,
        method="exact", metric=metric, nodes="heads", progress=False,
    )  # fmt: skip
    wanted = case.spec.exact(case.clean, case.corrupted, lambda x: metric(x).mean())
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resnet"])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_are_those_along_each_change(kind: str, steps: int) -> None:
    """The derivative of the metric along what the edge would carry, by autograd through hooks."""
    case = tiny(kind)
    method: Any = "eap" if steps == 1 else "eap-ig"
    found = attribute_edges(
        case.model, case.clean, case.corrupted,
        method=method, metric=metric, nodes="heads", steps=steps,
    )  # fmt: skip
    wanted = case.spec.slopes(case.clean, case.corrupted, lambda x: metric(x).mean(), steps)
    assert_same(found, wanted)


@pytest.mark.parametrize("intervention", ["zero", "mean", "positional-mean"])
def test_what_edges_carry_instead(intervention: Any) -> None:
    """Of a small residual network whose every edge is written out."""
    torch.manual_seed(0)
    model, clean, corrupted = residual()
    up, down, head = model.up, model.down, model.head
    with torch.no_grad():
        act, other = (torch.relu(up(x)) for x in (clean, corrupted))

        def instead(new: Tensor) -> Tensor:
            if intervention == "zero":
                return torch.zeros_like(new)
            dims = (0, 1) if intervention == "mean" else (0,)
            return new.mean(dims, keepdim=True).expand_as(new)

        x, z = instead(corrupted) - clean, (instead(other) - act) @ down.weight.T
        base = metric(head(clean + down(act))).mean()
        wanted = {
            ("input", "relu"): metric(head(clean + down(torch.relu(up(clean + x))))),
            ("input", "logits"): metric(head(clean + x + down(act))),
            ("relu", "logits"): metric(head(clean + down(act) + z)),
        }
    options: Any = {"method": "exact", "intervention": intervention, "metric": metric}
    found = attribute_edges(model, clean, corrupted, **options)
    for pair, value in wanted.items():
        assert float(found.scores[pair]) == pytest.approx(float(value.mean() - base), abs=1e-12)
    # Without corrupted inputs, of the clean ones; and in any number of batches.
    same = attribute_edges(model, clean, None, **options)
    again = attribute_edges(model, clean, clean, **options)
    batches = [(x,) for x in corrupted.split(2)], [(x,) for x in clean.split(2)]
    streamed = attribute_edges(model, batches[1], batches[0], **options)
    for pair in wanted:
        assert torch.equal(same.scores[pair], again.scores[pair])
        torch.testing.assert_close(streamed.scores[pair], found.scores[pair])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        moved = self.down(torch.relu(self.up(x)))
        return self.head(x + (moved if mask is None else moved * mask))


def residual() -> tuple[Any, Tensor, Tensor]:
    model = Residual().double()
    return model, *torch.randn(2, 6, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("nodes", ["layers", "units"])
def test_all_methods_agree_where_all_is_linear(nodes: Any) -> None:
    """Of ReLUs that are never off, and a metric that is linear in the logits."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block() for _ in range(3)], nn.Linear(4, 3)).double()
    clean, corrupted = torch.randn(2, 6, 4, dtype=torch.float64)
    options: Any = {"metric": lambda z: z @ z.new_tensor([1.0, -2, 3]), "nodes": nodes}
    exact = attribute_edges(model, clean, corrupted, method="exact", **options)
    for method in ("eap", "eap-ig"):
        found = attribute_edges(model, clean, corrupted, method=method, **options)  # type: ignore[arg-type]
        assert_same(found, flat(exact))
    changed = (model(corrupted) - model(clean)) @ torch.tensor([1.0, -2, 3], dtype=torch.float64)
    into = sum(float(x.sum()) for (_, end), x in exact.scores.items() if end == "logits")
    assert into == pytest.approx(float(changed.detach().mean()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        nn.init.constant_(self.up.bias, 100.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.down(torch.relu(self.up(x)))


def test_parts_of_a_node_are_patched_apart() -> None:
    """Clusters of an MLP's units, against the units one would patch by hand."""
    torch.manual_seed(0)
    model, clean, corrupted = residual()
    groups = [[0, 2, 4], [1, 3, 5]]
    found = attribute_edges(
        model, clean, corrupted, method="exact", metric=metric, nodes={"relu": groups}
    )
    up, down, head = model.up, model.down, model.head
    with torch.no_grad():
        act, other = (torch.relu(up(x)) for x in (clean, corrupted))
        base = metric(head(clean + down(act))).mean()
        for i, group in enumerate(groups):
            moved = act.clone()
            moved[..., group] = other[..., group]
            wanted = float(metric(head(clean + down(moved))).mean() - base)
            assert float(found.scores["input", "relu"][0, i]) == pytest.approx(wanted, abs=1e-12)
            assert float(found.scores["relu", "logits"][i, 0]) == pytest.approx(wanted, abs=1e-12)


def test_queries_keys_and_values_of_one_call_are_patched_apart() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    clean, corrupted = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    found = attribute_edges(model, clean, corrupted, method="exact", metric=metric)
    base = metric(model(clean)).mean()
    for i, letter in enumerate("qkv"):

        def move(module: nn.Module, args: Any, kwargs: Any, i: int = i) -> Any:
            return tuple(corrupted if j == i else x for j, x in enumerate(args)), kwargs

        with torch.no_grad():
            handle = model.self_attn.register_forward_pre_hook(move, with_kwargs=True)
            wanted = float(metric(model(clean)).mean() - base)
            handle.remove()
        assert float(found.scores["input", f"self_attn.{letter}"]) == pytest.approx(wanted)


def test_tokens_positions_and_masks() -> None:
    """Positions that are masked, or whose target is -100, count nowhere."""
    case = tiny("gpt2")
    targets = torch.randint(0, 20, (3, 5))
    targets[1, :3] = -100
    found = attribute_edges(case.model, case.clean, case.corrupted, targets, method="exact")
    counts = (targets != -100) & case.clean["attention_mask"].bool()

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[counts].double(), targets[counts])

    again = attribute_edges(case.model, case.clean, case.corrupted, method="exact", metric=loss)
    assert_same(found, flat(again))
    # A batch is weighted by how many positions it has.
    batches = [[{k: v[:2] for k, v in x.items()}, {k: v[2:] for k, v in x.items()}]
               for x in (case.clean, case.corrupted)]  # fmt: skip
    clean = list(zip(batches[0], targets.split(2), strict=True))
    streamed = attribute_edges(case.model, clean, batches[1], method="exact")
    assert_same(streamed, flat(found))
    plain = attribute_edges(
        case.model, case.clean, case.corrupted, method="exact",
        metric=modfast.metrics.logit_difference(3, 4),
    )  # fmt: skip
    last = attribute_edges(
        case.model, case.clean, case.corrupted, method="exact", output=modfast.last_token,
        metric=lambda z: z[:, 3] - z[:, 4],
    )  # fmt: skip
    assert_same(plain, flat(last))


def test_what_does_not_add_up_is_refused() -> None:
    model, clean, corrupted = residual()
    mask = torch.ones(6, 1, 1, dtype=torch.float64)
    options: Any = {"metric": metric}
    attribute_edges(model, (clean, mask), (corrupted, mask), **options)

    def refuses(message: str, *args: Any, **more: Any) -> None:
        with pytest.raises(ValueError, match=message):
            attribute_edges(model, *args, **options, **more)

    other = {"x": corrupted, "mask": 2 * mask}
    refuses("at 'add' in '' they do not tell all that differs", {"x": clean, "mask": mask}, other)
    refuses(r"corrupted must be as clean, .*got .*\(5, 5, 4\)", (clean,), (corrupted[:5],))
    refuses("corrupted must have as many batches as clean, got fewer", [(clean,)] * 2, [(clean,)])
    refuses("corrupted must have as many batches as clean, got more", [(clean,)], [(clean,)] * 2)
    refuses("corrupted must be given with intervention='patch'", clean, None)
    refuses("intervention must be one of 'patch', .*'noise'", clean, clean, intervention="noise")
    refuses("nodes='mlp': no such node", clean, corrupted, nodes={"mlp": [[0]]})
