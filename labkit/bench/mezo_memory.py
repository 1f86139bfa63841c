"""Table `mezo-memory`: bytes of inference, MeZO, in-context learning, a trained prefix and full fine-tuning, by size.

Random weights, one sequence of the length that MultiRC has in the mean; in-context learning fills OPT's context with
demonstrations. "mezo" restores exactly, "mezo walk" as the paper's algorithm does. `over_inference` is a row's peak as
a multiple of plain inference's on the same batch. What the planner's formula finds no room for is not run, and its row
has the prediction alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import attempt, is_in, rounded
from labkit.ledger import MIB

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
}
_SOURCE = "Malladi et al. 2023, arXiv:2305.17333, table 22: A100s of 80 GB, MultiRC (lecture 000)"
_GB = """
1.3b 4 6 19 27
2.7b 7 8 29 55
6.7b 14 16 46 156
13b 26 29 158 316
30b 58 62 315 633
"""
_HOW = ("zero-shot and mezo", "in-context", "prefix", "full")
PUBLISHED = [
    {"model": f"opt-{size}", "method": method, "gb": int(gb), "source": _SOURCE}
    for size, *found in (line.split() for line in _GB.strip().splitlines())
    for method, gb in zip(_HOW, found, strict=True)
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
    plan = _CPU if scale.device == "cpu" else _GPU
    base: dict[str, float] = {r["model"]: r["peak_allocated_mib"] for r in done if r["method"] == "zero-shot"}
    for setting in settings(plan):
        if is_in(setting, done):
            continue
        row = one(setting, scale.device, plan)
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


def one(setting: Setting, device: str, plan: Any) -> dict[str, Any]:
    """A measured row, or one with its prediction and the reason why nothing was measured."""
    from labkit.bench.mezo_steps import measured, predicted
    from labkit.bench.workers import clear

    clear(device)
    count = predicted(setting, device)
    row = {**asdict(setting), "predicted_mib": None if count is None else rounded(count / MIB, 1)}
    row |= dict.fromkeys(("peak_allocated_mib", "peak_reserved_mib", "driver_mib", "step_ms", "tokens_per_s", "loss"))
    room = plan.room if plan.room is not None else _room()
    if count is not None and count > room:
        return row | {"note": f"planned only: more than the {room / MIB:,.0f} MiB that tensors may fill"}
    found, note = attempt(lambda: measured(setting, device, plan.timed), device)
    return row | (found or {}) | {"note": note}


def _room() -> int:
    """Bytes that tensors may fill on the GPU that is here."""
    import torch

    from labkit.ledger.gpus import usable

    return usable(torch.cuda.get_device_properties(0).total_memory)
