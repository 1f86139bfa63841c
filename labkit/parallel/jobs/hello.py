"""Every rank says where it is, and all of them measure an all-reduce.

A ring all-reduce of S bytes on N ranks sends 2 (N−1)/N S bytes from each rank (Patarasuk & Yuan 2009), so that factor
times S over the time is the bandwidth of the slowest link, whatever N is ("bus bandwidth" in NVIDIA's nccl-tests).
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import torch
import torch.distributed as dist

from labkit.parallel.group import device, process_group
from labkit.parallel.system import leave

_TURNS = 5


def hello(mib: float = 8.0) -> dict[str, Any]:
    """One rank's report, after an all-reduce of `mib` MiB of fp32 that is checked on every element.

    Returns:
        rank, world_size, host, pid, backend, device; sum: what the all-reduce gave; gb_per_s: bus bandwidth, in 10⁹
        bytes a second, of the median of five turns.
    """
    rank, ranks, here = dist.get_rank(), dist.get_world_size(), device()
    values = torch.full((max(1, int(mib * 2**18)),), float(rank + 1), device=here)
    dist.all_reduce(values)
    total = values[0].item()
    assert (values == total).all() and total == ranks * (ranks + 1) / 2
    seconds = sorted(_seconds(values) for _ in range(_TURNS))[_TURNS // 2]
    moved = 2 * (ranks - 1) / ranks * values.numel() * values.itemsize
    return {
        "rank": rank,
        "world_size": ranks,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "backend": dist.get_backend(),
        "device": str(here),
        "sum": total,
        "gb_per_s": moved / seconds / 1e9,
    }


def _seconds(values: torch.Tensor) -> float:
    dist.barrier()
    begun = time.perf_counter()
    dist.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    """As torchrun runs it: rank 0 prints everyone's report."""
    with process_group():
        reports: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, hello())
        if dist.get_rank() == 0:
            for report in reports:
                print("{rank} of {world_size} on {host}: {device}, {backend}, {gb_per_s:.2f} GB/s".format(**report))


if __name__ == "__main__":
    main()
    leave(0)
