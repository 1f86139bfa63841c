"""The table `zo-variance` made whole with few samples and a model of a few thousand weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro import Letters, micro_llama

from labkit.bench import record
from labkit.bench import zo_variance as bench
from labkit.scale import Scale
from labkit.show import zeroth_order as figures

SCALE = replace(Scale.here(name="tiny"), device="cpu")
KEYS = ("part", "sweep", "estimator", "directions", "d", "n", "tau", "dtype")


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.SAMPLES, "tiny", 60)
        patch.setitem(bench.MODEL_SAMPLES, "tiny", (60, 16))
        patch.setattr("labkit.models.load", lambda name, dtype, device: micro_llama().to(getattr(torch, dtype)))
        real = bench._logistic
        patch.setattr(bench, "_logistic", lambda scale: real(SCALE))
        loaded = list(real(SCALE))  # with the real sentences, before the task of letters takes their place
        patch.setattr(bench, "_logistic", lambda scale: loaded)
        patch.setattr("labkit.tasks.Sentiment.load", lambda scale: Letters())
        yield bench


@pytest.fixture(scope="module")
def rows(patched):
    return list(patched.rows(SCALE))


def test_there_is_one_row_a_setting_of_plain_json_and_units(rows):
    assert json.loads(json.dumps(rows)) == rows, "not plain JSON, or a NaN"
    assert len({tuple(row[key] for key in KEYS) for row in rows}) == len(rows)
    assert {tuple(row) for row in rows} == {tuple(rows[0])} or {frozenset(row) for row in rows} == {frozenset(rows[0])}
    assert set(bench.UNITS) <= set(rows[0]) and "zo-variance" in record.names()
    parts = {part: sum(row["part"] == part for row in rows) for part in ("quadratic", "logistic", "model")}
    assert parts == {"quadratic": 15 + 12 + 36, "logistic": 12, "model": 6 + 8}


def test_measured_variances_are_the_formulas_within_their_errors(rows):
    """Six standard errors for some 60 rows of samples; where the formula is exact, whatever τ is."""
    exact = [row for row in rows if row["part"] == "quadratic" or (row["part"] == "model" and row["sweep"] != "tau")]
    for row in exact:
        # A sphere's or ±1's error is of one length on some gradients, and its standard error then 0.
        least = 0.1 * row["predicted_variance"]
        room = 6 * row["variance_error"] + (least if row["part"] == "model" else 0)
        assert abs(row["variance"] - row["predicted_variance"]) <= room, row
        # Markov: a mean of 0 bias would show `bias_chance`, and hardly ever three times as much.
        assert row["bias"] < 3 * row["bias_chance"], row
    [one] = [r for r in exact if (r["estimator"], r["directions"], r["tau"]) == ("one-point", "gaussian", 0.001)]
    assert one["variance"] > 1e5, "one-point estimates have a term f² / τ²"


def test_formats_show_in_the_errors_of_slopes(rows):
    errors = {(r["part"], r["dtype"], r["tau"]): r["slope_error"] for r in rows if r["sweep"] == "tau"}
    assert errors["logistic", "float64", 0.001] < 1e-5 < errors["logistic", "bfloat16", 0.001]
    # At a large step the truncation is the same, but for the directions, which are drawn in the format.
    assert errors["logistic", "float32", 0.1] == pytest.approx(errors["logistic", "float64", 0.1], rel=0.6)
    assert errors["model", "bfloat16", 1e-5] > 10 * errors["model", "float32", 1e-4]


def test_what_is_done_is_not_measured_again(patched, rows):
    missing = [rows[3], rows[70], rows[-1]]
    again = list(patched.rows(SCALE, [row for row in rows if row not in missing]))
    assert again == missing


def test_the_lesson_can_draw_it(rows):
    series = figures.recorded_series(rows)
    assert [one.label for one in series] == [
        f"{part}, {kind}" for part in ("quadratic", "model") for kind in ("gaussian", "sphere", "rademacher")
    ]
    assert list(series[0].x) == list(bench.SIZES)
    exact = [row | {"variance": row["predicted_variance"]} for row in rows if row["variance"] is not None]
    assert figures.recorded_finding(exact).endswith("within 0.0 standard errors")
    drawn = [row for row in exact if row["sweep"] == "d"]
    drawn[2]["variance"] += 2.5 * drawn[2]["variance_error"]
    assert figures.recorded_finding(drawn).endswith("within 2.5 standard errors")
    assert figures.recorded_finding(rows).startswith(f"The variance is d ‖∇f‖² up to d = {series[-1].x[0]:,}, within ")
