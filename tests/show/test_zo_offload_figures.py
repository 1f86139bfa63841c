"""Figures of lesson 16: what a card holds, the roofline with its runs, the poster's grid, and the streams' lanes."""

from __future__ import annotations

import pytest
import torch
from inside import assert_titles_and_names_inside

from labkit import published
from labkit.errors import LabError, UnknownNameError
from labkit.ledger.gpus import memory, usable
from labkit.memory.timeline import COMPUTE, DOWNLOAD, UPLOAD, WAIT, Span
from labkit.show import zo_offload as figures
from labkit.show import zo_offload_table as recorded
from labkit.show.zo_offload_widgets import StreamExplorer
from labkit.zeroth.offload.method import ZoOffload
from labkit.zeroth.offload.roofline import Machine

MACHINE = Machine(up=10.0, both=8.0, token_us=100.0, noise_ms=10.0)
RUNS = [figures.Measured(t, 100.0 + t / 10, 150.0 + t / 10, 400.0 + t / 10) for t in (100, 500, 1000)]


@pytest.mark.parametrize("model", ["opt-125m", "opt-1.3b", "opt-175b"])
def test_needs_are_the_published_models(model):
    """Blocks of 12 d² + 13 d values, each tensor rounded up to 512 bytes, and embeddings tied to the head."""
    shape, need = published.config(model), figures.needs(model)
    d, layers = shape.hidden_size, shape.num_hidden_layers
    assert need.blocks == layers * need.slot and 2 * (12 * d * d + 13 * d) <= need.slot
    assert need.slot == pytest.approx(2 * (12 * d * d + 13 * d), rel=1e-4)
    assert need.stays == 2 * ((shape.vocab_size + shape.max_position_embeddings + 2) * d + 2 * d)
    assert need.device(3) == need.stays + 3 * need.slot
    assert figures.needs(model, parts=3).slot == pytest.approx(need.slot / 3, rel=1e-3)
    assert figures.needs(model, "float32").blocks == pytest.approx(2 * need.blocks, rel=1e-3)


def test_what_is_counted_is_what_the_method_holds():
    from labkit.bench.steps import configuration
    from labkit.tasks import Batch
    from labkit.zeroth.offload.head import NextToken
    from labkit.zeroth.offload.load import on_device

    model = on_device(configuration("llama-2x64"), torch.float32, "cpu")
    method = ZoOffload(slots=2, device="cpu")
    method.prepare(model, NextToken(), 1)
    ids = torch.zeros(1, 4, dtype=torch.long)
    method.step(Batch(ids, torch.ones_like(ids), ids))
    slot = method.engine.store.largest[0]
    stays = sum(p.numel() * p.element_size() for p in method._rest)
    assert method.device_bytes() == figures.Needs(0, slot, stays).device(2)
    method.close()


def test_the_need_figure_says_what_a_card_holds():
    fig, words = figures.need_figure("rtx-4090"), figures.need_words("rtx-4090")
    [axis] = fig.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines["all weights"] == [figures.needs(m).weights / 1e9 for m in figures.SIZES]
    room = usable(memory("rtx-4090"))
    assert lines["usable of 24 GiB"] == [room / 1e9, room / 1e9]
    largest = [m for m in figures.SIZES if figures.needs(m).weights <= room][-1]
    assert f"weights of {largest.upper()}, or the slots of OPT-175B" in figures.need_finding("rtx-4090")
    assert "no model" in figures.need_finding("100MB")
    assert all(model in words for model in figures.SIZES)
    assert_titles_and_names_inside(fig)
    with pytest.raises(UnknownNameError):
        figures.needs("opt-3b")
    [row] = figures.need_rows(["opt-13b"], slots=2)
    assert row["stays + 2 slots"] == round(figures.needs("opt-13b").device(2) / 1e9, 2)


def test_a_machine_is_fitted_from_mezos_steps():
    points = {t: 2 * t * 0.1 + 3 * 10.0 for t in (100, 500, 1000)}
    found = figures.fitted(points, 10.0, 8.0)
    assert (found.token_us, found.noise_ms) == (pytest.approx(100.0), pytest.approx(10.0))
    assert (found.up, found.both) == (10.0, 8.0)
    assert figures.fitted({1: 5.0, 2: 4.0}, 1.0, 1.0).token_us == 0.0
    with pytest.raises(LabError, match="two points"):
        figures.fitted({1: 5.0}, 1.0, 1.0)


def test_the_roofline_draws_bounds_and_runs():
    uploaded = 10**9
    fig = figures.roofline_figure(MACHINE, uploaded, 2, RUNS)
    [axis] = fig.axes
    lines = {line.get_label(): line for line in axis.lines}
    bus = MACHINE.bus_ms(uploaded, 2)
    assert set(lines["bus, predicted"].get_ydata()) == {bus}
    assert lines["crossing"].get_xdata()[0] == MACHINE.crossing(uploaded, 2)
    assert list(lines["overlapped, measured"].get_ydata()) == [run.overlapped_ms for run in RUNS]
    assert list(lines["in order, measured"].get_ydata()) == [run.in_order_ms for run in RUNS]
    assert min(lines["the larger"].get_ydata()) == pytest.approx(bus)
    off = figures.off_the_roof(MACHINE, uploaded, 2, RUNS[0])
    assert off == pytest.approx(160.0 / MACHINE.step_ms(uploaded, 100, 2) - 1)
    assert f"From {MACHINE.crossing(uploaded, 2):,.0f} tokens" in axis._left_title.get_text()
    assert "1,000 tokens: predicted" in figures.roofline_words(MACHINE, uploaded, 2, RUNS)
    assert_titles_and_names_inside(fig)


def test_the_poster_is_the_tables_published_rows():
    assert recorded.poster("opt-175b", "zo-offload", "float16") == (24667, 37)
    rows = {row["model"]: row for row in recorded.poster_rows()}
    assert rows["opt-13b"]["rates' ratio"] == round(1340 / 1406, 2) and rows["opt-66b"]["rates' ratio"] is None
    with pytest.raises(LabError, match="poster"):
        recorded.poster("opt-9b", "mezo", "float16")


def _row(method, rate, transfer="", batch=1, mib=1000.0):
    same = {"model": "opt-13b", "dtype": "float16", "step_ms": 2048e3 / rate if rate else None}
    return {**same, "method": method, "transfer": transfer, "batch": batch, "tokens_per_s": rate,
            "peak_allocated_mib": mib}  # fmt: skip


def test_the_grid_has_the_quickest_recorded_row_of_one_sequence():
    rows = [_row("zo-offload", 100), _row("zo-offload", 400), _row("zo-offload", 900, "int8"),
            _row("zo-offload", 2000, batch=8), _row("mezo", 500, mib=26000.0), _row("zo-offload", 0)]  # fmt: skip
    assert recorded.grid(rows)["zo-offload"] == {"opt-13b": (1000 * 2**20 / 1e6, 400)}
    fig = recorded.grid_figure(rows)
    labels = [line.get_label() for line in fig.axes[1].lines]
    assert {"MeZO, poster", "ZO-Offload, poster", "MeZO, recorded", "ZO-Offload, recorded"} == set(labels)
    assert "recorded: opt-13b" in recorded.grid_words(rows)
    assert_titles_and_names_inside(fig)
    alone = recorded.grid_figure()
    assert not any("recorded" in line.get_label() for line in alone.axes[0].lines)
    assert "recorded" not in recorded.grid_words()
    assert "fit" not in recorded.grid_finding() and "poster 16%" in recorded.grid_finding()
    larger = [row | {"model": "opt-30b"} for row in rows]
    assert recorded.grid_finding(larger).endswith("recorded 4% at 80%") and "recorded" not in recorded.grid_finding(
        rows
    )


SPANS = [
    Span(UPLOAD, "block 1", 0, 4),
    Span(COMPUTE, "block 0 +", 0, 2),
    Span(COMPUTE, "block 0 -", 2, 4),
    Span(COMPUTE, "block 1 +", 4, 6),
    Span(DOWNLOAD, "block 0", 4, 8),
    Span(COMPUTE, "block 1 -", 7, 9),
    Span(COMPUTE, "head +", 9, 10),
]


def test_both_passes_over_a_block_are_one_bar():
    found = figures.by_block(SPANS)
    assert [(s.name, s.start_ms, s.end_ms) for s in found if s.lane == COMPUTE] == [
        ("0", 0, 4), ("1", 4, 9), ("head", 9, 10),
    ]  # fmt: skip
    assert [s.name for s in found if s.lane in (UPLOAD, DOWNLOAD)] == ["1", "0"]


def test_every_bar_has_its_name():
    by_block = figures.by_block(SPANS)
    fig = figures.streams_figure({"a": by_block, "b": [*by_block, Span(UPLOAD, "5", 9.95, 10)]})
    lanes = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    for axis in fig.axes:
        named = {(lanes[round(t.get_position()[1])], t.get_position()[0], t.get_text()) for t in axis.texts}
        assert named == {
            (COMPUTE, 2, "0"), (COMPUTE, 6.5, "1"), (COMPUTE, 9.5, "H"), (UPLOAD, 2, "1"), (DOWNLOAD, 6, "0"),
        }  # fmt: skip
    assert_titles_and_names_inside(fig)


def test_lanes_are_counted_without_waits():
    waits = [*SPANS, Span(WAIT, "1", 4.5, 5.5)]
    on, off = figures.lane_rows({(True, 4): waits, (False, 1): SPANS[:1]})
    assert on == {"overlap": "on", "k": 4, "step": 10, "compute": 8, "download": 4, "upload": 4}
    assert off == {"overlap": "off", "k": 1, "step": 4, "compute": 0, "download": 0, "upload": 4}


def test_the_widget_shows_the_run_that_is_chosen():
    short = [Span(UPLOAD, "1", 0, 1), Span(COMPUTE, "0", 0, 2)]
    widget = StreamExplorer({(True, 1): SPANS, (True, 4): short, (False, 1): SPANS[:2], (False, 4): short[:1]})
    first = widget.words
    assert first.count("on, k = 1") == 1 and "download 4 ms" in first
    widget.choices["write_back"].value = 4
    assert "k = 4" in widget.words and "download" not in widget.words
    widget.choices["overlap"].value = False
    assert "off, k = 4" in widget.words
    with pytest.raises(LabError, match="every pair"):
        StreamExplorer({(True, 1): SPANS, (False, 4): SPANS})
    with pytest.raises(LabError, match="every pair"):
        StreamExplorer({})


def recorded_rows() -> list[dict]:
    """Rows as the table has them: a period of 8 and one of 1, two batches, two coded, one capped, one not measured."""
    base = {
        "model": "opt-13b", "method": "zo-offload", "dtype": "float16", "batch": 1, "seq_len": 2048, "transfer": "",
        "write_back": 8, "parts": 3, "slots": 3, "moves": 9, "cap_gb": 0.0, "renew": 0, "step_ms": 470.2,
        "predicted_ms": 465.0, "tokens_per_s": 4000.0, "peak_allocated_mib": 1000.0, "driver_mib": 2000.0,
        "host_gib": 24.0, "note": "", "up_gb_per_s": None, "up_both_gb_per_s": None,
    }  # fmt: skip
    mezo = base | {"method": "mezo", "write_back": 0, "parts": 0, "slots": 0, "step_ms": 250.0, "predicted_ms": None}
    return [
        mezo,
        base,
        base | {"write_back": 1, "step_ms": 520.0, "predicted_ms": 515.0},
        base | {"slots": 4, "step_ms": 460.0},
        mezo | {"batch": 8, "step_ms": 1500.0},
        base | {"batch": 8, "write_back": 1, "step_ms": 1500.0},
        base | {"write_back": 2, "step_ms": None, "note": "out of memory"},
        base | {"transfer": "int8", "write_back": 0, "renew": 6, "slots": 7, "step_ms": 308.0},
        base | {"method": "zo-offload-lora", "transfer": "nf4", "write_back": 0, "step_ms": 246.0},
        base | {"model": "opt-175b", "transfer": "int8", "cap_gb": 24.0, "step_ms": 3500.0},
        base | {"model": "opt-66b", "cap_gb": 24.0, "step_ms": None, "tokens_per_s": None, "peak_allocated_mib": None,
                "driver_mib": None, "host_gib": None, "note": "no room"},
    ]  # fmt: skip


def test_rows_by_period_and_by_batch_are_those_that_can_be_compared():
    rows = recorded_rows()
    assert recorded.by_period(rows) == [{"k": 1, "step": 520, "formula": 515}, {"k": 8, "step": 470, "formula": 465}]
    one, eight = recorded.by_batch(rows)
    assert (one["sequences"], one["MeZO"], one["ZO-Offload"], one["of MeZO's rate"]) == (1, 250, 520, 0.481)
    assert (eight["tokens"], eight["k"], eight["of MeZO's rate"]) == (16384, 1, 1.0)


def test_the_recorded_machines_roofline_is_its_bus_and_a_line_through_mezos_steps():
    rows = [row | {"up_gb_per_s": 50.0, "up_both_gb_per_s": 40.0} for row in recorded_rows()]
    found = recorded.machine(rows)
    assert (found.up, found.both) == (50.0, 40.0)
    # 250 ms for 2,048 tokens and 1,500 for 16,384: two passes of a token take 87.2 µs, three of noise 71 ms.
    assert found.token_us == pytest.approx(1250e3 / 14336 / 2) and 3 * found.noise_ms == pytest.approx(250 - 1250 / 7)
    assert found.compute_ms(16384, 1) == pytest.approx(1500)
    with pytest.raises(LabError, match="no measured bus"):
        recorded.machine(recorded_rows())
    with pytest.raises(LabError, match="two points"):
        recorded.machine(rows[:3])


def test_the_grids_rows_pair_both_methods_and_have_the_formulas_rate():
    [row] = recorded.grid_rows([{**row, "tokens_per_s": 2048e3 / row["step_ms"]} for row in recorded_rows()[:4]])
    assert row["MeZO: rate"] == 8192 and row["ZO-Offload: rate"] == round(2048 / 0.460)  # the quickest: four slots
    assert row["by formula"] == round(2048 / 0.465) and row["rates' ratio"] == 0.54
    assert row["by the driver"] == round(2000 * 2**20 / 1e6)
    with pytest.raises(LabError, match="no pair of both methods in float32"):
        recorded.grid_rows(recorded_rows(), "float32")


def test_coded_and_capped_rows_say_what_was_run():
    plain, renewed, lora = recorded.coded_rows(recorded_rows())
    assert (plain["transfer"], plain["coded anew"], plain["step"]) == ("float16", None, 470)
    assert (renewed["coded anew"], renewed["slots"], renewed["step"], renewed["trains"]) == ("every 6th", 7, 308, "all")
    assert (lora["transfer"], lora["trains"], lora["coded anew"]) == ("nf4", "LoRA", "never")
    assert lora["peak"] == 1049  # 1000 MiB in 10⁶ bytes
    none, large = recorded.capped_rows(recorded_rows())
    assert (large["model"], large["transfer"], large["step"], large["rate"]) == ("opt-175b", "int8", 3.5, 4000)
    assert none["step"] is None and none["transfer"] == "float16" and none["note"] == "no room"


def test_recorded_losses_stand_beside_mezos():
    curve = [11.0, 10.5, 10.25, 10.0]
    rows = [
        row | {"losses": curve[:3]} if row["method"] == "mezo" else row | {"losses": curve} for row in recorded_rows()
    ]
    for row in rows:
        if row["transfer"] == "int8" and row["renew"]:
            row["losses"] = [value + 0.002 for value in curve]
    assert recorded.losses_finding(rows).endswith("are MeZO's, 3 steps long; int8's lie within 0.0020 nats")
    fig = recorded.losses_figure(rows)
    assert [len(line.get_xdata()) for line in fig.axes[0].lines] == [3, 4, 4]
    assert_titles_and_names_inside(fig)
    assert "ZO-Offload, int8: 4 steps" in recorded.losses_words(rows)
    other = [
        row | {"losses": [11.0, 10.6]} if row["method"] == "zo-offload" and not row["transfer"] else row for row in rows
    ]
    assert "are not MeZO's, 2 steps long" in recorded.losses_finding(other)
    with pytest.raises(LabError, match="no ZO-Offload, int8"):
        recorded.losses([row for row in rows if not row["renew"]])
