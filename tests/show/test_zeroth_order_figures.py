"""Figures of lesson 14: marks are what was measured, lines the formula, arrows the estimates."""

from __future__ import annotations

import pytest
import torch
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.show import zeroth_order as figures
from labkit.show.zeroth_order import Series
from labkit.show.zeroth_widgets import COUNTS, TAUS, LandscapeExplorer
from labkit.zeroth.gradient import DIRECTIONS, KINDS
from labkit.zeroth.objectives import Quadratic

PLANE = Quadratic(torch.tensor([1.0, 4.0]).double())
POINT = torch.tensor([1.5, 0.7]).double()
SERIES = [Series("a", (4, 16), (5.5, 17.0), (5.0, 17.0)), Series("b", (4, 16), (3.0, 3.3), at=7.0)]


def test_points_are_the_measured_ones_and_lines_the_formulas():
    fig = figures.series_figure(SERIES, "d", "variance", "Title")
    [ax] = fig.axes
    drawn = [tuple(line.get_ydata()) for line in ax.lines]
    assert drawn[:3] == [(5.5, 17.0), (5.0, 17.0), (3.0, 3.3)]
    assert ax.lines[0].get_linestyle() == "None" and ax.lines[0].get_color() == ax.lines[1].get_color()
    assert list(ax.lines[3].get_xdata()) == [7.0, 7.0]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["a", "b", "line without marks: formula", "dotted: best by formula"]
    alone = figures.series_figure([Series("c", (1, 2), (1.0, 2.0))], "d", "v", "t").axes[0].get_legend()
    assert [text.get_text() for text in alone.get_texts()] == ["c"]
    words = figures.series_words(SERIES, "What")
    assert words == "What. a: 5.5 at 4 (formula 5), 17 at 16 (formula 17); b: 3 at 4, 3.3 at 16; marked at 7."
    assert figures.furthest(SERIES[:1]) == pytest.approx(0.1)
    assert figures.growth((4, 16), (2, 32)) == pytest.approx(2)
    assert_titles_and_names_inside(fig)
    with pytest.raises(LabError, match="nothing to draw"):
        figures.series_figure([], "d", "v", "t")


def test_arrows_are_the_estimates_the_gradient_and_their_mean():
    found = figures.estimates(PLANE, POINT, 0.01, "central", "gaussian", 1, 50)
    facts = figures.landscape_facts(PLANE, POINT, found)
    gradient = PLANE.gradient(POINT)
    assert facts["downhill"] == 0
    assert facts["off"] == pytest.approx(float((found.mean(0) - gradient).norm() / gradient.norm()))
    square = (found - gradient).square().sum(1).mean() / gradient.square().sum()
    assert facts["spread"] ** 2 == pytest.approx(float(square))
    fig = figures.landscape_figure(PLANE, POINT, found, figures.landscape_finding(facts))
    arrows = [c for c in fig.axes[0].collections if type(c).__name__ == "Quiver"]
    assert len(arrows) == figures.SHOWN + 2
    exact, mean = arrows[-2:]
    stretch = exact.U[0] / float(gradient[0])
    assert exact.V[0] == pytest.approx(stretch * float(gradient[1]))
    assert (mean.U[0], mean.V[0]) == pytest.approx(tuple((stretch * found.mean(0)).tolist()))
    lengths = found.norm(dim=1)
    kept = found[lengths <= lengths.quantile(0.9)][: figures.SHOWN]
    assert [float(arrow.U[0]) for arrow in arrows[:-2]] == pytest.approx((stretch * kept[:, 0]).tolist())
    for arrow in arrows:
        ends = (float(POINT[0]) + arrow.U[0], float(POINT[1]) + arrow.V[0])
        assert all(abs(end - float(at)) < figures.WINDOW for end, at in zip(ends, POINT, strict=True))
    assert_titles_and_names_inside(fig)


def test_descents_are_what_was_spent_and_reached():
    runs = {"one": [(0, 1.0), (2, 0.5)], "two": [(0, 1.0), (16, 0.25)]}
    fig = figures.descents_figure(runs, "queries", "loss", "Title")
    assert [line.get_xydata().tolist() for line in fig.axes[0].lines] == [[[0, 1], [2, 0.5]], [[0, 1], [16, 0.25]]]
    assert figures.descents_words(runs, "Loss") == "Loss. one from 1 to 0.5 after 2; two from 1 to 0.25 after 16."


def test_vectors_are_listed_with_and_without_signs():
    assert figures.listed(torch.tensor([0.5, -1.0])) == "+0.500, -1.000"
    assert figures.listed(torch.tensor([0.5, -0.0]), sign="") == "0.500, 0.000"


def test_the_widget_shows_what_its_controls_say():
    box = LandscapeExplorer(Quadratic(PLANE.hessian, offset=2.0), POINT)
    assert "central, gaussian, τ = 0.1, n = 1" in box.words and 'alt="' in box.picture.value
    spread = {}
    for kind in KINDS:
        box.choices["kind"].value = kind
        assert box.words.startswith(f"Arrows in a plane with contours; {kind}")
        found = figures.estimates(box.f, POINT, 0.1, kind, "gaussian", 1, 200)
        spread[kind] = figures.landscape_facts(box.f, POINT, found)["spread"]
        assert figures.landscape_finding(figures.landscape_facts(box.f, POINT, found)) in box.words
    assert spread["one-point"] > 3 * spread["central"]
    box.choices["kind"].value = "central"
    before = box.words
    box.sliders["n"].value = 64
    assert box.words != before and "n = 64" in box.words
    assert box.sliders["tau"].options[0][1] == TAUS[0] and len(box.sliders["n"].options) == len(COUNTS)
    assert [value for _, value in box.choices["directions"].options] == list(DIRECTIONS)
    assert set(box._repr_mimebundle_()) >= {"text/html", "text/plain"}
