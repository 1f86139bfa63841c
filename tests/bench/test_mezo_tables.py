"""The tables of MeZO made whole on a model of a few thousand weights: rows, predictions, curves and resumption."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro import Letters, micro_llama

from labkit.bench import mezo_accuracy, mezo_memory, mezo_steps, mezo_time, record, tuned
from labkit.bench.mezo_steps import Setting
from labkit.scale import Scale

SCALE = Scale("tiny", "micro", 64, 24, batch_size=8, seq_len=16, epochs=1, learning_rate=3e-3)


def test_memory_has_every_method_and_what_does_not_fit_has_its_prediction_alone(monkeypatch):
    rows = list(mezo_memory.rows(SCALE))
    assert [row["method"] for row in rows] == list(mezo_memory.METHODS)
    assert json.loads(json.dumps(rows)) == rows
    by = {row["method"]: row for row in rows}
    assert by["zero-shot"]["predicted_mib"] == by["mezo"]["predicted_mib"] < by["full"]["predicted_mib"]
    assert by["prefix"]["predicted_mib"] is None and by["in-context"]["seq_len"] > by["mezo"]["seq_len"]
    assert all(row["step_ms"] > 0 for row in rows)
    assert by["mezo"]["loss"] == pytest.approx(by["zero-shot"]["loss"], abs=1e-3)
    tight = replace(mezo_memory._CPU, room=int(2**20 * by["full"]["predicted_mib"]) - 2**16)
    monkeypatch.setattr(mezo_memory, "_CPU", tight)
    again = list(mezo_memory.rows(SCALE, rows[:-1]))
    assert [row["method"] for row in again] == ["full"]
    assert again[0]["step_ms"] is None and again[0]["note"].startswith("planned only")
    assert {row["gb"] for row in mezo_memory.PUBLISHED if row["model"] == "opt-13b"} == {26, 29, 158, 316}


def test_mezo_steps_really_train():
    """The step that is timed updates the weights, restores them otherwise, and its loss is the middle of two."""
    run, close = mezo_steps._step(Setting("llama-2x64", "mezo", "float32", 1, 16), "cpu")
    made = run.__closure__ and next(c.cell_contents for c in run.__closure__ if hasattr(c.cell_contents, "directions"))
    before = [w.tensor.clone() for w in made._weights]
    run()
    moved = [not torch.equal(w.tensor, old) for w, old in zip(made._weights, before, strict=True)]
    close()
    assert any(moved) and made._last["projected_gradient"] != 0


def test_time_has_the_papers_batches_and_forward_passes():
    rows = list(mezo_time.rows(SCALE))
    assert [(row["method"], row["batch"]) for row in rows] == [("zero-shot", 1), ("mezo", 1), ("full", 1)]
    assert list(mezo_time.rows(SCALE, rows)) == []
    settings = {(s.method, s.batch, s.seq_len) for s in mezo_time.settings(mezo_time._GPU)}
    assert {("mezo", 16, 400), ("mezo", 8, 400), ("full", 8, 400), ("mezo", 1, 2048)} <= settings
    assert len(mezo_time.PUBLISHED) == 15 and mezo_time.PUBLISHED[0]["seconds"] == 0.815


def test_accuracy_has_baselines_and_a_curve_for_each_seed(monkeypatch):
    base, task = micro_llama(), Letters(64, 24)
    task.validation = task.train[:16]
    seen, real = [], tuned.run
    monkeypatch.setattr(tuned, "loaded", lambda scale, name="sentiment": (base, task))
    monkeypatch.setattr(tuned, "TIMED_STEPS", 3)
    monkeypatch.setattr(tuned, "run", lambda case: seen.append(case[1]) or real(case))
    monkeypatch.setattr(
        mezo_accuracy, "baselines", lambda scale, known: iter([] if known else [{"method": "zero-shot", "step": 0}])
    )
    one = {"mezo": (mezo_accuracy.METHODS["mezo"][0], {}, (1e-3, 1e-2))}
    monkeypatch.setattr(mezo_accuracy, "METHODS", one)
    rows = list(mezo_accuracy.rows(SCALE))
    assert [(r["method"], r.get("seed"), r["step"]) for r in rows if r["method"] != "full"] == [
        ("zero-shot", None, 0),
        *(("mezo", seed, step) for seed in (0, 1, 2) for step in (8, 16, 24)),
    ]
    assert {r["step"] for r in rows if r["method"] == "full"} == {4, 8}
    tried = [t for t in seen if t.part == "validation"]
    assert [(t.learning_rate, t.steps) for t in tried] == [(1e-3, 24), (1e-2, 24)], "rates are chosen after whole runs"
    ends = [r for r in rows if r["method"] == "mezo" and r["step"] == 24]
    assert len({r["loss"] for r in ends}) == 3, "each seed draws directions of its own"
    assert all(r["gradients_mib"] == 0 and r["optimizer_states_mib"] == 0 for r in ends)
    assert [r["method"] for r in mezo_accuracy.rows(SCALE, rows[:10])] == ["full"] * 6


def test_the_tables_are_listed():
    assert {"mezo-memory", "mezo-time", "mezo-accuracy"} <= set(record.names())
