"""The table `stability` on a plan of seconds: its rows, its counts, and that a run which diverges is no NaN in JSON."""

from __future__ import annotations

import json
import math

import pytest

from labkit.bench import stability as bench
from labkit.numerics.attention_softmax import LIBRARY, VARIANTS
from labkit.numerics.depth import OUTCOMES, unigram_loss
from labkit.paths import DATA
from labkit.scale import Scale

STEPS, RATES, WARMUPS = 4, (1e-3, 1e30), (0, 2)


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.PLANS, "tiny", ((2, 3), STEPS, WARMUPS))
        patch.setattr(bench, "RATES", RATES)
        patch.setattr(bench, "GLM_LAYERS", (3,))
        patch.setattr(bench, "SCORE_SCALES", (1, 4096))
        return list(bench.rows(Scale.here(name="tiny")))


def part(rows, name):
    return [row for row in rows if row["part"] == name]


def test_there_is_a_row_for_each_setting(rows):
    softmax, depth = part(rows, "softmax"), part(rows, "depth")
    wanted = [(scale, name) for scale in (1, 4096) for name in (*VARIANTS, LIBRARY)]
    assert [(r["score_scale"], r["softmax"]) for r in softmax] == wanted
    groups = [(2, norm) for norm in bench.NORMS] + [(3, norm) for norm in (*bench.NORMS, "deepnorm-glm")]
    wanted = [(*group, rate, warmup) for group in groups for rate in RATES for warmup in WARMUPS]
    assert [(r["layers"], r["norm"], r["learning_rate"], r["warmup_steps"]) for r in depth] == wanted
    assert {len(row) for row in softmax} == {10} and len({tuple(row) for row in depth}) == 1


def test_it_is_json_without_nan(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_softmax_rows_tell_who_uses_alpha_and_what_overflows(rows):
    found = {(r["score_scale"], r["softmax"]): r for r in part(rows, "softmax")}
    assert found[1, "naive"]["lost_share"] > 0 and found[1, "shifted"]["lost_share"] == 0
    assert found[4096, "fp32"]["lost_share"] > 0 and found[4096, "line 2"]["lost_share"] == 0
    assert found[4096, "line 2, divided late"]["overflow_share"] > found[4096, "fp32"]["overflow_share"] > 0
    assert found[4096, "line 2"]["alpha"] == bench.ALPHA and found[4096, "fp32"]["alpha"] is None
    assert found[1, LIBRARY]["overflow_share"] is None
    assert found[4096, "fp32"]["largest_product"] == pytest.approx(4096 * found[1, "fp32"]["largest_product"], rel=1e-3)


def test_every_seed_has_one_outcome(rows):
    for row in part(rows, "depth"):
        assert sum(row[outcome] for outcome in OUTCOMES) == len(bench.SEEDS)
        assert row["group"] == len(bench.SEEDS) * len(RATES) * len(WARMUPS) and row["steps"] == STEPS
        assert row["unigram_loss"] == pytest.approx(unigram_loss(), rel=1e-3) and row["peak_allocated_mib"] is None


def test_a_run_that_diverges_has_null_for_its_loss_and_says_when(rows):
    healthy, lost = ([r for r in part(rows, "depth") if r["learning_rate"] == rate] for rate in RATES)
    for row in healthy:
        assert row["diverged"] == 0 and row["stopped_at"] is None
        assert 2 < row["loss"] < row["loss_start"] < 8 and 0 < row["update"] < 2
        assert all(map(math.isfinite, row["grad_by_layer_end"]))
    broken = [row for row in lost if row["loss"] is None]
    assert broken and all(row["diverged"] == 3 and row["stopped_at"] is not None for row in broken)


def test_warm_up_makes_the_first_update_smaller(rows):
    by = {(r["layers"], r["norm"], r["warmup_steps"]): r for r in part(rows, "depth") if r["learning_rate"] == 1e-3}
    for (layers, norm, warmup), row in by.items():
        if warmup:
            assert row["update"] < by[layers, norm, 0]["update"]
            assert row["loss_start"] == by[layers, norm, 0]["loss_start"]


def test_profiles_begin_and_end_with_the_first_and_the_last_layer(rows):
    for row in part(rows, "depth"):
        assert (row["layer"][0], row["layer"][-1]) == (1, row["layers"])
        assert len(row["layer"]) == len(row["grad_by_layer"]) == len(row["grad_by_layer_end"])
        assert (row["grad_by_layer"][0], row["grad_by_layer"][-1]) == (row["grad_first"], row["grad_last"])
        assert row["step"] == [1, 2, 3, 4] and len(row["loss_by_step"]) == 4
        assert row["loss_by_step"][0] == pytest.approx(row["loss_start"], rel=1e-3)


def test_units_and_published_figures(rows):
    columns = {name for row in rows for name in row}
    assert set(bench.UNITS) <= columns
    assert all(entry["source"] and entry["note"] for entry in bench.PUBLISHED)


def test_the_recorded_table_has_the_columns_that_are_measured_today(rows):
    recorded = json.loads((DATA / "reference" / "stability.json").read_text(encoding="utf-8"))
    for name in ("softmax", "depth"):
        now, then = part(rows, name), part(recorded["rows"], name)
        assert {tuple(row) for row in now} == {tuple(c for c in row if c != "measured_on") for row in then}
    assert recorded["units"] == bench.UNITS and recorded["seeds"] == list(bench.SEEDS)
