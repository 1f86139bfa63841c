"""The figures of lesson 07's measurements show the rows and the looks that they are given."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.parallel.zero_watch import Look
from labkit.show import zero_steps

MIB = 2**20
WHOLE = {"weights": 8 * MIB, "gradients": 8 * MIB, "optimizer_states": 16 * MIB}
HALF = WHOLE | {"optimizer_states": 8 * MIB}
ROWS = [
    zero_steps.row_of("ddp", 2, WHOLE | {"activations": MIB}, WHOLE),
    zero_steps.row_of("zero1", 2, WHOLE, HALF) | {"step_ms": 12.0},  # an optimizer that is not sharded
    {"method": "zero2", "world_size": 2, "measured_mib": None},
    zero_steps.row_of("torch.fsdp2", 4, HALF, HALF) | {"reshard": False},
]


def test_bars_are_as_long_as_what_was_measured_and_marks_stand_on_the_formula():
    fig = zero_steps.bytes_figure(ROWS)
    two, four = fig.axes
    assert sum(bar.get_width() for bar in two.patches) == pytest.approx(32 + 32)
    marks = next(line for line in two.lines if line.get_label() == "formula")
    assert list(marks.get_xdata()) == [32, 24]
    assert "formula within 33 %" in two.get_title(loc="left")
    assert [text.get_text() for text in two.get_yticklabels()] == ["ddp", "zero1"]
    assert [text.get_text() for text in four.get_yticklabels()] == ["torch.fsdp2 (weights stay)"]
    assert "32, 12 ms" in [text.get_text() for text in two.texts]
    assert_titles_and_names_inside(fig)
    assert "zero1 32 MiB (formula 24 MiB), 12 ms a step" in zero_steps.bytes_words(ROWS)
    with pytest.raises(LabError):
        zero_steps.bytes_figure(ROWS[2:3])


def looks(*steps):
    return [Look(*step) for step in steps]


STEP = looks(
    ("forward", "gathered", "root", ("root",), 2 * MIB, 0),
    ("forward", "gathered", "layers.0", ("root", "layers.0"), 3 * MIB, 0),
    ("forward", "needed", "layers.0", ("root", "layers.0"), 3 * MIB, 0),
    ("forward", "released", "layers.0", ("root",), 2 * MIB, 0),
    ("backward", "gathered", "layers.0", ("root", "layers.0"), 3 * MIB, 0),
    ("backward", "arrived", "layers.0", ("root", "layers.0"), 3 * MIB, MIB),
    ("backward", "reduced", "layers.0", ("root",), 2 * MIB, 0),
    ("after backward", "arrived", "root", ("root",), 2 * MIB, 4 * MIB),
    ("after backward", "released", "root", (), 0, 2 * MIB),
)


def test_gathered_bars_and_their_count():
    fig = zero_steps.gathered_figure(STEP)
    lanes, size = fig.axes
    there = [sum(path.get_extents().width for path in bars.get_paths()) for bars in lanes.collections]
    assert there == [8, 4]  # events at which the root and the layer are whole
    assert lanes.get_title(loc="left") == "3 gathers; at most the root and 1 layers are whole: 3 MiB"
    assert list(size.lines[0].get_ydata()) == [look.gathered_bytes / MIB for look in STEP]
    assert_titles_and_names_inside(fig)
    assert "root 1 time, layers.0 2 times" in zero_steps.gathered_words(STEP)


def test_gradients_are_drawn_where_they_arrive_or_leave():
    fig = zero_steps.gradients_figure({"zero1": STEP, "zero2": STEP[:7]})
    assert list(fig.axes[0].lines[0].get_ydata()) == [1, 0, 4]
    assert fig.axes[0].get_title(loc="left") == "Most whole gradients at once, in MiB: zero1 4, zero2 1"
    assert "zero2 rises to 1 and ends with 0" in zero_steps.gradients_words({"zero2": STEP[:7]})
