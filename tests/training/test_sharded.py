"""Weights that lie in shards on two processes give what whole ones give on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modfast import ClusterabilityLoss, Clusters, Modularity, clusterability
from modfast.models import MLP


def network() -> MLP:
    torch.manual_seed(0)
    return MLP([6, 9, 7, 5]).double()


def batch(rank: int) -> Tensor:
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, reg: Any, batches: Any) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum(model(x).square().mean() for x in batches) / len(batches)
        (loss + (0.0 if reg is None else reg())).backward()
        optimizer.step()


def check_values(mesh: Any) -> None:
    """clusterability of every way to shard, and its gradient."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    generator = torch.Generator().manual_seed(0)
    for shape in ((9, 6), (1, 5), (6, 4, 3, 3)):
        whole = torch.randn(*shape, dtype=torch.float64, generator=generator)
        clusters = Clusters(torch.arange(shape[0]) % 3, torch.arange(shape[1]) % 3)
        squares = whole.square().flatten(2).sum(-1) if len(shape) > 2 else whole.square()
        expected = squares[clusters.mask()].sum() / squares.sum()
        plain = whole.clone().requires_grad_()
        clusterability(plain, clusters).backward()
        ways = [Replicate(), Shard(0), Shard(1), *([Shard(2)] if len(shape) > 2 else [])]
        for way in ways:
            weight = distribute_tensor(whole, mesh, [way]).requires_grad_()
            found = clusterability(weight, clusters)
            torch.testing.assert_close(found, expected)
            found.backward()
            assert weight.grad.placements == (way,)
            torch.testing.assert_close(weight.grad.full_tensor(), plain.grad)


def check_training(mesh: Any, rank: int) -> None:
    """FSDP2 with either means against one process that sees both batches."""
    from torch.distributed.fsdp import fully_shard

    for base in ("sgd", torch.optim.RMSprop):
        for by_loss in (False, True):
            one, many = network(), network()
            for layer in (many.fc1, many.fc2):
                fully_shard(layer, mesh=mesh)
            fully_shard(many, mesh=mesh)
            torch_class = torch.optim.SGD if base == "sgd" else base
            reg, optimizer = [], []
            for model in (one, many):
                if by_loss:
                    reg.append(ClusterabilityLoss(model, ["fc2", "fc3"], 2, alpha=5.0))
                    optimizer.append(torch_class(model.parameters(), lr=0.01))
                else:
                    reg.append(None)
                    optimizer.append(
                        Modularity(
                            model.named_parameters(), 0.01, 2, 5.0, ["fc2", "fc3"], base=base
                        )
                    )
            steps(one, optimizer[0], reg[0], [batch(0), batch(1)])
            steps(many, optimizer[1], reg[1], [batch(rank)])
            for p, q in zip(one.parameters(), many.parameters(), strict=True):
                torch.testing.assert_close(q.full_tensor(), p, rtol=1e-9, atol=1e-10)
            measures = reg if by_loss else optimizer
            torch.testing.assert_close(measures[1].values, measures[0].values)


def check_refusals(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    clusters = Clusters.equal(4, 4, 2)
    with pytest.raises(ValueError, match="weight must be sharded or replicated"):
        clusterability(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]), clusters)
    bad = torch.ones(4, 4)
    bad[3, 3] = torch.nan  # on one process only; both must refuse
    weight = nn.Parameter(distribute_tensor(bad, mesh, [Shard(0)]))
    with pytest.raises(ValueError, match="parameter 'w' must be finite, got values NaN"):
        Modularity([("w.weight", weight)], layers="w", n_clusters=2)


def main() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    check_values(mesh)
    check_training(mesh, dist.get_rank())
    check_refusals(mesh)
    dist.barrier()
    dist.destroy_process_group()
    print("all as whole", flush=True)
    # A thread of gloo's that asks for Python while the interpreter ends would abort the process.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes() -> None:
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all as whole") == 2


if __name__ == "__main__":
    main()
