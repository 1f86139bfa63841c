"""Bytes and traffic on four and eight ranks, and the formulas that they equal."""

from __future__ import annotations

import pytest
import zero_runs
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.memory.buckets import GRAIN
from labkit.parallel.launch import launch
from labkit.parallel.zero_formula import bytes_by_category, bytes_per_rank, traffic_per_step
from labkit.parallel.zero_units import part_size
from labkit.published import config

pytestmark = pytest.mark.usefixtures("without_gpus")


def test_four_ranks():
    for found in launch(zero_runs.four, 4, timeout_s=600.0):
        for part in found.values():
            assert part and not {name: said for name, said in part.items() if said}


@pytest.mark.slow
def test_eight_ranks():
    for found in launch(zero_runs.eight, 8, timeout_s=600.0):
        assert len(found) == 7 and not {name: said for name, said in found.items() if said}


def test_the_papers_table():
    """Rajbhandari et al. 2020, figure 1: Ψ = 7.5 billion, N = 64, K = 12."""
    gigabytes = [bytes_per_rank(stage, 7.5e9, 64) / 1e9 for stage in (0, 1, 2, 3)]
    assert [round(size, 1) for size in gigabytes] == [120.0, 31.4, 16.6, 1.9]


def test_traffic():
    one = 2 * 7.5e9 * 63 / 64  # the gradient's bytes, but for the own part
    assert [traffic_per_step(stage, 7.5e9, 64) for stage in (0, 1, 2, 3)] == [2 * one, 2 * one, 2 * one, 3 * one]
    assert traffic_per_step(3, 7.5e9, 64, kept=7.5e9) == 2 * one and traffic_per_step(2, 7.5e9, 1) == 0
    # The gradients twice through a ring, whatever the weights' bytes; sharded, the weights come back instead.
    assert traffic_per_step(0, 100, 4, weight_bytes=4) == 300 and traffic_per_step(1, 100, 4, weight_bytes=4) == 450


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_ledgers_prediction_is_the_same(stage):
    arch = Architecture.of(config("opt-1.3b"))
    case = Case(arch, 1, 8, weights="bfloat16", master=True, stage=stage, world_size=8)
    found = standing(case, 1)
    # Without stages all gradients become fp32 for the optimizer; the stages widen a layer's as they update it.
    ours = bytes_by_category(stage, arch.parameters, 8, gradient_bytes=2 if stage else 4)
    assert found["weights"] == pytest.approx(ours["weights"], abs=1)
    assert gradients(case, 1) == pytest.approx(ours["gradients"], abs=1)
    assert found["master_weights"] + found["optimizer_states"] == pytest.approx(ours["optimizer_states"], rel=1e-6)


def test_what_does_not_exist_is_refused():
    with pytest.raises(LabError, match="no stage 4"):
        bytes_per_rank(4, 1, 1)
    with pytest.raises(LabError, match="world size"):
        traffic_per_step(1, 1, 0)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=9), st.integers(1, 16))
def test_parts_hold_everything_and_little_more(numels, world_size):
    size, slots = part_size(numels, world_size), sum(-(-n // GRAIN) * GRAIN for n in numels)
    assert size % GRAIN == 0 and slots <= size * world_size < slots + GRAIN * world_size
