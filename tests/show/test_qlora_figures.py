"""Figures of lesson 12: bars are the ledger's bytes, curves the run's, points the table's; titles say what they say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.ledger.case import four_bit_bytes
from labkit.planner import architecture
from labkit.run import Run
from labkit.show import qlora

NAMES = ("bf16", "lora", "qlora int8", "qlora nf4+dq")
RECORD = [
    {"task": task, "method": name, "accuracy": 0.8 - 0.01 * k, "accuracy_std": 0.004, "weights_mib": 256.0 / 2**k}
    for task in ("sentiment", "instructions")
    for k, name in enumerate(NAMES)
]
CURVES = [
    {"method": method, "seed": seed, "step": step, "train_loss": 3 - step / 20 + seed, "loss": 3 - step / 40 + seed / 2}
    | {"accuracy": step / 100}
    for method in ("full", "lora", "qlora")
    for seed in (0, 1)
    for step in (16, 32)
]


def test_bytes_of_the_three_ways_are_those_of_the_formulas():
    arch = architecture("llama-65b")
    ways = qlora.ways(arch)
    inside = sum(four_bit_bytes(m.numel) for m in arch.matrices.values()) * arch.layers
    outside = arch.parameters - sum(m.numel for m in arch.matrices.values()) * arch.layers
    trained = 8 * sum(sum(m.shape) for m in arch.matrices.values()) * arch.layers
    assert ways["QLoRA"]["weights"] == inside + 2 * outside + 4 * trained
    assert ways["LoRA over bf16"]["weights"] == 2 * arch.parameters + 4 * trained
    assert ways["QLoRA"]["gradients"] == ways["LoRA over bf16"]["gradients"] == 4 * trained
    assert sum(ways["full fine-tuning"].values()) == pytest.approx(18 * arch.parameters, rel=1e-4)
    assert qlora.ways(arch, 8, ("q", "v"))["QLoRA"]["gradients"] == 4 * 80 * 2 * 8 * 2 * 8192


def test_bars_are_as_long_as_the_bytes_and_the_title_names_what_fits():
    ways = qlora.ways(architecture("llama-65b"))
    fig = qlora.ways_figure(ways, "llama-65b", 48)
    widths = sorted(bar.get_width() for bar in fig.axes[0].patches)
    assert widths == pytest.approx(sorted(n / 1e9 for parts in ways.values() for n in parts.values()))
    assert fig._suptitle.get_text() == "llama-65b in 48 GB, before activations: QLoRA stays below"
    assert qlora.ways_finding(ways, "m", 24) == "m in 24 GB, before activations: nothing stays below"
    assert f"QLoRA {sum(ways['QLoRA'].values()) / 1e9:,.1f} GB" in qlora.ways_words(ways, "m", 48)
    assert_titles_and_names_inside(fig)


def test_norms_above_the_limit_are_counted():
    fig = qlora.norms_figure([0.1, 0.6, 0.2, 1.2], 0.3)
    [axis] = fig.axes
    assert [bar.get_height() for bar in axis.patches] == [0.1, 0.6, 0.2, 1.2]
    red = [bar.get_facecolor() for bar in axis.patches]
    assert red[1] == red[3] != red[0] == red[2]
    assert axis.get_title(loc="left") == "2 of 4 steps are clipped, at the median to 33% of their length"
    assert qlora.norms_finding([0.1], 0.3) == "0 of 1 steps are clipped"


def test_curves_are_the_runs():
    run = Run("qlora", "tiny", "instructions", losses=[4.0, 3.0, 2.0, 1.0])
    run.evaluations = [{"step": 0, "loss": 5.0, "accuracy": 0.2}, {"step": 4, "loss": 4.5, "accuracy": 0.25}]
    fig = qlora.curves_figure(run, window=2)
    drawn = {line.get_label(): list(line.get_ydata()) for line in fig.axes[0].lines}
    assert drawn["a training step"] == run.losses and drawn["mean of the last 2"] == [4.0, 3.5, 2.5, 1.5]
    assert drawn["held-out, mean of conversations"] == [5.0, 4.5]
    assert list(fig.axes[1].lines[0].get_ydata()) == [
        20.0,
        25.0,
    ]
    assert (
        qlora.curves_finding(run)
        == "Held-out: 5.00 to 4.50 nats (mean over conversations), 20% to 25% of answer tokens right"
    )


def test_the_recorded_points_are_the_rows():
    fig = qlora.recorded_figure(RECORD)
    for axis in fig.axes:
        points = [(c.lines[0].get_ydata()[0], c.lines[0].get_xdata()[0]) for c in axis.containers]
        assert [place for place, _ in points] == [0, 1, 2, 3]
        assert [share for _, share in points] == pytest.approx([80, 79, 78, 77])
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert names[0] == "bf16\n256 MiB" and names[3] == "qlora nf4+dq\n32 MiB"
    assert_titles_and_names_inside(fig)
    assert "sentiment: -2.0 to -1.0 points (seeds ±0.4)" in qlora.recorded_finding(RECORD)
    assert "instructions, qlora int8: 78.0 % with 64 MiB" in qlora.recorded_words(RECORD)


def test_the_recorded_curves_are_means_over_seeds():
    assert qlora.instruct_means(CURVES, "loss")["qlora"] == [(16, pytest.approx(2.85)), (32, pytest.approx(2.45))]
    fig = qlora.instruct_figure(CURVES)
    assert [len(axis.lines) for axis in fig.axes] == [3, 3]
    assert list(fig.axes[0].lines[0].get_ydata()) == pytest.approx([2.7, 1.9])
    assert qlora.instruct_finding(CURVES).endswith("qlora 2.450 at step 32")


def test_nothing_is_no_figure():
    for drawing in (qlora.recorded_figure, qlora.instruct_figure):
        with pytest.raises(LabError, match="nothing to draw"):
            drawing([])
    assert not plt.get_fignums()


def test_gaps_have_the_standard_error_of_three_seeds():
    rows = [
        {"task": "a", "method": "lora", "accuracy": 0.90, "accuracy_std": 0.003},
        {"task": "a", "method": "qlora nf4", "accuracy": 0.88, "accuracy_std": 0.004},
        {"task": "a", "method": "bf16", "accuracy": 0.91, "accuracy_std": 0.004},
        {"task": "b", "method": "qlora nf4", "accuracy": 0.5, "accuracy_std": 0.004},
    ]
    [found] = qlora.gaps(rows, 3)
    assert found["task"] == "a" and found["method"] == "qlora nf4"
    # 100 √((0.003² + 0.004²) / 3) = 0.2887
    assert (found["less LoRA"], found["standard error"], found["ratio"]) == ("-2.0", "0.29", "-6.9")


def test_curves_are_told_where_they_are_lowest_and_where_they_end():
    found = {(row["method"], row["where"]): row for row in qlora.instruct_rows(CURVES)}
    for method, points in qlora.instruct_means(CURVES, "loss").items():
        low = min(points, key=lambda at: at[1])
        assert found[method, "lowest"]["step"] == low[0] and found[method, "last"]["step"] == points[-1][0]
        assert found[method, "lowest"]["held-out loss"] == f"{low[1]:.3f} ± 0.354"  # of seeds half a nat apart
        assert found[method, "last"]["tokens right"] == "32.0"
