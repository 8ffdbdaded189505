"""Edges of tiny transformers and a ResNet by hand: plain hooks, whole forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[str, int]
Kept = dict[str, Tensor]


@dataclass
class Receiver:
    """Where an edge ends."""

    place: Place
    senders: list[Place]
    module: str
    """Whose input is moved; or, with `norm`, whose output is made again in some columns."""
    norm: str | None = None
    columns: slice | None = None


@dataclass
class Spec:
    """A model written down: what nodes add to the stream, and where they read it."""

    model: nn.Module
    embedding: str
    contributions: Callable[[Kept, Kept], dict[Place, Tensor]]
    watched: list[str]
    receivers: list[Receiver]
    calls: dict[str, int] = field(default_factory=dict)
    """Of a module that is called several times, whose input is moved: which call."""

    def run(
        self,
        inputs: Any,
        receiver: Receiver | None = None,
        change: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> tuple[Tensor, Kept]:
        """Logits, and what was seen; with a receiver that reads the stream and a change of it."""
        kept: Kept = {}
        handles = []

        def on(name: str, hook: Any, before: bool = False) -> None:
            module = self.model.get_submodule(name)
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(add(hook))

        if embedded is not None:
            on(self.embedding, lambda m, a, o: embedded)
        for name in self.watched:
            if name.endswith(":in"):
                on(name[:-3], lambda m, a, n=name: kept.update({n: a[0]}), True)
            else:
                on(name, lambda m, a, o, n=name: kept.update({n: _first(o)}))
        if receiver is not None:
            seen: dict[str, Any] = {"n": 0}
            if receiver.norm is not None:
                on(receiver.norm, lambda m, a: seen.update(x=a[0]), True)

                def again(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                    norm = self.model.get_submodule(receiver.norm)
                    moved = norm.forward(seen["x"] + change)
                    new = module.forward(moved)
                    found = output.clone()
                    found[..., receiver.columns] = new[..., receiver.columns]
                    return found

                on(receiver.module, again)
            elif receiver.columns is not None:

                def columns(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                    found = output.clone()
                    new = module.forward(args[0] + change)
                    found[..., receiver.columns] = new[..., receiver.columns]
                    return found

                on(receiver.module, columns)
            else:

                def move(module: nn.Module, args: Any) -> Any:
                    seen["n"] += 1
                    if seen["n"] - 1 != self.calls.get("/".join(map(str, receiver.place)), 0):
                        return None
                    return (args[0] + change, *args[1:])

                on(receiver.module, move, True)
        found = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        for handle in handles:
            handle.remove()
        return (found if isinstance(found, Tensor) else found.logits), kept

    def changes(self, clean: Any, corrupted: Any) -> dict[Place, Tensor]:
        """What each node adds to the stream in the corrupted run, minus in the clean one."""
        with torch.no_grad():
            return self.contributions(self.run(clean)[1], self.run(corrupted)[1])

    def exact(self, clean: Any, corrupted: Any, metric: Any) -> dict[tuple[Place, Place], float]:
        """Every edge by one forward pass."""
        changes = self.changes(clean, corrupted)
        with torch.no_grad():
            base = metric(self.run(clean)[0])
            return {
                (s, r.place): float(metric(self.run(clean, r, self._at(changes, s, r))[0]) - base)
                for r in self.receivers
                for s in r.senders
            }

    def slopes(
        self, clean: Any, corrupted: Any, metric: Any, steps: int
    ) -> dict[tuple[Place, Place], float]:
        """Every edge by the derivative of the metric along its change, on inputs on the way."""
        changes = self.changes(clean, corrupted)
        with torch.no_grad():
            ends = [self.run(x)[1][self.embedding] for x in (corrupted, clean)]
        found = {}
        for r in self.receivers:
            for s in r.senders:
                total = 0.0
                for i in range(1, steps + 1):
                    share = torch.zeros((), dtype=torch.float64, requires_grad=True)
                    x = torch.lerp(*ends, i / steps)
                    logits, _ = self.run(clean, r, share * self._at(changes, s, r), x)
                    total += float(torch.autograd.grad(metric(logits), share)[0]) / steps
                found[s, r.place] = total
        return found

    def _at(self, changes: dict[Place, Tensor], sender: Place, receiver: Receiver) -> Tensor:
        """What a sender's change is there: its own, or one for this receiver alone."""
        own = f"{sender[0]}->{receiver.place[0]}", sender[1]
        return changes.get(own, changes[sender])


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def before_norm(model: nn.Module, kind: str, n_heads: int, n_keys: int, n_layers: int) -> Spec:
    """GPT-2, GPT-NeoX, Llama, Qwen2 and ViT."""
    names = {
        "gpt2": ("transformer.h", "attn", "c_proj", "mlp", "mlp.act", "ln_1", "ln_2"),
        "neox": ("gpt_neox.layers", "attention", "dense", "mlp", "mlp.act", "input_layernorm",
                 "post_attention_layernorm"),
        "llama": ("model.layers", "self_attn", "o_proj", "mlp", "mlp", "input_layernorm",
                  "post_attention_layernorm"),
        "vit": ("vit.layers", "attention", "o_proj", "mlp", "mlp.activation_fn",
                "layernorm_before", "layernorm_after"),
    }  # fmt: skip
    ends = {
        "gpt2": ("transformer.drop", "transformer.ln_f"),
        "neox": ("gpt_neox.emb_dropout", "gpt_neox.final_layer_norm"),
        "llama": ("model.embed_tokens", "model.norm"),
        "vit": ("vit.embeddings", "vit.layernorm"),
    }
    layers, attention, out, mlp, mlp_node, norm1, norm2 = names[kind]
    embedding, last = ends[kind]
    d = model.get_submodule(f"{layers}.0.{norm1}").weight.shape[0] // n_heads
    watched, receivers = [embedding], []
    senders: list[Place] = [("input", 0)]
    width = n_heads * d
    for i in range(n_layers):
        at = f"{layers}.{i}."
        watched += [f"{at}{attention}.{out}:in", f"{at}{mlp}"]
        for q, letter in enumerate("qkv"):
            for h in range(n_heads if letter == "q" else n_keys):
                if kind == "gpt2":
                    linear, start = "c_attn", q * width + h * d
                elif kind == "neox":
                    linear, start = "query_key_value", (3 * h + q) * d
                else:
                    linear, start = f"{letter}_proj", h * d
                receivers.append(
                    Receiver(
                        (f"{at}{attention}.{letter}", h),
                        list(senders),
                        f"{at}{attention}.{linear}",
                        f"{at}{norm1}",
                        slice(start, start + d),
                    )
                )
        heads = [(f"{at}{attention}", h) for h in range(n_heads)]
        read = senders if kind == "neox" else senders + heads
        receivers.append(Receiver((f"{at}{mlp_node}", 0), list(read), f"{at}{norm2}"))
        senders = [*senders, *heads, (f"{at}{mlp_node}", 0)]
    receivers.append(Receiver(("logits", 0), list(senders), last))

    def contributions(clean: Kept, corrupted: Kept) -> dict[Place, Tensor]:
        found = {("input", 0): corrupted[embedding] - clean[embedding]}
        for i in range(n_layers):
            at = f"{layers}.{i}."
            name = f"{at}{attention}.{out}:in"
            weight = model.get_submodule(f"{at}{attention}.{out}").weight
            weight = weight if kind == "gpt2" else weight.T
            moved = corrupted[name] - clean[name]
            for h in range(n_heads):
                part = slice(h * d, (h + 1) * d)
                found[f"{at}{attention}", h] = moved[..., part] @ weight[part]
            found[f"{at}{mlp_node}", 0] = corrupted[f"{at}{mlp}"] - clean[f"{at}{mlp}"]
        return found

    return Spec(model, embedding, contributions, watched, receivers)


def after_norm(model: nn.Module, n_heads: int, n_layers: int) -> Spec:
    """BERT: its norms are nodes, as what they give is added to what comes next."""
    embedding, first = "bert.embeddings.word_embeddings", "bert.embeddings.LayerNorm"
    watched, receivers = [embedding, first], [Receiver((first, 0), [("input", 0)], first)]
    stream, d = first, model.get_submodule(first).weight.shape[0] // n_heads
    for i in range(n_layers):
        at = f"bert.encoder.layer.{i}."
        inner, norm = f"{at}attention.self", f"{at}attention.output.LayerNorm"
        act, last = f"{at}intermediate.intermediate_act_fn", f"{at}output.LayerNorm"
        watched += [f"{at}attention.output.dense:in", norm, f"{at}output.dense:in", last]
        for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
            for h in range(n_heads):
                receivers.append(
                    Receiver(
                        (f"{inner}.{letter}", h), [(stream, 0)], f"{inner}.{name}",
                        columns=slice(h * d, (h + 1) * d),
                    )
                )  # fmt: skip
        heads = [(inner, h) for h in range(n_heads)]
        receivers.append(Receiver((norm, 0), [(stream, 0), *heads], norm))
        receivers.append(Receiver((act, 0), [(norm, 0)], f"{at}intermediate.dense"))
        end = ("logits" if i == n_layers - 1 else last, 0)
        receivers.append(Receiver(end, [(norm, 0), (act, 0)], last))
        stream = last

    def contributions(clean: Kept, corrupted: Kept) -> dict[Place, Tensor]:
        moved = {name: corrupted[name] - clean[name] for name in watched}
        found = {("input", 0): moved[embedding], (first, 0): moved[first]}
        for i in range(n_layers):
            at = f"bert.encoder.layer.{i}."
            weight = model.get_submodule(f"{at}attention.output.dense").weight.T
            for h in range(n_heads):
                part = slice(h * d, (h + 1) * d)
                z = moved[f"{at}attention.output.dense:in"][..., part]
                found[f"{at}attention.self", h] = z @ weight[part]
            act = f"{at}intermediate.intermediate_act_fn", 0
            weight = model.get_submodule(f"{at}output.dense").weight.T
            found[act] = moved[f"{at}output.dense:in"] @ weight
            for name in (f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"):
                found[name, 0] = moved[name]
        return found

    return Spec(model, embedding, contributions, watched, receivers)


def resnet(model: nn.Module) -> Spec:
    """ResNet-18: a block adds up, and its second ReLU reads the sum."""
    watched, receivers = ["conv1:in"], [Receiver(("maxpool", 0), [("input", 0)], "conv1")]
    before, calls = "maxpool", {}
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    for block in blocks:
        first, second = f"{block}.relu#0", f"{block}.relu#1"
        watched += [f"{block}.conv1:in", f"{block}.conv2:in"]
        receivers.append(Receiver((first, 0), [(before, 0)], f"{block}.conv1"))
        end = "logits" if block == blocks[-1] else second
        receivers.append(Receiver((end, 0), [(before, 0), (first, 0)], f"{block}.relu"))
        calls[f"{end}/0"] = 1  # the second call
        before = second

    def linear(module: nn.Module, x: Tensor) -> Tensor:
        return module(x) - module(torch.zeros_like(x))

    def contributions(clean: Kept, corrupted: Kept) -> dict[Place, Tensor]:
        moved = {name: corrupted[name] - clean[name] for name in watched}
        found: dict[Place, Tensor] = {("input", 0): moved["conv1:in"]}
        before = "maxpool"
        for block in blocks:
            module: Any = model.get_submodule(block)
            first, second = f"{block}.relu#0", f"{block}.relu#1"
            end = "logits" if block == blocks[-1] else second
            x = found[before, 0] = moved[f"{block}.conv1:in"]
            down = module.downsample
            found[f"{before}->{end}", 0] = x if down is None else linear(down, x)
            inner = nn.Sequential(module.conv2, module.bn2)
            found[first, 0] = linear(inner, moved[f"{block}.conv2:in"])
            before = second
        return found

    return Spec(model, "conv1", contributions, [*watched, "conv1"], receivers, calls)
