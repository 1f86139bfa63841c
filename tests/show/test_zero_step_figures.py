"""The figures of lesson 07's measurements show the rows and the looks that they are given."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit import show
from labkit.errors import LabError
from labkit.parallel.zero_peak import Budget
from labkit.parallel.zero_watch import Look
from labkit.show import zero_budget, zero_steps

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
    title = two.get_title(loc="left")
    assert title == "2 ranks: ddp holds 100 % of ddp; formula up to 33 % off"
    assert four.get_title(loc="left").endswith("formula right to the byte")
    assert [text.get_text() for text in two.get_yticklabels()] == ["ddp", "zero1"]
    assert [text.get_text() for text in four.get_yticklabels()] == ["torch.fsdp2 (weights stay)"]
    assert [text.get_text() for text in two.texts] == ["32", "32"]
    assert_titles_and_names_inside(fig)
    assert "zero1 32 MiB (formula 24 MiB)" in zero_steps.bytes_words(ROWS)
    with pytest.raises(LabError):
        zero_steps.bytes_figure(ROWS[2:3])


def test_a_recorded_figure_names_its_model_and_how_exact_it_is():
    recorded = {"model": "opt-2.7b", "batch": 8, "seq_len": 1024}
    rows = [ROWS[0] | recorded, zero_steps.row_of("zero3", 2, HALF, HALF) | recorded | {"hold_weights": False}]
    rows[1]["measured_mib"] += 1e-4  # the table's last digit
    fig = zero_steps.bytes_figure(rows)
    told = "zero3 (weights from masters) holds 75 % of ddp; formula right to 0.001 MiB"
    assert fig.axes[0].get_title(loc="left") == f"opt-2.7b, 8 × 1024 tokens, 2 ranks:\n{told}"
    assert_titles_and_names_inside(fig)


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
    assert lanes.get_title(loc="left") == "3 gathers; never more than the root and 1 layer at once: 3 MiB"
    assert list(size.lines[0].get_ydata()) == [look.gathered_bytes / MIB for look in STEP]
    assert_titles_and_names_inside(fig)
    assert "root 1 time, layers.0 2 times" in zero_steps.gathered_words(STEP)


def test_gradients_are_drawn_where_they_arrive_or_leave():
    runs = {"zero1": STEP, "zero2": STEP[:7], "zero3": STEP[:7]}
    fig = zero_steps.gradients_figure(runs)
    first, second = fig.axes[0].lines
    assert list(first.get_ydata()) == [1, 0, 4] and second.get_label() == "zero2 and zero3 (equal)"
    title = "At most so many MiB of whole gradients at once: 4 in zero1, 1 in zero2 and zero3"
    assert fig.axes[0].get_title(loc="left") == title
    assert "zero2: at most 1, and 0 when" in zero_steps.gradients_words({"zero2": STEP[:7]})
    assert_titles_and_names_inside(fig)


BUDGETS = {
    (4, "zero1"): Budget(32 * MIB, 0, 8 * MIB, 8 * MIB),
    (8, "zero1"): Budget(64 * MIB, 0, 16 * MIB, 16 * MIB),
    (8, "zero3, no prefetch"): Budget(16 * MIB, 4 * MIB, 2 * MIB, 10 * MIB),
}


def test_budgets_are_drawn_as_sums():
    fig = zero_budget.budget_figure(BUDGETS, {4: 64 * MIB, 8: 128 * MIB})
    ax = fig.axes[0]
    ends = [
        max(bar.get_x() + bar.get_width() for bar in ax.patches if round(bar.get_y() + 0.35) == n) for n in range(3)
    ]
    assert ends == pytest.approx([48, 96, 32])
    assert [line.get_xdata()[0] for line in ax.lines] == [64, 128, 128]
    told = "8 layers in 32 MiB (zero3, no prefetch),\n25 % of the unsharded model's bytes"
    assert ax.get_title(loc="left") == told
    assert "zero1, 4 layers: shards and replicas that stand 32 MiB" in zero_budget.budget_words(
        BUDGETS, {8: 128 * MIB, 4: 64 * MIB}
    )
    assert_titles_and_names_inside(fig)


def test_recorded_rows_add_up_to_the_peak():
    table = show.reference("zero")
    rows = [row for row in table.rows if row["measured_mib"]]
    found = zero_budget.recorded_rows(rows, zero_steps.label)
    assert 0 < len(found) < len(rows)  # FSDP2's activations were not counted
    for row in found:
        assert row["weights, masters, states"] + row["activations"] + row["left"] == pytest.approx(
            row["peak"], abs=0.02
        )
