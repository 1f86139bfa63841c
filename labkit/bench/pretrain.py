"""Table `pretrain`: what a pretrained start is worth, on the same 1,000 labelled sentences and with the same steps.

Every row is a mean over seeds; a seed decides the order of the examples and, for the random start, the weights. At
scale `small` the tiny model's rows are recorded too.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from labkit.run import UNITS as UNITS
from labkit.scale import SCALES, Scale

TITLE = "Fine-tuning from pretrained and from random weights: film sentiment, 1,500 test sentences."
SEEDS = (0, 1, 2)
PUBLISHED = [
    {
        "model": "gpt-1",
        "method": "full",
        "task": "MNLI-m",
        "accuracy": 0.821,
        "source": "Radford et al. 2018, table 2",
    },
    {"model": "esim+elmo (5x)", "task": "SNLI", "accuracy": 0.893, "source": "Radford et al. 2018, table 2"},
    {
        "model": "gpt-1",
        "method": "full",
        "task": "SNLI",
        "accuracy": 0.899,
        "source": "Radford et al. 2018, table 2",
    },
]


def rows(scale: Scale) -> list[dict]:
    """Fine-tune fully from both starts, and probe the pretrained one, at `scale` (and, beside `small`, at `tiny`)."""
    scales = [scale]
    if scale.name != "tiny":
        scales = [replace(SCALES["tiny"], device=scale.device), scale]
    ways = (("pretrained", False), ("random", False), ("pretrained", True))
    return [_row(s, start, probe) for s in scales for start, probe in ways]


def _row(scale: Scale, start: str, probe: bool) -> dict:
    runs = [_run(scale, start, probe, seed) for seed in SEEDS]
    found = [run.row() for run in runs]
    mean = {
        k: round(statistics.fmean(r[k] for r in found), 4 if k in ("accuracy", "loss") else 1)
        for k in ("accuracy", "loss", "step_ms", "tokens_per_s", "joules_per_step")
        if found[0][k] is not None
    }
    spread = round(statistics.stdev(r["accuracy"] for r in found), 4)
    settings = {"batch": scale.batch_size, "steps": scale.steps, "train_size": scale.train_size}
    return {**found[0], **mean, "accuracy_std": spread, "dtype": scale.dtype, **settings}


def _run(scale: Scale, start: str, probe: bool, seed: int):
    from labkit import models
    from labkit.methods import FullFineTuning, LinearProbing
    from labkit.tasks import Sentiment
    from labkit.training import train

    task = Sentiment.load(scale)
    if start == "pretrained":
        model = models.load(scale.model, device=scale.device)
    else:
        model = models.from_random(scale.model, seed=seed, device=scale.device)
    method = (
        LinearProbing(compute_dtype=scale.dtype)
        if probe
        else FullFineTuning(learning_rate=scale.learning_rate, compute_dtype=scale.dtype)
    )
    options: dict[str, Any] = {"model_name": scale.model, "start": start, "seed": seed, "progress": False}
    return train(model, task, method, steps=scale.steps, batch_size=scale.batch_size, **options)
