"""Table `lisa`: layers by turns (LISA, BAdam), moments in few directions (GaLore), LoRA, all weights, and none.

Rows with part "run" are whole trainings on two tasks, each method at the rate that was best for it on the validation
part (see `tuned`); "lisa kept" leaves the states of sleeping layers in the optimizer, at LISA's rate, so that what
differs is the bytes and whether moments survive. "vanilla" is the model untrained. Peaks, and the most that optimizers
held, are of whole runs, in which layers change many times; times and joules are of short runs alone (GaLore's joules
with one decomposition in those few steps, its median step without). On "instructions" accuracy is the share of a held-
out answer's tokens that were the likeliest, and loss is nats a token.

Rows with part "bytes" follow gradients and states through SWITCHES steps, with other layers in each. On a GPU
`allocated_mib` is what the allocator holds after the step, weights and batch included.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from labkit.bench import tuned
from labkit.bench.tuned import Trial
from labkit.ledger import MIB
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.run import Run
    from labkit.scale import Scale

TITLE = "Layers by turns and few directions: film sentiment and instructions, and bytes through switches."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {f"{name}_mib": "MiB" for name in (*tuned.BYTES, "host", "allocated")} | {"learning_rate": "1"}
TASKS = ("sentiment", "instructions")
SWITCHES = 20
_LISA = "labkit.layerwise.lisa:Lisa"
_TURNS = {"layers": 2, "period": 10}
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "full": ("labkit.methods:FullFineTuning", {}, (5e-5, 1e-4, 2e-4)),
    "lora": ("labkit.adapters.tuning:Lora", {"targets": "all-linear"}, (2e-4, 5e-4, 1e-3)),
    "galore": ("labkit.layerwise.galore:GaLore", {"rank": 64, "period": 50}, (2e-4, 5e-4, 1e-3)),
    "badam": ("labkit.layerwise.badam:BAdam", {"period": 4}, (1e-4, 2e-4, 5e-4)),
    "lisa": (_LISA, _TURNS, (5e-5, 1e-4, 2e-4)),
    "lisa kept": (_LISA, {**_TURNS, "states": "kept"}, ()),
}
VANILLA = "vanilla"
THROUGH: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"lisa {states}": (_LISA, {"layers": 2, "period": 1, "states": states}) for states in ("freed", "host", "kept")},
    "badam": ("labkit.layerwise.badam:BAdam", {"period": 1, "order": "ordered"}),
}
_SOURCE = "Pan et al. 2024, arXiv:2403.17919, table 2"
_FIGURES = {
    "TinyLlama": {
        "vanilla": (25.50, 19.55, 59.91),
        "lora": (25.81, 19.82, 61.33),
        "galore": (25.21, 21.19, 61.09),
        "lisa": (26.02, 21.71, 61.48),
        "full": (25.62, 21.28, 62.12),
    },
    "Mistral-7B": {
        "vanilla": (60.12, 26.79, 79.24),
        "lora": (61.78, 27.56, 78.85),
        "galore": (57.87, 26.23, 75.85),
        "lisa": (62.09, 29.76, 78.93),
        "full": (61.70, 28.07, 78.85),
    },
    "Llama-2-7B": {
        "vanilla": (45.87, 25.69, 74.11),
        "lora": (45.50, 24.73, 74.74),
        "galore": (45.56, 24.39, 73.32),
        "lisa": (46.21, 26.06, 75.30),
        "full": (45.66, 27.02, 75.06),
    },
}
PUBLISHED = [
    {"model": model, "method": method}
    | dict(zip(("MMLU, 5-shot", "AGIEval, 3-shot", "WinoGrande, 5-shot"), values, strict=True))
    | {"source": _SOURCE}
    for model, methods in _FIGURES.items()
    for method, values in methods.items()
]


def rows(scale: Scale, done: list[dict] | None = None) -> Iterator[dict]:
    """One row a task and method, one a method and step of the bytes; those that are `done` are left out."""
    known = {(row["part"], row.get("task"), row["method"]): row for row in done or []}
    # Alone on the machine, and so before the others start.
    for name in THROUGH:
        if sum(row["part"] == "bytes" and row["method"] == name for row in done or []) < SWITCHES:
            yield from through_switches(scale, name)
    for task in TASKS:
        facts = {"part": "run", "model": scale.model, "task": task, "dtype": scale.dtype}
        if ("run", task, VANILLA) not in known:
            yield facts | {"method": VANILLA} | _untrained(scale, task)
        names = [name for name in METHODS if ("run", task, name) not in known]
        if names:
            yield from _trained(scale, task, names, facts, known.get(("run", task, "lisa")))


def _trained(scale: Scale, task: str, names: list[str], facts: dict, lisa: dict | None) -> Iterator[dict]:
    alone = {name: tuned.timed(scale, trial(name, task, 1e-4)) for name in names}
    tuned_names = [name for name in names if METHODS[name][2]]
    cases = [trial(name, task, 0.0) for name in tuned_names]
    rates = dict(zip(tuned_names, tuned.best_rates(scale, cases, [METHODS[n][2] for n in tuned_names]), strict=True))
    if "lisa kept" in names:
        rates["lisa kept"] = rates["lisa"] if "lisa" in rates else (lisa or {})["learning_rate"]
    chosen = [trial(name, task, rates[name]) for name in names]
    for name, one, runs in zip(names, chosen, tuned.over_seeds(scale, chosen), strict=True):
        learned = tuned.learned(runs) | {"steps": tuned.steps_of(scale, task), "batch": scale.batch_size}
        spent = tuned.spent(alone[name]) | {"peak_allocated_mib": _peak(runs)} | _most_states(runs)
        yield facts | {"method": name, "learning_rate": one.learning_rate} | learned | spent


def trial(name: str, task: str, rate: float) -> Trial:
    """A method of this table."""
    kind, settings, _ = METHODS[name]
    return Trial(kind, tuple(settings.items()), rate, task=task)


def _peak(runs: list[Run]) -> float | None:
    peaks = [found.ledger.peak_allocated for found in runs]
    return round(max(peak for peak in peaks if peak) / MIB, 1) if all(peaks) else None


def _most_states(runs: list[Run]) -> dict[str, float]:
    """The most that the optimizer held in a whole run, where the method says it at every step: states may pile up."""
    most = max((size for found in runs for size in found.traces.get("state_bytes", ())), default=0.0)
    return {"optimizer_states_mib": round(most / MIB, 3)} if most else {}


def _untrained(scale: Scale, task: str) -> dict:
    from labkit.training import evaluate

    base, data = tuned.loaded(scale, task)
    found = evaluate(copy.deepcopy(base).to(scale.device), data)
    learned = {"accuracy": round(found["accuracy"], 4), "loss": round(found["loss"], 4), "trainable_params": 0}
    return learned | {"note": "not trained"}


def through_switches(scale: Scale, name: str) -> Iterator[dict]:
    """What a method holds after each of SWITCHES steps, with other layers in each."""
    import torch

    from labkit.bench.workers import clear
    from labkit.ledger import storage_bytes
    from labkit.training import order

    clear(scale.device)
    base, task = tuned.loaded(scale)
    kind, settings = THROUGH[name]
    method: Any = Trial(kind, tuple(settings.items()), scale.learning_rate).method(scale)
    model = copy.deepcopy(base).to(scale.device).train()
    method.prepare(model, task, SWITCHES)
    for step, examples in enumerate(itertools.islice(order(task, scale.batch_size, 0, SWITCHES), SWITCHES), 1):
        method.step(task.batch(examples).to(scale.device))
        gradients = storage_bytes(p.grad for p in model.parameters() if p.grad is not None)
        sizes = {
            "gradients_mib": gradients,
            "optimizer_states_mib": method.observed()["state_bytes"],
            "host_mib": method.awake.host_bytes(),
            "allocated_mib": torch.cuda.memory_allocated() if scale.device == "cuda" else None,
        }
        mib = {column: None if size is None else round(size / MIB, 3) for column, size in sizes.items()}
        yield {"part": "bytes", "model": scale.model, "method": name, "dtype": scale.dtype, "step": step} | mib
    method.close()
