"""The table `dora` made whole on a model of a few thousand weights: its rows, and the runs that they are means of."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from micro import Letters, micro_llama

from labkit.adapters.decompose import correlation
from labkit.bench import dora as bench
from labkit.bench import record
from labkit.scale import Scale

SCALE = Scale("tiny", "micro", 64, 24, batch_size=8, seq_len=16, epochs=1, learning_rate=2e-3)


@pytest.fixture(scope="module")
def made():
    """Every row, and every run that they were made of: (method, seed, steps, test examples, run, changes)."""
    base, runs, real, seen, summary = micro_llama(), [], bench._run, [], bench._summary
    before = [p.detach().clone() for p in base.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.bench.workers.clear", lambda device: None)  # a collector's round takes longer than a run
        patch.setattr(bench, "_loaded", lambda scale: (base, Letters(scale.train_size, scale.eval_size)))
        patch.setattr(bench, "TIMED_STEPS", 3)
        patch.setattr(bench, "MOST_STEPS", 6)

        def run(case):
            found = real(case)
            assert json.loads(json.dumps(found[1])) == found[1], "a worker would send tensors"
            runs.append((case[1], case[2], case[3], case[0].eval_size, found[0], seen.pop() if seen else []))
            return found

        patch.setattr(bench, "_run", run)
        patch.setattr(bench, "_summary", lambda changes: (seen.append(changes), summary(changes))[1])
        rows = list(bench.rows(SCALE))
    assert all(torch.equal(p, old) for p, old in zip(base.parameters(), before, strict=True)), "the base was trained"
    return {row["method"]: row for row in rows}, runs


def test_there_is_a_row_a_method_of_plain_json_and_units(made):
    rows, _ = made
    assert list(rows) == list(bench.METHODS)
    assert json.loads(json.dumps(rows)) == rows, "not plain JSON, or a NaN"
    plain = {"model", "method", "rank", "trainable_params", "steps", "batch", "dtype", "learning_rate", "note"}
    assert {name for row in rows.values() for name in row} <= plain | set(bench.UNITS)
    assert "dora" in record.names()


def test_times_come_from_a_second_short_run_alone_and_accuracies_from_every_seed(made):
    rows, runs = made
    twice, others = runs[: 2 * len(rows)], runs[2 * len(rows) :]
    assert [run[:4] for run in twice] == [(name, 0, 3, 8) for name in rows for _ in range(2)]
    assert [run[:4] for run in others] == [(name, seed, 6, 24) for name in rows for seed in bench.SEEDS]
    assert not any(seen for *_, seen in twice), "a timed run held a copy of the weights"
    for place, (name, row) in enumerate(rows.items()):
        own = [run for method, *_, run, _ in others if method == name]
        assert row["step_ms"] == twice[2 * place + 1][4].step_ms
        assert row["accuracy"] == round(statistics.fmean(run.accuracy for run in own), 4)
        assert row["accuracy_std"] == round(statistics.stdev(run.accuracy for run in own), 4)
        assert (row["steps"], row["batch"], row["model"]) == (6, 8, "micro")


def test_changes_are_those_at_the_end_and_the_correlation_that_of_all_moments(made):
    rows, runs = made
    for name, row in rows.items():
        seen = [seen for method, _, steps, _, _, seen in runs if method == name and steps == 6]
        if name == "peft.dora":
            assert row["magnitude_change"] is row["correlation"] is None and row["note"]
            continue
        last = [change for changes in seen for change in changes if change.step == 6]
        assert len(last) == 3 * 4 and row["note"] is None
        for column, kind in (("magnitude_change", "magnitude"), ("direction_change", "direction")):
            assert row[column] == pytest.approx(statistics.fmean(getattr(c, kind) for c in last), rel=1e-3)
        assert row["correlation"] == pytest.approx(statistics.fmean(map(correlation, seen)), rel=1e-3)
        ends = [correlation([change for change in changes if change.step == 6]) for changes in seen]
        assert row["correlation_end"] == pytest.approx(statistics.fmean(ends), rel=1e-3) != row["correlation"]


def test_what_trains_is_counted_by_formula(made):
    rows, _ = made
    shapes = [(32, 32), (16, 32)] * 2  # q and v of two layers
    thin = {r: sum(r * (out + width) for out, width in shapes) for r in (4, 8)}
    lengths = sum(out for out, _ in shapes)
    wanted = {"lora": thin[8], "dora-half": thin[4] + lengths, "dora": thin[8] + lengths}
    whole = sum(p.numel() for p in micro_llama().parameters())
    for name, count in {**wanted, "peft.dora": wanted["dora"], "full": whole}.items():
        assert rows[name]["trainable_params"] == count, name
        assert rows[name]["share"] == pytest.approx(count / whole, abs=1e-6)
    assert [rows[name]["rank"] for name in rows] == [None, 8, 4, 8, 8]


def test_ours_and_pefts_learn_the_same_from_the_same_start(made):
    """The rows differ by the draw of A; with one draw, the table's two methods give the same losses."""
    from labkit.adapters.attach import lora_layers
    from labkit.training import order

    losses = []
    for name in ("dora", "peft.dora"):
        model, task, chosen = micro_llama().train(), Letters(), bench.method(name, SCALE)
        chosen.prepare(model, task, 6)
        if name == "dora":
            drawn = [layer.lora_A["default"].detach().clone() for _, layer in lora_layers(model)]
        else:
            found = [p for n, p in model.named_parameters() if "lora_A" in n]
            with torch.no_grad():
                for parameter, values in zip(found, drawn, strict=True):
                    parameter.copy_(values)
        losses.append([float(chosen.step(task.batch(some))) for some in order(task, 8, 0, 6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] != losses[0][-1]


def test_methods_compute_in_the_scales_dtype_and_keep_the_update_of_one_size():
    from dataclasses import replace

    made = {name: bench.method(name, replace(SCALE, dtype="bfloat16")) for name in bench.METHODS}
    assert {m.compute_dtype for m in made.values()} == {"bfloat16"}
    assert {m.spec.scaling for name, m in made.items() if name != "full"} == {2.0}


def test_published_rows_are_the_seeds():
    rows = {(row["model"], row["method"]): row for row in bench.PUBLISHED}
    assert len(rows) == 19 and all(row["source"] for row in rows.values())
    for row in rows.values():
        mean = statistics.fmean(row[name] for name in bench.TASKS[:-1])
        assert row["average"] == pytest.approx(mean, abs=0.1), (row["model"], row["method"])
        assert row["share"] is None or 0 < row["share"] < 0.04
    assert rows["llama-7b", "dora-half"]["average"] - rows["llama-7b", "lora"]["average"] == pytest.approx(2.8)
    assert rows["llama2-7b", "dora"]["siqa"] == 76.0 and rows["llama3-8b", "dora"]["average"] == 85.2
