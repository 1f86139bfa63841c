"""Table `dora`: one task in full fine-tuning, LoRA and DoRA at whole and half rank: what is learned, changed, and paid.

Rows are means over the seeds. Query and value matrices get adapters, and they are what `magnitude_change` and
`direction_change` are taken of: ΔM and ΔD of `labkit.adapters.decompose`, means over those matrices at the end of the
training. `correlation` is that of the two over matrices and four moments of each training, the mean over the seeds, and
`correlation_end` that over the matrices at its end.
Step time and peak are those of a short run alone on the machine, the second of two. peft's DoRA is measured in the same
table: it computes the same, so that its accuracies differ by the draw of A alone, and it forms B A in every layer.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from labkit.adapters.decompose import Change, at_end, correlation, decomposed
from labkit.adapters.dora import Dora
from labkit.adapters.targets import MODULES
from labkit.adapters.tuning import Lora
from labkit.methods import FullFineTuning
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.methods import FirstOrder
    from labkit.run import Run
    from labkit.scale import Scale
    from labkit.tasks import Task

TITLE = "DoRA beside LoRA and full fine-tuning: film sentiment, 1,500 test sentences, adapters on queries and values."
SENTENCES = 1500
"""Test sentences of each evaluation: what an accuracy's standard error is taken of."""
SEEDS = (0, 1, 2)
RANK = 8
MOST_STEPS = 120
TIMED_STEPS = 20
FASTER = 4
"""The adapters' learning rate is this many times that of full fine-tuning."""
UNITS = RUN_UNITS | {
    "share": "share of all weights",
    "magnitude_change": "length of a row",
    "direction_change": "1 - cos",
    "correlation": "Pearson's r",
    "correlation_end": "Pearson's r",
    "average": "%",
} | dict.fromkeys(
    ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_e", "arc_c", "obqa"), "%"
)  # fmt: skip
TASKS = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_e", "arc_c", "obqa", "average")
SOURCE = "Liu et al. 2024, arXiv:2402.09353, table 1 (lecture 000); dora-half is its DoRA†, at half the rank"
_PRINTED = """
chatgpt    zero-shot -    73.1 85.4 68.5 78.5 66.1 89.8 79.9 74.8 77.0
llama-7b   prefix    0.11 64.3 76.8 73.9 42.1 72.1 72.9 54.0 60.6 64.6
llama-7b   series    0.99 63.0 79.2 76.3 67.9 75.7 74.5 57.1 72.4 70.8
llama-7b   parallel  3.54 67.9 76.4 78.8 69.8 78.9 73.7 57.3 75.2 72.2
llama-7b   lora      0.83 68.9 80.7 77.4 78.1 78.8 77.8 61.3 74.8 74.7
llama-7b   dora-half 0.43 70.0 82.6 79.7 83.2 80.6 80.6 65.4 77.6 77.5
llama-7b   dora      0.84 69.7 83.4 78.6 87.2 81.0 81.9 66.2 79.2 78.4
llama-13b  prefix    0.03 65.3 75.4 72.1 55.2 68.6 79.5 62.9 68.0 68.4
llama-13b  series    0.80 71.8 83.0 79.2 88.1 82.4 82.5 67.3 81.8 79.5
llama-13b  parallel  2.89 72.5 84.9 79.8 92.1 84.7 84.2 71.2 82.4 81.4
llama-13b  lora      0.67 72.1 83.5 80.5 90.5 83.7 82.8 68.3 82.4 80.5
llama-13b  dora-half 0.35 72.5 85.3 79.9 90.1 82.9 82.7 69.7 83.6 80.8
llama-13b  dora      0.68 72.4 84.9 81.5 92.4 84.2 84.2 69.6 82.8 81.5
llama2-7b  lora      0.83 69.8 79.9 79.5 83.6 82.6 79.8 64.7 81.0 77.6
llama2-7b  dora-half 0.43 72.0 83.1 79.9 89.1 83.0 84.5 71.0 81.2 80.5
llama2-7b  dora      0.84 71.8 83.7 76.0 89.1 82.6 83.7 68.2 82.4 79.7
llama3-8b  lora      0.70 70.8 85.2 79.9 91.7 84.3 84.2 71.2 79.0 80.8
llama3-8b  dora-half 0.35 74.5 88.8 80.3 95.5 84.7 90.1 79.1 87.2 85.0
llama3-8b  dora      0.71 74.6 89.3 79.9 95.5 85.6 90.5 80.4 85.8 85.2
"""


def _published(line: str) -> dict[str, Any]:
    model, method, percent, *scores = line.split()
    share = None if percent == "-" else round(float(percent) / 100, 6)
    values = dict(zip(TASKS, map(float, scores), strict=True))
    return {"model": model, "method": method, "share": share, **values, "source": SOURCE}


PUBLISHED = [_published(line) for line in _PRINTED.strip().splitlines()]


@dataclass
class PeftDora(Lora):
    """peft's DoRA, trained by the same loop."""

    name: str = "peft.dora"

    def adapt(self, model: Any, task: Task) -> None:
        """peft's layers put into the model."""
        import warnings

        from peft import LoraConfig, inject_adapter_in_model

        names = [MODULES["llama"][name] for name in self.targets]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(
                LoraConfig(r=self.rank, lora_alpha=round(self.lora_alpha), target_modules=names, use_dora=True), model
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)


CHANGES = ("magnitude_change", "direction_change", "correlation", "correlation_end")
METHODS = ("full", "lora", "dora-half", "dora", "peft.dora")


def method(name: str, scale: Scale, rank: int = RANK) -> FirstOrder:
    """A row's method: weights in fp32, matrix products in the scale's dtype, and 2 r for α at every rank."""
    common: dict[str, Any] = {"compute_dtype": scale.dtype}
    if name == "full":
        return FullFineTuning(learning_rate=scale.learning_rate, **common)
    kind = {"lora": Lora, "dora-half": Dora, "dora": Dora, "peft.dora": PeftDora}[name]
    mine = rank // 2 if name == "dora-half" else rank
    made = kind(rank=mine, lora_alpha=2.0 * mine, learning_rate=FASTER * scale.learning_rate, **common)
    made.name = name
    return made


def rows(scale: Scale) -> Iterator[dict]:
    """One row a method, each as soon as its seeds are done."""
    from labkit.bench.workers import alone, side_by_side

    # Alone on the machine, and so before the others start.
    short = replace(scale, eval_size=scale.batch_size)
    timed = {name: alone(_run, (short, name, SEEDS[0], TIMED_STEPS))[0] for name in METHODS}
    cases = [(scale, name, seed, min(scale.steps, MOST_STEPS)) for name in METHODS for seed in SEEDS]
    runs = side_by_side(_run, cases, scale.device)
    for name in METHODS:
        yield _row(scale, name, timed[name], [next(runs) for _ in SEEDS])


@cache
def _loaded(scale: Scale) -> tuple[Any, Any]:
    """Model and task, once a process."""
    from labkit import models
    from labkit.tasks import Sentiment

    return models.load(scale.model), Sentiment.load(scale)


def _run(case: tuple[Scale, str, int, int]) -> tuple[Run, dict[str, float]]:
    """One run of a scale, a method, a seed and a number of steps, and what it did to the rows, as numbers.

    Tensors that a worker sends keep a file open each, and the changes of all matrices are thousands.
    """
    from labkit.bench.workers import clear
    from labkit.training import train

    (scale, name, seed, steps), (base, task) = case, _loaded(case[0])
    clear(scale.device)
    chosen = method(name, scale)
    # A copy of the watched matrices would count in the peak; peft's layers are not ours to read.
    noting = None if steps == TIMED_STEPS or name == "peft.dora" else decomposed(chosen)
    model = copy.deepcopy(base).to(scale.device)
    run = train(model, task, noting or chosen, steps=steps, batch_size=scale.batch_size, seed=seed,
                model_name=scale.model, progress=False)  # fmt: skip
    return run, _summary(noting.seen) if noting else {}


def _summary(seen: list[Change]) -> dict[str, float]:
    end = at_end(seen)
    return {
        "magnitude_change": statistics.fmean(change.magnitude for change in end),
        "direction_change": statistics.fmean(change.direction for change in end),
        "correlation": correlation(seen),
        "correlation_end": correlation(end),
    }


def _row(scale: Scale, name: str, timed: Run, runs: list[tuple[Run, dict[str, float]]]) -> dict:
    from labkit.models import parameters

    accuracies = [run.evaluations[-1]["accuracy"] for run, _ in runs]
    first, alone = runs[0][0], timed.row()
    steps = first.config["steps"]
    changed = [summary for _, summary in runs if summary]
    return {
        "model": scale.model,
        "method": name,
        "rank": None if name == "full" else first.config["rank"],
        "accuracy": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4),
        "trainable_params": first.trainable_params,
        "share": round(first.trainable_params / parameters(_loaded(scale)[0]), 6),
        **{name: _mean([summary[name] for summary in changed]) for name in CHANGES},
        "step_ms": alone["step_ms"],
        "peak_allocated_mib": alone["peak_allocated_mib"],
        "joules_per_step": alone["joules_per_step"],
        "steps": steps,
        "batch": scale.batch_size,
        "dtype": scale.dtype,
        "learning_rate": first.config["learning_rate"],
        "note": None if changed else "peft's layers are not read: they compute what those of dora do",
    }


def _mean(values: list[float]) -> float | None:
    return float(f"{statistics.fmean(values):.4g}") if values else None
