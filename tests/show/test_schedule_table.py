"""What lesson 08 shows of table `pipeline` stands in its rows, and the formulas beside it meet them."""

from __future__ import annotations

import pytest

from labkit import published
from labkit.bench.record import Table
from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.show import pipeline_table, reference

SHAPE = Architecture.of(published.config("llama-7b"))


def table_of(rows):
    return Table("pipeline", "", "", "2026-01-01", "", "", {}, [], {}, rows)


def made():
    """Weights of 100 MiB, 50 MiB of activations a micro-batch and three stages, without what a machine adds."""
    none = dict.fromkeys(("bubble", "predicted_bubble", "all_reduced_mib", "all_reduces"), 0)
    rows = []
    for method in ("gpipe", "1f1b"):
        for m in (1, 2, 4, 8):
            held = m - 1 if method == "gpipe" else min(m - 1, 3)
            peak = 200 + 50 * held
            row = {"method": method, "micro_batches": m, "world_size": 3, "step_ms": 10.0 * m, "weights_mib": 100}
            rows.append({"model": "m", "peak_allocated_mib": peak, **none, **row})
    return rows


def test_peaks_follow_from_weights_and_what_is_held():
    for row in pipeline_table.peak_rows(table_of(made())):
        for order in ("GPipe", "1F1B"):
            assert row[order] == pytest.approx(row[f"{order}, formula"]), (row, order)
    assert row["1F1B"] == round(350 / 1024, 1) < row["GPipe"]


def test_recorded_peaks_are_the_formulas():
    """1F1B's are not fitted: they come from GPipe's slope, and stay from m > p on."""
    rows = {row["m"]: row for row in pipeline_table.peak_rows(reference("pipeline"))}
    for row in rows.values():
        for order in ("GPipe", "1F1B"):
            assert row[order] == pytest.approx(row[f"{order}, formula"], rel=0.02)
    assert rows[2]["1F1B"] == rows[2]["GPipe"] and rows[4]["1F1B"] == rows[16]["1F1B"] < rows[4]["GPipe"]


def test_times_stand_beside_the_formula():
    table = reference("pipeline")
    rows = pipeline_table.time_rows(table)
    (row,) = table.where(method="torch.1f1b", micro_batches=8)
    assert rows[3]["torch's 1F1B (ms)"] == round(row["step_ms"]) and rows[3]["formula (%)"] == 11
    assert rows[0]["torch's 1F1B (ms)"] is None


def test_cuts_send_what_the_formula_says():
    rows = pipeline_table.cut_rows(reference("pipeline"), SHAPE)
    assert {row["cut"] for row in rows} == set(pipeline_table.CUTS.values())
    for row in rows:
        assert row["sent (MiB)"] == row["by formula"], row
    assert {row["sequences"] for row in rows if "tensor" in row["cut"]} == {"1 at once", "4 at once"}
    assert {row["sequences"] for row in rows if row["cut"] == "one GPU"} == {"1 at once", "4 × 1"}


def test_a_table_without_pipelines_is_refused():
    with pytest.raises(LabError, match="no pipelines"):
        pipeline_table.peak_rows(table_of([]))
