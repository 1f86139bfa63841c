"""The figures of lesson 01 draw the numbers they are given: read back from the axes, not from the picture."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from labkit.numerics import formats as nf
from labkit.numerics.formats import FORMATS
from labkit.show import formats as figures


def test_spacing_lines_are_the_gaps_and_end_where_the_format_ends():
    fmts = [FORMATS["fp32"], FORMATS["fp16"]]
    ax = figures.spacing_figure(fmts, low=-30, high=30).axes[0]
    wide, narrow, end = ax.lines  # fp32 has no end mark in this window
    np.testing.assert_array_equal(wide.get_ydata(), nf.spacing(wide.get_xdata(), "fp32"))
    x, y = narrow.get_data()
    assert np.isnan(y[x > 65504]).all() and not np.isnan(y[x <= 65504]).any()
    assert y[0] == 2.0**-24
    assert 32768 < end.get_xdata()[0] <= 65504
    assert [t.get_text() for t in ax.texts] == ["fp32", "fp16"]


def test_range_bars_run_from_the_smallest_to_the_largest_value():
    ax = figures.range_figure([FORMATS["fp16"]]).axes[0]
    normal, subnormal = ax.patches
    assert (normal.get_x(), subnormal.get_x()) == (-14, -24)
    assert normal.get_x() + normal.get_width() == pytest.approx(np.log2(65504))
    assert subnormal.get_x() + subnormal.get_width() == -14


def test_number_lines_have_a_tick_for_each_value():
    fig = figures.number_lines([FORMATS["fp4_e2m1"], FORMATS["fp8_e4m3"]], limit=2)
    ticks = [segment[0][0] for segment in fig.axes[0].collections[0].get_segments()]
    assert ticks == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert "9 of 15" in fig.axes[0].get_ylabel() and "of 253" in fig.axes[1].get_ylabel()


def test_the_stalled_sum_is_named_by_what_was_measured():
    runs = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 2.0]])
    ax = figures.stalled_sum_figure(np.array([1.0, 2.0, 2.0]), runs, "e2m0").axes[0]
    assert "stalls at 2" in ax.get_title(loc="left")
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(lines["their mean"], [1, 2, 3])
    np.testing.assert_array_equal(lines["exact"], [1, 2, 3])


def test_the_error_histogram_counts_every_weight_once():
    errors = {"fp16": np.array([2.0**-12, 2.0**-12.5, 0.0, 1.0])}
    ax = figures.error_histogram(errors).axes[0]
    heights = ax.patches[0].get_xy()[:, 1]
    assert heights.max() == pytest.approx(0.25)
    assert ax.get_legend().get_texts()[0].get_text() == "fp16: 25.00 % became 0"


def test_a_format_has_the_same_colour_in_every_figure():
    fmt = FORMATS["fp8_e4m3"]
    colour, _ = figures.style_of(fmt.name)
    error = {fmt.name: np.array([0.1, 0.2])}
    found = {
        "gaps": figures.spacing_figure([FORMATS["fp32"], fmt]).axes[0].lines[1].get_color(),
        "range": figures.range_figure([FORMATS["fp32"], fmt]).axes[0].patches[0].get_facecolor(),
        "lines": figures.number_lines([fmt], limit=2).axes[0].collections[0].get_color()[0],
        "errors": figures.error_histogram(error).axes[0].patches[0].get_edgecolor(),
    }
    assert {where: to_hex(found[where]) for where in found} == dict.fromkeys(found, colour.lower())
    assert len({figures.style_of(name) for name in FORMATS}) == len(FORMATS)


def test_the_marked_points_lie_on_the_staircase():
    ax = figures.spacing_figure([FORMATS["fp16"]], marked=FORMATS["fp16"]).axes[0]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "s"]
    assert marks == [(x, nf.spacing(x, "fp16")) for x in (1.0, 2048.0)]
    assert [t.get_text() for t in ax.texts] == ["fp16", "fp16 at 1: eps = 2^-10", "at 2048: gap 2"]
