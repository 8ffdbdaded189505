"""network_graph: which nodes and edges networks of every kind have, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from circuits.tiny import tiny
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast import Clusters, network_graph
from modfast.models import MLP


def in_series(layers: int, heads: int, keys: int) -> tuple[int, int]:
    """Nodes and edges where an MLP reads what its layer's attention gave."""
    edges, senders = 0, 1
    for _ in range(layers):
        edges += (heads + 2 * keys) * senders
        senders += heads
        edges += senders
        senders += 1
    return senders + 1, edges + senders


def in_parallel(layers: int, heads: int) -> tuple[int, int]:
    """Nodes and edges where it does not."""
    edges, senders = 0, 1
    for _ in range(layers):
        edges += (3 * heads + 1) * senders
        senders += heads + 1
    return senders + 1, edges + senders


def norm_after(layers: int, heads: int) -> tuple[int, int]:
    """Nodes and edges where each sum is normed, and the norm's output goes on.

    The input's norm reads the input. Of a layer: queries, keys and values of each head read the
    last norm; a norm that and the heads; the MLP this norm; a norm that and the MLP. The last norm
    is part of the logits.
    """
    return 2 + layers * (heads + 3) - 1 + 1, 1 + layers * (3 * heads + (heads + 1) + 1 + 2)


COUNTS: dict[str, dict[str, tuple[int, int]]] = {
    **{
        kind: {"heads": in_series(2, 2, 2), "layers": in_series(2, 1, 1)}
        for kind in ("gpt2", "gpt2 eager", "vit")
    },
    **{
        kind: {"heads": in_series(2, 4, 2), "layers": in_series(2, 1, 1)}
        for kind in ("llama", "llama eager", "qwen2")
    },
    "neox": {"heads": in_parallel(2, 2), "layers": in_parallel(2, 1)},
    "bert": {"heads": norm_after(2, 2), "layers": norm_after(2, 1)},
    # The input; the pool; of each block a ReLU, and one behind the sum, the last being part of the
    # logits. The first reads what came before, the second both.
    "resnet": dict.fromkeys(("heads", "layers"), (1 + 1 + 8 + 7 + 1, 1 + 8 + 2 * 7 + 2)),
}


def test_the_literatures_count_of_gpt2_small() -> None:
    assert in_series(12, 12, 12) == (158, 32491)


@pytest.mark.parametrize("kind", COUNTS)
def test_counts(kind: str) -> None:
    case = tiny(kind)
    for nodes, wanted in COUNTS[kind].items():
        graph = network_graph(case.model, case.clean, nodes=nodes)  # type: ignore[arg-type]
        assert (graph.n_nodes, graph.n_edges) == wanted
        assert (len(graph.nodes), len(graph.edges)) == wanted
        assert graph.nodes[0] == ("input", 0)
        assert graph.nodes[-1] == ("logits", 0)
        assert len({*graph.edges}) == graph.n_edges


def test_gpt2_small_by_heads() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=48, vocab_size=50, n_positions=8)
    assert (config.n_layer, config.n_head) == (12, 12)
    graph = network_graph(transformers.GPT2LMHeadModel(config), torch.arange(4)[None], "heads")
    assert (graph.n_nodes, graph.n_edges) == (158, 32491)


def test_sites_are_those_that_capture_finds() -> None:
    for kind in ("gpt2", "llama", "bert", "resnet"):
        case = tiny(kind)
        graph = network_graph(case.model, case.clean)
        for name, site in graph.sites.items():
            if name == "input" and kind != "resnet":
                continue  # the embedding of tokens
            value = modfast.capture(case.model, case.clean, site)[site]
            assert value.shape[1 if value.dim() == 4 else -1] == len(graph.units[name]), name


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def test_units_lists_and_clusters() -> None:
    model, x = nn.Sequential(Block(), Block(), nn.Linear(4, 3)), torch.randn(5, 4)
    graph = network_graph(model, x)
    assert graph.nodes == [("input", 0), ("0", 0), ("1", 0), ("logits", 0)]
    assert graph.sites["0"] == "0/relu#0"
    assert graph.n_edges == 6
    units = network_graph(model, x, "units")
    assert (units.n_nodes, units.n_edges) == (4 + 6 + 6 + 1, 4 * 6 + 10 * 6 + 16)
    lists = network_graph(model, x, {"0": [[0, 1, 2], [3, 4, 5]], "1": Clusters.equal(6, 4, 3)})
    assert (lists.n_nodes, lists.n_edges) == (1 + 2 + 3 + 1, 2 + 3 * 3 + 6)
    mixed = network_graph(model, x, {"0": "units"})
    assert mixed.n_edges == 6 + 7 + 8
    heads = network_graph(*by_heads(), nodes={"0": [[0, 1], [2, 3]]})
    assert heads.n_edges == 6 + 3


def by_heads() -> tuple[nn.Module, Tensor]:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4)
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return x + self.out(z.transpose(1, 2).flatten(2))

    return nn.Sequential(Attention(), nn.Linear(8, 3)), torch.randn(2, 5, 8)


def test_a_chain_has_its_layers() -> None:
    model, x = MLP([6, 5, 3]), torch.randn(7, 6)
    assert network_graph(model, x).nodes == [("input", 0), ("fc1", 0), ("fc2", 0)]
    units = network_graph(model, x, "units")
    assert (units.n_nodes, units.n_edges, units.backend) == (14, 45, "chain")
    scores = modfast.attribute_edges(model, x, x.flip(0), torch.arange(7) % 3)
    assert units.pairs == tuple(scores.scores)


def test_it_can_be_kept_and_drawn(tmp_path: Any) -> None:
    graph = network_graph(*by_heads(), nodes="heads")
    graph.save(tmp_path / "graph.safetensors")
    again = modfast.NetworkGraph.load(tmp_path / "graph.safetensors")
    assert again.edges == graph.edges
    assert again.sites == graph.sites
    pytest.importorskip("plotly")
    assert len(graph.plot().data) > 0


def test_what_has_no_graph_is_refused_by_name() -> None:
    x = torch.randn(2, 5, 8)

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(x) if float(x.sum()) > 0 else x

    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = (x @ x.transpose(1, 2) + torch.relu(x[..., :5])).softmax(-1)
            return x + weights @ x

    class Aliased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            first = y[:, 0]
            y += x
            return y + first[:, None]

    def refuses(message: str, model: nn.Module, *args: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            network_graph(model, *args, **options)

    refuses("must make the same calls whatever its input is: .*looks at a value", Looking(), x)
    refuses("softmax is of a product of queries and keys, got another before 'matmul'", Mixing(), x)
    refuses("reads an alias of what was written to", Aliased(), x)
    refuses("must be a chain of .* got 'layer_norm'", nn.LayerNorm(8), x)
    refuses("must have calls whose output is added", nn.Embedding(5, 3), torch.arange(4)[None])
    refuses("nodes must be one of 'layers', 'heads', 'units', got 'blocks'", *by_heads(), "blocks")
    refuses("nodes='1': no such node; .*'0'", *by_heads(), {"1": "heads"})
    encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    refuses("heads in 'multi_head_attention_forward' of .* cannot be told", encoder, x, "heads")
    assert network_graph(encoder, x).n_nodes == 5  # the last norm is part of the logits
