"""What the tables of adapters share: a method by name at a learning rate, its runs over seeds, and one row of them.

A learning rate that suits full fine-tuning makes adapters look bad, and the other way round. So each method gets the
rate that was best for it on the validation part, by its loss, among a few that are stated; the test part is seen by
none of these choices. Accuracies come from runs side by side, times, joules and bytes from a run alone (see `workers`).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from labkit.ledger import MIB

if TYPE_CHECKING:
    from labkit.methods import Method
    from labkit.run import Run
    from labkit.scale import Scale

BYTES = ("weights", "gradients", "optimizer_states", "activations", "buffers")
TIMED_STEPS = 20
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Trial:
    """One run: a method by the name in a table, its settings, and on what.

    Attributes:
        kind: the method's class as "module:Name"; it is imported where the run is made.
        settings: the class's fields, as pairs, so that a trial can be compared and sent to another process.
        part: "test" or "validation": what the run is evaluated on.
        task: "sentiment" or "instructions" (packed).
        evaluate_every: steps between evaluations; 0: at the end only.
    """

    kind: str
    settings: tuple[tuple[str, Any], ...]
    learning_rate: float
    seed: int = 0
    steps: int = 0
    part: str = "test"
    task: str = "sentiment"
    evaluate_every: int = 0

    def method(self, scale: Scale) -> Method:
        """The method, its frozen weights in the scale's dtype; full fine-tuning computes in it."""
        import importlib

        module, _, name = self.kind.partition(":")
        made: Method = getattr(importlib.import_module(module), name)(
            learning_rate=self.learning_rate, **dict(self.settings)
        )
        if hasattr(made, "seed"):
            made.seed = self.seed  # what a method draws is part of the spread over seeds
        narrow = "weights" if hasattr(made, "weights") else "compute_dtype"
        if scale.dtype != "float32":
            setattr(made, narrow, scale.dtype)
        return made


@cache
def loaded(scale: Scale, task: str = "sentiment") -> tuple[Any, Any]:
    """Model and task, once a process."""
    from labkit import models
    from labkit.instructions import Instructions
    from labkit.tasks import Sentiment

    found = Sentiment.load(scale) if task == "sentiment" else Instructions.load(scale, packing=True)
    return models.load(scale.model), found


def steps_of(scale: Scale, task: str) -> int:
    """Steps of a whole run: the scale's epochs over the task's training part."""
    return scale.epochs * -(-len(loaded(scale, task)[1].train) // scale.batch_size)


def run(case: tuple[Scale, Trial]) -> Run:
    """One run on a copy of the scale's model."""
    from labkit.bench.workers import clear
    from labkit.training import train

    scale, trial = case
    base, task = loaded(scale, trial.task)
    clear(scale.device)
    if trial.part == "validation":
        task = copy.copy(task)
        task.test = task.validation
    model = copy.deepcopy(base).to(scale.device)
    options: dict[str, Any] = {"batch_size": scale.batch_size, "seed": trial.seed, "progress": False}
    options["evaluate_every"] = trial.evaluate_every
    steps = trial.steps or steps_of(scale, trial.task)
    return train(model, task, trial.method(scale), steps=steps, model_name=scale.model, on_nan="stop", **options)


def timed(scale: Scale, trial: Trial) -> Run:
    """A short run alone on the machine, the second of two: its times, joules, bytes and peak count."""
    from labkit.bench.workers import alone

    return alone(run, (replace(scale, eval_size=scale.batch_size), replace(trial, steps=TIMED_STEPS)))


def best_rates(scale: Scale, trials: Sequence[Trial], rates: Sequence[Sequence[float]]) -> Iterator[float]:
    """For each trial, the one of its rates with the smallest loss on the validation part after a whole run."""
    from labkit.bench.workers import side_by_side

    cases = [
        (scale, replace(trial, learning_rate=rate, part="validation"))
        for trial, own in zip(trials, rates, strict=True)
        for rate in own
    ]
    runs = side_by_side(run, cases, scale.device)
    for own in rates:
        losses = {rate: _loss(next(runs)) for rate in own}
        yield min(losses, key=lambda rate: losses[rate])


def chosen_rates(
    scale: Scale, trials: Mapping[str, Trial], rates: Mapping[str, Sequence[float]], known: Mapping[str, float]
) -> dict[str, float]:
    """For each trial the rate that is `known`, of rows that are there, or else the best of its own."""
    new = [name for name in trials if name not in known]
    found = best_rates(scale, [trials[name] for name in new], [rates[name] for name in new])
    return {**known, **dict(zip(new, found, strict=True))}


def _loss(found: Run) -> float:
    loss = float(found.evaluations[-1]["loss"])
    return loss if loss == loss else float("inf")


def over_seeds(scale: Scale, trials: Sequence[Trial]) -> Iterator[list[Run]]:
    """Each trial's runs over all seeds, as soon as they are done."""
    from labkit.bench.workers import side_by_side

    cases = [(scale, replace(trial, seed=seed)) for trial in trials for seed in SEEDS]
    runs = side_by_side(run, cases, scale.device)
    for _ in trials:
        yield [next(runs) for _ in SEEDS]


def learned(runs: Sequence[Run]) -> dict:
    """What was learned: mean and spread over seeds."""
    accuracies = [found.evaluations[-1]["accuracy"] for found in runs]
    return {
        "accuracy": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4),
        "loss": round(statistics.fmean(found.evaluations[-1]["loss"] for found in runs), 4),
        "trainable_params": runs[0].trainable_params,
        "note": " ".join(found.stopped for found in runs if found.stopped) or None,
    }


def spent(found: Run) -> dict:
    """What a step took, and which bytes it held."""
    row = found.row()
    measured = found.ledger.measured
    return {
        "step_ms": row["step_ms"],
        "joules_per_step": row["joules_per_step"],
        "peak_allocated_mib": row["peak_allocated_mib"],
        **{f"{name}_mib": round(measured.get(name, 0) / MIB, 3) for name in BYTES},
    }
