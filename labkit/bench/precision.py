"""Table `precision`: one fine-tuning task in every precision of lesson 02: accuracy, bytes, time and energy.

Rows with `part` "training" are means over the seeds; a run that ended early, because its loss was no longer a number,
counts with the accuracy of what it left behind and says so in `note`. Bytes by category are measured at the second
step. One row with `part` "losses" counts, on the same model after some steps in fp32, what 16 bits would take away:
gradients and second moments that underflow in fp16, AdamW's updates that leave a 16-bit weight where it was, and the
loss scales between which no gradient overflows and at most one in a thousand underflows.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.run import Run
    from labkit.scale import Scale

TITLE = "Precision of training: film sentiment in fp32, tf32, fp16 and bf16, 1,500 test sentences."
SEEDS = (0, 1, 2)
MOST_STEPS = 80  # of a run: what the share of a GPU that the table may take allows
LOSSES_AFTER = 20
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
    from labkit import models
    from labkit.numerics.mixed import CAUSES, TABLE
    from labkit.tasks import Sentiment

    base, task = models.load(scale.model), Sentiment.load(scale)
    yield _losses(scale, base, task)
    for name in (*TABLE, *CAUSES):
        yield _row(scale, name, [_run(scale, name, base, task, seed) for seed in SEEDS])


def _run(scale: Scale, name: str, base: Any, task: Any, seed: int) -> Run:
    import torch

    from labkit.numerics.mixed import method
    from labkit.training import train

    chosen = method(name, learning_rate=scale.learning_rate)
    model = copy.deepcopy(base).to(scale.device)
    options: dict[str, Any] = {"steps": min(scale.steps, MOST_STEPS), "batch_size": scale.batch_size, "seed": seed}
    run = train(model, task, chosen, model_name=scale.model, progress=False, on_nan="stop", **options)
    run.config["kernels"] = chosen.kernels
    del model, chosen
    if scale.device == "cuda":
        torch.cuda.empty_cache()
    return run


def _row(scale: Scale, name: str, runs: list[Run]) -> dict:
    from labkit.ledger import MIB

    measured = runs[0].ledger.measured
    accuracies = [run.evaluations[-1]["accuracy"] for run in runs]
    ended = [f"seed {seed}: {run.stopped}" for seed, run in zip(SEEDS, runs, strict=False) if run.stopped]
    found = [run.row() for run in runs]
    scales = [run.traces["loss_scale"] for run in runs if "loss_scale" in run.traces]
    return {
        "part": "training",
        "model": scale.model,
        "method": name,
        "accuracy": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4),
        "accuracy_min": round(min(accuracies), 4),
        "finished": len(runs) - len(ended),
        "step_ms": _mean(row["step_ms"] for row in found),
        "peak_allocated_mib": _mean(row["peak_allocated_mib"] for row in found),
        **{f"{k}_mib": round(measured.get(k, 0) / MIB, 1) for k in BYTES},
        "joules_per_step": _mean(row["joules_per_step"] for row in found),
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
