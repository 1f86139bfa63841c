"""Table `mezo-memory`: bytes of inference, MeZO, in-context learning, a trained prefix and full fine-tuning, by size.

Random weights, one sequence of the length that MultiRC has in the mean; in-context learning fills OPT's context with
demonstrations. "mezo" restores exactly, "mezo walk" as the paper's algorithm does. `over_inference` is a row's peak as
a multiple of plain inference's on the same batch. What the planner's formula finds no room for is not run, and its row
has the prediction alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import is_in, rounded

if TYPE_CHECKING:
    from labkit.bench.mezo_steps import Setting
    from labkit.scale import Scale

TITLE = "What MeZO needs beside inference, a prefix and full fine-tuning, by size of the model."
UNITS = {
    "predicted_mib": "MiB, the peak by formula",
    "peak_allocated_mib": "MiB",
    "peak_reserved_mib": "MiB",
    "driver_mib": "MiB",
    "over_inference": "1",
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s",
    "gb": "GB",
    "gpus": "A100s of 80 GB",
}
_SOURCE = "Malladi et al. 2023, arXiv:2305.17333, table 22: A100s of 80 GB, MultiRC (lecture 000)"
_HOW = ("zero-shot and mezo", "in-context", "prefix", "full")
# GPUs and GB, None where the table has the GPUs only.
_NEEDS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "opt-1.3b": ((1, 4), (1, 6), (1, 19), (1, 27)),
    "opt-2.7b": ((1, 7), (1, 8), (1, 29), (1, 55)),
    "opt-6.7b": ((1, 14), (1, 16), (1, 46), (2, 156)),
    "opt-13b": ((1, 26), (1, 29), (2, 158), (4, 316)),
    "opt-30b": ((1, 58), (1, 62), (4, 315), (8, 633)),
    "opt-66b": ((2, 128), (2, 134), (8, None), (16, None)),
}
PUBLISHED: list[dict[str, Any]] = [
    {"model": model, "method": method, "gpus": gpus, "gb": gb, "source": _SOURCE}
    for model, needs in _NEEDS.items()
    for method, (gpus, gb) in zip(_HOW, needs, strict=True)
]


@dataclass(frozen=True)
class Plan:
    """Models, dtype of weights, length of a sequence and of one with demonstrations, timed steps, bytes of the GPU."""

    models: Sequence[str]
    dtype: str
    seq_len: int
    context: int
    timed: int
    room: int | None = None


_GPU = Plan(("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b"), "float16", 400, 2048, 5)
_CPU = Plan(("llama-2x64",), "float32", 16, 64, 1, room=10 * 2**20)
METHODS = ("zero-shot", "mezo", "mezo walk", "in-context", "prefix", "full")


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """A row a model and method; not those that are `done`."""
    from labkit.bench.mezo_steps import row_of

    plan = _CPU if scale.device == "cpu" else _GPU
    base: dict[str, float] = {r["model"]: r["peak_allocated_mib"] for r in done if r["method"] == "zero-shot"}
    for setting in settings(plan):
        if is_in(setting, done):
            continue
        row = row_of(setting, scale.device, plan.timed, plan.room)
        if setting.method == "zero-shot":
            base[setting.model] = row["peak_allocated_mib"]
        peak, least = row["peak_allocated_mib"], base.get(setting.model)
        row["over_inference"] = rounded(peak / least, 4) if peak and least and "mezo" in setting.method else None
        yield row


def settings(plan: Plan) -> Iterator[Setting]:
    """All rows, each model's inference first."""
    from labkit.bench.mezo_steps import Setting

    for model in plan.models:
        for method in METHODS:
            dtype = plan.dtype if method != "full" or plan.dtype == "float32" else "bfloat16"
            yield Setting(model, method, dtype, 1, plan.context if method == "in-context" else plan.seq_len)
