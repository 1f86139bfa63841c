"""The figures and widgets of lesson 03 draw the numbers that they are given; their titles are computed from them."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
import torch

from labkit.errors import LabError
from labkit.numerics import attention_softmax as att
from labkit.numerics.attention_softmax import LIBRARY, Damage
from labkit.numerics.depth import DepthRun
from labkit.numerics.stack import StackConfig
from labkit.show import stability as figures
from labkit.show.stability_widgets import AlphaExplorer, DepthExplorer
from labkit.show.style import use_style

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def style_and_clean_up():
    use_style()  # titles stand on the left in the course's style
    yield
    matplotlib.pyplot.close("all")


def title(ax):
    return ax.get_title(loc="left")


def drawn(size=150.0, d=16, seq=12):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, seq, d, generator=generator) * s for s in (size, size, 1.0))


def lines(ax):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.lines}


def test_the_histogram_counts_every_causal_score_and_the_title_those_that_overflow():
    q, k, _ = drawn()
    ax = figures.score_histogram(q, k, alpha=2.0, factor=4.0).axes[0]
    assert sum(p.get_height() for p in ax.patches) == pytest.approx(100)
    scores = 4 * (q.double() @ k.double().mT) / (2 * math.sqrt(16))
    read = [abs(scores[0, h, i, j].item()) for h in range(2) for i in range(12) for j in range(i + 1)]
    over = sum(x >= 65520 for x in read) / len(read)
    assert 0 < over < 1 and title(ax).startswith(f"α = 2: {100 * over:.3g} % of the scores overflow, 0 % are below")
    highest = max(p.get_x() for p in ax.patches if p.get_height() > 0)
    assert highest == math.floor(math.log2(max(read)))


def test_a_score_of_zero_lies_in_the_lowest_bin_and_below_the_normals():
    zero = torch.zeros(1, 1, 3, 4)
    ax = figures.score_histogram(zero, zero).axes[0]
    assert ax.patches[0].get_height() == pytest.approx(100) and "100 % are below" in title(ax)


def test_the_sweep_is_the_damage_at_each_alpha():
    q, k, v = drawn()
    sweep = figures.alpha_sweep(q, k, v, 4.0, [32.0, 64.0])
    assert set(sweep) == {"line 2, divided late", "line 1", "line 2", LIBRARY}
    assert sweep["line 2"] == [(a, att.damage("line 2", 2 * q, 2 * k, v, a)) for a in (32.0, 64.0)]


def sweep_of(line2):
    """A sweep whose line 2 has these (alpha, lost, error); the late division always loses half."""
    return {
        "line 2": [(alpha, Damage(0.0, lost, error)) for alpha, lost, error in line2],
        "line 2, divided late": [(alpha, Damage(0.5, 0.5, 1e-4)) for alpha, _, _ in line2],
    }


def test_the_alpha_figure_shows_errors_only_where_no_row_is_lost():
    sweep = sweep_of([(1.0, 0.2, 0.5), (16.0, 0.0, 0.01), (256.0, 0.0, 0.011), (2.0**20, 0.0, 0.05)])
    left, right = figures.alpha_figure(sweep).axes
    np.testing.assert_array_equal(lines(left)["line 2"], ([1, 16, 256, 2**20], [20, 0, 0, 0]))
    np.testing.assert_array_equal(lines(left)["line 2, divided late"][1], [50] * 4)
    shown = [line.get_ydata() for line in right.lines]
    assert [list(y) for y in shown] == [[0.01, 0.011, 0.05], []]
    assert title(left) == "Line 2 loses no row from α = 16 on"
    assert title(right) == "Its error has doubled at α = 2^20"


def test_alpha_words_without_a_remedy_or_without_a_price():
    assert figures.alpha_words(sweep_of([(1.0, 0.1, 0.1)])) == ("Line 2 loses rows at every α", "No error to compare")
    words = figures.alpha_words(sweep_of([(1.0, 0.0, 0.01), (4.0, 0.0, 0.01)]))
    assert words == ("Line 2 loses no row from α = 1 on", "No α is too large")


PROFILES = {"pre-ln": [4.0, 2.0, 1.0], "post-ln": [1e-5, 1e-3, 1.0], "deepnorm": [0.5, 0.5, 0.5]}


def test_profiles_are_drawn_by_layer_and_told_as_ratios():
    ax = figures.profile_figure(PROFILES, when="after 3 steps").axes[0]
    assert {name: list(y) for name, (_, y) in lines(ax).items()} == PROFILES
    assert list(lines(ax)["pre-ln"][0]) == [1, 2, 3] and ax.get_yscale() == "log"
    assert title(ax) == "First layer's gradient over the last's: pre-ln 4, post-ln 1e-05, deepnorm 1"
    assert ax.get_ylabel() == "gradient norm, after 3 steps"


def test_the_ratio_figure_has_a_point_for_each_depth():
    profiles = {2: {"pre-ln": [3.0, 2.0]}, 8: {"pre-ln": [6.0, *[1.0] * 6, 2.0]}}
    ax = figures.ratio_figure(profiles).axes[0]
    x, y = lines(ax)["pre-ln"]
    assert (list(x), list(y)) == ([2, 8], [1.5, 3.0])
    assert title(ax) == "8 layers, first over last: pre-ln 3"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "8"]


def test_the_spread_figure_begins_at_the_input():
    ax = figures.spread_figure({"post-ln": [0.9, 0.1, 1e-8], "deepnorm": [0.9, 0.8, 0.7]}, "after 5 steps").axes[0]
    x, y = lines(ax)["post-ln"]
    assert (list(x), list(y)) == ([0, 1, 2], [0.9, 0.1, 1e-8])
    assert title(ax).endswith("at the end: post-ln 1e-08, deepnorm 0.7")


def run_of(norm, rate, losses):
    run = DepthRun(StackConfig(2, norm), 0, rate, 0)
    run.losses = losses
    return run


def test_the_loss_figure_has_a_line_for_each_run_and_the_bar():
    runs = [run_of("pre-ln", 1e-3, [5.0, 4.0, 2.0]), run_of("post-ln", 1e-3, [5.0, 4.0, 3.05])]
    runs += [run_of("post-ln", 1e-2, [5.0, 6.0, 7.0])]
    ax = figures.loss_figure(runs, 3.1).axes[0]
    shown = lines(ax)
    assert len(shown) == 4 and shown["pre-ln, rate 0.001"][1][0] == 5.0
    assert any(list(y) == [3.1, 3.1] for _, y in shown.values())
    assert title(ax) == "2 layers: pre-ln learns, post-ln diverged or stuck"
    width = {line.get_label(): line.get_linewidth() for line in ax.lines}
    assert width["post-ln, rate 0.01"] > width["post-ln, rate 0.001"]


def row_of(layers=8, norm="post-ln", rate=1e-3, warmup=0, **changes):
    row = {"layers": layers, "norm": norm, "learning_rate": rate, "warmup_steps": warmup, "loss": 2.5, "update": 0.5}
    return {**row, "unigram_loss": 3.1, "learns": 3, "stuck": 0, "diverged": 0, **changes}


@pytest.mark.parametrize(
    ("changes", "name", "colour"),
    [
        ({}, "learns", "blue"),
        ({"learns": 0, "stuck": 3}, "stuck", "orange"),
        ({"learns": 1, "stuck": 2}, "stuck 2/3", "orange"),
        ({"learns": 1, "stuck": 1, "diverged": 1, "loss": None}, "diverged 1/3", "red"),
    ],
)
def test_the_fate_of_a_setting(changes, name, colour):
    assert figures.fate(row_of(**changes)) == (name, colour)


ROWS = [
    row_of(8, "post-ln"),
    row_of(8, "post-ln", warmup=5, learns=0, stuck=3, loss=3.1),
    row_of(64, "post-ln", diverged=3, learns=0, loss=None),
    row_of(64, "post-ln", warmup=5),
    row_of(64, "deepnorm-glm"),
]


def test_the_outcome_figure_has_a_panel_a_depth_and_a_cell_a_setting():
    shallow, deep = figures.outcome_figure(ROWS).axes
    assert (len(shallow.patches), len(deep.patches)) == (2, 3)
    assert [t.get_text() for t in shallow.texts] == ["learns 2.50", "stuck 3.10"]
    assert [t.get_text() for t in deep.texts] == ["diverged –", "learns 2.50", "learns 2.50"]
    assert [t.get_text() for t in shallow.get_yticklabels()] == ["post-ln"]  # no empty row for what was not measured
    assert [t.get_text() for t in deep.get_yticklabels()] == ["post-ln", "deepnorm-glm"]
    assert title(shallow) == "8 layers. All seeds learn: post-ln 1/2"
    assert title(deep) == "64 layers. All seeds learn: post-ln 1/2, deepnorm-glm 1/1"
    assert [t.get_text() for t in deep.get_xticklabels()] == ["rate 0.001\nno warm-up", "rate 0.001\nwarm-up 5"]


def test_outcomes_in_words():
    assert figures.outcome_words(ROWS) == (
        "8 layers. All seeds learn: post-ln 1/2. Others: post-ln stuck. "
        "64 layers. All seeds learn: post-ln 1/2, deepnorm-glm 1/1. Others: post-ln diverged"
    )


def test_the_update_figure_has_a_mark_for_each_setting_with_a_loss():
    rows = [*ROWS, row_of(64, "pre-ln", update=1.25, loss=2.6), row_of(64, "post-ln", learns=0, stuck=3, update=0.125)]
    ax = figures.update_figure(rows).axes[0]
    marks = {c.get_label(): c.get_offsets().tolist() for c in ax.collections}
    assert marks["pre-ln"] == [[1.25, 2.6]] and marks["deepnorm-glm"] == [[0.5, 2.5]]
    assert len(marks["post-ln"]) == 4  # one of five has no loss
    assert title(ax) == "First update: as little as 0.12 and stuck, as much as 1.2 and learning"
    assert [line.get_ydata()[0] for line in ax.lines] == [3.1]
    assert figures.update_words([row_of()]) == "First update: as much as 0.5 and learning"


def test_the_alpha_explorer_shows_what_attention_loses_at_the_sliders():
    q, k, v = drawn()
    explorer = AlphaExplorer(q, k, v, factor=4.0, alpha=1.0)
    lost = att.damage("line 2", 2 * q, 2 * k, v, 1.0).lost
    assert lost > 0 and f"line 2: {100 * lost:.3g} % of the rows lost" in explorer.words
    explorer.sliders["alpha"].value = 64.0
    assert "line 2: 0 % of the rows lost" in explorer.words and "α = 64" in explorer.words
    assert "line 2, divided late: 0 %" not in explorer.words
    bundle = explorer._repr_mimebundle_()
    assert "<img alt=" in bundle["text/html"] and bundle["text/plain"] == f"[figure] {explorer.words}"


def test_the_depth_explorer_shows_the_chosen_depth():
    explorer = DepthExplorer({2: {"pre-ln": [2.0, 1.0]}, 8: {"pre-ln": [5.0] * 7 + [1.0]}})
    assert "8 layers: DeepNorm α = 2.00, β = 0.354" in explorer.words and "pre-ln 5" in explorer.words
    explorer.sliders["layers"].value = 2
    assert "2 layers: DeepNorm α = 1.41, β = 0.500" in explorer.words and "pre-ln 2" in explorer.words
    with pytest.raises(LabError, match="no profiles"):
        DepthExplorer({})
