"""Ranks as threads: gloo's own results and counted bytes; lock-ups and disagreements end at once, with a sentence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from labkit.errors import LabError
from labkit.grading.ranks import ranks
from labkit.parallel.collectives import ring_traffic


def everything(group):
    n, rank = group.world_size, group.rank
    summed = torch.arange(3.0 * n).view(3, n).t() * (rank + 1)  # not contiguous
    group.all_reduce(summed)
    whole, part = torch.arange(2.0 * n) + rank, torch.empty(2)
    group.reduce_scatter(part, whole)
    gathered = torch.empty(2 * n)
    group.all_gather(gathered, part)
    first = torch.full((4,), float(rank))
    group.broadcast(first, n - 1)
    arrived = torch.empty(5, dtype=torch.int64)
    group.exchange(torch.full((5,), rank), (rank + 1) % n, arrived, (rank - 1) % n)
    if n > 1 and rank < 2:
        (group.send if rank == 0 else group.receive)(arrived.clone(), 1 - rank)
    group.barrier()
    return summed, gathered, first, arrived, group


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_collectives_and_transfers_have_the_right_values_and_bytes(n):
    for rank, (summed, gathered, first, arrived, group) in enumerate(ranks(n, everything)):
        assert torch.equal(summed, torch.arange(3.0 * n).view(3, n).t() * sum(range(1, n + 1)))
        assert torch.equal(gathered, torch.arange(2.0 * n) * n + sum(range(n)))
        assert first.tolist() == [n - 1.0] * 4 and arrived.tolist() == [(rank - 1) % n] * 5
        sent = ring_traffic(3 * n, 4, rank, n).bytes + 2 * (n - 1) * 8 + 40 * (n > 1) + 16 * (rank == n - 1 and n > 1)
        assert group.sent_bytes == sent + 40 * (n > 1 and rank == 0)
        assert group.messages == (n > 1) + (n > 1 and rank == 0)
        once = dict.fromkeys(("all_reduce", "reduce_scatter", "all_gather", "broadcast", "exchange", "barrier"), 1)
        one_way = {"send": 1} if rank == 0 else {"receive": 1} if rank == 1 else {}
        assert dict(group.calls) == once | (one_way if n > 1 else {})


def largest(group):
    tensor = torch.tensor([[float(group.rank), -float(group.rank)], [7.0, group.rank % 2]]).t()
    group.all_reduce(tensor, "max")
    return tensor, group.sent_bytes, dict(group.calls)


def test_an_all_reduce_takes_the_largest_and_agrees_on_it():
    for n in (1, 3, 4):
        for rank, (tensor, sent, calls) in enumerate(ranks(n, largest)):
            assert tensor.t().tolist() == [[n - 1.0, 0.0], [7.0, float(n > 1)]]
            assert sent == ring_traffic(4, 4, rank, n).bytes and calls == {"all_reduce": 1}
    with pytest.raises(LabError, match=r"all_reduce.* with 1 values .* where rank . calls all_reduce"):
        ranks(2, lambda group: group.all_reduce(torch.ones(1), "max" if group.rank else "sum"))
    with pytest.raises(LabError, match="no all_reduce with 'mean'"):
        ranks(2, lambda group: group.all_reduce(torch.ones(1), "mean"))


def all_send_first(group):
    group.send(torch.ones(1), (group.rank + 1) % group.world_size)
    group.receive(torch.ones(1), (group.rank - 1) % group.world_size)


def one_returns(group):
    if group.rank:
        group.barrier()


def sizes_differ(group):
    if group.rank == 0:
        group.send(torch.ones(3), 1)
    elif group.rank == 1:
        group.receive(torch.ones(2), 0)


def other_collectives(group):
    (group.all_reduce if group.rank else group.broadcast)(torch.ones(2))


def other_sizes(group):
    group.all_reduce(torch.ones(2 + (group.rank == 1)))


def one_raises(group):
    if group.rank == 2:
        raise ZeroDivisionError("here")
    group.barrier()


def own_library(group):
    dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (all_send_first, LabError, "rank 2 waits in send to rank 0"),
        (one_returns, LabError, "rank 1 waits in barrier.*rank 0 has returned"),
        (sizes_differ, LabError, "Rank 0 sends 3 values of torch.float32 and rank 1 receives 2"),
        (other_collectives, LabError, "broadcast with 2 values"),
        (other_sizes, LabError, "all_reduce with 3 values"),
        (one_raises, ZeroDivisionError, "here"),
        (own_library, ValueError, "[Dd]efault process group"),
    ],
)
def test_what_cannot_go_on_ends_at_once_and_says_why(fn, error, words):
    began = time.monotonic()
    with pytest.raises(error, match=words) as told:
        ranks(3, fn, seconds=30)
    assert time.monotonic() - began < 15, "found when it happens, not when the time is over"
    if fn is one_raises:
        assert told.value.__notes__ == ["(raised on rank 2 of 3)"]
    gone()


def gone():
    until = time.monotonic() + 5
    while any(t.name.startswith("rank ") for t in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rank ")]


def spins(group):
    while group.rank == 1:
        pass
    group.barrier()


def test_a_loop_without_end_is_ended():
    with pytest.raises(LabError, match=r"After 0.5 s rank 0 waits in barrier.*rank 1 computes"):
        ranks(2, spins, seconds=0.5)
    gone()


def test_hundreds_of_runs_leave_nothing():
    def native():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))

    def files():
        return len([*Path("/proc/self/fd").iterdir()])

    ranks(4, everything)
    before = native(), files()
    for _ in range(60):
        ranks(4, everything)
    for _ in range(50):
        with pytest.raises(LabError):
            ranks(3, all_send_first)
    gone()
    until = time.monotonic() + 5
    while (native() > before[0] + 8 or files() > before[1] + 8) and time.monotonic() < until:
        time.sleep(0.05)
    assert native() <= before[0] + 8 and files() <= before[1] + 8


def test_an_answer_cannot_count_for_itself():
    """Under the grader: an answer's code is known by its file's name there."""
    world: dict = {}
    forget = "def forget(group):\n    group.all_reduce(x)\n    group.calls.clear()\n"
    claim = "def claim(group):\n    group.sent_bytes = 0\n"
    exec(compile(forget + claim, "<answer ex1>", "exec"), world)
    world["x"] = torch.ones(3)

    def work(group):
        world["forget"](group)
        return group.calls["all_reduce"], group.sent_bytes

    assert ranks(2, work) == [(1, 12), (1, 12)]
    with pytest.raises(LabError, match="may not set sent_bytes"):
        ranks(2, world["claim"])
