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
    assert fig.axes[0].get_title(loc="left") == "plan: 33 % of all time stands still (formula 33 %)"
    assert "rank 2 from forward 0 to backward 3" in schedules.schedule_words({"plan": ran}, "")
    assert_titles_and_names_inside(fig)


def test_evened_times_have_the_formulas_bubble():
    orders = schedule("gpipe", 3, 5)
    ran = simulate(orders, [1.0, 2.0, 4.0], [2.0, 2.0, 9.0], send=0.5)
    assert bubble(ran) > 0.4 and bubble(schedules.evened(ran)) == pytest.approx(ideal_bubble(3, 5))
    assert schedules.takes(ran, FORWARD) == [1, 2, 4] and schedules.takes(ran, BACKWARD) == [2, 2, 9]


def test_a_bubble_is_taken_apart():
    """By formula, with stages that differ, and as it was, with a message's time."""
    orders = schedule("gpipe", 3, 5)
    unequal = simulate(orders, [1.0, 2.0, 4.0], [2.0, 2.0, 9.0])
    ran = simulate(orders, [1.0, 2.0, 4.0], [2.0, 2.0, 9.0], send=0.5)
    assert bubble(schedules.steadied(ran)) == pytest.approx(bubble(unequal))
    (row,) = schedules.reason_rows({("gpipe", 5): ran})
    shares = [round(100 * b) for b in (ideal_bubble(3, 5), bubble(unequal), bubble(ran))]
    assert [row[k] for k in row if "%" in k] == shares == sorted(set(shares))
    assert row["the step (ms)"] == round(max(r.end for r in ran))


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
    assert fig.axes[0].get_title(loc="left") == "p = 2, m = 8: GPipe 16 %, formula 11 %"
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
    assert_titles_and_names_inside(fig)


def test_seconds_on_links_follow_from_bytes():
    shape = Architecture.of(published.config("llama-7b"))
    rows = {row["cut"]: row for row in cut_traffic.sent_rows(shape, 8, 2**19)}
    sent = sent_per_step("tensor", shape, 8, 2**9, 2**10)
    assert rows["tensor parallel"]["sent (GiB)"] == round(sent / 2**30, 1)
    assert rows["tensor parallel"]["s in one machine"] == round(sent / 450e9, 2)
    assert rows["pipeline"]["s between machines"] == round(2 * 2 * 2**19 * 4096 / 50e9, 2)


def test_what_crosses_between_two_machines():
    shape = Architecture.of(published.config("llama-13b"))
    divisions = [(8, 2, 1), (4, 2, 2), (8, 1, 2), (2, 8, 1)]
    rows = cut_traffic.division_rows(shape, divisions, 64, 2048)
    stream = 2 * 64 * 2048 * shape.hidden / 1e9
    assert [row["crosses"] for row in rows] == ["pipeline", "pipeline", "data", "pipeline"]
    # Every tensor rank has the same stream; replicas have a share of it each.
    wanted = [8 * stream, 4 * stream, 2 * shape.parameters / 1e9, 2 * stream]
    assert [row["GB each way"] for row in rows] == [pytest.approx(w, abs=0.05) for w in wanted]
    assert rows[1]["held (GB)"] == round(2 * shape.parameters / 1e9) and rows[1]["bubble (%)"] == 3.0
    with pytest.raises(LabError, match="two machines"):
        cut_traffic.division_rows(shape, [(4, 2, 1)], 64, 2048)
    with pytest.raises(LabError, match="40 heads"):
        cut_traffic.division_rows(shape, [(16, 1, 1)], 64, 2048)
