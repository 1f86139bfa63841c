"""Table `precision`: one fine-tuning task in every precision of lesson 02: accuracy, bytes, time and energy.

Rows with `part` "training" are means over the seeds; a run that ended early, because its loss was no longer a number,
counts with the accuracy of what it left behind and says so in `note`. Step time, energy, bytes by category (at the
second step) and the peak are those of a short run alone on the machine, the second of two; the runs that the accuracies
come from may share it (see `workers`). One row with `part` "losses" counts, on the same model after some steps in fp32,
what 16 bits would take away: gradients and second moments that underflow in fp16, AdamW's updates that leave a 16-bit
weight where it was, and the loss scales between which no gradient overflows and at most one in a thousand underflows.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.run import Run
    from labkit.scale import Scale

TITLE = "Precision of training: film sentiment in fp32, tf32, fp16 and bf16, 1,500 test sentences."
SEEDS = (0, 1, 2)
MOST_STEPS = 80  # of a run: what the share of a GPU that the table may take allows
LOSSES_AFTER = 20
TIMED_STEPS = 20
BYTES = ("weights", "master_weights", "gradients", "optimizer_states", "activations")
UNITS = RUN_UNITS | {f"{name}_mib": "MiB" for name in BYTES} | {
    "accuracy_min": "share",
    "skipped": "share of steps",
    "finished": "seeds",
    "gradients_underflow": "share",
    "moments_underflow": "share",
    "updates_lost_fp16": "share",
    "updates_lost_bf16": "share",
    "scale_low": "power of two",
    "scale_high": "power of two",
}  # fmt: skip
PUBLISHED = [
    {
        "method": "fp16, fp32 master weights, loss scaling",
        "result": "no loss of accuracy and no change of hyperparameters; memory nearly halved",
        "source": "Micikevicius et al. 2018, arXiv:1710.03740, abstract",
    },
]


def rows(scale: Scale) -> Iterator[dict]:
    """What 16 bits would take away first, then one row a method, each as soon as its seeds are done."""
    from labkit.bench.workers import alone, side_by_side
    from labkit.numerics.mixed import CAUSES, TABLE

    base, task = _loaded(scale)
    yield _losses(scale, base, task)
    names = (*TABLE, *CAUSES)
    # Alone on the machine, and so before the others start.
    short = replace(scale, eval_size=scale.batch_size)
    timed = {name: alone(_run, (short, name, SEEDS[0], TIMED_STEPS)) for name in names}
    cases = [(scale, name, seed, min(scale.steps, MOST_STEPS)) for name in names for seed in SEEDS]
    runs = side_by_side(_run, cases, scale.device)
    for name in names:
        yield _row(scale, name, timed[name], [next(runs) for _ in SEEDS])


@cache
def _loaded(scale: Scale) -> tuple[Any, Any]:
    """Model and task, once a process."""
    from labkit import models
    from labkit.tasks import Sentiment

    return models.load(scale.model), Sentiment.load(scale)


def _run(case: tuple[Scale, str, int, int]) -> Run:
    """One run of a scale, a method, a seed and a number of steps."""
    from labkit.bench.workers import clear
    from labkit.numerics.mixed import method
    from labkit.training import train

    (scale, name, seed, steps), (base, task) = case, _loaded(case[0])
    clear(scale.device)
    chosen = method(name, learning_rate=scale.learning_rate)
    model = copy.deepcopy(base).to(scale.device)
    options: dict[str, Any] = {"steps": steps, "batch_size": scale.batch_size, "seed": seed}
    run = train(model, task, chosen, model_name=scale.model, progress=False, on_nan="stop", **options)
    run.config["kernels"] = chosen.kernels
    return run


def _row(scale: Scale, name: str, timed: Run, runs: list[Run]) -> dict:
    from labkit.ledger import MIB

    measured, alone = timed.ledger.measured, timed.row()
    accuracies = [run.evaluations[-1]["accuracy"] for run in runs]
    ended = [f"seed {seed}: {run.stopped}" for seed, run in zip(SEEDS, runs, strict=False) if run.stopped]
    scales = [run.traces["loss_scale"] for run in runs if "loss_scale" in run.traces]
    return {
        "part": "training",
        "model": scale.model,
        "method": name,
        "accuracy": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4),
        "accuracy_min": round(min(accuracies), 4),
        "finished": len(runs) - len(ended),
        "step_ms": alone["step_ms"],
        "peak_allocated_mib": alone["peak_allocated_mib"],
        **{f"{k}_mib": round(measured.get(k, 0) / MIB, 1) for k in BYTES},
        "joules_per_step": alone["joules_per_step"],
        "skipped": _mean(_skipped(run) for run in runs),
        "loss_scale_end": scales[0][-1] if scales else None,
        "steps": runs[0].config["steps"],
        "batch": scale.batch_size,
        "kernels": runs[0].config["kernels"],
        "note": " ".join(ended) or None,
    }


def _skipped(run: Run) -> float:
    return run.traces.get("skipped", [0.0])[-1] / max(1, len(run.losses))


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return round(statistics.fmean(known), 4) if known else None


def _losses(scale: Scale, base: Any, task: Any) -> dict:
    """Train a copy in fp32 for some steps, then count on its last gradients and on AdamW's next update."""
    from labkit.numerics import gradients as counted
    from labkit.numerics.mixed import method
    from labkit.training import order

    chosen = method("fp32", learning_rate=scale.learning_rate)
    model = copy.deepcopy(base).to(scale.device).train()
    chosen.prepare(model, task, min(scale.steps, MOST_STEPS))
    for examples in order(task, scale.batch_size, SEEDS[0], LOSSES_AFTER):
        chosen.step(task.batch(examples).to(scale.device))
    updates = counted.adamw_updates(chosen._optimizer)
    # The gradients in place are clipped; those of a loss that was not divided by anything are wanted.
    model.zero_grad()
    task.loss(model, task.batch(task.train[: scale.batch_size]).to(scale.device)).backward()
    here = list(counted.gradients(model).values())
    low, high = counted.window(counted.magnitudes(here), "fp16")
    return {
        "part": "losses",
        "model": scale.model,
        "method": "fp32",
        "steps": LOSSES_AFTER,
        "batch": scale.batch_size,
        "gradients_underflow": round(counted.shares(here, "fp16").underflow, 6),
        "moments_underflow": round(counted.shares(counted.second_moments(here), "fp16").underflow, 4),
        "updates_lost_fp16": round(counted.lost_updates(updates, "fp16"), 4),
        "updates_lost_bf16": round(counted.lost_updates(updates, "bf16"), 4),
        "scale_low": low,
        "scale_high": high,
    }
