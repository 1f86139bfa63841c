"""Collectives from send and receive: torch's results, the formula's bytes, neighbours only, on 1 to 8 ranks."""

from __future__ import annotations

import collective_runs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.parallel.collectives import Traffic, chunk_sizes, ring_seconds, ring_traffic, tree_seconds
from labkit.parallel.launch import launch

GROUPS = [*(list(range(n)) for n in range(1, 9)), [1, 3, 6]]


@given(numel=st.integers(0, 10_000), world_size=st.integers(1, 64), itemsize=st.sampled_from([1, 2, 4, 8]))
def test_all_ranks_together_send_2_n_minus_1_times_the_tensor(numel, world_size, itemsize):
    sizes = chunk_sizes(numel, world_size)
    assert sum(sizes) == numel and max(sizes) - min(sizes) <= 1
    assert sizes == [len(part) for part in torch.empty(numel).tensor_split(world_size)]
    sent = [ring_traffic(numel, itemsize, rank, world_size) for rank in range(world_size)]
    assert sum(t.bytes for t in sent) == 2 * (world_size - 1) * numel * itemsize
    if numel % world_size == 0:
        assert {t.bytes for t in sent} == {2 * (world_size - 1) * numel // world_size * itemsize}
        assert {t.messages for t in sent} == {2 * (world_size - 1) if numel else 0}
    # uneven chunks cost no rank more than two values beyond its share
    assert all(t.bytes <= itemsize * (2 * (world_size - 1) * numel / world_size + 2) for t in sent)


def test_a_ring_is_for_large_tensors_and_a_tree_for_small_ones():
    alpha, beta = 20e-6, 25e9
    by_bandwidth = [ring_seconds(1e9, n, alpha, beta) * beta / 1e9 for n in (2, 8, 64)]
    assert by_bandwidth == pytest.approx([1.0, 1.75, 1.97], abs=0.1)
    assert ring_seconds(4, 64, alpha, beta) == pytest.approx(126 * alpha, rel=1e-3)
    assert tree_seconds(4, 64, alpha, beta) == pytest.approx(6 * alpha, rel=1e-3)
    assert tree_seconds(4, 65, alpha, beta) == pytest.approx(7 * alpha, rel=1e-3)
    assert ring_seconds(1e9, 1, alpha, beta) == tree_seconds(1e9, 1, alpha, beta) == 0


def test_traffic_is_subtracted_to_tell_one_steps():
    assert Traffic(10, 3) - Traffic(4, 1) == Traffic(6, 2)


def test_every_group_of_one_to_eight_ranks_agrees_with_torch():
    world_size = torch.cuda.device_count() if torch.cuda.is_available() else 8
    groups = [ranks for ranks in GROUPS if max(ranks) < world_size]
    found = launch(collective_runs.sweep, world_size, groups, timeout_s=300)
    assert len(found) == world_size and [line for lines in found for line in lines] == []
