"""The figures of lesson 09 on Adam's moments draw the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.numerics.quantize import CodeBook, codebook
from labkit.run import Run
from labkit.show import moments as figures


def title(axis) -> str:
    return axis.get_title(loc="left")


def test_the_moment_figure_counts_what_each_book_turns_into_zero():
    equal = CodeBook("linear8", torch.linspace(0, 1, 256), 8)
    half = 1 / 255 / 2
    moment = torch.tensor([0.0, 1.0, 0.5, half * 0.99, half * 1.01, 1e-9, 1e-5, 1e-4, 1e-3, 0.9])
    top, bottom = figures.moment_figure(moment, {"linear8": equal, "dynamic8": codebook("dynamic8-unsigned")}).axes
    # of the nine that are not zero: five below half a step of equal steps, one below the dynamic book's least
    assert title(top) == "Turned into zero: 56 % by linear8, 11 % by dynamic8"
    ends = [bar.get_x() + bar.get_width() for bar in bottom.patches]
    assert ends[0] == pytest.approx(np.log10(half))
    least = codebook("dynamic8-unsigned").values
    assert ends[1] == pytest.approx(float((least[least > 0].min() / 2).log10()))
    assert sum(len(c.get_segments()) for c in bottom.collections) == 255 + 255


def test_optimizer_curves_are_moving_means_in_order_from_the_first_full_window_on():
    losses = {"32 bits": [1.0, 3.0, 2.0], "8 bits": [1.0, 2.0, 3.0]}
    runs = {name: Run("full", "tiny", "sentiment", losses=each) for name, each in losses.items()}
    axis = figures.optimizer_curves(runs, "they agree", window=2).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_data(), [[2, 3], [2, 2.5]])
    np.testing.assert_allclose(axis.lines[1].get_data(), [[2, 3], [1.5, 2.5]])
    assert [line.get_label() for line in axis.lines] == ["32 bits", "8 bits"]
    assert axis.lines[0].get_linewidth() > 2 * axis.lines[1].get_linewidth() and title(axis) == "they agree"


def recorded(method: str, gap: float | None, curve: list[float]) -> dict:
    return {"method": method, "gap_nats": gap, "spread_nats": 0.25, "curve": curve,
            "curve_low": [v - 0.1 for v in curve], "curve_high": [v + 0.2 for v in curve]}  # fmt: skip


def test_recorded_curves_draw_the_band_of_the_seeds_and_the_largest_gap():
    rows = [
        recorded("adamw", None, [9.0, 2.0, 1.0]),
        recorded("a", 0.01, [9.0, 2.01, 1.0]),
        recorded("b", 0.034, [9.0, 2.0, 1.034]),
    ]
    axis = figures.recorded_curves(rows, window=2).axes[0]
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.9, 2.2)), "the first window was not full"
    assert [list(line.get_ydata()) for line in axis.lines] == [r["curve"][1:] for r in rows]
    assert list(axis.lines[0].get_xdata()) == [2, 3] and "mean of 2 steps" in axis.get_ylabel()
    assert axis.lines[0].get_linewidth() > 2 * axis.lines[2].get_linewidth(), "lines upon it must show"
    assert "at most 0.034 nats" in title(axis) and "0.25 on average" in title(axis)


def test_the_default_window_is_that_of_the_recorded_table():
    import inspect

    from labkit.bench.adam8bit import WINDOW

    assert inspect.signature(figures.recorded_curves).parameters["window"].default == WINDOW
