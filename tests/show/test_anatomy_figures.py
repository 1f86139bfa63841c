"""The figures of lesson 04 draw the bytes that they are given; titles and words are computed from them."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import wide_llama
from inside import assert_titles_and_names_inside
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.gpus import usable
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.ledger.trace import Moment, Trace
from labkit.memory.step import Step, follow, trace
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
    room = usable(24 * GIB)
    assert holder(room, GPUS) == "24 GB" and holder(room + 1, GPUS) == "48 GB", "context and gaps are no room"
    assert holder(81 * GIB, GPUS) is None
    assert axis_end(20 * GIB, GPUS) > room, "the GPU that holds it is in the picture"
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


def test_real_tensors_are_a_dotted_line_beside_the_trace():
    config = wide_llama(2)
    case = Case(Architecture.of(config), 2, 64, device="cpu")
    predicted, traced = predict(case), trace(case, config)
    followed = follow(Step(case, config, "cpu"))
    axis = anatomy.timeline_figure(predicted, traced, followed).axes[0]
    dotted = next(line for line in axis.lines if line.get_linestyle() == ":")
    assert dotted.get_label() == "sum, real tensors" and len(set(dotted.get_ydata())) > 50, "each storage is followed"
    assert max(dotted.get_ydata()) == pytest.approx(followed.peak.total / MIB)
    said = f"on real tensors {amount(followed.peak.total)} ({off(followed.peak.total, predicted.peak.total)})"
    assert said in title(axis)
    assert "The sum over real tensors, dotted, peaks " in anatomy.timeline_words(predicted, traced, followed)


def test_the_timeline_in_words():
    case = BASE.with_(batch=1, seq_len=64)
    predicted = predict(case)
    words = anatomy.timeline_words(predicted, predicted)
    assert f"The peak, {amount(predicted.peak.total)}, comes at the end of the backward pass" in words
    assert f"gradients {amount(predicted.peak.bytes['gradients'])}" in words
    assert "(0.0 %)" in words
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
    np.testing.assert_allclose(
        [line.get_ydata()[0] for line in axis.lines], [usable(n * GIB) / GIB for n in (8, 16, 24)]
    )
    assert title(axis).splitlines() == [
        f"fp32 needs {peaks[0] / peaks[1]:.3g} times the memory of LoRA bf16",
        "Largest to fit 8 GB: LoRA bf16; 24 GB: fp32",
    ]
    assert axis.get_ylabel().startswith("memory at the peak (GiB)")
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


def test_residuals_are_counted_named_and_coloured_by_the_band():
    rows = [*rows_of([104.0, 190.0, None, 424.0, 500.2]), {**rows_of([100.0])[0], "traced_mib": 100.5}]
    rows[1] |= {"dtype": "float32, products bfloat16", "optimizer": "sgd", "segments": 4}
    rows[4] |= {"traced_mib": 540.0}
    fig = anatomy_record.residual_figure(rows)
    left, right = fig.axes
    strip = [c.get_offsets()[0] for c in right.collections if len(c.get_offsets()) == 1 and len(c.get_paths())]
    np.testing.assert_allclose(strip, [(-5, 0), (0.04, 1), (4, 2), (6, 3)], atol=1e-9)
    assert [t.get_text() for t in right.get_yticklabels()] == [
        "m1, autocast, lora, sgd, 4 segments, 2 × 8", "m4, fp32, lora, 2 × 8", "m0, fp32, 2 × 8",
        "m3, fp32, lora, 2 × 8",
    ], "a far trace is named as well"  # fmt: skip
    assert title(right) == "1 more: within 1 %, traced too"
    colours = [to_hex(c.get_facecolor()[0]) for c in right.collections if len(c.get_offsets()) == 1]
    blue, red = PALETTE["blue"].lower(), PALETTE["red"].lower()
    assert colours == [blue, blue, blue, red], "the band has its edge"
    assert fig.get_suptitle().splitlines() == [
        "4 of 5 measured peaks lie within 5 % of the formula; the furthest is +6.0 %",
        "(m3, fp32, lora, 2 × 8); a trace is up to +8.0 % off (m4)",
    ]
    traced = next(line for line in right.lines if line.get_label() == "traced")
    np.testing.assert_allclose(traced.get_xdata(), [1, 8, 1, 1])
    assert left.get_xscale() == left.get_yscale() == "log" and left.get_xlim() == left.get_ylim()
    assert left.get_ylabel() == "allocator's peak (MiB)" and right.get_xlabel() == "above the prediction (%)"
    words = anatomy_record.residual_words(rows)
    assert "-5.0 % (m1, autocast" in words and "to +6.0 % (m3" in words and "between 100 MiB and 500 MiB" in words
    assert "The trace lies +0.5 to +8.0 %" in words


def test_the_furthest_may_lie_below():
    fig = anatomy_record.residual_figure(rows_of([92.0, 206.0]))
    assert "the furthest is -8.0 %\n(m0, fp32, 2 × 8)" in fig.get_suptitle()


def test_without_a_gpu_the_traced_peaks_are_compared():
    rows = rows_of([None, None])
    fig = anatomy_record.residual_figure(rows)
    assert fig.get_suptitle().startswith("2 of 2 traced peaks") and fig.axes[0].get_ylabel() == "traced peak (MiB)"
    with pytest.raises(LabError, match="measured or traced"):
        anatomy_record.residual_figure([{**row, "traced_mib": None} for row in rows])


def test_titles_and_names_lie_inside_the_figure():
    figures = [
        anatomy.timeline_figure(predict(BASE.with_(batch=1, seq_len=64)), predict(BASE), predict(BASE)),
        anatomy.bars_figure({name: BASE for name in ("fp32", "bf16", "a third")}),
        anatomy_record.residual_figure(rows_of([104.0, 190.0])),
    ]
    for fig in figures:
        assert_titles_and_names_inside(fig)
