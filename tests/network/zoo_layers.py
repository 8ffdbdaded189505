"""Models of the zoo whose layers are not Linear alone."""

from __future__ import annotations

import torch
from network.zoo_case import Case, Net, entry, labels, plain
from torch import Tensor, nn
from torch.nn import functional as F


@entry("batch norm")
def _() -> Case:
    def change(case: Case) -> None:
        case.model[1].running_mean.add_(1.0)

    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    return plain(nn.Sequential(*layers), "0", "1", "3:input", layer="3", change=change)


class Cnn(nn.Module):
    """Two convolutions with a residual, batch norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)
        self.conv2, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        return self.fc((h + self.conv2(h)).mean((2, 3)))


@entry("convolutions and a function as a site")
def _() -> Case:
    sites = {"conv": 1, "norm": 1, "act": 1, "conv2:input": 1, "/add#0": 1, "/mean": -1}
    ask = frozenset({"act", "/add#0"})
    return Case(Cnn(), torch.randn(4, 2, 6, 6), sites, labels(4, 4), "conv2", ask=ask)


@entry("channels last")
def _() -> Case:
    model = Cnn().to(memory_format=torch.channels_last)
    x = torch.randn(4, 2, 6, 6).to(memory_format=torch.channels_last)
    return Case(model, x, {"conv": 1, "norm": 1, "fc:input": -1}, labels(4, 4), "conv2")


@entry("a convolution over time")
def _() -> Case:
    layers = nn.Conv1d(4, 8, 2), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4)
    sites = {"0": 1, "2": 1, "3": -1}
    return Case(nn.Sequential(*layers), torch.randn(6, 4, 7), sites, labels(4, 6), "0")


@entry("features last in four dimensions")
def _() -> Case:
    class Last(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(F.gelu(self.a(x)))
            return self.b(self.act(self.c(h)).mean((1, 2)))

    model = Last(norm=nn.LayerNorm(8), c=nn.Linear(8, 8), act=nn.ReLU())
    return plain(
        model,
        *("a", "norm", "c:input", "act"),
        inputs=torch.randn(6, 3, 2, 5),
        layer="c",
        ask=frozenset({"act"}),
    )


@entry("calls of functions")
def _() -> Case:
    class Functional(Net):
        def middle(self, h: Tensor) -> Tensor:
            h = F.relu(F.linear(F.layer_norm(h, (8,)), self.w))
            return h * torch.sigmoid(h) + torch.einsum("ni,ij->nj", h, self.w)

    return plain(Functional(w=nn.Parameter(torch.randn(8, 8))), "a", "/linear", "/relu", "/mul#0")


@entry("LSTM")
def _() -> Case:
    class Lstm(Net):
        def middle(self, h: Tensor) -> Tensor:
            return self.rnn(h)[0][:, -1]

    model = Lstm(rnn=nn.LSTM(8, 8, batch_first=True))
    return plain(model, "a", "rnn[0]", inputs=torch.randn(6, 3, 5))


@entry("GRU, two layers, both ways")
def _() -> Case:
    class Gru(Net):
        def middle(self, h: Tensor) -> Tensor:
            return self.rnn(h)[0].mean(1)

    model = Gru(rnn=nn.GRU(8, 4, 2, batch_first=True, bidirectional=True))
    return plain(model, "a", "rnn[0]", "rnn:input", inputs=torch.randn(6, 3, 5))


@entry("an LSTM cell in a loop")
def _() -> Case:
    class Cells(Net):
        def middle(self, h: Tensor) -> Tensor:
            state = None
            for step in h.unbind(1):
                state = self.cell(step, state)
            assert state is not None
            return state[0]

    model = Cells(cell=nn.LSTMCell(8, 8))
    return plain(model, "a", "cell[0]#1", "cell[1]#0", inputs=torch.randn(6, 3, 5))


class Encoder(Net):
    """nn.TransformerEncoder, which in eval mode takes a path of its own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.e = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.b(self.e(self.a(x), src_key_padding_mask=padding)[:, 0])


@entry("TransformerEncoder")
def _() -> Case:
    sites = "a", "e.layers.0", "e.layers.1.linear1", "e.layers.0.norm2", "e.layers.1.linear2:input"
    return plain(Encoder(), *sites, inputs=torch.randn(6, 4, 5), layer="e.layers.1.linear1")


@entry("TransformerEncoder with padding")
def _() -> Case:
    padding = torch.zeros(6, 4, dtype=torch.bool)
    padding[0, 3] = padding[2, 2:] = True
    inputs = torch.randn(6, 4, 5), padding
    return plain(Encoder(), "a", "e.layers.0", "e.layers.1.norm1", inputs=inputs)


@entry("attention that returns its weights")
def _() -> Case:
    class Attending(Net):
        def middle(self, h: Tensor) -> Tensor:
            found, weights = self.m(h, h, h)
            return found[:, 0] + weights.sum((1, 2))[:, None]

    model = Attending(m=nn.MultiheadAttention(8, 2, batch_first=True))
    return plain(model, "a", "m[0]", "m[1]", "m:input[1]", inputs=torch.randn(6, 3, 5))


@entry("attention that returns a tuple and no weights")
def _() -> Case:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, h: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, None]:
            q, k, v = (e.unflatten(-1, (2, 4)).transpose(1, 2) for e in self.qkv(h).chunk(3, -1))
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(found.transpose(1, 2).flatten(2)), None

    class Attending(Net):
        def middle(self, h: Tensor) -> Tensor:
            return (h + self.att(h)[0])[:, -1]

    model = Attending(att=Attention())
    sites = "a", "att", "att[0]", "att.out:input", "att.qkv"
    return plain(model, *sites, inputs=torch.randn(6, 3, 5), layer="att.out")
