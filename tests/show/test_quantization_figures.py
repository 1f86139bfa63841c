"""The figures of lesson 09 on weights draw the numbers that they are given: read back from the axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.numerics.quantize import CodeBook, codebook
from labkit.show import quantization as figures
from labkit.show.style import PALETTE


def title(axis) -> str:
    return axis.get_title(loc="left")


def test_a_book_has_one_colour_in_every_recipe_and_double_quantization_its_own_dash():
    assert figures.style_of("int8-row")[0] == figures.style_of("llm.int8")[0] == PALETTE["blue"]
    assert figures.style_of("nf4")[0] == figures.style_of("bitsandbytes.nf4+dq")[0]
    assert figures.style_of("nf4")[1] != figures.style_of("nf4+dq")[1]
    assert len({figures.style_of(n) for n in ("int8", "int4", "fp4", "nf4", "dynamic8", "linear8")}) == 6
    assert figures.style_of("linear8")[0] == PALETTE["grey"]


def test_columns_are_ranked_in_a_panel_for_each_kind_of_token_and_the_title_names_the_most_uneven():
    steep = {"flat": torch.tensor([2.0, 3.0, 1.0]), "steep": torch.tensor([1.0, 50.0, 2.0, 2.0, 2.0])}
    even = {"flat": torch.tensor([1.0, 2.0, 9.0]), "steep": torch.tensor([2.0, 3.0, 2.0, 2.0, 2.0])}
    fig = figures.column_figure({"all": steep, "rest": even}, 6.0)
    left, right = fig.axes
    flat, line, threshold = left.lines
    np.testing.assert_array_equal(flat.get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(line.get_ydata(), [50, 2, 2, 2, 1])
    np.testing.assert_array_equal(right.lines[1].get_ydata(), [3, 2, 2, 2, 2])
    assert line.get_xdata()[-1] == 80 and set(threshold.get_ydata()) == {6.0}
    assert [title(axis) for axis in fig.axes] == ["all", "rest"]
    assert fig.get_suptitle().splitlines()[1] == "all 25 times (steep), rest 4.5 times (flat)"
    assert left.get_yscale() == "log" and left.get_ylim() == right.get_ylim()


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
    assert title(top) == "At 6 the error is 2.5 times smaller than at 48 (wild)", "neither end of the curve decides"
    assert [list(line.get_xdata()) for line in (top.lines[-1], bottom.lines[-1])] == [[6.0, 6.0]] * 2
    named = figures.threshold_figure(curves, about="calm").axes[0]
    assert title(named) == "At 6 the error is 1.0 times smaller than at 48 (calm)", "the input asked for"


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
    told = fig.get_suptitle().splitlines()[1]
    assert f"mine {error:.1f} %" in told and told.index("mine") < told.index("fp4"), "the smallest error comes first"


def test_book_lines_draw_every_weight_and_count_numbers_that_merge():
    fig = figures.book_lines([codebook("fp4"), codebook("nf4")])
    density, width = [bar.get_height() for bar in fig.axes[0].patches], fig.axes[0].patches[0].get_width()
    assert sum(density) * width == pytest.approx(1)
    blocks = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    assert density[-1] * width == pytest.approx(float((scaled > 1 - width).double().mean()), rel=1e-3)
    assert density[-1] > 2 * density[-2], "the largest of each block lies at an end"
    assert [t.get_text() for t in fig.axes[1].texts] == ["×3"] and not fig.axes[2].texts
    assert fig.axes[1].texts[0].get_position()[0] == pytest.approx(1 / 192 + 0.012)


def test_titles_over_all_panels_fit_the_figure():
    books = [codebook(name) for name in ("int4", "fp4", "nf4")] + [CodeBook("e2m1", torch.linspace(-1, 1, 16), 4)]
    for fig in (figures.book_lines(books), figures.column_figure({"all": {"a": torch.ones(3)}}, 6.0)):
        fig.draw_without_rendering()
        box = fig._suptitle.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= fig.bbox.width


def test_the_block_error_figure_labels_sizes_and_prefers_fewer_bits_on_a_tie():
    rows = [
        {"book": "nf4", "block_size": 64, "bits": 4.5, "error": 0.09},
        {"book": "nf4", "block_size": 256, "bits": 4.125, "error": 0.10},
        {"book": "nf4+dq", "block_size": 32, "bits": 4.254, "error": 0.085},
        {"book": "nf4+dq", "block_size": 64, "bits": 4.127, "error": 0.09},
        {"book": "nf4+dq", "block_size": 256, "bits": 4.032, "error": 0.10},
        {"book": "int4", "block_size": 64, "bits": 4.5, "error": 0.11},
        {"book": "int4", "block_size": 32, "bits": 5.0, "error": 0.08},
    ]
    axis = figures.block_error_figure(rows).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_allclose(lines["nf4"].get_data(), [[4.125, 4.5], [10, 9]])
    assert title(axis) == "At blocks of 64 nf4+dq errs least: 9.0 % at 4.13 bits"
    # the highest fp32 line carries the sizes, double quantization its own, as far as there is room for them
    assert {(t.get_text(), *t.xy) for t in axis.texts} == {("64", 4.5, 11.0), ("32", 5.0, 8.0)} | {
        ("32", 4.254, 8.5), ("64", 4.127, 9.0)}  # fmt: skip
    assert lines["nf4"].get_color() == lines["nf4+dq"].get_color()
    faces = [to_hex(lines[name].get_markerfacecolor()) for name in ("nf4", "nf4+dq")]
    assert faces == [figures.style_of("nf4")[0].lower(), "#ffffff"]


def row(method: str, divergence: float | None, bits: float, rounded: str = "weights") -> dict:
    return {"method": method, "divergence": divergence, "bits_per_parameter": bits, "rounded": rounded}


def test_the_divergence_figure_leaves_out_what_has_none_and_tells_what_is_rounded():
    here = [row("bf16", None, 16.0), row("int8-row", 0.004, 8.1, "weights and inputs"), row("nf4", 0.13, 4.5),
            row("int4", 0.2, 4.5)]  # fmt: skip
    fig = figures.divergence_figure({"tiny": here})
    axis = fig.axes[0]
    both, weights = axis.lines
    np.testing.assert_array_equal(both.get_data(), [[0.004], [0]])
    np.testing.assert_array_equal(weights.get_data(), [[0.13, 0.2], [1, 2]])
    assert both.get_marker() != weights.get_marker() and both.get_color() != weights.get_color()
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["weights and inputs", "weights"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["int8-row, 8.1 bits", "nf4, 4.5 bits", "int4, 4.5 bits"]
    assert [(t.get_text(), t.xy) for t in axis.texts] == [("0.004", (0.004, 0)), ("0.13", (0.13, 1)), ("0.2", (0.2, 2))]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first row stands on top"
    assert fig.get_suptitle() == "int8-row moves the predictions least, of the 4-bit ones nf4"


def test_two_panels_share_the_axis_and_disagree_in_two_lines():
    here = [row("int8-row", 0.004, 8.1), row("nf4", 0.13, 4.5), row("int4", 0.2, 4.5)]
    there = [row("int8-row", 0.04, 8.1), row("nf4", 0.9, 4.5), row("int4", 0.8, 4.5)]
    fig = figures.divergence_figure({"a": here, "b": there})
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    assert fig.get_suptitle().splitlines() == [
        "a: int8-row moves the predictions least, of the 4-bit ones nf4",
        "b: int8-row moves the predictions least, of the 4-bit ones int4",
    ]
    assert "4-bit" not in figures.divergence_figure({"a": here[:1]}).get_suptitle()


@pytest.mark.parametrize("panels", [{}, {"a": []}, {"a": [row("bf16", None, 16.0)]}])
def test_rows_without_a_divergence_are_refused(panels):
    with pytest.raises(LabError, match="No row has a divergence"):
        figures.divergence_figure(panels)
