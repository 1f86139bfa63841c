"""Threads that shard with torch: their values are one process's, their shards rows, and a lock-up is a sentence."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from labkit.errors import LabError
from labkit.grading.sharded import sharded_ranks


def rows(mesh):
    """Each rank's own rows of one sharded matrix, the whole again, and what a reduction gives."""
    with torch.random.fork_rng():
        layer = nn.Linear(3, 7, bias=False)
    layer.weight.data.copy_(torch.arange(21.0).view(7, 3))
    fully_shard(layer, mesh=mesh)
    total = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(total)
    return layer.weight.to_local().detach().clone(), layer.weight.full_tensor().detach(), total.item()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_rank_holds_its_rows(n):
    found, whole = sharded_ranks(n, rows), torch.arange(21.0).view(7, 3)
    assert torch.equal(torch.cat([part for part, _, _ in found]), whole)
    assert all(torch.equal(part, cut) for (part, _, _), cut in zip(found, whole.chunk(n), strict=False))
    assert all(torch.equal(again, whole) and total == n * (n + 1) / 2 for _, again, total in found)
    assert not dist.is_initialized()


def trained(mesh, base, x):
    """Losses of this rank's rows over three steps."""
    net, losses = copy.deepcopy(base), []
    for layer in net:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        loss = net(x.chunk(dist.get_world_size())[dist.get_rank()]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_a_training_has_the_losses_of_one_process():
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(12, 5)
    base = nn.Sequential(base[0], nn.Sequential(base[1], base[2]))
    alone = sharded_ranks(1, trained, base, x)[0]
    for n in (2, 3):
        mean = torch.stack(sharded_ranks(n, trained, base, x)).mean(0)
        assert torch.allclose(mean, alone, 1e-5, 1e-6)
    assert alone[2] < alone[0]


def one_waits(mesh):
    if dist.get_rank() == 1:
        dist.barrier()


def one_fails(mesh):
    if dist.get_rank() == 1:
        raise ValueError("wrong")
    dist.barrier()


def one_gathers(mesh):
    """Rank 0 asks for the whole, the others are at the end already."""
    layer = fully_shard(nn.Linear(3, 7), mesh=mesh)
    if dist.get_rank() == 0:
        layer.weight.full_tensor()
    dist.barrier()


def test_different_collectives_are_told():
    with pytest.raises(LabError, match=r"Rank . meets others in .* that bring something else: .*same collectives"):
        sharded_ranks(3, one_gathers)


def never_ends(mesh):
    while True:
        pass


def leaves(mesh):
    sys.exit(3)


def test_what_goes_wrong_is_told_and_nothing_is_left():
    with pytest.raises(LabError, match=r"none can go on: rank 1 waits in barrier; rank 0 has returned"):
        sharded_ranks(2, one_waits)
    with pytest.raises(ValueError, match="wrong") as error:
        sharded_ranks(3, one_fails)
    assert "rank 1 of 3" in error.value.__notes__[0]
    with pytest.raises(LabError, match="leaves the program"):
        sharded_ranks(1, leaves)
    with pytest.raises(LabError, match=r"After 0.2 s rank 0 computes"):
        sharded_ranks(1, never_ends, seconds=0.2)
    with pytest.raises(LabError, match="9 ranks"):
        sharded_ranks(9, rows)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rank ")]
    assert sharded_ranks(2, rows)[0][2] == 3  # and the next is not disturbed
