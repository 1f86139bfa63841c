"""Table `lora-rank`: LoRA of rank 1 to 64 beside q, q and v, all of attention, and every linear layer.

All with α = 2 r, so that the update's scale is the same, and with the learning rate that was best for rank 8 and the
same targets on the validation part (see `tuned`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

from labkit.bench import tuned
from labkit.bench.adapter_figures import RANKS as PUBLISHED_RANKS
from labkit.bench.adapter_figures import TARGETS as PUBLISHED_TARGETS
from labkit.bench.tuned import Trial
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.scale import Scale

TITLE = "LoRA by rank and by which matrices get it: film sentiment, 1,500 test sentences."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {"rank": "1", "learning_rate": "1"}
RANKS = (1, 2, 4, 8, 64)
MIDDLE = 8
TARGETS = ("q", "q,v", "q,k,v,o", "all-linear")
RATES = (5e-4, 1e-3, 2e-3)
PUBLISHED = [*PUBLISHED_RANKS, *PUBLISHED_TARGETS]


def trial(rank: int, targets: str, rate: float) -> Trial:
    """LoRA of a rank beside targets as the table names them."""
    names = targets if targets == "all-linear" else tuple(targets.split(","))
    settings = (("rank", rank), ("lora_alpha", 2.0 * rank), ("targets", names))
    return Trial("labkit.adapters.tuning:Lora", settings, rate)


def rows(scale: Scale, done: list[dict] | None = None) -> Iterator[dict]:
    """One row a rank and targets; those that are `done` are left out, and keep the rate that they had."""
    before = {row["targets"]: row["learning_rate"] for row in done or []}
    middle = {targets: trial(MIDDLE, targets, RATES[1]) for targets in TARGETS}
    rates = tuned.chosen_rates(scale, middle, dict.fromkeys(TARGETS, RATES), before)
    known = {(row["targets"], row["rank"]) for row in done or []}
    todo = [at for at in product(TARGETS, RANKS) if at not in known and _fits(scale, at[1])]
    runs = tuned.over_seeds(scale, [trial(rank, targets, rates[targets]) for targets, rank in todo])
    for (targets, rank), seeds in zip(todo, runs, strict=True):
        facts = {"model": scale.model, "method": "lora", "rank": rank, "targets": targets}
        facts["learning_rate"] = rates[targets]
        yield facts | tuned.learned(seeds) | {"batch": scale.batch_size, "steps": scale.steps}


def _fits(scale: Scale, rank: int) -> bool:
    """Whether no target is smaller than the rank."""
    from labkit.adapters.targets import ALL_LINEAR, find

    layers = find(tuned.loaded(scale)[0], ALL_LINEAR).values()
    return rank <= min(min(layer.in_features, layer.out_features) for layer in layers)
