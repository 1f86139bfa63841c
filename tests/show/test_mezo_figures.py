"""Figures of lesson 15: marks are the published figures, lines and bars the ledger's, curves the runs."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit import published
from labkit.bench.record import read
from labkit.errors import LabError, UnknownNameError
from labkit.ledger import gpus
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.run import Run
from labkit.show import mezo as figures
from labkit.show.mezo_widgets import BATCHES, GpuExplorer


def ledger(model, batch=1, **settings):
    return predict(Case(Architecture.of(published.config(model)), batch, 400, **settings)).peak.total


def test_needs_are_the_ledgers():
    assert figures.needed("opt-13b", figures.MEZO) == ledger("opt-13b", weights="float16", train="nothing")
    assert figures.needed("opt-1.3b", figures.LORA, 4) == ledger("opt-1.3b", 4, weights="float16", train="lora")
    assert figures.needed("opt-2.7b", figures.FULL) == ledger("opt-2.7b", weights="float32", compute="bfloat16")
    with pytest.raises(UnknownNameError):
        figures.needed("opt-13b", "prefix")


def test_mezos_published_memory_is_what_the_ledger_says_of_inference():
    """Read as GiB, each is the ledger's and some 1 to 3 GiB, which a process takes anyway; as GB two would be less."""
    for row in figures.memory_rows():
        gpus_of = dict(zip(figures.SIZES, figures.PUBLISHED[figures.MEZO], strict=True))[row["model"]][0]
        assert 1 <= (row[f"{figures.MEZO}: published"] - row["ledger"]) / gpus_of <= 3
        gb = row[f"{figures.FULL}: published"]
        assert gb is None or 1 <= gb / row["ledger, full"] < 1.7


def test_the_memory_figure_has_every_published_figure_and_every_prediction():
    fig = figures.memory_figure()
    [ax] = fig.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["full, published (as GiB)"] == [27, 55, 156, 316, 633]
    assert lines["MeZO, inference, published (as GiB)"] == [4, 7, 14, 26, 58, 128]
    for method in figures.METHODS:
        assert lines[f"{method}, ledger"] == [figures.needed(m, method) / 2**30 for m in figures.SIZES]
    assert figures.ratio(figures.FULL) == (27 / 4, 316 / 26) and "7 to 12 times" in ax._left_title.get_text()
    words = figures.memory_words()
    assert "opt-66b 16 GPUs" in words and "opt-30b 58 GiB" in words
    assert_titles_and_names_inside(fig)


def test_bars_that_do_not_fit_are_pale_and_the_largest_that_fits_is_named():
    size = gpus.memory("a100-80gb")
    fig = figures.fit_figure("a100-80gb", size)
    [ax] = fig.axes
    bars = {(round(bar.get_height() * 1e9), bar.get_alpha()) for bar in ax.patches}
    room = gpus.usable(size)
    every = {(m, way) for m in figures.SIZES for way in figures.METHODS}
    assert bars == {(n := figures.needed(*one), 1.0 if n <= room else 0.3) for one in every}
    assert figures.largest(size, figures.MEZO) == "opt-30b" and figures.largest(size, figures.FULL) == "opt-2.7b"
    assert figures.largest(10**9, figures.MEZO) is None
    assert "MeZO, inference up to opt-30b" in figures.fit_words("a100-80gb", size)
    assert_titles_and_names_inside(fig)


def test_recorded_needs_stand_beside_the_published():
    """What a process holds on the card is what was published, rounded up; MeZO's peak is inference's."""
    rows = {(row["model"], row["method"]): row for row in figures.recorded_rows(read("mezo-memory").rows)}
    for row in rows.values():
        assert row["peak"] is None or row["ledger"] is None or row["ledger"] <= row["peak"] <= row["on the card"]
        assert row["times inference"] is None or 1 <= row["times inference"] <= 1.02
        if row["method"] == "mezo":
            assert row["published"] - 1 <= row["on the card"] <= row["published"]
    assert rows["opt-13b", "full"]["published"] == 316 and rows["opt-13b", "full"]["peak"] is None
    assert rows["opt-6.7b", "in-context"]["published"] == 16


def test_gpu_seconds_are_seconds_times_gpus():
    rows = {row["model"]: row for row in figures.time_rows()}
    assert rows["opt-30b"]["full / MeZO, GPU-seconds a step of batch 8"] == round(45.608 * 8 / 4.267, 1)
    assert rows["opt-66b"]["MeZO, batch 16"] == "12.438 (4)"


def test_curves_are_the_runs():
    run = Run("mezo", "m", "t", "pretrained", {})
    run.step_seconds = [1.0, 2.0, 3.0, 4.0]
    run.evaluations = [{"step": 2, "loss": 0.7, "accuracy": 0.5}, {"step": 4, "loss": 0.6, "accuracy": 0.5}]
    points = figures.curve(run, {"loss": 0.8})
    assert points == [(0, 0.0, 0.8), (2, 3.0, 0.7), (4, 10.0, 0.6)]
    fig = figures.learning_figure({"MeZO": points}, "Title")
    left, right = fig.axes
    assert left.lines[0].get_xydata().tolist() == [[0, 0.8], [2, 0.7], [4, 0.6]]
    assert right.lines[0].get_xdata().tolist() == [0, 3, 10]
    assert "MeZO from 0.800 to 0.600 in 4 steps, 10.0 s" in figures.learning_words({"MeZO": points})
    assert_titles_and_names_inside(fig)
    with pytest.raises(LabError, match="nothing to draw"):
        figures.learning_figure({}, "Title")


def test_the_widget_paints_what_is_chosen():
    box = GpuExplorer("t4")
    assert "t4: " in box.words and 'alt="' in box.picture.value
    before = box.words
    box.sliders["batch"].value = BATCHES[-1]
    assert "16 × 400 tokens" in box.words and box.words != before
    box.choices["gpu"].value = "h200"
    assert figures.fit_finding("h200", gpus.memory("h200"), 16) in box.words
    assert set(box._repr_mimebundle_()) >= {"text/html", "text/plain"}
    with pytest.raises(UnknownNameError):
        GpuExplorer("abacus")
