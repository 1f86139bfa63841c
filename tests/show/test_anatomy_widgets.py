"""The widgets of lessons 04 and 05 answer a change of value with the formula's numbers."""

from __future__ import annotations

import itertools
import re

import pytest

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import activations
from labkit.ledger.case import OPTIMIZERS, Case
from labkit.ledger.gpus import usable
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.memory.checkpointing import predicted_bytes
from labkit.show.anatomy_style import COLOURS, GPUS, MIB, amount, highest, parts
from labkit.show.anatomy_widgets import (
    ATTENTION,
    POLICIES,
    TRAINS,
    LedgerExplorer,
    SegmentExplorer,
    ledger_figure,
    ledger_table,
)
from labkit.show.segment_layout import SegmentPlan, layout_figure

OPT = Architecture("opt", 24, 2048, 32, 32, 64, 8192, 50272, positions=2050, biases=True)  # OPT-1.3B
TINY = Architecture("llama", 6, 256, 4, 2, 64, 704, 2048)
MODELS = {"opt-1.3b": OPT, "tiny": TINY}


@pytest.fixture(scope="module")
def explorer():
    return LedgerExplorer(MODELS)


def test_the_ledger_begins_with_the_formula_s_peak(explorer):
    peak = predict(Case(OPT, 4, 512)).peak
    assert f"{amount(peak.total)} at the loss: fits 24 GB" in explorer.words and parts(peak) in explorer.words
    assert explorer.words.startswith("opt-1.3b (1.32 billion parameters), fp32, trains everything, adamw")
    bundle = explorer._repr_mimebundle_()
    assert "<img alt=" in bundle["text/html"] and bundle["text/plain"] == f"[figure] {explorer.words}"


def test_every_control_has_a_label_and_repaints():
    explorer = LedgerExplorer(MODELS, "tiny", batch=3, seq_len=100)
    controls = {**explorer.choices, **explorer.sliders}
    assert set(controls) == {"model", "policy", "train", "optimizer", "checkpointing", "attention", "batch", "seq_len"}
    assert explorer.sliders["batch"].value == 3 and explorer.sliders["seq_len"].value == 100
    shown = [control for row in explorer.box.children for control in getattr(row, "children", (row,))]
    for key, value in (
        ("seq_len", 4096),
        ("attention", "eager"),
        ("train", "lora"),
        ("policy", "bf16"),
        ("optimizer", "sgd"),
        ("model", "opt-1.3b"),
        ("checkpointing", True),
        ("batch", 1),
    ):
        before = explorer.picture.value
        assert controls[key] in shown and controls[key].description and controls[key].tooltip
        controls[key].value = value
        assert explorer.picture.value != before, key
    case = Case(OPT, 1, 4096, weights="bfloat16", train="lora", optimizer="sgd", segments=24, attention="eager")
    assert amount(predict(case).peak.total) in explorer.words
    assert "24 checkpointed segments" in explorer.words and "has only 2048 positions" in explorer.picture.value


def test_every_choice_is_a_case_and_only_full_training_has_master_weights(explorer):
    choices = (POLICIES, TRAINS.values(), OPTIMIZERS, (False, True), ATTENTION.values(), MODELS)
    for policy, train, optimizer, checkpointing, attention, model in itertools.product(*choices):
        values = {"policy": policy, "train": train, "optimizer": optimizer, "checkpointing": checkpointing}
        case = explorer.case_of(**values, attention=attention, model=model, batch=2, seq_len=64)
        assert predict(case).peak.total > 0
        assert case.master == (policy == "bf16 + master" and train == "full")
        assert case.segments == (case.arch.layers if checkpointing else 0)


def test_the_bar_is_as_long_as_the_peak_and_gpus_are_lines():
    trace = predict(Case(OPT, 4, 512))
    axis = ledger_figure(trace).axes[0]
    ends = [box[0].get_x() + box[0].get_width() for box in axis.containers]
    assert max(ends) == pytest.approx(trace.peak.total / 2**30, rel=1e-3)
    room = [usable(size * 2**30) / 2**30 for size in (8, 16, 24)]
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx(room)
    assert axis.get_xlabel().startswith("memory at the peak (GiB)")
    small = ledger_figure(predict(Case(TINY, 1, 64))).axes[0]
    assert not small.lines and small.get_xlabel() == "memory at the peak (MiB)"
    assert "fits 8 GB" in small.get_title(loc="left")
    large = ledger_figure(trace, {"1 GB": 2**30}).axes[0]
    assert "fits none of these GPUs" in large.get_title(loc="left")


def test_the_table_tells_the_peak_from_a_category_s_own_highest():
    trace = predict(Case(OPT, 4, 512))
    found = ledger_table(trace, OPT.parameters)
    rows = dict(re.findall(r'<th scope="row"[^>]*>([^<]+)</th>((?:<td>[^<]*</td>)+)', found))
    assert list(rows) == [*(name.replace("_", " ") for name in COLOURS if name in highest(trace)), "sum"]
    assert re.findall(r"<td>([^<]*)</td>", rows["gradients"]) == ["0.00", "4.90", "4.00"], (
        "0 at the loss, 4 bytes later"
    )
    assert re.findall(r"<td>([^<]*)</td>", rows["optimizer states"])[2] == "8.00"
    assert "at the peak (GiB)" in found


def test_the_ledger_refuses_what_it_does_not_know():
    with pytest.raises(LabError, match="no models"):
        LedgerExplorer({})
    with pytest.raises(UnknownNameError, match="opt-1"):
        LedgerExplorer(MODELS, "opt-1.3")


CASE = Case(OPT, 8, 1024, weights="bfloat16")


def test_the_plan_s_bytes_are_the_formula_s():
    plan = SegmentPlan.of(CASE)
    size, interior = 2 * 8 * 1024 * 2048, activations.total(activations.block(CASE))
    assert (plan.input, plan.interior, plan.kept[0]) == (size, interior, 24 * interior)
    assert plan.kept[5] == predicted_bytes(24, 5, size, interior) == 4 * size + 5 * interior
    assert plan.peaks[0] == predict(CASE).peak.total and plan.peaks[7] == predict(CASE.with_(segments=7)).peak.total
    assert plan.alive(5) == (4, slice(15, 20)), "the last of the longer runs: most inputs are kept then"
    assert plan.alive(24) == (24, slice(23, 24)) and plan.alive(0) == (0, slice(0, 24))
    assert [plan.again(s) for s in (0, 1, 24)] == [0, 24, 24]
    with pytest.raises(LabError, match="nothing trains"):
        SegmentPlan.of(CASE.with_(train="nothing"))


def test_the_segment_explorer_shows_inputs_and_sum_at_the_slider():
    explorer = SegmentExplorer(CASE)
    plan = explorer.plan
    assert explorer.sliders["segments"].value == 5 and explorer.sliders["segments"].description == "segments"
    total = f"4 inputs × 32 MiB + 5 layers × {amount(plan.interior)} = {amount(plan.kept[5])}"
    assert f"{total}; all 24 layers are computed a second time" in explorer.words and total in explorer.picture.value
    assert "the input of layers 1, 6, 11, 16 is kept, and layers 16 to 20 whole" in explorer.words
    explorer.sliders["segments"].value = 24
    assert "layers 1, 2, 3, …, 23, 24 is kept, and layer 24 whole" in explorer.words
    assert (
        f"The step's peak is {amount(plan.peaks[24])}, without checkpointing {amount(plan.peaks[0])}" in explorer.words
    )
    explorer.sliders["segments"].value = 0
    assert "no layer is computed a second time" in explorer.words
    assert explorer._repr_mimebundle_()["text/plain"] == f"[figure] {explorer.words}"
    assert SegmentExplorer(CASE.with_(segments=3)).sliders["segments"].value == 3


def test_the_layout_has_a_bar_for_each_input_and_a_box_for_each_layer():
    plan = SegmentPlan.of(CASE)
    fig = layout_figure(plan, 5)
    top, kept, peaks = fig.axes
    boxes = {box.get_label(): [bar.get_x() for bar in box] for box in top.containers}
    assert boxes["computed again, kept whole for now"] == [15, 16, 17, 18, 19] and boxes["input kept"] == [0, 5, 10, 15]
    assert sorted(boxes["computed again, kept whole for now"] + boxes["forgotten"]) == list(range(24))
    assert top.get_title(loc="left").startswith(f"4 inputs and 5 whole layers are kept: {amount(plan.kept[5])}")
    marked = {axis: next(m for m in axis.lines if m.get_label() == "the slider's place") for axis in (kept, peaks)}
    assert marked[kept].get_ydata()[0] == pytest.approx(plan.kept[5] / 2**30)
    assert marked[peaks].get_data()[0] == [5] and marked[peaks].get_ydata()[0] == pytest.approx(plan.peaks[5] / 2**30)
    assert kept.get_ylabel() == peaks.get_ylabel() == "memory (GiB)"
    whole = layout_figure(plan, 0).axes[0]
    assert [box.get_label() for box in whole.containers] == ["kept whole"]


def test_a_model_of_megabytes_says_so():
    explorer = SegmentExplorer(Case(TINY, 1, 64))
    assert f"{amount(SegmentPlan.of(Case(TINY, 1, 64)).input)} + " in explorer.words and " MiB = " in explorer.words
    assert GPUS["8 GB"] == usable(8 * 1024 * MIB) < 8 * 1024 * MIB
