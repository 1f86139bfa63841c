"""Table `lora-plus`: how many steps LoRA takes to a loss when B learns 1 to 32 times as fast as A.

The loss that a run has to come down to is the one that plain LoRA (ratio 1, at the best of its own rates) ends with;
losses are means over `WINDOW` steps, or a lucky batch would end the race. Each ratio runs at every rate of A, and the
row has the best of them for that ratio, by steps and then by the loss at the end, and says which it was: for LoRA+ is
only worth anything if it wins against plain LoRA with its rate chosen as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from labkit.bench import tuned
from labkit.bench.tuned import Trial
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.run import Run
    from labkit.scale import Scale

TITLE = "LoRA+: steps to the loss of plain LoRA when B learns faster than A, film sentiment."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {"steps_to_loss": "steps", "steps_to_loss_std": "steps", "ratio": "1", "learning_rate": "1"}
RATIOS = (1, 2, 4, 8, 16, 32)
RATES = (3e-4, 1e-3, 3e-3)
WINDOW = 16
PUBLISHED = [
    {
        "method": "lora+",
        "ratio": 16,
        "result": "1 to 2 % better accuracy and up to twice the speed of fine-tuning at the cost of LoRA",
        "source": "Hayou et al. 2024, arXiv:2402.12354, abstract",
    }
]


def smooth(losses: Sequence[float]) -> list[float]:
    """Means over the last `WINDOW` steps; nothing before there are so many."""
    return [statistics.fmean(losses[i - WINDOW : i]) for i in range(WINDOW, len(losses) + 1)]


def steps_to(losses: Sequence[float], target: float) -> int | None:
    """The step after which the smoothed loss was at most `target`; None if it never was."""
    return next((i + WINDOW for i, loss in enumerate(smooth(losses)) if loss <= target), None)


def rows(scale: Scale) -> Iterator[dict]:
    """One row a ratio."""
    trials = {(ratio, rate): _trial(ratio, rate) for ratio in RATIOS for rate in RATES}
    runs = dict(zip(trials, tuned.over_seeds(scale, list(trials.values())), strict=True))
    plain = min((runs[1, rate] for rate in RATES), key=_end)
    target = _end(plain)
    for ratio in RATIOS:
        ends = {rate: (_mean_steps(runs[ratio, rate], target), _end(runs[ratio, rate])) for rate in RATES}
        rate = min(ends, key=lambda rate: ends[rate])
        yield _row(scale, ratio, rate, runs[ratio, rate], target)


def _trial(ratio: int, rate: float) -> Trial:
    return Trial("labkit.adapters.lora_plus:LoraPlus", (("ratio", float(ratio)),), rate)


def _end(runs: Sequence[Run]) -> float:
    """The smoothed training loss at the end, over seeds; infinite where a run broke off."""
    ends = [smooth(found.losses)[-1] if not found.stopped else math.inf for found in runs]
    return statistics.fmean(ends)


def _mean_steps(runs: Sequence[Run], target: float) -> float:
    found = [steps_to(one.losses, target) for one in runs]
    return statistics.fmean(math.inf if count is None else count for count in found)


def _row(scale: Scale, ratio: int, rate: float, runs: Sequence[Run], target: float) -> dict:
    counts = [steps_to(found.losses, target) for found in runs]
    there = [count for count in counts if count is not None]
    whole = len(there) == len(counts)
    missed = f"{len(counts) - len(there)} of {len(counts)} seeds did not reach it." if not whole else None
    learned = tuned.learned(runs)
    return {
        "model": scale.model,
        "method": "lora+",
        "ratio": ratio,
        "learning_rate": rate,
        "target_loss": round(target, 4),
        "steps_to_loss": round(statistics.fmean(there), 1) if whole else None,
        "steps_to_loss_std": round(statistics.stdev(there), 1) if whole else None,
        **learned,
        "steps": scale.steps,
        "batch": scale.batch_size,
        "note": " ".join(filter(None, (missed, learned["note"]))) or None,
    }
