"""The figures of lesson 04 draw the bytes that they are given; titles and words are computed from them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from decoders import wide_llama
from inside import assert_titles_and_names_inside
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.ledger.trace import Moment, Trace
from labkit.memory.step import trace
from labkit.show import anatomy, anatomy_record
from labkit.show.anatomy_style import CATEGORIES, COLOURS, GIB, GPUS, MIB, amount, axis_end, highest, holder, off, where
from labkit.show.plots import CATEGORY_COLOURS
from labkit.show.style import PALETTE

OPT = Architecture("opt", 24, 2048, 32, 32, 64, 8192, 50272, positions=2050, biases=True)  # OPT-1.3B
BASE = Case(OPT, 4, 512)


def title(axis) -> str:
    return axis.get_title(loc="left")


def labels(axis) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def level(axis, x: float) -> float:
    """The top of the stacked areas at x, and of each of them below."""
    tops = []
    for area in axis.collections:
        corners = [v for path in area.get_paths() for v in path.vertices]
        tops += [y for at, y in corners if abs(at - x) < 1e-9]
    return max(tops)


def test_a_category_has_one_colour_that_no_other_has_and_other_lessons_use():
    assert len(set(COLOURS.values())) == len(CATEGORIES) == 8
    assert all(COLOURS[name] == PALETTE[colour] for name, colour in CATEGORY_COLOURS.items())
    drawn = anatomy.timeline_figure(predict(BASE)).axes[0]
    areas = {a.get_label(): to_hex(a.get_facecolor()[0]) for a in drawn.collections if isinstance(a, PolyCollection)}
    bars = anatomy.bars_figure({"a": BASE}).axes[0]
    for box in bars.containers:
        assert (
            to_hex(box[0].get_facecolor())
            == areas[box.get_label()]
            == COLOURS[box.get_label().replace(" ", "_")].lower()
        )


def test_bytes_in_words():
    assert [amount(x) for x in (2**11, 3 * MIB, 1.5 * GIB, 780 * GIB, 1234 * GIB)] == [
        "2 KiB", "3 MiB", "1.5 GiB", "780 GiB", "1,234 GiB",
    ]  # fmt: skip
    assert [off(a, 100) for a in (105, 97.54, 99.99, 100)] == ["+5.0 %", "-2.5 %", "0.0 %", "0.0 %"]
    assert holder(24 * GIB, GPUS) == "24 GB" and holder(24 * GIB + 1, GPUS) == "48 GB"
    assert holder(81 * GIB, GPUS) is None
    assert axis_end(20 * GIB, GPUS) > 24 * GIB, "the GPU that holds it is in the picture"
    assert axis_end(300 * MIB, GPUS) < GIB, "unless there is nothing to see then"


def test_the_timeline_s_areas_add_up_to_the_formula_and_the_title_has_its_peak():
    predicted = predict(BASE)
    axis = anatomy.timeline_figure(predicted).axes[0]
    corners = anatomy.path(predicted, anatomy._edges([predicted]), formula=True)
    assert {id(moment) for _, moment in corners} == {id(moment) for moment in predicted.moments}
    top = [point for path in axis.collections[-1].get_paths() for point in path.vertices]
    for x, moment in corners:
        distance = min(abs(px - x) + abs(py - moment.total / GIB) for px, py in top)
        assert distance < 1e-3, moment  # buffers of 16 KiB are not drawn
    share = 100 * predicted.peak.bytes["optimizer_states"] / predicted.peak.total
    peak = amount(predicted.peak.total)
    assert title(axis) == f"Peak of {peak} at the loss; {share:.0f} % of it are optimizer states"
    assert axis.get_ylabel() == "memory (GiB)" and "not time" in axis.get_xlabel()
    assert [t.get_text() for t in axis.get_xticklabels()] == ["forward", "backward", "update", "loss"]
    assert axis.texts[0].get_text() == f"peak {peak}, at the loss"
    assert labels(axis) == ["weights", "optimizer states", "gradients", "activations", "logits", "temporary"]


def test_formula_and_trace_of_unequally_many_moments_share_their_stretches():
    config = wide_llama(4)
    case = Case(Architecture.of(config), 4, 128, device="cpu")
    predicted, traced = predict(case), trace(case, config)
    assert len(traced.moments) > 5 * len(predicted.moments)
    axis = anatomy.timeline_figure(predicted, traced).axes[0]
    line = next(line for line in axis.lines if line.get_label() == "sum, traced")
    xs, ys = line.get_data()
    edges = anatomy._edges([predicted, traced])
    assert max(ys) == pytest.approx(traced.peak.total / MIB)
    begin, end = edges["loss, backward"]
    assert begin <= xs[int(np.argmax(ys))] <= end, "the traced peak lies where the formula's does"
    forward = edges["forward"]
    for part in (0.25, 0.5, 0.75):
        x = forward[0] + part * (forward[1] - forward[0])
        seen = np.interp(x, xs, ys)
        assert abs(seen - level(axis, x)) < highest(predicted)["activations"] / 4 / MIB, "less than a block apart"
    assert "traced" in title(axis) and title(axis).endswith(f"({off(traced.peak.total, predicted.peak.total)})")
    assert axis.get_ylabel() == "memory (MiB)"


def test_a_trace_s_registration_is_one_start_and_a_silent_update_holds_the_last_sum():
    seen = Trace(
        [
            Moment("start", {"weights": 1}),
            Moment("start", {"weights": 4}),
            Moment("forward", {"weights": 4, "activations": 600}),
            Moment("forward", {"weights": 4, "activations": 600, "logits": 2}),
            Moment("backward", {"weights": 4, "activations": 600, "logits": 3}),
            Moment("backward", {"weights": 4, "activations": 300, "gradients": 2}),
            Moment("backward", {"weights": 4, "activations": 1, "gradients": 4}),
            Moment("end", {"weights": 4}),
        ]
    )
    found = {name: [m.total for m in moments] for name, moments in anatomy.stretches(seen).items()}
    assert found == {
        "start": [4], "forward": [604], "loss, forward": [606], "loss, backward": [607], "backward": [306],
        "backward, end": [9], "update": [], "end": [4],
    }  # fmt: skip
    edges = anatomy._edges([seen, predict(BASE)])
    corners = anatomy.path(seen, edges, formula=False)
    assert (edges["update"][1], seen.moments[-2]) in corners
    for x in edges["loss, forward"]:
        assert (x, seen.moments[3]) in corners, "a moment lasts until the next"
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)


def test_measured_bytes_lie_over_their_phase():
    predicted = predict(BASE)
    measured = [("forward", 20 * GIB), ("backward", 21 * GIB), ("backward", 19 * GIB)]
    axis = anatomy.timeline_figure(predicted, measured=measured).axes[0]
    lines = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [set(line.get_ydata()) for line in lines] == [{20}, {21}, {19}]
    edges = anatomy._edges([predicted])
    assert list(lines[0].get_xdata()) == [edges["forward"][0], edges["loss, forward"][1]]
    assert lines[1].get_xdata()[1] == lines[2].get_xdata()[0]
    assert f"measured 21 GiB ({off(21 * GIB, predicted.peak.total)})" in title(axis)
    assert labels(axis).count("measured") == 1
    with pytest.raises(LabError, match="no part 'sleep'"):
        anatomy.timeline_figure(predicted, measured=[("sleep", 1)])


def test_the_timeline_in_words():
    case = BASE.with_(batch=1, seq_len=64)
    predicted = predict(case)
    words = anatomy.timeline_words(predicted, predicted, [("forward", 3 * GIB)])
    assert f"The peak, {amount(predicted.peak.total)}, comes at the end of the backward pass" in words
    assert f"gradients {amount(predicted.peak.bytes['gradients'])}" in words
    assert "(0.0 %)" in words and "Measured: forward 3 GiB." in words
    assert where(predict(case.with_(train="nothing")).peak) == "at the loss"
    assert (
        anatomy.timeline_figure(predict(case.with_(train="nothing"))).axes[0].get_xticklabels()[-1].get_text() == "loss"
    )


def test_bars_stack_to_the_peak_and_say_which_gpu_holds_it():
    cases = {"fp32": BASE, "LoRA\nbf16": BASE.with_(train="lora", weights="bfloat16")}
    axis = anatomy.bars_figure(cases).axes[0]
    peaks = [predict(case).peak.total for case in cases.values()]
    for x, peak in enumerate(peaks):
        tops = [box[x].get_y() + box[x].get_height() for box in axis.containers]
        assert max(tops) == pytest.approx(peak / GIB, rel=1e-3)
        assert f"{amount(peak)}\nfits {holder(peak, GPUS)}" in [t.get_text() for t in axis.texts]
    assert [line.get_ydata()[0] for line in axis.lines] == [8, 16, 24]
    assert title(axis).splitlines() == [
        f"Peaks from {amount(peaks[1])} (LoRA bf16) to {amount(peaks[0])} (fp32)",
        "Of 2 fit: 1 into 8 GB, 2 into 24 GB",
    ]
    assert axis.get_ylabel() == "memory at the peak (GiB)"
    words = anatomy.bars_words(cases)
    assert (
        "LoRA bf16: " in words and f"optimizer states {amount(predict(BASE).peak.bytes['optimizer_states'])}" in words
    )
    with pytest.raises(LabError, match="no cases"):
        anatomy.bars_figure({})


def test_gpu_names_that_would_overlap_share_a_place():
    axis = anatomy.bars_figure(
        {"large": BASE.with_(arch=Architecture("opt", 64, 9216, 72, 72, 128, 36864, 50272))}
    ).axes[0]
    assert "8, 16, 24, 48, 80 GB" in [t.get_text() for t in axis.texts] and "fits none" in axis.texts[-2].get_text()


def rows_of(measured):
    return [
        {"model": f"m{i}", "method": "lora" if i else "full", "dtype": "fp32", "batch": 2, "seq_len": 8,
         "predicted_mib": 100.0 * (i + 1), "traced_mib": 101.0 * (i + 1), "peak_allocated_mib": found}
        for i, found in enumerate(measured)
    ]  # fmt: skip


def test_residuals_are_counted_sorted_and_coloured_by_the_band():
    rows = rows_of([104.0, 190.0, None, 424.0])
    fig = anatomy_record.residual_figure(rows)
    left, right = fig.axes
    strip = [c.get_offsets()[0] for c in right.collections if len(c.get_offsets()) == 1 and len(c.get_paths())]
    np.testing.assert_allclose([y for _, y in strip], [-5, 4, 6])
    colours = [to_hex(c.get_facecolor()[0]) for c in right.collections if len(c.get_offsets()) == 1]
    assert colours == [PALETTE["blue"].lower(), PALETTE["blue"].lower(), PALETTE["red"].lower()], (
        "the band has its edge"
    )
    assert fig.get_suptitle().splitlines() == [
        "2 of 3 measured peaks lie within 5 % of the formula", "the furthest is +6.0 % (m3, lora, fp32, 2 × 8)",
    ]  # fmt: skip
    traced = next(line for line in right.lines if line.get_label() == "traced")
    np.testing.assert_allclose(traced.get_ydata(), [1, 1, 1])
    assert left.get_xscale() == left.get_yscale() == "log" and left.get_xlim() == left.get_ylim()
    assert left.get_ylabel() == "allocator's peak (MiB)" and right.get_ylabel() == "above the prediction (%)"
    words = anatomy_record.residual_words(rows)
    assert "-5.0 % (m1, lora, fp32, 2 × 8) to +6.0 % (m3" in words and "between 100 MiB and 400 MiB" in words
    assert "The trace lies +1.0 to +1.0 %" in words


def test_the_furthest_may_lie_below():
    fig = anatomy_record.residual_figure(rows_of([92.0, 206.0]))
    assert fig.get_suptitle().splitlines()[1] == "the furthest is -8.0 % (m0, full, fp32, 2 × 8)"


def test_without_a_gpu_the_traced_peaks_are_compared():
    rows = rows_of([None, None])
    fig = anatomy_record.residual_figure(rows)
    assert fig.get_suptitle().startswith("2 of 2 traced peaks") and fig.axes[0].get_ylabel() == "traced peak (MiB)"
    with pytest.raises(LabError, match="measured or traced"):
        anatomy_record.residual_figure([{**row, "traced_mib": None} for row in rows])


def test_growth_finds_flash_linear_and_eager_quadratic_in_the_sequence():
    sweeps = {
        kind: {t: BASE.with_(seq_len=t, attention=kind) for t in (512, 4096, 2**17)} for kind in ("flash", "eager")
    }
    fig = anatomy_record.growth_figure(sweeps)
    flash, eager = fig.axes
    assert (
        title(flash) == "flash: activations grow as $x^{1.0}$"
        and title(eager) == "eager: activations grow as $x^{2.0}$"
    )
    drawn = {line.get_label(): line for line in eager.lines}
    expected = [highest(predict(case))["activations"] / GIB for case in sweeps["eager"].values()]
    np.testing.assert_allclose(drawn["activations"].get_ydata(), expected)
    np.testing.assert_allclose(drawn["weights"].get_ydata(), [drawn["weights"].get_ydata()[0]] * 3)
    assert to_hex(drawn["activations"].get_color()) == COLOURS["activations"].lower()
    times = predict(sweeps["eager"][2**17]).peak.total / predict(sweeps["eager"][512]).peak.total
    assert f"{times:,.0f} times (eager)" in fig.get_suptitle()
    assert flash.get_xlabel() == "sequence length (tokens)" and flash.get_ylabel() == "highest in the step (GiB)"
    assert "activations grow with the power 1.00 at the end" in anatomy_record.growth_words(sweeps)
    with pytest.raises(LabError, match="two sizes"):
        anatomy_record.growth_figure({"one": {1: BASE}})


def test_growth_with_the_model_names_parameters():
    small = Architecture("opt", 12, 768, 12, 12, 64, 3072, 50272, positions=2050, biases=True)
    sweep = {arch.parameters: BASE.with_(arch=arch) for arch in (small, OPT)}
    fig = anatomy_record.growth_figure({"full": sweep}, "model (parameters)")
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["125 M", "1.32 B"]
    assert fig.get_suptitle().startswith("Model from 125 M to 1.32 B: the peak grows ")


def test_names_of_many_sizes_stay_apart():
    lengths = [2**i for i in range(5, 17)]
    sweeps = {str(n): {t: BASE.with_(seq_len=t) for t in lengths} for n in range(3)}
    for count in (1, 2, 3):
        fig = anatomy_record.growth_figure(dict(list(sweeps.items())[:count]))
        fig.draw_without_rendering()
        for ax in fig.axes:
            labels = [label for label in ax.get_xticklabels() if label.get_text()]
            boxes = [label.get_window_extent() for label in labels]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), [label.get_text() for label in labels]
            assert labels[0].get_text() == "32" and labels[-1].get_text() == "65536"
            assert len(labels) >= 3 and len(ax.get_xticks()) == len(lengths)


def test_titles_and_names_lie_inside_the_figure():
    figures = [
        anatomy.timeline_figure(predict(BASE.with_(batch=1, seq_len=64)), predict(BASE), [("forward", 20 * GIB)]),
        anatomy.bars_figure({name: BASE for name in ("fp32", "bf16", "a third")}),
        anatomy_record.residual_figure(rows_of([104.0, 190.0])),
    ]
    for fig in figures:
        assert_titles_and_names_inside(fig)
