"""The table `capstone` at a size for a CPU: its rows, the bytes in them, and what is planned only."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from table_rows import rows_on_cpu

from labkit.bench import capstone as bench
from labkit.bench import record
from labkit.scale import Scale

LORA = "torch.fsdp2+peft.lora"


@pytest.fixture(scope="module")
def rows():
    return rows_on_cpu(bench, replace(bench.PLANS["tiny"], steps=3, world_sizes=(2,)))


def test_trainings_steps_and_plans(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and len({tuple(row) for row in rows}) == 1
    assert "capstone" in record.names() and set(bench.UNITS) <= set(rows[0])
    trainings = [row for row in rows if row["steps"]]
    assert [row["method"] for row in trainings] == list(bench._NAMES)
    assert all(0 <= row["accuracy"] <= 1 and not row["note"] for row in trainings)
    steps = [(row["model"], row["method"], bool(row["step_ms"])) for row in rows if not row["steps"]]
    small, large = bench.PLANS["tiny"].models
    assert sorted(steps) == sorted(
        [(small, m, True) for m in bench._NAMES] + [(large, m, m == LORA) for m in bench._NAMES]
    )


def test_bytes_are_the_formulas_and_what_does_not_fit_is_not_run(rows):
    room = bench.PLANS["tiny"].room / 2**20
    for row in rows:
        if row["note"]:
            assert row["note"].startswith("planned only") and row["predicted_mib"] > room and row["step_ms"] is None
        else:
            assert row["standing_mib"] == row["predicted_standing_mib"] > 0, row
            assert row["predicted_mib"] is None or row["standing_mib"] < row["predicted_mib"] <= room
    standing = {row["method"]: row["standing_mib"] for row in rows if row["steps"]}
    assert standing["torch.fsdp2"] == pytest.approx(standing["torch.ddp"] / 2, rel=1e-3)
    assert standing[LORA] < standing["torch.fsdp2"] / 3.8
    saved = next(row for row in rows if row["steps"] and row["method"] == LORA)
    assert saved["save_s"] > 0 and saved["load_s"] > 0 and saved["trainable_params"] == 57344


def test_a_measurement_goes_on_where_it_was(rows, monkeypatch):
    monkeypatch.setitem(bench.PLANS, "tiny", replace(bench.PLANS["tiny"], steps=3, world_sizes=(2,)))
    assert list(bench.rows(Scale.here(name="tiny"), rows)) == []


def test_the_models_go_up_to_the_first_that_does_not_fit():
    found = list(bench.steps(bench._GPU, 4, 73 * 2**30, "cuda"))
    for method in bench._NAMES:
        fits = [fit for setting, _, fit in found if setting.method == method]
        assert fits == [True] * (len(fits) - 1) + [False]
    largest = [setting for setting, _, fit in found if fit][-1]
    assert (largest.model, largest.method, largest.checkpointed, largest.batch) == ("opt-66b", LORA, True, 16)
