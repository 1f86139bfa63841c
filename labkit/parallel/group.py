"""The default process group of a rank, whoever started it: `launch`, `%%ranks` or torchrun.

torchrun tells a rank who it is by RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, and where the others meet by
MASTER_ADDR and MASTER_PORT (https://docs.pytorch.org/docs/stable/elastic/run.html).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from labkit.errors import LabError
from labkit.machine import Machine

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def choose_device(ranks: int, wanted: str | None = None) -> str:
    """'cuda' or 'cpu' for `ranks` ranks on this machine: GPUs where each rank gets its own, unless `wanted` says.

    Raises:
        LabError: when GPUs are wanted and there are too few, or for a device that has no collectives here.
    """
    if wanted not in (None, "cpu", "cuda"):
        raise LabError(f"Ranks cannot run on the device {wanted!r}.", "Take 'cuda' or 'cpu'.")
    # Counted through NVML, which leaves CUDA asleep in this process.
    gpus = 0 if wanted == "cpu" else torch.cuda.device_count()
    if wanted == "cuda" and gpus < ranks:
        have = {0: "no GPU", 1: "one GPU"}.get(gpus, f"{gpus} GPUs")
        rank = f"rank {gpus} has none" if gpus == ranks - 1 else f"ranks {gpus} to {ranks - 1} have none"
        raise LabError(
            f"{ranks} ranks need {ranks} GPUs and this machine has {have}, so {rank}.",
            "Start fewer ranks, or let them run on the CPU with device='cpu'.",
        )
    return "cuda" if gpus >= ranks and gpus else "cpu"


def side_by_side(machine: Machine, wanted: Sequence[int]) -> int:
    """The largest of these numbers of ranks that can all compute at once: on a GPU each, or without GPUs for the
    smallest number on a core each; else the smallest number, whose ranks then wait for each other's cores.
    """
    places = len(machine.gpus) if len(machine.gpus) >= min(wanted) else machine.cores
    return max((ranks for ranks in wanted if ranks <= places), default=min(wanted))


def device() -> torch.device:
    """This rank's device: the current GPU where the default group runs on NCCL, else the CPU."""
    if dist.is_initialized() and "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def ranks_mesh() -> DeviceMesh:
    """All ranks in a row, on the devices that they compute on.

    Torch's functions take the machine's accelerator where no mesh is given, also if the ranks run on the CPU because
    there are more of them than GPUs.
    """
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device().type, (dist.get_world_size(),))


@contextmanager
def process_group(wanted: str | None = None, timeout_s: float = 1800.0, seed: int = 0) -> Iterator[torch.device]:
    """Within, the default process group exists and torch's seed is the same on every rank; gives the rank's device.

    After an error the group is left to the end of the process: to end it in order needs the other ranks, which may
    wait for this one. A script for torchrun ends with `labkit.parallel.system.leave`, which says why.

    Args:
        wanted: 'cuda', 'cpu' or None, see `choose_device`.
        timeout_s: seconds that a collective may take.
        seed: of torch's generators.

    Raises:
        LabError: outside torchrun and `launch`, or when there are too few GPUs.
    """
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise LabError(
            "This process is no rank: nothing says which one it is, and where the others are.",
            "Start it by: torchrun --standalone --nproc-per-node 2 -m labkit.parallel.jobs.hello.",
        )
    local, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    timeout = timedelta(seconds=timeout_s)
    if choose_device(ranks, wanted) == "cuda":
        here = torch.device("cuda", local)
        torch.cuda.set_device(here)
        dist.init_process_group("nccl", device_id=here, timeout=timeout)
    else:
        here = torch.device("cpu")
        dist.init_process_group("gloo", timeout=timeout)
    torch.manual_seed(seed)
    yield here
    dist.destroy_process_group()
