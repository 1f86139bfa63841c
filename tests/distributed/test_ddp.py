"""Data parallelism: torch DDP's gradients, one process's step, the formula's bytes; and mutants that must be caught."""

from __future__ import annotations

import math

import ddp_runs
import pytest
import torch
from micro import Letters
from reducer_runs import FAULTS

from labkit.errors import LabError
from labkit.parallel.data import shard_batch
from labkit.parallel.ddp import DDP, NaiveDDP, TorchDDP
from labkit.parallel.launch import launch
from labkit.parallel.reducers import assign
from labkit.tasks import Batch

TASK = Letters()
AGREE = (
    "gradients",
    "accumulation",
    "traffic_and_bytes",
    "overlap",
    "watched",
    "unused",
    "refusals",
    "replicas",
    "methods",
    "bytes_per_rank",
    "refused_methods",
)


def ranks(checks, world_size):
    """What each rank found, by check."""
    if torch.cuda.is_available() and torch.cuda.device_count() < world_size:
        pytest.skip(f"needs {world_size} GPUs")
    found = launch(checks, world_size, timeout_s=300)
    assert len(found) == world_size
    return found


@pytest.fixture(scope="module")
def found():
    """On two ranks, where sums commute: equal to torch's to the bit."""
    return ranks(ddp_runs.everything, 2)


@pytest.fixture(scope="module")
def found_by_three():
    """On three ranks, where the order of additions shows and nothing divides evenly."""
    return ranks(ddp_runs.beyond_two, 3)


@pytest.mark.parametrize("check", AGREE)
def test_two_ranks_agree_with_the_library_and_with_one_process(found, check):
    assert [line for rank in found for line in rank[check]] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_reducer_is_caught_on_every_step(found, fault):
    lines = [line for rank in found for line in rank["faulty_reducers"][fault]]
    assert not [line for rank in found for line in rank["faulty_reducers"][""]]
    assert all(any(f"step {step}" in line for line in lines) for step in range(3))


@pytest.mark.parametrize("fault", ddp_runs.CAUGHT_BY)
def test_a_faulty_method_is_caught(found, fault):
    assert not [line for rank in found for line in rank["mutants"][""]]
    lines = [line for rank in found for line in rank["mutants"][fault]]
    assert any(ddp_runs.CAUGHT_BY[fault] in line for line in lines)


def test_training_is_one_processs_on_every_rank(found):
    for losses in (rank["training"] for rank in found):
        assert losses["ddp"] == pytest.approx(losses["one process"], rel=1e-5)
        assert losses["ddp"] == found[0]["training"]["ddp"], "ranks report one loss, the whole batch's"
        assert losses["ddp"] == losses["torch.ddp"], "sums of two commute"
        assert len(set(losses["ddp: sent"])) == 1 and len(losses["ddp: sent"]) == 6


def test_three_ranks_agree_with_the_library_and_with_one_process(found_by_three):
    for rank in found_by_three:
        losses = rank.pop("training")
        assert [line for lines in rank.values() for line in lines] == []
        assert losses["ddp"] == pytest.approx(losses["one process"], rel=1e-5)
        assert losses["ddp"] == pytest.approx(losses["torch.ddp"], rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_make_up_the_batch(rows, world_size):
    batch = TASK.batch(TASK.train[:rows])
    shares = [shard_batch(batch, rank, world_size) for rank in range(world_size)]
    counting = [share for share in shares if share.weight]
    assert torch.equal(torch.cat([share.batch.labels for share in counting]), batch.labels)
    assert torch.equal(torch.cat([share.batch.input_ids for share in counting]), batch.input_ids)
    assert math.isclose(sum(share.weight for share in shares), world_size)
    assert all(len(share.batch.labels) >= 1 for share in shares)
    if rows % world_size == 0:
        assert {share.weight for share in shares} == {1.0}, "exactly, so that torch's bits are ours"


def test_what_does_not_count_has_no_weight():
    labels = torch.tensor([-100, -100, -100, 1, 0, -100])
    batch = Batch(torch.arange(12).view(6, 2), torch.ones(6, 2), labels)
    first, last = (shard_batch(batch, rank, 2) for rank in (0, 1))
    assert first.weight == 0 and first.batch.labels.tolist() == [1], "a mean over nothing is no number"
    assert last.weight == 2 and len(last.batch.labels) == 3
    with pytest.raises(LabError, match="Nothing counts"):
        shard_batch(Batch(batch.input_ids, batch.attention_mask, torch.full((6,), -100)), 0, 2)
    with pytest.raises(LabError, match="Rank 2"):
        shard_batch(batch, 2, 2)


def test_buckets_fill_from_the_last_parameter_and_hold_one_dtype():
    sizes = [5, 300, 10, 20, 400, 1, 30]
    parameters = [torch.empty(n, dtype=torch.bfloat16 if n == 10 else torch.float32) for n in sizes]
    assert assign(parameters, bucket_bytes=1000, first_bytes=100) == [[6], [5, 4], [3, 1], [2], [0]]
    assert assign(parameters, bucket_bytes=1e9, first_bytes=1e9) == [[6, 5, 4, 3, 1, 0], [2]]


@pytest.mark.parametrize("method", [NaiveDDP(), DDP(), TorchDDP()])
def test_without_ranks_the_way_to_them_is_told(method):
    with pytest.raises(LabError, match=r"no process group.*launch"):
        method.prepare(torch.nn.Linear(2, 2), TASK, 1)
