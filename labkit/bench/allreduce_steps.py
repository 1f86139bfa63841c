"""What the ranks of table `allreduce` run: one all-reduce of a given size, by several ways to make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.bench.ranks import settle
from labkit.bench.steps import median_ms
from labkit.bench.zero_steps import MIB, Setting
from labkit.parallel import collectives
from labkit.parallel.collectives import Traffic, ring_traffic
from labkit.parallel.group import device
from labkit.parallel.nvlink import SentOverNvlink
from labkit.parallel.zero_wire import all_gather_single, reduce_scatter_single

WARM, FEWEST, MOST = 2, 5, 40
_MANY_BYTES = 2**28  # for which FEWEST repetitions are enough


@dataclass(frozen=True)
class Payload:
    """A tensor of `mib` MiB of which every rank is to hold the sum over `world_size` ranks, by `method`."""

    method: str
    dtype: str
    world_size: int
    mib: float


@dataclass(frozen=True)
class Training(Setting):
    """A whole step of data parallelism.

    Attributes:
        collective: that averages gradients in our methods; None in torch's.
    """

    collective: str | None = None


def ring(tensor: Tensor, traffic: Traffic) -> None:
    """Ours, of sends and receives."""
    collectives.all_reduce(tensor, traffic=traffic)


def two_halves(tensor: Tensor, traffic: Traffic) -> None:
    """torch's reduce-scatter, then its all-gather: what ZeRO's first two stages do."""
    world, rank = dist.get_world_size(), dist.get_rank()
    part = tensor.view(world, -1)[rank]
    reduce_scatter_single(part, tensor)
    all_gather_single(tensor, part)


def torchs(tensor: Tensor, traffic: Traffic) -> None:
    """torch's, which chooses among rings, trees and more."""
    dist.all_reduce(tensor)


def through_rank_0(tensor: Tensor, traffic: Traffic) -> None:
    """The obvious way: rank 0 collects all, adds, and sends the sum to each."""
    world = dist.get_world_size()
    if dist.get_rank():
        dist.send(tensor, 0)
        traffic.sent(tensor)
        dist.recv(tensor, 0)
        return
    arriving = torch.empty_like(tensor)
    for source in range(1, world):
        dist.recv(arriving, source)
        tensor.add_(arriving)
    for receiver in range(1, world):
        dist.send(tensor, receiver)
        traffic.sent(tensor)


METHODS: dict[str, Callable[[Tensor, Traffic], None]] = {
    "ring": ring,
    "torch.all_reduce": torchs,
    "torch.reduce_scatter+all_gather": two_halves,
    "through-rank-0": through_rank_0,
}


def measured(setting: Payload) -> dict[str, Any]:
    """Time of one all-reduce, bytes that this rank sent for it, and whether the sum was right."""
    here, dtype, world = device(), getattr(torch, setting.dtype), setting.world_size
    count = round(setting.mib * MIB / dtype.itemsize)
    tensor, traffic, run = torch.ones(count, dtype=dtype, device=here), Traffic(), METHODS[setting.method]
    run(tensor, traffic)
    right = bool((tensor == world).all())
    tensor.zero_()
    for _ in range(WARM):
        run(tensor, Traffic())
    times = max(FEWEST, min(MOST, _MANY_BYTES // (count * dtype.itemsize)))
    settle(here)
    link = SentOverNvlink(here)
    step_ms = median_ms(lambda: run(tensor, Traffic()), times, here.type)
    sent = link.bytes()
    ours = setting.method in ("ring", "through-rank-0")
    return {
        "backend": dist.get_backend(),
        "step_ms": step_ms,
        "sent_mib": traffic.bytes / MIB if ours else None,
        "messages": traffic.messages if ours else None,
        "formula_mib": ring_traffic(count, dtype.itemsize, dist.get_rank(), world).bytes / MIB,
        "nvlink_mib": None if sent is None else sent / times / MIB,
        "right": right,
    }
