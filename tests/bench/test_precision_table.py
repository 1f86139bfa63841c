"""The table `precision` made whole on a model of a few thousand weights: its rows, and what they were measured on."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from micro import Letters, micro_llama

from labkit.bench import precision as bench
from labkit.bench import record
from labkit.ledger import MIB, Ledger
from labkit.numerics import gradients as counted
from labkit.numerics import mixed
from labkit.run import Run
from labkit.scale import Scale

SCALE = Scale("tiny", "micro", 64, 24, batch_size=8, seq_len=16, epochs=1, learning_rate=3e-3)
NAMES = (*mixed.TABLE, *mixed.CAUSES)


@pytest.fixture(scope="module")
def made():
    """Every row, and every training run that they were made of: (method, seed, steps, test examples, run)."""
    base, runs, real = micro_llama(), [], bench._run
    before = [p.detach().clone() for p in base.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.bench.workers.clear", lambda device: None)  # a collector's round takes longer than a run
        patch.setattr(bench, "_loaded", lambda scale: (base, Letters(scale.train_size, scale.eval_size)))
        for name, steps in (("TIMED_STEPS", 3), ("MOST_STEPS", 5), ("LOSSES_AFTER", 4)):
            patch.setattr(bench, name, steps)

        def run(case):
            runs.append((case[1], case[2], case[3], case[0].eval_size, real(case)))
            return runs[-1][-1]

        patch.setattr(bench, "_run", run)
        rows = list(bench.rows(SCALE))
    assert all(torch.equal(p, old) for p, old in zip(base.parameters(), before, strict=True)), "the base was trained"
    return rows, runs


def test_there_is_one_row_of_losses_and_one_a_method(made):
    rows, _ = made
    assert [row["part"] for row in rows] == ["losses", *["training"] * len(NAMES)]
    assert [row["method"] for row in rows[1:]] == list(NAMES)
    assert json.loads(json.dumps(rows)) == rows, "not plain JSON, or a NaN"


def test_times_and_bytes_come_from_a_second_run_alone_before_the_others_and_accuracies_from_every_seed(made):
    rows, runs = made
    twice, others = runs[: 2 * len(NAMES)], runs[2 * len(NAMES) :]
    assert [(name, seed, steps, size) for name, seed, steps, size, _ in twice] == [
        (n, 0, 3, 8) for n in NAMES for _ in range(2)
    ]
    timed = twice[1::2]
    assert [(n, seed, steps, size) for n, seed, steps, size, _ in others] == [
        (n, seed, 5, 24) for n in NAMES for seed in bench.SEEDS
    ]
    for place, row in enumerate(rows[1:]):
        alone, own = timed[place][-1], [run for name, *_, run in others if name == row["method"]]
        accuracies = [run.accuracy for run in own]
        assert row["step_ms"] == alone.step_ms
        assert row["weights_mib"] == round(alone.ledger.measured["weights"] / MIB, 1)
        assert (row["accuracy"], row["accuracy_min"]) == (
            round(statistics.fmean(accuracies), 4),
            round(min(accuracies), 4),
        )
        assert row["accuracy_std"] == round(statistics.stdev(accuracies), 4)
        assert row["finished"] == sum(not run.stopped for run in own)
        assert bool(row["note"]) == (row["finished"] < len(bench.SEEDS))
        assert (row["steps"], row["batch"], row["model"]) == (5, 8, "micro")
        assert (row["loss_scale_end"] is not None) == ("scaling" in mixed.METHODS[row["method"]])
        assert row["kernels"] == own[0].config["kernels"] and mixed.method(row["method"]).fmt in row["kernels"]


def test_columns_have_units_where_they_are_measures(made):
    for row in made[0]:
        for name, value in row.items():
            plain = {"part", "model", "method", "note", "kernels", "steps", "batch", "loss_scale_end"}
            assert name in bench.UNITS or name in plain, name
            assert value is None or isinstance(value, str | int | float)
    assert all(published["source"] for published in bench.PUBLISHED)
    assert "precision" in record.names()


def test_the_row_of_losses_counts_after_steps_in_fp32(made, monkeypatch):
    monkeypatch.setattr(bench, "LOSSES_AFTER", 4)
    row, base, task = made[0][0], micro_llama(), Letters(64, 24)
    again = bench._losses(SCALE, base, task)
    monkeypatch.setattr(bench, "MOST_STEPS", 5)
    assert bench._losses(SCALE, base, task) == row != again  # the schedule is that of the runs
    for name in ("gradients_underflow", "moments_underflow", "updates_lost_fp16", "updates_lost_bf16"):
        assert 0 <= row[name] <= 1
    assert row["updates_lost_fp16"] < row["updates_lost_bf16"] and row["moments_underflow"] > 0
    assert row["scale_low"] < row["scale_high"]


def test_the_row_of_losses_equals_the_counts_one_by_one(made, monkeypatch):
    """On the gradients of the first batch, at weights that four steps of plain AdamW have moved."""
    from labkit.training import order

    monkeypatch.setattr(bench, "MOST_STEPS", 5)
    model, task = micro_llama().train(), Letters(64, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SCALE.learning_rate, weight_decay=0.01, fused=True)
    for step, examples in enumerate(order(task, 8, 0, 4)):
        optimizer.zero_grad()
        task.loss(model, task.batch(examples)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = SCALE.learning_rate * [1, 1, 0.75, 0.5][step]
        optimizer.step()
    optimizer.param_groups[0]["lr"] = SCALE.learning_rate * 0.25
    updates = counted.adamw_updates(optimizer)
    optimizer.zero_grad()
    task.loss(model, task.batch(task.train[:8])).backward()
    here = [p.grad for p in model.parameters()]
    row = made[0][0]
    assert row["gradients_underflow"] == pytest.approx(counted.shares(here, "fp16").underflow, abs=1e-3)
    assert row["moments_underflow"] == pytest.approx(
        counted.shares([0.001 * g.square() for g in here], "fp16").underflow, abs=1e-3
    )
    for fmt in ("fp16", "bf16"):
        assert row[f"updates_lost_{fmt}"] == pytest.approx(counted.lost_updates(updates, fmt), abs=1e-3)
    largest = max(g.abs().max().item() for g in here)
    assert largest * 2.0 ** row["scale_high"] < 65520 <= largest * 2.0 ** (row["scale_high"] + 1)


def a_run(accuracy: float, stopped: str = "", **traces) -> Run:
    run = Run(
        "m", "micro", "letters", config={"steps": 4, "kernels": "k"}, losses=[0.5] * 4, traces=traces, stopped=stopped
    )
    run.evaluations = [{"step": 4, "accuracy": accuracy, "loss": 0.5}]
    run.step_seconds = [9.0, 0.25, 0.25, 0.25]
    run.ledger = Ledger(measured={"weights": 3 * MIB, "master_weights": 6 * MIB})
    return run


def test_a_row_says_which_seeds_ended_early_and_how_often_steps_were_skipped():
    ended = "The loss is not a number at step 2."
    runs = [
        a_run(0.5, skipped=[0.0, 1.0, 1.0, 1.0], loss_scale=[8.0, 8.0, 4.0, 4.0]),
        a_run(0.75, ended, skipped=[1.0, 2.0, 3.0, 3.0], loss_scale=[8.0, 4.0, 2.0, 1.0]),
        a_run(1.0, skipped=[0.0] * 4, loss_scale=[8.0] * 4),
    ]
    row = bench._row(SCALE, "fp16-recipe", a_run(0.0), runs)
    assert (row["accuracy"], row["accuracy_min"], row["accuracy_std"]) == (0.75, 0.5, 0.25)
    assert row["finished"] == 2 and row["note"] == f"seed 1: {ended}"
    assert row["skipped"] == pytest.approx((1 / 4 + 3 / 4 + 0) / 3, abs=1e-4)
    assert row["loss_scale_end"] == 4.0 and row["step_ms"] == 250.0
    assert (row["weights_mib"], row["master_weights_mib"], row["gradients_mib"]) == (3.0, 6.0, 0.0)
    assert row["joules_per_step"] is None and row["peak_allocated_mib"] is None


def test_a_mean_leaves_out_what_could_not_be_measured():
    assert bench._mean([1.0, None, 2.0]) == 1.5
    assert bench._mean([None, None]) is None
    assert bench._skipped(a_run(0.5)) == 0.0
