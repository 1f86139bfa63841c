"""Table `instruct`: instruction tuning over its steps: training loss, held-out loss and share of answer tokens right.

One row a method, a seed and an evaluation. Batches are packed; `train_loss` is the mean over the steps since the row
before. Each method has the learning rate that was best for it on the validation part (see `tuned`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from labkit.bench import qlora, tuned
from labkit.bench.qlora import FULL, LORA, QLORA
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.run import Run
    from labkit.scale import Scale

TITLE = "Instruction tuning on the course's own pairs: training and held-out loss by step."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {"train_loss": "nats a token", "loss": "nats a token", "accuracy": "share of tokens"}
EVERY = 16
METHODS = {"full": "bf16", "lora": "lora", "qlora": "qlora nf4+dq"}
RATES = {FULL: qlora.RATES[FULL], LORA: qlora.RATES[LORA], QLORA: qlora.RATES[LORA]}
PUBLISHED = [
    {
        "model": "LLaMA-30B",
        "method": "qlora",
        "result": "rank 8, alpha 32, dropout 0.1 on q and v; batch 4 with 4 accumulations, rate 1e-4, gradient norm "
        "0.3, one epoch of Alpaca on one A100 of 40 GB",
        "source": "a lecture on efficient tuning (2023)",
    }
]


def rows(scale: Scale, done: list[dict] | None = None) -> Iterator[dict]:
    """The curves of every method and seed; not those `done`, whose methods keep the rate that they had."""
    before = done or []
    known = {(row["method"], row["seed"], row["step"]) for row in before}
    todo = {name: qlora.trial(key, "instructions", 0.0) for name, key in METHODS.items() if not _whole(name, known)}
    choices = {name: RATES[trial.kind] for name, trial in todo.items()}
    rates = tuned.chosen_rates(scale, todo, choices, {row["method"]: row["learning_rate"] for row in before})
    chosen = [replace(todo[name], learning_rate=rates[name], evaluate_every=EVERY) for name in todo]
    for name, runs in zip(todo, tuned.over_seeds(scale, chosen), strict=True):
        facts = {"model": scale.model, "method": name, "dtype": scale.dtype, "learning_rate": rates[name]}
        for seed, run in zip(SEEDS, runs, strict=True):
            own = (facts | {"seed": seed} | row for row in _curve(run))
            yield from (row for row in own if (name, seed, row["step"]) not in known)


def _whole(name: str, known: set[tuple[str, int, int]]) -> bool:
    """Whether a method has the curves of all seeds, none of them cut off."""
    points = Counter(seed for method, seed, _ in known if method == name)
    return set(points) == set(SEEDS) and len({*points.values()}) == 1


def _curve(run: Run) -> Iterator[dict]:
    before = 0
    for found in run.evaluations:
        step = found["step"]
        yield {
            "step": step,
            "train_loss": round(statistics.fmean(run.losses[before:step]), 4),
            "loss": round(found["loss"], 4),
            "accuracy": round(found["accuracy"], 4),
        }
        before = step
