"""The figures of lesson 05 draw the rows and spans that they are given; titles and words are computed from them."""

from __future__ import annotations

import numpy as np
import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.shapes import Architecture
from labkit.memory.timeline import Span
from labkit.show import compute_for_memory as figures
from labkit.show.anatomy_style import MIB, amount

OPT = Architecture("opt", 24, 2048, 32, 32, 64, 8192, 50272, positions=2050, biases=True)  # OPT-1.3B
BASE = Case(OPT, 4, 512)


def title(axis) -> str:
    return axis.get_title(loc="left")


def test_segments_mark_the_fewest_bytes_and_the_root():
    rows = figures.segment_rows(BASE.with_(batch=16, seq_len=1024))
    assert [row["segments"] for row in rows] == list(range(25))
    axis = figures.segments_figure(rows, 24).axes[0]
    best = min(rows[1:], key=lambda row: row["predicted_mib"])
    saved = 100 * (1 - best["predicted_mib"] / rows[0]["predicted_mib"])
    assert title(axis).splitlines() == [
        f"Fewest bytes with {best['segments']} segments (√24 = 4.9): {amount(MIB * best['predicted_mib'])}",
        f"{saved:.0f} % less than without",
    ]
    mark = next(line for line in axis.lines if line.get_label().startswith("fewest bytes"))
    assert mark.get_xdata()[0] == best["segments"] and mark.get_ydata()[0] == pytest.approx(
        best["predicted_mib"] / 1024
    )
    root = next(line for line in axis.lines if line.get_label().startswith("√24"))
    assert root.get_xdata()[0] == pytest.approx(24**0.5)
    assert axis.get_ylabel() == "peak memory (GiB)" and axis.get_xlabel() == "checkpointed segments (logarithmic)"


def test_measured_segments_decide_and_time_has_its_own_axis():
    rows = [
        {"segments": s, "predicted_mib": p, "peak_allocated_mib": m, "step_ms": t}
        for s, p, m, t in ((0, 900, 910, 100), (1, 700, 710, 130), (4, 400, 420, 133), (16, 390, 430, 140))
    ]
    memory, time = figures.segments_figure(rows, 16).axes
    assert (
        title(memory)
        == "Fewest bytes measured with 4 segments (√16 = 4.0): 420 MiB\n54 % less than without, for 33 % more time"
    )
    np.testing.assert_array_equal(time.lines[0].get_data(), ([1, 4, 16], [130, 133, 140]))
    assert time.get_ylabel() == "step (ms)" and time.lines[1].get_ydata()[0] == 100
    words = figures.segments_words(rows, 16)
    assert words.startswith("Measured") and "Without: 910 MiB in 100 ms." in words and "4: 420 MiB in 133 ms" in words
    with pytest.raises(LabError, match="checkpointed"):
        figures.segments_figure(rows[:1], 16)


def test_other_methods_are_marks_beside_ours_which_decides():
    rows = [
        {"method": method, "segments": s, "predicted_mib": 1.0, "predicted_blocks_mib": p, "peak_blocks_mib": m}
        for method, s, p, m in (
            ("none", 0, 90, 91), ("transformers", 16, 50, 30), ("torch.checkpoint", 4, 40, 43),
            ("checkpointed", 4, 40, 42), ("checkpointed", 16, 50, 52), ("checkpointed", 8, 45, None),
        )
    ]  # fmt: skip
    (axis,) = figures.segments_figure(rows, 16, blocks=True).axes
    drawn = {line.get_label(): [list(values) for values in line.get_data()] for line in axis.lines}
    assert drawn["checkpointed"] == [[4, 16], [42, 52]] and drawn["formula"] == [[4, 8, 16], [40, 45, 50]]
    assert drawn["transformers"] == [[16], [30]] and drawn["torch.checkpoint"] == [[4], [43]]
    assert title(axis).startswith("Fewest bytes measured with 4 segments (√16 = 4.0): 42 MiB\n54 % less")
    assert axis.get_ylabel() == "blocks’ peak (MiB)"
    assert "transformers 16: 30 MiB" in figures.segments_words(rows, 16, blocks=True)


def test_where_a_layer_keeps_more_than_it_takes_in_both_roots_are_marked_and_the_loss_is_named():
    sizes = {"method": "checkpointed", "layer_input_mib": 2.0, "layer_interior_mib": 18.0}
    rows = [
        {"segments": s, "predicted_mib": m, "peak_allocated_mib": m, "predicted_blocks_mib": b, "peak_blocks_mib": b}
        | sizes
        for s, m, b in ((0, 900, 800), (2, 500, 500), (4, 400, 300), (16, 420, 200))
    ]
    whole, blocks = (figures.segments_figure(rows, 16, blocks=alone).axes[0] for alone in (False, True))
    roots = [line.get_xdata()[0] for line in whole.lines if line.get_label().startswith("√")]
    assert roots == pytest.approx([4, 12])
    assert "(√16 = 4.0, √(nA/I) = 12)" in title(whole) and title(whole).endswith("the loss sets the floor")
    assert "16 segments" in title(blocks) and "loss" not in title(blocks)
    assert whole.get_ylim()[0] == 0 and whole.get_ylim()[1] > 900


def test_compute_has_a_gap_where_it_waits():
    axis = figures.overlap_figure(BLOCKED).axes[0]
    bars = [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in axis.collections[0].get_paths()]
    assert bars == [(0, 10), (14, 20)]


HIDDEN = [Span("compute", "forward", 5, 15), Span("download", "bucket 0", 6, 10), Span("host", "bucket 0", 10, 12)]
BLOCKED = [Span("compute", "forward", 0, 20), Span("wait", "bucket 0", 10, 14), Span("download", "bucket 0", 10, 14)]


def test_lanes_have_a_bar_a_span_from_the_first_beginning():
    axis = figures.overlap_figure(HIDDEN).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["compute", "download", "host"]
    starts = [path.vertices[:, 0].min() for lane in axis.collections for path in lane.get_paths()]
    assert starts == [0, 1, 5] and axis.get_xlabel() == "time (ms)" and axis.get_xlim() == (0, 10)
    assert title(axis) == "100 % of the copying is hidden, compute waits 0 of 10 ms"
    assert "forward" in [t.get_text() for t in axis.texts]


def test_two_timelines_share_their_time_and_the_title_compares_them():
    runs = {"overlapped": HIDDEN, "blocked": BLOCKED}
    fig = figures.overlap_figure(runs)
    assert fig.get_suptitle() == "overlapped takes 10 ms, blocked 2.00 times as long"
    assert {axis.get_xlim() for axis in fig.axes} == {(0, 20)}
    assert title(fig.axes[1]) == "blocked: 0 % of the copying is hidden, compute waits 4 of 20 ms"
    words = figures.overlap_words(runs)
    assert "overlapped: 100 % of the copying" in words and "time on the lanes: compute 20 ms, wait 4 ms" in words
    assert figures._overlap_words(HIDDEN[:1]) == "compute waits 0 of 10 ms", "nothing was copied"
    with pytest.raises(LabError, match="no spans"):
        figures.overlap_figure([])


def test_titles_and_names_lie_inside_the_figure():
    for fig in (
        figures.segments_figure(figures.segment_rows(BASE), 24),
        figures.overlap_figure({"overlapped": HIDDEN, "blocked": BLOCKED}),
    ):
        assert_titles_and_names_inside(fig)
