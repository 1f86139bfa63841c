"""What ranks run in the tests of the launcher where nothing goes wrong."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from labkit.parallel.group import device
from labkit.parallel.progress import report


def who(word):
    """Everything that a launch promises to a rank."""
    for step in range(3):
        report(step + 1, 3)
    print(f"{word} from {dist.get_rank()}")
    print("to stderr", file=sys.stderr)
    print("no newline", end="")
    values = torch.full((3,), float(dist.get_rank() + 1))
    dist.all_reduce(values)
    return {
        "rank": dist.get_rank(),
        "ranks": dist.get_world_size(),
        "local": int(os.environ["LOCAL_RANK"]),
        "threads": (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()),
        "elastic": "TORCHELASTIC_RUN_ID" in os.environ,
        "random": torch.rand(2),
        "sum": values,
        "backend": dist.get_backend(),
        "device": device(),
        "port": os.environ["MASTER_PORT"],
        "cwd": str(Path.cwd()),
        "parent": os.getppid(),
        "pid": os.getpid(),
    }


def big(count):
    """A view of a large tensor, a parameter, and one tensor twice."""
    whole = torch.arange(count, dtype=torch.float32)
    return whole[:2], torch.nn.Parameter(torch.ones(2)), [whole, whole]


def writes_slowly():
    for line in range(8):
        print("line", line)
        time.sleep(0.4)


def nothing():
    """Returns at once."""


def every_method() -> dict[str, list[float]]:
    """Two steps of the tiny model by every method that `train` has: its losses."""
    from labkit.parallel.jobs.train import REPLICATED, SHARDED, Job, trained

    sizes = {"steps": 2, "batch": 4, "seq_len": 32, "tests": 4, "dtype": "float32"}
    return {name: trained(Job("tiny", name, **sizes)).losses for name in (*REPLICATED, *SHARDED)}
