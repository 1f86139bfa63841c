"""The table `zero` on a thin stack: its rows, the bytes and the traffic in them, and a method that fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from table_rows import rows_on_cpu

from labkit.bench import record
from labkit.bench import zero as bench
from labkit.bench.ranks import measured
from labkit.bench.zero_steps import measured as measure

PLAN = bench.Plan((("llama-4x64", 2),), 16, "float32", (2,))


@pytest.fixture(scope="module")
def rows():
    return rows_on_cpu(bench, PLAN)


def test_there_is_a_row_for_each_method(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and len({tuple(row) for row in rows}) == 1
    measured = rows[4:]
    assert [row["method"] for row in measured] == [method["method"] for method in bench.METHODS]
    assert not [row["note"] for row in measured if row["note"]] and all(row["step_ms"] > 0 for row in measured)
    assert "zero" in record.names() and set(bench.UNITS) <= set(rows[0])


def test_bytes_and_traffic_are_the_formulas(rows):
    measured = rows[4:]
    for row in measured:
        assert row["measured_mib"] == pytest.approx(row["predicted_mib"], rel=1e-3), row["method"]
        assert row["sent_mib"] == row["predicted_sent_mib"], row["method"]
    sizes = {row["method"]: row["measured_mib"] for row in measured}
    assert sizes["ddp"] == sizes["torch.ddp"] > sizes["zero1"] > sizes["zero2"] > sizes["zero3"]
    assert sizes["zero3"] == pytest.approx(sizes["ddp"] / 2, rel=0.02)


def test_all_methods_learn_the_same(rows):
    losses = [row["loss"] for row in rows[4:]]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-3) and losses[0] < rows[4]["first_loss"]


def test_the_papers_figures_are_the_formulas(rows):
    published = {row["method"]: row["gb_per_rank"] for row in bench.PUBLISHED}
    for row in rows[:4]:
        assert round(row["predicted_mib"] * 2**20 / 1e9, 1) == published[row["method"]]


def test_a_method_that_fails_leaves_a_note_and_the_next_goes_on(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    good = bench.settings(PLAN, "llama-4x64", 2, 2)[3]
    (_, nothing, note), (_, found, fine) = measured(measure, [replace(good, method="zero9"), good], 2, "cpu")
    assert "zero9" in note and not nothing
    assert len(found) == 2 and found[0]["step_ms"] > 0 and not fine
