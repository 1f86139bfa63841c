"""Stand-in launcher, to be replaced."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch


def _rank(rank: int, folder: str, fn: Any, world_size: int, args: tuple) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size)
    result = fn(*args)
    Path(f"{folder}/{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def launch(fn: Any, world_size: int, *args: Any, timeout_s: float = 120.0, device: str | None = None) -> list:
    """Run `fn(*args)` in `world_size` processes; results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder, fn, world_size, args), nprocs=world_size)
        return [pickle.loads(Path(f"{folder}/{rank}").read_bytes()) for rank in range(world_size)]
