"""Table `peft`: every adapter of lessons 10 to 12 and full fine-tuning on one task: accuracy, bytes, time and energy.

Frozen weights are 16 bits where the scale computes in 16 bits, trained values 32; full fine-tuning keeps 32-bit weights
and computes under autocast. `share` is what trains, of the model's own weights. See `tuned` for how rates are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from labkit.bench import tuned
from labkit.bench.adapter_figures import E2E, GLUE, GPT3
from labkit.bench.tuned import Trial
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.scale import Scale

TITLE = "Adapters and full fine-tuning: film sentiment, 1,500 test sentences."
SEEDS = tuned.SEEDS
UNITS = RUN_UNITS | {f"{name}_mib": "MiB" for name in tuned.BYTES} | {"share": "share", "learning_rate": "1"}
_SMALL, _LARGE = (5e-5, 1e-4, 2e-4), (1e-3, 3e-3, 1e-2)
_MIDDLE, _LARGEST = (5e-4, 1e-3, 2e-3), (1e-2, 3e-2, 1e-1)
_LORA = "labkit.adapters.tuning:Lora"
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "full": ("labkit.methods:FullFineTuning", {}, _SMALL),
    "linear-probe": ("labkit.methods:LinearProbing", {}, _LARGE),
    "bitfit": ("labkit.adapters.bitfit:BitFit", {}, _LARGE),
    "bottleneck": ("labkit.adapters.bottleneck:Bottleneck", {"placement": "houlsby"}, _MIDDLE),
    "bottleneck-pfeiffer": ("labkit.adapters.bottleneck:Bottleneck", {"placement": "pfeiffer"}, _MIDDLE),
    "prefix": ("labkit.adapters.prefix:PrefixTuning", {}, _LARGEST),
    "prompt": ("labkit.adapters.prompt:PromptTuning", {}, _LARGEST),
    "lora": (_LORA, {}, _MIDDLE),
    "lora+": ("labkit.adapters.lora_plus:LoraPlus", {}, (5e-5, 1e-4, 2e-4)),
    "dora-half": ("labkit.adapters.dora:Dora", {"rank": 4}, _MIDDLE),
    "dora": ("labkit.adapters.dora:Dora", {}, _MIDDLE),
    "qlora": ("labkit.adapters.qlora:QLora", {"dropout": 0.0}, (2e-4, 5e-4, 1e-3)),
}
PUBLISHED = [*GLUE, *E2E, *GPT3]


def rows(scale: Scale, done: list[dict] | None = None) -> Iterator[dict]:
    """One row a method; those that are `done` are left out."""
    from labkit.models import parameters

    known = {row["method"] for row in done or []}
    names = [name for name in METHODS if name not in known]
    trials = {name: Trial(METHODS[name][0], tuple(METHODS[name][1].items()), METHODS[name][2][1]) for name in names}
    # Alone on the machine, and so before the others start.
    alone = {name: tuned.timed(scale, trial) for name, trial in trials.items()}
    whole = parameters(tuned.loaded(scale)[0])
    rates = [*tuned.best_rates(scale, list(trials.values()), [METHODS[name][2] for name in names])]
    chosen = [replace(trials[name], learning_rate=rate) for name, rate in zip(names, rates, strict=True)]
    for name, rate, runs in zip(names, rates, tuned.over_seeds(scale, chosen), strict=True):
        facts = {"model": scale.model, "method": name, "dtype": scale.dtype, "batch": scale.batch_size}
        learned = tuned.learned(runs)
        share = round(learned["trainable_params"] / whole, 6)
        yield facts | learned | {"share": share, "learning_rate": rate, "steps": scale.steps} | tuned.spent(alone[name])
