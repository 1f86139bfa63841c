"""The figures and the widget of lesson 02 draw the numbers they are given: read back from the axes, not the picture."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.numerics import scaling
from labkit.run import Run
from labkit.show import precision as figures
from labkit.show import precision_record
from labkit.show.explorer import Explorer
from labkit.show.precision_widgets import GradientExplorer, window_words
from labkit.show.style import PALETTE


def title(fig, axis: int = 0) -> str:
    return fig.axes[axis].get_title(loc="left")


def powers(*exponents: int) -> torch.Tensor:
    """One value in the middle of each power of two."""
    return torch.tensor([1.5 * 2.0**k for k in exponents], dtype=torch.float64)


def run(*losses: float, stopped: str = "", **traces: list[float]) -> Run:
    return Run("m", "tiny", "t", losses=list(losses), traces=traces, stopped=stopped)


def bars(ax) -> dict[float, tuple[float, str]]:
    """Power of two of each bar: its height and its colour."""
    found = {}
    for container in ax.containers:
        for bar in container:
            found[bar.get_x() + bar.get_width() / 2 - 0.5] = (bar.get_height(), to_hex(bar.get_facecolor()))
    return found


def test_each_power_of_two_has_the_colour_of_what_the_format_makes_of_it():
    sizes = powers(-27, -26, -25, -15, -14, 0, 15, 16)
    fig = figures.range_figure({"g": sizes}, "fp16")
    red, orange, blue, purple = (PALETTE[c].lower() for c in ("red", "orange", "blue", "purple"))
    wanted = {-27: red, -26: red, -25: orange, -15: orange, -14: blue, 0: blue, 15: blue, 16: purple}
    found = bars(fig.axes[0])
    assert {k: colour for k, (_, colour) in found.items()} == wanted
    assert {height for height, _ in found.values()} == {12.5}
    assert title(fig) == "g, fp16: 25 % become zero, 25 % subnormal, 12.5 % overflow"


def test_a_scale_moves_the_bars_and_the_format_stays():
    sizes = powers(-30, -10, -10, -10)
    before, after = (figures.range_figure({"g": sizes}, "fp16", scale) for scale in (1.0, 2.0**10))
    assert set(bars(after.axes[0])) == {k + 10 for k in bars(before.axes[0])} == {-20, 0}
    zones = [{t.get_text(): t.get_position() for t in fig.axes[0].texts if "largest" not in t.get_text()}
             for fig in (before, after)]  # fmt: skip
    assert zones[0] == zones[1] and len(zones[0]) == 4
    assert "25 % become zero" in title(before) and "0 % become zero, 25 % subnormal" in title(after)


def test_the_largest_value_is_marked_where_its_bar_is_too_low_to_see():
    sizes = torch.cat([torch.full((100_000,), 2.0**-9), torch.tensor([3.0])])
    for scale, place in ((1.0, math.log2(3)), (2.0**10, math.log2(3) + 10)):
        ax = figures.range_figure({"g": sizes}, "fp16", scale).axes[0]
        (line,) = ax.lines
        assert line.get_xdata() == pytest.approx([place, place])
        assert f"largest:\n{3 * scale:.2g}" in {t.get_text() for t in ax.texts}
    assert not figures.range_figure({"g": sizes}, "fp16", span=(-20, 1)).axes[0].lines  # beyond the axis


def test_what_is_not_all_is_not_called_100_percent():
    assert [figures.percent(share) for share in (1.0, 0.99958, 0.999999, 0.5, 1.5e-5)] == [
        "100 %", "99.96 %", "99.9999 %", "50 %", "0.0015 %",
    ]  # fmt: skip
    sizes = torch.cat([torch.full((9999,), 2.0**-30), torch.tensor([2.0**-20])])
    assert figures.range_words(sizes, "fp16") == "99.99 % become zero, 0.01 % subnormal"


def test_every_population_has_a_panel_of_its_own():
    fig = figures.range_figure({"gradients": powers(0), "second moments": powers(-40)}, "fp16")
    assert title(fig, 0).startswith("gradients, fp16: 0 %")
    assert title(fig, 1).startswith("second moments, fp16: 100 %")


def test_a_format_without_infinity_has_no_zone_for_it():
    names = {t.get_text() for t in figures.range_figure({"g": powers(0)}, "fp4_e2m1").axes[0].texts}
    assert "infinite" not in names and "normal" in names


def test_layers_are_drawn_in_order_and_zero_shares_are_left_out():
    rows = [{"layer": "embedding", "underflow": 0.0, "subnormal": 0.02},
            {"layer": "layer 0", "underflow": 0.001, "subnormal": 0.01}]  # fmt: skip
    fig = figures.layer_figure(rows)
    subnormal, zero = fig.axes[0].lines
    assert subnormal.get_ydata().tolist() == [2.0, 1.0]
    assert math.isnan(zero.get_ydata()[0]) and zero.get_ydata()[1] == 0.1
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["embedding", "0"]
    # What a logarithmic axis cannot show is said.
    assert [(t.get_text(), t.get_position()[0]) for t in fig.axes[0].texts if t.get_text()] == [("no zero", 0)]
    assert title(fig) == "Most is lost in layer 0: 0.1 % of its values become zero"
    assert figures.layer_words(rows[:1]) == "No layer has a gradient value that becomes zero"


def test_a_broken_run_ends_in_a_cross_at_its_last_finite_loss():
    fig = figures.loss_figure({"good": run(4.0, 2.0, 1.0), "bad": run(3.0, 5.0, math.nan, stopped="x")}, window=1)
    good, bad, cross, _guessing = fig.axes[0].lines
    assert good.get_ydata().tolist() == [4.0, 2.0, 1.0] and bad.get_ydata().tolist() == [3.0, 5.0]
    assert (cross.get_marker(), *cross.get_xdata(), *cross.get_ydata()) == ("X", 2, 5.0)
    assert title(fig) == "good ends at 1.00, bad breaks at step 3"
    assert "NaN at step 3" in {t.get_text() for t in fig.axes[0].texts}
    assert len(figures.loss_figure({"good": run(1.0, 1.0)}).axes[0].lines) == 2  # its curve and the guess


@pytest.mark.parametrize("window", [1, 3, figures.LAST])
def test_a_curve_ends_where_the_title_says(window):
    fig = figures.loss_figure({"fp32": run(9.0, 1.0, 2.0, 4.0, 3.0, 5.0, 6.0)}, window=window)
    end = fig.axes[0].lines[0].get_ydata()[-1]
    assert title(fig) == f"fp32 ends at {end:.2f}"
    assert f"mean of {window} steps" in fig.axes[0].get_ylabel()


def test_a_line_that_covers_another_leaves_its_edges_and_ways_to_train_look_alike_everywhere():
    names = list(figures.STYLES)[:4]
    drawn = figures.loss_figure({name: run(1.0, 1.0) for name in names}).axes[0].lines[:4]
    widths = [line.get_linewidth() for line in drawn]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 4
    assert len({line.get_color() for line in drawn}) == 4 and len({line.get_linestyle() for line in drawn}) == 4
    alone = figures.loss_figure({names[2]: run(1.0, 1.0)}).axes[0].lines[0]
    assert (alone.get_color(), alone.get_linestyle()) == (drawn[2].get_color(), drawn[2].get_linestyle())


def test_losses_that_were_divided_are_multiplied_back():
    runs = {"small": run(0.5 / 1024, 0.25 / 1024)}
    fig = figures.loss_figure(runs, 1024, window=1)
    assert fig.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.25]
    assert title(fig) == "small ends at 0.25"
    assert math.isnan(figures.last_loss(run(1.0, math.nan)))


@pytest.mark.parametrize("losses", [(0.6, 0.55, 0.5), (0.57, 1.03, 1.26), (0.5, 60.0), (0.7, 0.7)])
def test_every_loss_lies_between_two_ticks(losses):
    ax = figures.loss_figure({"a": run(*losses)}, window=1).axes[0]
    low, high = ax.get_ylim()
    ticks = [t for t in ax.get_yticks() if low <= t <= high]
    assert ticks[0] <= min(losses) and max(losses) <= ticks[-1] and len(ticks) > 1


def test_the_trace_marks_the_skipped_steps_and_the_library_lies_on_it():
    overflows = [False, True, True, False, False]
    ours = scaling.trace(scaling.DynamicScaler(2.0**10, growth_interval=2), overflows)
    theirs = scaling.library_trace(overflows, init_scale=2.0**10, growth_interval=2)
    fig = figures.trace_figure(ours, theirs, "torch")
    stairs, circles, crosses = fig.axes[0].lines
    assert stairs.get_ydata().tolist() == circles.get_ydata().tolist() == [1024, 1024, 512, 256, 256]
    assert (list(crosses.get_xdata()), list(crosses.get_ydata())) == ([2, 3], [1024, 512])
    assert title(fig) == "2 of 5 steps skipped; the scale goes from 2^10 to 2^9"
    assert circles.get_label() == "torch"
    assert len(figures.trace_figure(ours[:1]).axes[0].lines) == 1


def test_a_runs_own_scale_can_be_drawn_and_a_run_without_one_is_refused():
    rows = figures.scale_rows(run(1.0, 1.0, loss_scale=[8.0, 4.0], found_inf=[1.0, 0.0]))
    assert rows == [{"scale": 8.0, "found_inf": 1.0}, {"scale": 4.0, "found_inf": 0.0}]
    with pytest.raises(LabError, match="no loss scale"):
        figures.scale_rows(run(1.0))


def recorded(method: str, accuracy: float, finished: int = 3, **more) -> dict:
    return {"method": method, "accuracy": accuracy, "accuracy_std": 0.01, "finished": finished} | more


def test_recorded_runs_are_bars_with_spread_and_what_was_not_measured_says_so():
    rows = [recorded("fp32", 0.8, step_ms=30.0), recorded("fp16", 0.5, finished=1, step_ms=20.0)]
    fig = precision_record.recorded_figure(rows, seeds=3)
    accuracy, step, memory, _joules = fig.axes
    spread = [line.get_segments()[0][:, 0].tolist() for line in accuracy.collections]
    assert spread == [pytest.approx([79, 81]), pytest.approx([49, 51])]
    points = [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "o"]
    assert points == [80.0, 50.0] and not accuracy.patches  # bars would have to begin at zero
    assert [t.get_text() for t in accuracy.texts] == ["80.0", "50.0", "guessing"]
    assert accuracy.get_xlim()[0] < 49 and accuracy.lines[-1].get_xdata() == [50, 50]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["learned", "did not learn"]
    assert [bar.get_width() for bar in step.patches] == [30.0, 20.0]
    assert [t.get_text() for t in memory.texts] == ["not measured"] * 2
    assert [t.get_text() for t in accuracy.get_yticklabels()] == ["fp32", "fp16 (NaN: 2 of 3)"]
    assert [to_hex(bar.get_facecolor()) for bar in step.patches] == [PALETTE["blue"].lower(), PALETTE["red"].lower()]
    assert fig.get_suptitle() == "1 of 2 ways end between 80.0 and 80.0 %; fp16 did not learn"


def test_a_run_that_ends_at_guessing_did_not_learn_even_where_it_finished():
    rows = [recorded("fp32", 0.9), recorded("bf16", 0.88), recorded("fp16-moments", 0.51)]
    assert precision_record.recorded_words(rows).endswith("88.0 and 90.0 %; fp16-moments did not learn")
    assert precision_record.recorded_words(rows[:2]) == "2 of 2 ways end between 88.0 and 90.0 %"


def test_the_explorer_repaints_for_format_and_scale_and_has_a_static_twin():
    widget = GradientExplorer(powers(*range(-20, 1)))
    first = widget.words
    assert first.startswith("Gradients times 2^0 in fp16: 0 % become zero") and "from 2^-5 to 2^15" in first
    widget.sliders["exponent"].value = -24
    assert "Gradients times 2^-24 in fp16" in widget.words and widget.words != first
    widget.sliders["fmt"].value = "bf16"
    assert "in bf16: 0 % become zero" in widget.words
    bundle = widget._repr_mimebundle_()
    assert bundle["text/plain"] == f"[figure] {widget.words}" and '<img alt="' in bundle["text/html"]
    assert [label for label, _ in widget.sliders["exponent"].options][::24] == ["2^-24", "2^0", "2^24"]


def test_window_words_name_both_ends_or_say_that_there_is_none():
    narrow, wide = powers(-10, 0), powers(-30, 0)
    assert window_words(narrow, "fp8_e4m3").startswith("In fp8_e4m3 every loss scale from 2^0 to 2^8 keeps")
    assert window_words(wide, "fp8_e4m3").startswith("In fp8_e4m3 no loss scale")


def test_sliders_take_numbers_and_named_options():
    class Named(Explorer):
        def picture_of(self, **values):
            return f"{values}", "words"

    widget = Named({"a": ("number", [1, 0.5], 1), "b": ("name", [("one", 1), ("two", 2)], 2)})
    assert widget.sliders["a"].options == (("1", 1), ("0.5", 0.5))
    assert widget.picture.value == "{'a': 1, 'b': 2}"
