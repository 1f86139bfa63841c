"""The recorded tables of lesson 15: rows are the table's, curves are means over seeds."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit.bench.record import read
from labkit.errors import LabError
from labkit.show import mezo_table


def test_steps_of_a_long_sequence_stand_beside_their_two_passes():
    found = {row["model"]: row for row in mezo_table.long_rows(read("mezo-time").rows)}
    assert set(found) == {"opt-1.3b", "opt-2.7b", "opt-13b", "opt-30b"}
    for row in found.values():
        assert row["two passes"] < row["MeZO, exact"]
        # The smallest model's pass waits for the host where it is timed alone, and not within a step.
        assert row["two passes"] < row["MeZO, walk"] or row["model"] == "opt-1.3b"
        assert row["exact beyond the passes"] == pytest.approx(row["MeZO, exact"] - row["two passes"], abs=0.11)


def test_the_papers_batches_stand_beside_the_papers_seconds():
    found = {row["model"]: row for row in mezo_table.paper_rows(read("mezo-time").rows)}
    assert found["opt-13b"]["published, full, batch 8"] == "13.638 (4)"
    assert found["opt-13b"]["full, batch 8"] == "does not fit" and "opt-66b" not in found


def learned():
    """Two seeds of MeZO and of fine-tuning, two evaluations each, and a prompt alone."""
    rows = [{"method": "zero-shot", "step": 0, "accuracy": 0.5}]
    for method, base in (("mezo", 0.6), ("full", 0.8)):
        for seed in (0, 1):
            for step in (10, 20):
                accuracy = base + 0.02 * seed + step / 1000
                rows.append({"method": method, "seed": seed, "step": step, "seconds": step / 2, "accuracy": accuracy})
    return rows


def test_what_is_learned_is_the_mean_over_seeds_at_the_end():
    rows = {row["method"]: row for row in mezo_table.learned_rows(learned())}
    assert rows["mezo"]["accuracy"] == 63.0 and rows["mezo"]["± over seeds"] == pytest.approx(1.4)
    assert rows["zero-shot"]["± over seeds"] is None and rows["full"]["steps"] == 20
    assert mezo_table.gain(learned()) == (13.0, 1.4)


def test_curves_are_means_by_steps_and_by_seconds():
    fig = mezo_table.curves_figure(learned())
    left, right = fig.axes
    assert [list(map(round, point)) for point in left.lines[0].get_xydata()] == [[10, 62], [20, 63]]
    assert [x for x, _ in right.lines[0].get_xydata()] == [5, 10]
    assert "full 83.0 % after 20" in mezo_table.curves_words(learned())
    assert_titles_and_names_inside(fig)
    with pytest.raises(LabError, match="no curve"):
        mezo_table.curves_figure(learned()[:1])


def test_the_title_says_what_gradients_are_worth_and_what_time_they_take():
    found = mezo_table.curves_finding(learned())
    assert found == "Prompt alone 50.0 %, MeZO 63.0 %, full 83.0 % in 100 % of MeZO's time"
    fig = mezo_table.curves_figure(no_fine_tuning := [row for row in learned() if row["method"] != "full"])
    assert "mezo 63.0 %" in mezo_table.curves_finding(no_fine_tuning)
    assert_titles_and_names_inside(fig)
