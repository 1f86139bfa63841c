"""The table `pipeline` on a small Llama: its rows, bubbles, and what each way holds and sends."""

from __future__ import annotations

import json

import pytest
from table_rows import rows_on_cpu

from labkit.bench import pipeline as bench
from labkit.bench import record

PLAN = bench.Plan("llama-4x64", 1, 16, "float32", (1, 4), (2,))


@pytest.fixture(scope="module")
def rows():
    return rows_on_cpu(bench, PLAN)


def test_there_is_a_row_for_each_setting(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and len({tuple(row) for row in rows}) == 1
    assert len(rows) == len(bench.settings(PLAN, 2)) and "pipeline" in record.names()
    assert [row["method"] for row in rows if row["note"]] == ["torch.1f1b"]
    assert set(bench.UNITS) <= set(rows[0])


def test_bubbles_come_from_what_ran(rows):
    for row in rows:
        if row["method"] in ("gpipe", "1f1b"):
            m = row["micro_batches"]
            assert row["predicted_bubble"] == pytest.approx(1 / (m + 1), abs=1e-4)
            assert 0 < row["bubble"] < 1 and row["predicted_over_work"] == 1 / m
            assert len(row["spans"]) == 2 * 2 * m and row["live"] == (m if row["method"] == "gpipe" else min(m, 2))


def test_what_is_held_and_sent(rows):
    of = {(row["method"], row["micro_batches"]): row for row in rows}
    whole = of["one-process", 4]["weights_mib"]
    assert whole / 2 < of["1f1b", 4]["weights_mib"] < whole and of["tensor", 4]["weights_mib"] < 0.6 * whole
    assert of["tensor", 4]["all_reduces"] >= 4 * 4 and of["one-process", 4]["all_reduces"] == 0
    activation = 16 * 64 * 4 / 2**20
    assert of["torch.gpipe", 4]["sent_mib"] == pytest.approx(4 * activation, abs=5e-3)
