"""Table `qlora`: LoRA beside all linear layers over a base in 16, 8 and 4 bits, on two tasks, and full fine-tuning.

Rows named "bf16" train all weights. Every LoRA row of a task has the learning rate that was best for LoRA over 16-bit
weights on the validation part, so that what differs is the base; see `tuned`. On "instructions" accuracy is the share
of a held-out answer's tokens that were the likeliest, and loss is nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from labkit.bench import tuned
from labkit.bench.quantization import PUBLISHED as PUBLISHED
from labkit.bench.tuned import Trial
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.scale import Scale

TITLE = "QLoRA: adapters over a base in 16, 8 and 4 bits, film sentiment and instructions."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {f"{name}_mib": "MiB" for name in tuned.BYTES} | {"learning_rate": "1"}
TASKS = ("sentiment", "instructions")
FULL, LORA, QLORA = "labkit.methods:FullFineTuning", "labkit.adapters.tuning:Lora", "labkit.adapters.qlora:QLora"
_ALL = {"targets": "all-linear"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": (FULL, {}),
    "lora": (LORA, _ALL),
    **{f"qlora {base}": (QLORA, {"base": base, "dropout": 0.0}) for base in ("int8", "fp4", "nf4", "nf4+dq")},
}
RATES = {FULL: (5e-5, 1e-4, 2e-4), LORA: (2e-4, 5e-4, 1e-3)}


def rows(scale: Scale, done: list[dict] | None = None) -> Iterator[dict]:
    """One row a task and method; those that are `done` are left out."""
    known = {(row["task"], row["method"]): row for row in done or []}
    for task in TASKS:
        names = [name for name in METHODS if (task, name) not in known]
        if not names:
            continue
        # Alone on the machine, and so before the others start.
        alone = {name: tuned.timed(scale, trial(name, task, 1e-4)) for name in names}
        rates = _rates(scale, task, known)
        chosen = [trial(name, task, rates[FULL if METHODS[name][0] == FULL else LORA]) for name in names]
        for name, one, runs in zip(names, chosen, tuned.over_seeds(scale, chosen), strict=True):
            rate = one.learning_rate
            facts = {"model": scale.model, "task": task, "method": name, "dtype": scale.dtype, "learning_rate": rate}
            learned = tuned.learned(runs) | {"steps": tuned.steps_of(scale, task), "batch": scale.batch_size}
            yield facts | learned | tuned.spent(alone[name])


def trial(name: str, task: str, rate: float) -> Trial:
    """A method of this table."""
    kind, settings = METHODS[name]
    return Trial(kind, tuple(settings.items()), rate, task=task)


def _rates(scale: Scale, task: str, known: dict[tuple[str, str], dict]) -> dict[str, float]:
    """The rates of full fine-tuning and of LoRA: as chosen before, or chosen now."""
    before = {METHODS[name][0]: row["learning_rate"] for (of, name), row in known.items() if of == task}
    trials = {METHODS[name][0]: trial(name, task, 0.0) for name in ("bf16", "lora")}
    return tuned.chosen_rates(scale, trials, RATES, before)
