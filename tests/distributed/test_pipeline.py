"""Pipelines on real ranks: the whole model's gradients, torch's bits, and the memory that the schedules promise."""

from itertools import pairwise

import pytest
from pipeline_runs import LAYERS, MICRO, NAMES, ROWS, SEQ, WIDTH, everything, llama

from labkit.errors import LabError
from labkit.parallel.launch import launch
from labkit.parallel.pipeline_schedule import FORWARD, bubble, schedule
from labkit.parallel.pipeline_stage import Stage

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def ranks():
    return launch(everything, 4, timeout_s=300.0)


def peak(name, stage, stages, micro):
    return micro if name == "gpipe" else min(micro, stages - stage)


@pytest.mark.parametrize("run, stages", [("gradients", 4), ("pairs", 2)])
def test_gradients_are_the_whole_batchs_and_to_the_bit_those_of_its_pieces(ranks, run, stages):
    for number, rank in enumerate(ranks):
        for (name, tied, masked, micro), found in rank[run].items():
            assert max(found["loss"], found["gradients"], found["head"]) < ROUNDING, (name, tied, masked, micro)
            # Two halves of a tied weight's gradient are added after the micro-batches' instead of among them.
            assert found["pieces"] < ROUNDING if tied else found["pieces"] == 0
            assert found["live"] == peak(name, number % stages, stages, micro)
            assert found["unmeasured"] == (None, [])


def test_tied_copies_train_as_one_weight(ranks):
    for rank in ranks:
        assert rank["steps"]["weights"] < ROUNDING and rank["steps"]["copies"]


def test_bytes_alive_are_those_of_the_micro_batches_that_live(ranks):
    for stage, rank in enumerate(ranks):
        for name in NAMES:
            found = rank["measured"][name]
            assert found["live"] == peak(name, stage, len(ranks), MICRO)
            assert found["live_bytes"] == found["live"] * found["one alone"] > 0
            assert found["afterwards"] == 0
    assert sum(rank["measured"]["gpipe"]["weights"] for rank in ranks) == ranks[0]["measured"]["whole"]


def test_each_stage_sends_an_activation_down_and_a_gradient_up(ranks):
    message = 4 * ROWS // MICRO * SEQ * WIDTH
    for stage, rank in enumerate(ranks):
        neighbours = (stage > 0) + (stage < len(ranks) - 1)
        for name in NAMES:
            found = rank["measured"][name]
            assert found["sent"] == found["received"] == [message] * MICRO * neighbours


def test_spans_follow_the_schedule_on_one_clock(ranks):
    for name in NAMES:
        ran = [r for rank in ranks for r in rank["measured"][name]["ran"]]
        at = {(r.stage, r.action): r for r in ran}
        orders = schedule(name, len(ranks), MICRO)
        for stage, order in enumerate(orders):
            spans = [r for r in ran if r.stage == stage]
            assert [r.action for r in spans] == order
            assert all(a.end <= b.start for a, b in pairwise(spans))
        for r in ran:
            source = at.get((r.stage + (-1 if r.action.kind == FORWARD else 1), r.action))
            assert source is None or source.end <= r.start
        assert min(r.start for r in ran) >= 0 < bubble(ran) < 1


def test_torchs_schedules_give_the_same_bits_and_send_the_same(ranks):
    for rank in ranks:
        for found in rank["torchs"].values():
            assert found["equal"] and found["loss"] < 1e-6
            ours, theirs = found["messages"]
            assert ours == theirs


def test_mistakes_show(ranks):
    for rank in ranks:
        found = rank["mutants"]
        assert found["none"] < ROUNDING
        assert min(found["not divided"], found["mean of means"]) > 0.1
        assert found["hoarded bytes"] == MICRO * rank["measured"]["1f1b"]["one alone"]
    # The copies part on the two stages that have them.
    assert min(ranks[0]["mutants"]["tied apart"], ranks[-1]["mutants"]["tied apart"]) > 0.1


def test_a_schedule_of_ones_own_runs_and_what_cannot_run_is_refused(ranks):
    for rank in ranks:
        found = rank["own_orders"]
        assert max(found["loss"], found["gradients"]) < ROUNDING
        assert "This is a deadlock: stage 0 waits with backward 0 for stage 1" in found["deadlock"]
        assert "16 rows cannot be cut into 3 equal" in found["rows"] and "No label" in found["labels"]
        assert f"on rank 0 of {len(ranks)}" in ranks[0]["own_orders"]["ranks"]


def test_models_that_cannot_be_cut_are_refused():
    with pytest.raises(LabError, match=f"{LAYERS} layers cannot be cut into {LAYERS + 1} stages"):
        Stage(llama(), 0, LAYERS + 1)
    for ranges in ([range(0, 2), range(3, 5)], [range(0, 5)]):
        with pytest.raises(LabError, match="do not deal 5 layers out to 2 stages"):
            Stage(llama(), 0, 2, ranges)
    with pytest.raises(LabError, match="no stage 2 of 2"):
        Stage(llama(), 2, 2)
    with pytest.raises(LabError, match="Give a LlamaForCausalLM"):
        Stage(llama().model, 0, 2)
