"""Distributed MeZO: bitwise equal weights on all ranks, from some tens of bytes a step."""

from __future__ import annotations

import pytest
import torch
from mezo_ranks import SETTINGS, STEPS, all_ways, steps
from micro import micro_llama

from labkit.parallel.launch import launch
from labkit.zeroth.mezo import Mezo, replay
from labkit.zeroth.trajectory import Trajectory

RANKS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    return launch(all_ways, RANKS, str(folder), device="cpu", show=False, timeout_s=200)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("way", ["directions", "batch", "walk", "nan"])
def test_all_ranks_end_with_the_same_bits_and_losses(ranks, way):
    first = ranks[0][way]
    assert not equal(first[0], [p.to(first[0][0].dtype) for p in micro_llama().parameters()])
    for other in ranks[1:]:
        assert equal(first[0], other[way][0]) and first[1] == other[way][1]


def test_directions_of_ranks_are_those_of_one_process_with_as_many(ranks):
    alone = Mezo(**{**SETTINGS, "directions": SETTINGS["directions"] * RANKS})
    weights, losses = steps(alone)
    assert equal(weights, ranks[0]["directions"][0]) and losses == ranks[0]["directions"][1]
    assert len({row.seed for row in ranks[1]["directions rows"]}) == RANKS * SETTINGS["directions"] * STEPS


def test_a_shared_batch_gives_the_whole_batchs_losses(ranks):
    """Of 10 examples the ranks have 4, 3 and 3: a mean of their means would be another number."""
    method = Mezo(**SETTINGS)
    _, losses = steps(method, torch.float32)
    assert ranks[0]["batch"][1] == pytest.approx(losses, abs=1e-5)
    seeds = [row.seed for row in method.record.rows]
    assert [row.seed for row in ranks[2]["batch rows"]] == seeds


def test_seeds_and_scalars_are_all_that_is_sent(ranks):
    """32 bytes a direction and step, where a gradient would be 2 bytes a weight."""
    for mode in ("directions", "batch"):
        sent, names, counted = ranks[0][f"{mode} sent"]
        assert sent == counted == 32 * SETTINGS["directions"] * STEPS
        assert names == ["c10d::allgather_"]


def test_a_nan_on_one_rank_is_left_out_on_all(ranks):
    assert [rank["nan"][2] for rank in ranks] == [1.0] * RANKS
    assert all(loss == loss for loss in ranks[0]["nan"][1])


def test_what_cannot_be_is_refused_before_any_rank_waits(ranks):
    for rank in ranks:
        assert "walk in directions of their own" in rank["refused walk"]
        assert "no row for each of 3 ranks" in rank["refused few"]


def test_one_rank_writes_the_trajectory_and_one_process_replays_it(ranks, folder):
    model = micro_llama().to(torch.bfloat16)
    replay(model, Trajectory.read(folder / "directions"))
    assert equal(list(model.parameters()), ranks[2]["directions"][0])
