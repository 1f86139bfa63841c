"""The figures of lesson 09 draw the numbers that they are given: read back from the axes, not from the picture."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.numerics.quantize import CodeBook, codebook
from labkit.run import Run
from labkit.show import quantization as figures
from labkit.show.style import PALETTE, use_style

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def style_and_clean_up():
    use_style()  # titles stand on the left in the course's style
    yield
    matplotlib.pyplot.close("all")


def title(axis) -> str:
    return axis.get_title(loc="left")


def test_a_book_has_one_colour_in_every_recipe_and_double_quantization_its_own_dash():
    assert figures.style_of("int8-row")[0] == figures.style_of("llm.int8")[0] == PALETTE["blue"]
    assert figures.style_of("nf4")[0] == figures.style_of("bitsandbytes.nf4+dq")[0]
    assert figures.style_of("nf4")[1] != figures.style_of("nf4+dq")[1]
    assert len({figures.style_of(n) for n in ("int8", "int4", "fp4", "nf4", "dynamic8", "linear8")}) == 6
    assert figures.style_of("linear8")[0] == PALETTE["grey"]


def test_columns_are_ranked_and_the_title_names_the_most_uneven_layer():
    maxima = {"flat": torch.tensor([2.0, 3.0, 1.0]), "steep": torch.tensor([1.0, 50.0, 2.0, 2.0, 2.0])}
    axis = figures.column_figure(maxima, 6.0).axes[0]
    flat, steep, line = axis.lines
    np.testing.assert_array_equal(flat.get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(steep.get_ydata(), [50, 2, 2, 2, 1])
    assert steep.get_xdata()[-1] == 80 and set(line.get_ydata()) == {6.0}
    assert title(axis) == "In steep one column reaches 25 times the median column"
    assert axis.get_yscale() == "log"


def test_the_threshold_figure_shows_error_and_columns_of_each_input_in_percent():
    curves = {
        "calm": [{"threshold": t, "error": 0.01, "columns": 0.0} for t in (1, 6, 48)],
        "wild": [
            {"threshold": t, "error": e, "columns": c} for t, e, c in ((1, 0.01, 1.0), (6, 0.02, 0.5), (48, 0.05, 0))
        ],
    }
    top, bottom = figures.threshold_figure(curves).axes
    lines = {line.get_label(): line for line in top.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["wild"].get_ydata(), [1, 2, 5])
    np.testing.assert_allclose(bottom.lines[1].get_ydata(), [100, 50, 0])
    assert "up to 5.0 times (wild)" in title(top)
    assert [list(line.get_xdata()) for line in (top.lines[-1], bottom.lines[-1])] == [[6.0, 6.0]] * 2


def test_book_lines_have_a_tick_for_each_number_and_the_title_the_errors_in_order():
    mine = CodeBook("mine", torch.linspace(-1, 1, 16), 4)
    fig = figures.book_lines([codebook("fp4"), mine])
    ticks = [[segment[0][0] for segment in axis.collections[0].get_segments()] for axis in fig.axes[1:]]
    np.testing.assert_allclose(ticks[0], codebook("fp4").values.unique().tolist())
    assert len(ticks[1]) == 16 and "15 values" in fig.axes[1].get_ylabel()
    blocks = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    top = blocks.abs().amax(1, keepdim=True)
    nearest = mine.values[(blocks[..., None] / top[..., None] - mine.values).abs().argmin(-1)] * top
    error = 100 * float((nearest - blocks).norm() / blocks.norm())
    assert f"mine {error:.1f} %" in title(fig.axes[0])
    assert title(fig.axes[0]).index("mine") < title(fig.axes[0]).index("fp4"), "the smallest error comes first"


def test_the_block_error_figure_marks_64_and_prefers_fewer_bits_on_a_tie():
    rows = [
        {"book": "nf4", "block_size": 64, "bits": 4.5, "error": 0.09},
        {"book": "nf4", "block_size": 256, "bits": 4.125, "error": 0.10},
        {"book": "nf4+dq", "block_size": 64, "bits": 4.127, "error": 0.09},
        {"book": "int4", "block_size": 64, "bits": 4.5, "error": 0.11},
        {"book": "int4", "block_size": 32, "bits": 5.0, "error": 0.08},
    ]
    axis = figures.block_error_figure(rows).axes[0]
    lines = {line.get_label(): line.get_data() for line in axis.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["nf4"], [[4.125, 4.5], [10, 9]])
    assert title(axis) == "At blocks of 64 nf4+dq errs least: 9.0 % at 4.13 bits"
    squares = {tuple(line.get_xydata()[0].round(3)) for line in axis.lines if line.get_marker() == "s"}
    assert squares == {(4.5, 9.0), (4.127, 9.0), (4.5, 11.0)}


def row(method: str, divergence: float | None, bits: float) -> dict:
    return {"method": method, "divergence": divergence, "bits_per_parameter": bits}


def test_divergence_bars_leave_out_what_has_none_and_say_who_moves_least():
    here = [row("bf16", None, 16.0), row("int8-row", 0.004, 8.1), row("nf4", 0.13, 4.5), row("int4", 0.2, 4.5)]
    fig = figures.divergence_bars({"tiny": here})
    axis = fig.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.004, 0.13, 0.2]
    assert [to_hex(bar.get_facecolor()) for bar in axis.patches] == [
        figures.style_of(name)[0].lower() for name in ("int8-row", "nf4", "int4")
    ]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["int8-row, 8.1 bits", "nf4, 4.5 bits", "int4, 4.5 bits"]
    assert fig.get_suptitle() == "int8-row moves the predictions least, of the 4-bit ones nf4"


def test_two_panels_share_the_axis_and_disagree_in_two_lines():
    here = [row("int8-row", 0.004, 8.1), row("nf4", 0.13, 4.5), row("int4", 0.2, 4.5)]
    there = [row("int8-row", 0.04, 8.1), row("nf4", 0.9, 4.5), row("int4", 0.8, 4.5)]
    fig = figures.divergence_bars({"a": here, "b": there})
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    assert fig.get_suptitle().splitlines() == [
        "a: int8-row moves the predictions least, of the 4-bit ones nf4",
        "b: int8-row moves the predictions least, of the 4-bit ones int4",
    ]
    assert "4-bit" not in figures.divergence_bars({"a": here[:1]}).get_suptitle()


@pytest.mark.parametrize("panels", [{}, {"a": []}, {"a": [row("bf16", None, 16.0)]}])
def test_bars_without_a_divergence_are_refused(panels):
    with pytest.raises(LabError, match="No row has a divergence"):
        figures.divergence_bars(panels)


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


def test_optimizer_curves_are_moving_means_in_order():
    runs = {name: Run("full", "tiny", "sentiment", losses=losses) for name, losses in
            (("32 bits", [1.0, 3.0, 2.0]), ("8 bits", [1.0, 2.0, 3.0]))}  # fmt: skip
    axis = figures.optimizer_curves(runs, "they agree", window=2).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_data(), [[1, 2, 3], [1, 2, 2.5]])
    assert [line.get_label() for line in axis.lines] == ["32 bits", "8 bits"]
    assert axis.lines[0].get_linewidth() > axis.lines[1].get_linewidth() and title(axis) == "they agree"


def test_recorded_curves_draw_the_band_of_the_seeds_and_the_largest_gap():
    def recorded(method: str, gap: float | None, curve: list[float]) -> dict:
        return {"method": method, "gap_nats": gap, "spread_nats": 0.25, "curve": curve,
                "curve_low": [v - 0.1 for v in curve], "curve_high": [v + 0.1 for v in curve]}  # fmt: skip

    rows = [recorded("adamw", None, [2.0, 1.0]), recorded("a", 0.01, [2.01, 1.0]), recorded("b", 0.034, [2.0, 1.034])]
    axis = figures.recorded_curves(rows).axes[0]
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.9, 2.1))
    assert [list(line.get_ydata()) for line in axis.lines] == [r["curve"] for r in rows]
    assert "at most 0.034 nats" in title(axis) and "0.25" in title(axis)
