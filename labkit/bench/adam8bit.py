"""Table `adam8bit`: full fine-tuning with 32-bit AdamW, with our 8-bit states, and with bitsandbytes' AdamW8bit.

All start from the same weights and see the same batches in the same order, seed by seed. A curve is the training loss
as a moving mean over WINDOW steps, averaged over seeds. `gap_nats` is its largest distance from 32-bit AdamW's
curve; `spread_nats` is how far the 32-bit seeds lie apart at that step (largest minus smallest), which says how large
a distance chance alone makes; `within_spread` is the share of all steps where the distance is no larger than that.
Step time, bytes and the peak are those of a short run alone on the machine, the second of two (see `workers`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from labkit.run import UNITS as RUN_UNITS
from labkit.scale import Scale

if TYPE_CHECKING:
    from labkit.run import Run

TITLE = "AdamW with 32-bit and with 8-bit states: loss, accuracy and bytes of full fine-tuning."
SEEDS = (0, 1, 2)
WINDOW = 10
TIMED_STEPS = 20
UNITS = RUN_UNITS | {
    "loss": "nats, mean of the last 10 steps",
    "eval_loss": "nats",
    "optimizer_states_mib": "MiB",
    "predicted_mib": "MiB",
    "gap_nats": "nats",
    "spread_nats": "nats",
    "within_spread": "share of steps",
    "curve": f"nats, mean over {WINDOW} steps and all seeds",
    "curve_low": "nats, lowest seed",
    "curve_high": "nats, highest seed",
}
PUBLISHED = [
    {
        "method": "8-bit optimizers",
        "result": "32-bit performance at a fraction of the memory, with the hyperparameters of 32-bit training",
        "tasks": "GLUE, 1.5B language modelling, translation, ImageNet, RoBERTa pretraining",
        "source": "Dettmers et al. 2022, arXiv:2110.02861, abstract",
    },
]


def rows(scale: Scale) -> Iterator[dict]:
    """One row an optimizer, means over SEEDS."""
    from labkit.bench.workers import alone, side_by_side

    names = list(_methods(scale))
    reference: list[list[float]] = []
    short = replace(scale, eval_size=scale.batch_size)
    timed = {name: alone(_run, (short, name, SEEDS[0], TIMED_STEPS)) for name in names}
    every = side_by_side(_run, [(scale, name, seed, scale.steps) for name in names for seed in SEEDS], scale.device)
    for name in names:
        runs = [next(every) for _ in SEEDS]
        smooth = [_smoothed(run.losses) for run in runs]
        reference = reference or smooth
        facts = {"model": scale.model, "method": name, "dtype": scale.dtype}
        yield facts | _row(timed[name], runs) | _compared(smooth, reference)


def _methods(scale: Scale) -> dict[str, Any]:
    import importlib.util

    from labkit.methods import FullFineTuning
    from labkit.numerics.quantize import Adam8bitFineTuning

    options: dict[str, Any] = {"learning_rate": scale.learning_rate, "compute_dtype": scale.dtype}
    found: dict[str, Any] = {
        "adamw": lambda: FullFineTuning(**options),
        "adam8bit": lambda: Adam8bitFineTuning(**options),
    }
    if importlib.util.find_spec("bitsandbytes") is not None:
        found["bitsandbytes.AdamW8bit"] = lambda: _library(options)
    return found


def _library(options: dict[str, Any]) -> Any:
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before the import, which already warns
    import bitsandbytes

    from labkit.numerics.quantize import Adam8bitFineTuning

    class Library(Adam8bitFineTuning):
        """The same training with bitsandbytes' optimizer."""

        def build_optimizer(self, trained: list) -> Any:
            return bitsandbytes.optim.AdamW8bit(trained, lr=self.learning_rate, weight_decay=self.weight_decay)

    return Library(**options, name="bitsandbytes.AdamW8bit")


def _run(case: tuple[Scale, str, int, int]) -> Run:
    """One run of a scale, an optimizer, a seed and a number of steps."""
    from labkit import models
    from labkit.bench.workers import clear
    from labkit.tasks import Sentiment
    from labkit.training import train

    scale, name, seed, steps = case
    clear(scale.device)
    model, task = models.load(scale.model, device=scale.device), Sentiment.load(scale)
    method = _methods(scale)[name]()
    return train(model, task, method, steps=steps, batch_size=scale.batch_size, seed=seed, progress=False)


def _row(timed: Run, runs: list[Run]) -> dict:
    from labkit.ledger import MIB

    accuracies = [run.evaluations[-1]["accuracy"] for run in runs]
    ledger = timed.ledger
    return {
        "loss": round(statistics.fmean(statistics.fmean(run.losses[-10:]) for run in runs), 4),
        "eval_loss": round(statistics.fmean(run.evaluations[-1]["loss"] for run in runs), 4),
        "accuracy": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4),
        "optimizer_states_mib": round(ledger.measured["optimizer_states"] / MIB, 3),
        "predicted_mib": round(ledger.predicted["optimizer_states"] / MIB, 3),
        "step_ms": timed.step_ms,
        "peak_allocated_mib": None if ledger.peak_allocated is None else round(ledger.peak_allocated / MIB, 1),
        "trainable_params": timed.trainable_params,
    }


def _smoothed(losses: list[float]) -> list[float]:
    from labkit.show.plots import smoothed

    return smoothed(losses, WINDOW)


def _compared(smooth: list[list[float]], reference: list[list[float]]) -> dict:
    """The mean curve with its lowest and highest seed, and its distance from the reference's mean curve."""
    mean, base = ([statistics.fmean(at) for at in zip(*curves, strict=True)] for curves in (smooth, reference))
    gaps = [abs(a - b) for a, b in zip(mean, base, strict=True)]
    spreads = [max(at) - min(at) for at in zip(*reference, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    itself = smooth is reference
    return {
        "gap_nats": None if itself else round(gaps[worst], 4),
        "spread_nats": round(statistics.fmean(spreads) if itself else spreads[worst], 4),
        "within_spread": None if itself else round(
            statistics.fmean(g <= s for g, s in zip(gaps, spreads, strict=True)), 4
        ),
        "curve": [round(v, 4) for v in mean],
        "curve_low": [round(min(at), 4) for at in zip(*smooth, strict=True)],
        "curve_high": [round(max(at), 4) for at in zip(*smooth, strict=True)],
    }  # fmt: skip
