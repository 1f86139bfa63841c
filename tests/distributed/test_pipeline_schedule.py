"""Schedules of pipelines as lists: complete, free of deadlocks, with the bubble and the memory of the papers."""

from itertools import pairwise, product

import pytest

from labkit.errors import LabError, UnknownNameError
from labkit.parallel.pipeline_schedule import (
    BACKWARD,
    FORWARD,
    Action,
    bubble,
    check,
    ideal_bubble,
    live_peaks,
    schedule,
    simulate,
)
from labkit.parallel.pipeline_stage import layer_ranges

SIZES = list(product(("gpipe", "1f1b"), range(1, 9), range(1, 13)))


def test_every_schedule_is_valid_and_has_the_bubble_and_the_memory_of_the_formulas():
    for name, p, m in SIZES:
        orders = schedule(name, p, m)
        check(orders, m)
        assert live_peaks(orders) == [m if name == "gpipe" else min(m, p - stage) for stage in range(p)]
        for forward, backward in ((1.0, 2.0), (3.0, 0.5)):
            ran = simulate(orders, forward, backward)
            assert bubble(ran) == pytest.approx(ideal_bubble(p, m)) == pytest.approx((p - 1) / (m + p - 1))
            assert max(r.end for r in ran) == pytest.approx((m + p - 1) * (forward + backward))
            assert [[r.action for r in ran if r.stage == stage] for stage in range(p)] == orders


def test_1f1b_of_three_stages_is_the_papers():
    text = [" ".join(f"{a.kind[0]}{a.micro_batch}" for a in order) for order in schedule("1f1b", 3, 4)]
    assert text == ["f0 f1 f2 b0 f3 b1 b2 b3", "f0 f1 b0 f2 b1 f3 b2 b3", "f0 b0 f1 b1 f2 b2 f3 b3"]


def test_nothing_starts_before_what_it_needs_has_arrived():
    for name in ("gpipe", "1f1b"):
        ran = simulate(schedule(name, 4, 6), [1.0, 2.0, 1.5, 1.0], 2.0, send=0.25)
        ends = {(r.stage, r.action): r.end for r in ran}
        for r in ran:
            before = r.stage + (-1 if r.action.kind == FORWARD else 1)
            if 0 <= before < 4:
                assert r.start >= ends[before, r.action] + 0.25
        assert bubble(ran) > ideal_bubble(4, 6)


def warmed(stages, micro_batches, warm):
    """1F1B with other warm-ups."""
    orders = []
    for stage in range(stages):
        first = min(micro_batches, warm(stage))
        order = [Action(FORWARD, k) for k in range(first)]
        for k in range(micro_batches):
            order += [Action(FORWARD, first + k)] if first + k < micro_batches else []
            order.append(Action(BACKWARD, k))
        orders.append(order)
    return orders


def test_a_warm_up_that_is_too_short_is_found_without_running():
    """Shorter than the next stage's: that stage waits for a forward which waits for its backward.

    Longer by three: the forwards that stage 0 has ahead and the backwards that come up block each other's way.
    """
    assert warmed(4, 8, lambda stage: 3 - stage) == schedule("1f1b", 4, 8)
    for warm in product(range(4), repeat=3):
        orders = warmed(3, 8, lambda stage: warm[stage])  # noqa: B023 (called at once)
        short = any(a < b for a, b in pairwise(warm))
        if short or any(a - b >= 3 for a, b in pairwise(warm)):
            with pytest.raises(LabError, match="This is a deadlock: stage 0 waits with"):
                check(orders, 8)
        else:
            check(orders, 8)
        if short:
            with pytest.raises(LabError, match="does not finish"):
                simulate(orders)
        else:
            assert ideal_bubble(3, 8) - 1e-9 <= bubble(simulate(orders)) <= 2 / 3 + 1e-9


def test_no_warm_up_at_all_runs_but_one_after_the_other():
    orders = warmed(4, 8, lambda stage: 0)
    check(orders, 8)
    assert bubble(simulate(orders)) == pytest.approx(3 / 4) and live_peaks(orders) == [1] * 4


def test_a_sender_that_is_never_relieved_of_its_message_is_found():
    """Stage 0 runs all its forwards first; stage 1 takes the second only after two backwards went up to stage 0."""
    orders = schedule("gpipe", 2, 4)
    orders[1] = schedule("1f1b", 2, 4)[1]
    with pytest.raises(LabError, match="to take"):
        check(orders, 4)


def changed(change):
    orders = schedule("1f1b", 3, 4)
    change(orders)
    return orders


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda o: o[1].pop(), "Stage 1 never runs backward 3"),
        (lambda o: o[2].append(Action(FORWARD, 0)), "Stage 2 runs forward 0 twice"),
        (lambda o: o[0].append(Action(FORWARD, 4)), "or there is none"),
        (lambda o: o[2].insert(0, o[2].pop(1)), "backward 0 before its forward"),
        (lambda o: o[0].__setitem__(slice(0, 2), o[0][1::-1]), "mistake one message for another"),
    ],
)
def test_lists_that_are_no_schedule_are_refused(change, says):
    with pytest.raises(LabError, match=says):
        check(changed(change), 4)


def test_names_and_sizes_that_do_not_exist_are_refused():
    with pytest.raises(UnknownNameError, match="1f1b"):
        schedule("1f1", 2, 2)
    for stages, micro in ((0, 1), (1, 0)):
        with pytest.raises(LabError, match="make no pipeline"):
            schedule("gpipe", stages, micro)
    with pytest.raises(LabError, match="no durations of 2 stages"):
        simulate(schedule("gpipe", 2, 2), [1.0])
    with pytest.raises(LabError, match="Nothing ran"):
        bubble([])


def test_layers_are_dealt_out_evenly():
    assert layer_ranges(5, 4) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert layer_ranges(8, 2) == [range(0, 4), range(4, 8)]
    for stages in (0, 6):
        with pytest.raises(LabError, match="from 1 to 5 stages"):
            layer_ranges(5, stages)
