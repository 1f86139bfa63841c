"""Figures of deep stacks: what they draw is what was measured, and their titles are computed from it."""

from __future__ import annotations

import pytest

from labkit.errors import LabError
from labkit.numerics.depth import DepthRun
from labkit.numerics.stack import StackConfig
from labkit.show import stability_depth as figures
from labkit.show.plots import smoothed
from labkit.show.stability_widgets import DepthExplorer


def title(ax):
    return ax.get_title(loc="left")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.lines}


PROFILES = {"pre-ln": [[4.0, 2.0, 1.0], [9.0, 2.0, 1.0], [2.0, 2.0, 1.0]], "post-ln": [[1e-5, 1e-3, 1.0]]}


def test_profiles_are_drawn_by_layer_and_told_as_medians_of_ratios():
    ax = figures.profile_figure(PROFILES, when="after 3 steps").axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [*PROFILES["pre-ln"], *PROFILES["post-ln"]]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3] and ax.get_yscale() == "log"
    assert title(ax) == "3 layers, after 3 steps, first layer's gradient over the last's:\npre-ln 4, post-ln 1e-05"
    assert figures.profile_words(PROFILES, "after 3 steps") == title(ax).replace("\n", " ")
    assert legend(ax) == ["pre-ln", "post-ln"]  # once each, however many seeds


def test_the_ratio_figure_has_a_mark_for_each_seed_and_a_line_through_the_medians():
    profiles = {2: {"pre-ln": [[3.0, 2.0]]}, 8: {"pre-ln": [[6.0, *[1.0] * 6, 2.0], [2.0] * 8, [8.0, *[1.0] * 7]]}}
    ax = figures.ratio_figure(profiles).axes[0]
    x, y = lines(ax)["pre-ln"]
    assert (list(x), list(y)) == ([2, 8], [1.5, 3.0])
    assert [tuple(point) for c in ax.collections for point in c.get_offsets()] == [(2, 1.5), (8, 3), (8, 1), (8, 8)]
    assert title(ax) == "8 layers, before training, first layer's gradient over the last's, by seed:\npre-ln 1 to 8"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "8"]


def test_the_spread_figure_begins_at_the_input():
    spreads = {"post-ln": [[0.9, 0.1, 1e-8]], "deepnorm": [[0.9, 0.8, 0.6], [0.9, 0.8, 0.8]]}
    ax = figures.spread_figure(spreads, "after 5 steps").axes[0]
    x, y = lines(ax)["post-ln"]
    assert (list(x), list(y)) == ([0, 1, 2], [0.9, 0.1, 1e-8])
    assert title(ax) == "After 5 steps, share that differs between places at the end:\npost-ln 1e-08, deepnorm 0.7"


def run_of(norm, rate, losses):
    run = DepthRun(StackConfig(2, norm), 0, rate, 0)
    run.losses = losses
    return run


def test_the_loss_figure_has_a_line_for_each_run_and_the_bar():
    runs = [run_of("pre-ln", 1e-3, [5.0, 4.0, 2.0]), run_of("post-ln", 1e-3, [5.0, 4.0, 3.05])]
    runs += [run_of("post-ln", 1e-2, [5.0, 6.0, 7.0])]
    ax = figures.loss_figure(runs, 3.1, window=2).axes[0]
    assert len(ax.lines) == 4 and list(lines(ax)["pre-ln"][1]) == smoothed(runs[0].losses, 2)
    assert list(ax.lines[-1].get_ydata()) == [3.1, 3.1] and legend(ax) == ["pre-ln", "post-ln"]
    assert title(ax) == "2 layers, rate 0.001, 0.01: runs that learn: pre-ln 1 of 1, post-ln 0 of 2"
    assert ax.get_ylabel() == "loss (nats a byte), mean of 2 steps"


def row_of(layers=8, norm="post-ln", rate=1e-3, warmup=0, **changes):
    row = {"layers": layers, "norm": norm, "learning_rate": rate, "warmup_steps": warmup, "loss": 2.5, "update": 0.5}
    return {**row, "unigram_loss": 3.1, "learns": 3, "stuck": 0, "diverged": 0, **changes}


@pytest.mark.parametrize(
    ("changes", "name", "colour"),
    [
        ({}, "learns", "blue"),
        ({"learns": 0, "stuck": 3}, "stuck", "orange"),
        ({"learns": 1, "stuck": 2}, "2 of 3 stuck", "orange"),
        ({"learns": 1, "stuck": 1, "diverged": 1, "loss": None}, "1 of 3 diverged", "red"),
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
    assert title(shallow) == "8 layers. Settings where all seeds learn: post-ln 1 of 2"
    assert title(deep) == "64 layers. Settings where all seeds learn: post-ln 1 of 2, deepnorm-glm 1 of 1"
    assert [t.get_text() for t in deep.get_xticklabels()] == ["rate 0.001\nno warm-up", "rate 0.001\nwarm-up 5"]


def test_outcomes_in_words():
    assert figures.outcome_words(ROWS) == (
        "8 layers. Settings where all seeds learn: post-ln 1 of 2. Others: post-ln stuck. "
        "64 layers. Settings where all seeds learn: post-ln 1 of 2, deepnorm-glm 1 of 1. Others: post-ln diverged"
    )


def test_the_update_figure_has_a_panel_a_depth_and_a_mark_for_each_setting_with_a_loss():
    rows = [*ROWS, row_of(64, "pre-ln", update=1.25, loss=2.6), row_of(64, "post-ln", learns=2, stuck=1, update=0.125)]
    fig = figures.update_figure(rows)
    shallow, deep = fig.axes
    assert [c.get_offsets().tolist() for c in shallow.collections] == [[[0.5, 2.5]], [[0.5, 3.1]]]
    assert [len(c.get_facecolors()) for c in shallow.collections] == [1, 0]  # hollow where seeds fail
    marks = {c.get_label(): c.get_offsets().tolist() for c in deep.collections}
    assert marks["pre-ln"] == [[1.25, 2.6]] and marks["deepnorm-glm"] == [[0.5, 2.5]]
    assert len(deep.collections) == 4  # one of five has no loss
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["8 layers", "64 layers"]
    assert fig.get_suptitle() == "A seed fails after a first update of 0.12, all learn after one of 1.2"
    norms = ["pre-ln", "post-ln", "deepnorm-glm"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [*norms, "hollow: a seed failed"]
    assert [line.get_ydata()[0] for ax in fig.axes for line in ax.lines] == [3.1, 3.1]
    assert figures.update_words([row_of()]) == "All seeds learn after a first update of 0.5"
    assert figures.update_words([row_of(learns=0, stuck=3)]) == "A seed fails after a first update of 0.5"


def test_the_depth_explorer_shows_the_chosen_depth():
    explorer = DepthExplorer({2: {"pre-ln": [[2.0, 1.0]]}, 8: {"pre-ln": [[5.0] * 7 + [1.0]]}})
    assert "8 layers: DeepNorm α = 2.00, β = 0.354" in explorer.words and "pre-ln 5" in explorer.words
    explorer.sliders["layers"].value = 2
    assert "2 layers: DeepNorm α = 1.41, β = 0.500" in explorer.words and "pre-ln 2" in explorer.words
    with pytest.raises(LabError, match="no profiles"):
        DepthExplorer({})
