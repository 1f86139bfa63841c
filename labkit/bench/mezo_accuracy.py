"""Table `mezo-accuracy`: what is learned without gradients, in steps and in seconds, beside fine-tuning.

Rows with step 0 train nothing in the model: the prompt alone ("zero-shot"), solved examples in it ("in-context"), and
a linear classifier on the model's features ("probing"). The others are evaluations on the way of whole trainings, one
row a method, seed and evaluation; `seconds` is the steps so far by the step time of a short run alone. MeZO's rates
are those that were best on the validation part after whole runs, since a rate that is the best of some hundred steps
may lose everything later; fine-tuning has one rate. The small model's weights are fp32 where all are perturbed; beside
adapters they have the scale's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from labkit.bench import tuned
from labkit.bench.tuned import Trial
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.scale import Scale

TITLE = "Zeroth-order training beside prompts, probing and fine-tuning: film sentiment, 1,500 test sentences."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {"seconds": "s", "learning_rate": "1", "shots": "examples"}
PUBLISHED: list[dict] = []
SHOTS = 16


@dataclass(frozen=True)
class Plan:
    """Steps of MeZO, between its evaluations, and between fine-tuning's."""

    steps: int
    every: int
    full_every: int


PLANS = {"tiny": Plan(24, 8, 4), "small": Plan(1600, 200, 21), "full": Plan(1600, 200, 21)}
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "mezo": ("labkit.zeroth.mezo:Mezo", {}, (3e-6, 1e-5, 3e-5)),
    "mezo-lora": ("labkit.zeroth.mezo_adapters:MezoLora", {}, (1e-4, 3e-4, 1e-3)),
    "mezo-prefix": ("labkit.zeroth.mezo_adapters:MezoPrefix", {}, (1e-2, 3e-2, 1e-1)),
}
FULL = ("labkit.methods:FullFineTuning", 1e-4)


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """Baselines first, then the curves; a method is left out where it is done."""
    plan = PLANS[scale.name]
    known = {row["method"] for row in done}
    facts = {"model": scale.model, "batch": scale.batch_size}
    for row in baselines(scale, known):
        yield facts | row
    names = [name for name in (*METHODS, "full") if name not in known]
    # Alone on the machine, and so before the others start.
    alone = {name: tuned.spent(tuned.timed(scale, trial(name, plan))) for name in names}
    tried = {name: replace(trial(name, plan), evaluate_every=0) for name in names if name in METHODS}
    rates = tuned.chosen_rates(scale, tried, {name: METHODS[name][2] for name in tried}, {})
    chosen = [replace(trial(name, plan), learning_rate=rates.get(name, FULL[1])) for name in names]
    for name, one, runs in zip(names, chosen, tuned.over_seeds(scale, chosen), strict=True):
        for seed, run in zip(SEEDS, runs, strict=True):
            own = {"method": name, "seed": seed, "learning_rate": one.learning_rate} | alone[name]
            own |= {"dtype": "float32" if name == "mezo" else scale.dtype, "note": run.stopped or None}
            for found in run.evaluations:
                seconds = round(found["step"] * alone[name]["step_ms"] / 1e3, 2)
                learned = {key: round(found[key], 4) for key in ("accuracy", "loss")}
                yield facts | own | {"step": found["step"], "seconds": seconds, **learned}


def trial(name: str, plan: Plan) -> Trial:
    """A method of this table, its curve included."""
    if name == "full":
        return Trial(FULL[0], (), FULL[1], evaluate_every=plan.full_every)
    kind, settings, rates = METHODS[name]
    return Trial(kind, tuple(settings.items()), rates[1], steps=plan.steps, evaluate_every=plan.every)


def baselines(scale: Scale, known: set[str]) -> Iterator[dict]:
    """What needs no training of the model, but for the methods that are `known`."""
    import copy

    from labkit.training import evaluate
    from labkit.zeroth.in_context import InContext
    from labkit.zeroth.probing import probe

    base, task = tuned.loaded(scale)
    model = copy.deepcopy(base).to(scale.device)
    if "zero-shot" not in known:
        yield _untrained("zero-shot", evaluate(model, task))
    for seed in SEEDS if "in-context" not in known else ():
        asked = InContext(task, SHOTS, seed)
        yield _untrained("in-context", evaluate(model, asked, task.test)) | {"seed": seed, "shots": SHOTS}
    if "probing" not in known:
        yield _untrained("probing", probe(model, task))


def _untrained(method: str, found: dict[str, float]) -> dict[str, Any]:
    return {"method": method, "step": 0, "accuracy": round(found["accuracy"], 4), "loss": round(found["loss"], 4)}
