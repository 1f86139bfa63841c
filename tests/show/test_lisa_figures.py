"""Figures of lesson 13: bars, lines and marks are the numbers that were given; titles say what they say."""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import pytest
import torch
from inside import assert_titles_and_names_inside
from micro import micro_llama

from labkit.bench.lisa import PUBLISHED
from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, blocks_of
from labkit.layerwise.quadratic import ORDERS, Quadratic
from labkit.show import lisa, lisa_table

NAMES = ("vanilla", "full", "lora", "galore", "badam", "lisa", "lisa kept")
RECORD = [
    {
        "part": "run",
        "task": task,
        "method": name,
        "accuracy": 0.7 + 0.01 * k,
        "accuracy_std": 0.004,
        "loss": 3 - 0.1 * k,
    }
    | ({"gradients_mib": 4.0 * k, "optimizer_states_mib": 8.0 * k} if k else {})
    for task in ("sentiment", "instructions")
    for k, name in enumerate(NAMES)
] + [
    {"part": "bytes", "method": name, "step": step, "gradients_mib": 2.0, "optimizer_states_mib": 4.0 + grows * step}
    for name, grows in (("lisa freed", 0), ("lisa kept", 1))
    for step in (3, 1, 2)
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_changes_are_root_mean_squares_by_block():
    before = micro_llama()
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in blocks_of(after)["1"]:
            parameter.add_(0.5)
        before_outside = blocks_of(after)[OUTSIDE][0]
        before_outside[0].add_(2.0)  # one row of the embedding
    found = lisa.changes(before, after)
    outside = sum(p.numel() for p in blocks_of(before)[OUTSIDE])
    assert found["0"] == 0 and found["1"] == pytest.approx(0.5)
    assert found[OUTSIDE] == pytest.approx((4 * 32 / outside) ** 0.5)
    fig = lisa.changes_figure({"one": found, "two": found})
    assert [bar.get_height() for bar in fig.axes[1].patches] == pytest.approx([1e4 * v for v in found.values()])
    assert lisa.changes_finding({"one": found}).endswith("one: layer 1")
    assert "layer 1 5000.00" in lisa.changes_words({"one": found})
    assert_titles_and_names_inside(fig)


def test_descent_draws_the_paths_and_the_falls():
    two = Quadratic(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.zeros(2))
    path = two.descend(torch.tensor([2.0, 1.0]), [0, 1])
    many = Quadratic.coupled(4, 2, 0.5)
    falls = {name: many.in_order(torch.zeros(8, dtype=torch.float64), name, 12) for name in ORDERS}
    fig = lisa.descent_figure(two, {"blocks": path}, falls)
    assert list(fig.axes[0].lines[0].get_xdata()) == [float(x[0]) for x in path]
    assert {line.get_label(): list(line.get_ydata()) for line in fig.axes[1].lines} == falls
    left = {name: values[-1] / values[0] for name, values in falls.items()}
    assert min(left, key=left.get) in lisa.descent_finding(falls)
    assert "After 12 turns" in lisa.descent_words(falls)
    assert_titles_and_names_inside(fig)


def test_switches_show_what_grows():
    series = {"freed": [2.0, 2.0, 2.0], "kept": [2.0, 3.0, 5.0]}
    fig = lisa.switches_figure(series, 2.0, 6.0, 5.5)
    lines = [list(line.get_ydata()) for line in fig.axes[0].lines]
    assert lines[:2] == list(series.values()) and [line[0] for line in lines[2:]] == [2.0, 5.5, 6.0]
    assert lisa.switches_finding(series) == "States kept grow ×2.50 in 3 steps; freed ×1.00"
    words = lisa.switches_words(series, 2.0, 6.0, 5.5)
    assert "kept from 2.0 to 5.0 MiB" in words and "with all states 5.5" in words
    assert_titles_and_names_inside(fig)


def test_bottom_and_stale_are_their_rows():
    rows = [
        {"awake": k, "beside": beside, "mib": 9.0 - k * (beside == "nothing"), "gflop": 4.0}
        for beside in ("embedding", "nothing")
        for k in (0, 3)
    ]
    full = {"mib": 10.0, "gflop": 6.0}
    fig = lisa.bottom_figure(rows, full)
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [[10.0, 10.0], [9.0, 9.0], [9.0, 6.0]]
    assert lisa.bottom_finding(rows, full).endswith("keeps: 90% with embedding, 90% to 60% without")
    words = lisa.bottom_words(rows, full)
    assert "layer 3 and nothing: 6.0 MiB" in words and "everything: 10.0 MiB" in words
    stale = [{"matrix": "q", "step": step, "own": 0.9, "old": 0.9 - step / 10} for step in (0, 2, 4)]
    fig = lisa.stale_figure(stale, 8)
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [[90, 90, 90], pytest.approx([90, 70, 50])]
    assert lisa.stale_finding(stale, 8) == "Of later gradients a new rank 8 keeps 90% to 90%, the old one 50% to 70%"
    assert "q, step 4: new 90%, old 50%" in lisa.stale_words(stale, 8)


def test_a_projection_keeps_what_lies_in_its_directions():
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(20, 2, generator=generator) @ torch.randn(2, 30, generator=generator)
    other = torch.randn(20, 30, generator=generator)
    assert lisa.kept_by(thin, thin, 2) == pytest.approx(1, abs=1e-5) and lisa.kept_by(thin, thin, 1) < 1
    values = torch.linalg.svdvals(other).square()
    assert lisa.kept_by(other, other, 3) == pytest.approx(float(values[:3].sum() / values.sum()), rel=1e-4)
    assert lisa.kept_by(thin, other, 2) < lisa.kept_by(other, other, 2)


def test_the_recorded_table_is_drawn():
    fig = lisa_table.learned_figure(RECORD)
    points = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in fig.axes[0].containers]
    assert NAMES[0] == "vanilla" and "untrained: 70.0 %" in fig.axes[0]._left_title.get_text()
    assert points == [(12.0 * k, pytest.approx(70 + k)) for k in range(1, len(NAMES))]
    losses = [c.lines[0].get_ydata()[0] for c in fig.axes[1].containers]
    assert losses == [pytest.approx(3 - 0.1 * k) for k in range(1, len(NAMES))]
    first, *_, last = lisa_table.run_rows(RECORD)
    assert (first["method"], first["accuracy"], first["held"]) == ("vanilla", 70.0, None)
    assert (last["task"], last["loss"], last["held"]) == ("instructions", pytest.approx(2.4), 72)
    assert lisa_table.learned_finding(RECORD).startswith("Most accurate: lisa kept, 76.0 % with 72 MiB")
    assert "instructions, badam: accuracy 74.0 %, loss 2.600, 48.0 MiB" in lisa_table.learned_words(RECORD)
    assert_titles_and_names_inside(fig)
    fig = lisa_table.series_figure(RECORD)
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [[6, 6, 6], [7, 8, 9]]
    assert lisa_table.series_finding(RECORD).endswith("lisa freed ×1.00, lisa kept ×1.29")
    assert "lisa kept: 7.0 to 9.0, at most 9.0" in lisa_table.series_words(RECORD)
    assert_titles_and_names_inside(fig)


def test_published_rows_are_a_model_s():
    rows = lisa_table.published_rows(PUBLISHED, "Mistral-7B")
    assert [row["method"] for row in rows] == ["vanilla", "lora", "galore", "lisa", "full"]
    assert rows[0] == {
        "method": "vanilla",
        "MMLU, 5-shot": 60.12,
        "AGIEval, 3-shot": 26.79,
        "WinoGrande, 5-shot": 79.24,
    }


def test_nothing_is_no_figure():
    for drawing, empty in (
        (lisa.changes_figure, ({},)),
        (lisa.switches_figure, ({}, 1, 2, 3)),
        (lisa.bottom_figure, ([], {})),
        (lisa.stale_figure, ([], 1)),
    ):
        with pytest.raises(LabError, match="nothing to draw"):
            drawing(*empty)
    with pytest.raises(LabError, match="no run of sentiment"):
        lisa_table.learned_figure([])
    with pytest.raises(LabError, match="no bytes over steps"):
        lisa_table.series_figure([])
