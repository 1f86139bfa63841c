"""The figures and widgets of lesson 03 draw the numbers that they are given; their titles are computed from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labkit.numerics import attention_softmax as att
from labkit.numerics.attention_softmax import LIBRARY, Damage
from labkit.show import stability as figures
from labkit.show.stability_widgets import AlphaExplorer


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
    assert 0 < over < 1 and min(scores[0, 0].min(), scores[0, 1].min()) < -65520  # both signs are counted
    assert title(ax) == f"α = 2: {100 * over:.3g} % of the scores become ±∞, 0 % are below the normals"
    highest = max(p.get_x() for p in ax.patches if p.get_height() > 0)
    assert highest == math.floor(math.log2(max(read)))


def test_a_score_of_zero_lies_in_the_lowest_bin_and_below_the_normals():
    zero = torch.zeros(1, 1, 3, 4)
    ax = figures.score_histogram(zero, zero).axes[0]
    assert ax.patches[0].get_height() == pytest.approx(100) and "100 % are below" in title(ax)


def test_lost_rows_stand_beside_the_histogram():
    q, k, _ = drawn()
    _, bars = figures.score_histogram(q, k, lost={"shifted": 0.25, "line 2": 0.0}).axes
    assert [p.get_width() for p in bars.patches] == [25, 0]
    assert [t.get_text() for t in bars.get_yticklabels()] == ["shifted", "line 2"]
    assert [t.get_text() for t in bars.texts] == ["25 %", "0 %"]


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
    assert title(right) == "From α = 2^20 on line 2's error has doubled"
    assert all(line.get_marker() == "o" for line in left.lines) and list(left.get_xticks()) == [1, 16, 256, 2**20]
    assert [t.get_text() for t in right.texts] == ["not drawn: line 2, divided late\n(rows lost at every α)"]


def test_alpha_words_without_a_remedy_or_without_a_price():
    assert figures.alpha_words(sweep_of([(1.0, 0.1, 0.1)])) == ("Line 2 loses rows at every α", "No error to compare")
    words = figures.alpha_words(sweep_of([(1.0, 0.0, 0.01), (2.0, 0.0, 0.03), (4.0, 0.0, 0.01)]))
    assert words == ("Line 2 loses no row from α = 1 on", "Line 2: no α is too large")  # one point is an accident
    dip = sweep_of([(1.0, 0.5, 0.0), (2.0, 0.0, 0.01), (4.0, 0.0, 0.001), (8.0, 0.0, 0.01), (2.0**11, 0.0, 0.03)])
    assert figures.alpha_words(dip)[1] == "From α = 2^11 on line 2's error has doubled"


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
