"""The charts of lesson 08 draw what ran, and their words and titles tell the schedules' own numbers."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside
from matplotlib.patches import Rectangle

from labkit import published
from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.parallel.model_traffic import sent_per_step, tokens_where_equal
from labkit.parallel.pipeline_schedule import BACKWARD, FORWARD, Action, bubble, ideal_bubble, schedule, simulate
from labkit.show import cut_traffic, schedules


def blocks(ax):
    return [p for p in ax.patches if isinstance(p, Rectangle) and p.get_height() == pytest.approx(0.86)]


def test_a_chart_has_a_block_where_each_action_ran():
    ran = schedules.planned("1f1b", 3, 4)
    fig = schedules.schedule_figure({"plan": ran}, "")
    drawn = sorted((round(p.get_y() + 0.43), p.get_x(), p.get_width()) for p in blocks(fig.axes[0]) if p.get_y() % 1)
    wanted = sorted((r.stage, r.start, r.end - r.start) for r in ran)
    assert [d for d in drawn if d in wanted] == wanted
    assert fig.axes[0].get_title(loc="left") == "plan: 33 % of all ranks' time stands still"
    assert "rank 2 from forward 0 to backward 3" in schedules.schedule_words({"plan": ran}, "")
    assert_titles_and_names_inside(fig)


def test_evened_times_have_the_formulas_bubble():
    orders = schedule("gpipe", 3, 5)
    ran = simulate(orders, [1.0, 2.0, 4.0], [2.0, 2.0, 9.0], send=0.5)
    assert bubble(ran) > 0.4 and bubble(schedules.evened(ran)) == pytest.approx(ideal_bubble(3, 5))
    assert schedules.takes(ran, FORWARD) == [1, 2, 4] and schedules.takes(ran, BACKWARD) == [2, 2, 9]


def test_spans_of_the_table_are_read_back():
    row = {"method": "gpipe", "spans": [[0, FORWARD, 0, 1.0, 2.5], [1, FORWARD, 0, 3.0, 4.0]]}
    assert schedules.from_table(row)[0].action == Action(FORWARD, 0) and schedules.from_table(row)[1].end == 4.0
    with pytest.raises(LabError, match="no spans"):
        schedules.from_table({"method": "torch.gpipe", "spans": None})


def test_bubbles_stand_beside_the_formula():
    rows = [{"method": "gpipe", "world_size": 2, "micro_batches": m, "bubble": 1 / (m + 1) + 0.05} for m in (1, 2, 8)]
    fig = schedules.bubble_figure([*rows, {"method": "torch.gpipe", "bubble": None}])
    line, points = fig.axes[0].lines
    assert line.get_ydata()[0] == 50 and list(points.get_ydata()) == [100 * row["bubble"] for row in rows]
    assert fig.axes[0].get_title(loc="left") == "p = 2: 55 % at m = 1, 16 % at 8"
    assert "GPipe, p = 2, m = 8: 16 % (formula 11 %)" in schedules.bubble_words(rows)
    assert_titles_and_names_inside(fig)
    with pytest.raises(LabError, match="No row"):
        schedules.bubble_figure([{"bubble": None}])


def test_the_explorer_tells_what_a_schedule_holds():
    widget = schedules.ScheduleExplorer("1f1b", 4, 8)
    assert "27 % of all" in widget.words and "held at most: 4, 3, 2, 1." in widget.words
    widget.choices["name"].value = "gpipe"
    assert "held at most: 8, 8, 8, 8." in widget.words and "0.375 of the useful time" in widget.words
    widget.sliders["micro_batches"].value = 1
    assert "75 % of all" in widget.words


def test_lines_of_traffic_meet_at_the_mark():
    shape = Architecture.of(published.config("llama-7b"))
    equal = tokens_where_equal(shape)
    below, above = (sent_per_step("tensor", shape, 4, 1, int(equal) + more) for more in (-1, 1))
    assert below < sent_per_step("ddp", shape, 4, 1, 1) < above
    fig = cut_traffic.sent_figure(shape, 4, "llama-7b")
    mark = fig.axes[0].lines[-1]
    assert mark.get_xdata()[0] == equal and f"{equal:,.0f} tokens" in cut_traffic.sent_words(shape, 4, "llama-7b")
    rows = {row["method"]: row["sent"] for row in cut_traffic.sent_rows(shape, 8, 2**14)}
    assert rows["zero3"] == 1.5 * rows["ddp"] and rows["pipeline"] == 2 * 2 * 2**14 * 4096 / 2**30
    assert_titles_and_names_inside(fig)
