"""The table `allreduce` on a thin stack: its rows, and the bytes in them."""

from __future__ import annotations

import json

import pytest
from table_rows import rows_on_cpu

from labkit.bench import allreduce as bench
from labkit.bench import record

PLAN = bench.Plan((2**-10, 0.25), ("float32",), (("llama-4x64", 2, 16),), "float32", (2, 3))


@pytest.fixture(scope="module")
def rows():
    return rows_on_cpu(bench, PLAN)


def test_there_is_a_row_for_each_setting(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and len({tuple(row) for row in rows}) == 1
    sums, steps = (
        [r for r in rows if r["mib"] is not None],
        [(r["method"], r["collective"]) for r in rows if r["model"]],
    )
    assert len(sums) == 2 * 2 * 4 and steps == list(bench.STEPS)
    torchs = {"torch.reduce_scatter+all_gather"}  # 3 ranks cannot halve this tensor
    assert {r["method"] for r in rows if r["note"]} <= torchs
    assert "allreduce" in record.names() and set(bench.UNITS) <= set(rows[0])


def test_bytes_are_the_formulas(rows):
    for row in rows:
        if row["method"] == "ring" and not row["note"]:
            assert row["sent_mib"] == row["formula_mib"], row
            assert row["sent_mib"] == pytest.approx(2 * (1 - 1 / row["world_size"]) * row["mib"], rel=0.01, abs=1e-4)
        if row["method"] == "through-rank-0":
            assert row["sent_mib"] == pytest.approx((row["world_size"] - 1) * row["mib"], abs=1e-4)
    step = {(r["method"], r["collective"]): r for r in rows if r["model"]}
    assert step["no-communication", None]["formula_mib"] == 0 and step["no-communication", None]["exposed_ms"] == 0
    assert step["ddp", "ring"]["formula_mib"] == step["torch.ddp", None]["formula_mib"] > 0
