"""On two GPUs and NCCL: ZeRO's stages by value, bytes and traffic, and faults that end the group within seconds."""

from __future__ import annotations

import time

import faults
import gpu_runs
import pytest
import torch

from labkit.errors import LabError
from labkit.parallel.launch import RankError, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def test_the_stages():
    for found in launch(gpu_runs.stages, 2, device="cuda", timeout_s=300.0):
        assert len(found) == 15 and not {name: said for name, said in found.items() if said}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.killed, "Rank 1 was killed by SIGKILL."),
        (faults.raises, "Rank 1 raised ValueError: no such batch on 1."),
        (faults.never_comes, "rank 1"),
    ],
)
def test_a_fault_ends_the_group(fault, words):
    begun = time.monotonic()
    with pytest.raises(RankError, match=words) as caught:
        launch(fault, 2, 1, device="cuda", stall_s=6.0)
    assert caught.value.rank == 1 and time.monotonic() - begun < 60


def test_more_ranks_than_gpus():
    have = torch.cuda.device_count()
    with pytest.raises(LabError, match=f"rank {have} has none"):
        launch(faults.reduce_ones, have + 1, device="cuda")
