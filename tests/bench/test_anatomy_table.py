"""The table `anatomy` at a size of milliseconds: its grid, its rows, the prediction held to the measurement."""

import json

import pytest
import torch

from labkit.bench import anatomy as bench
from labkit.ledger import MIB
from labkit.ledger.predict import predict
from labkit.scale import SCALES


def test_the_grid_is_as_wide_as_it_should_be():
    assert len(bench.GRID) >= 40 and len(set(map(repr, bench.GRID))) == len(bench.GRID)
    models = {model for model, *_ in bench.GRID}
    assert {"tiny", "smollm2-135m", "opt-1.3b", "opt-6.7b"} <= models
    said = [options for *_, options in bench.GRID]
    for name, values in {
        "train": {"full", "lora", "nothing"},
        "weights": {"float32", "bfloat16"},
        "compute": {"", "bfloat16"},
        "optimizer": {"adamw", "sgd", "adamw8bit"},
    }.items():
        default = {"train": "full", "weights": "float32", "compute": "", "optimizer": "adamw"}[name]
        assert values <= {options.get(name, default) for options in said}
    assert any(options.get("segments") for options in said) and any("master" in options for options in said)
    for model, batch, seq_len, options in bench.GRID:
        if model != "smollm2-135m":  # whose configuration is in a file to be fetched
            bench._case(bench._config(model), batch, seq_len, options, "cuda")


@pytest.fixture(scope="module")
def rows():
    return list(bench.rows(SCALES["tiny"]))


def test_rows_are_plain_and_predicted_is_held_to_measured(rows):
    assert len(rows) == len(bench.GRIDS["tiny"]) and json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert abs(row["residual"]) < 0.05 and row["note"] is None and row["step_ms"] > 0
        assert abs(row["traced_mib"] / row["peak_allocated_mib"] - 1) < 0.08
        assert row["residual"] == pytest.approx(row["peak_allocated_mib"] / row["predicted_mib"] - 1, abs=2e-3)


def test_it_goes_on_where_it_was_cut_off(rows):
    assert [row["dtype"] for row in bench.rows(SCALES["tiny"], rows[:2])] == [rows[2]["dtype"]]


def test_what_does_not_fit_is_a_row_without_figures(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. And so on")

    monkeypatch.setattr(bench, "_on_cpu", full)
    config = bench._config("tiny")
    case = bench._case(config, 1, 8, {}, "cpu")
    assert bench._measured(case, config, "cpu", 0) == {"note": "does not fit: CUDA out of memory"}
    assert predict(case).peak.total > MIB
