"""Table `pretrain`: what a pretrained start is worth, on the same 1,000 labelled sentences and with the same steps.

Every row is a mean over seeds; a seed decides the order of the examples and, for the random start, the weights. At
scale `small` the tiny model's rows are recorded too.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from labkit.scale import SCALES, Scale

TITLE = "Fine-tuning from pretrained and from random weights: film sentiment, 1,500 test sentences."
SEEDS = (0, 1, 2)
UNITS = {
    "accuracy": "share", "accuracy_std": "share", "loss": "nats", "step_ms": "ms", "tokens_per_s": "tokens/s",
    "peak_allocated_mib": "MiB", "measured_mib": "MiB", "joules_per_step": "J",
}  # fmt: skip
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
    """Fine-tune from both starts, fully and by a linear probe, at `scale` (and, beside `small`, at `tiny`)."""
    scales = [scale]
    if scale.name != "tiny":
        scales = [replace(SCALES["tiny"], device=scale.device), scale]
    return [_row(s, start, probe) for s in scales for start in ("pretrained", "random") for probe in (False, True)]


def _row(scale: Scale, start: str, probe: bool) -> dict:
    runs = [_run(scale, start, probe, seed) for seed in SEEDS]
    found = [run.row() for run in runs]
    mean = {
        k: round(statistics.fmean(r[k] for r in found), 4)
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
    make = models.load if start == "pretrained" else models.from_random
    options = {} if start == "pretrained" else {"seed": seed}
    model = make(scale.model, device=scale.device, **options)
    method = (
        LinearProbing(compute_dtype=scale.dtype)
        if probe
        else FullFineTuning(learning_rate=scale.learning_rate, compute_dtype=scale.dtype)
    )
    settings = {"steps": scale.steps, "batch_size": scale.batch_size, "seed": seed}
    return train(model, task, method, model_name=scale.model, start=start, progress=False, **settings)
