"""Table `mezo-time`: milliseconds of a step with MeZO and with full fine-tuning, one GPU, random weights.

Batches of 16 and 8 for MeZO and of 8 for fine-tuning, as the paper has them, of 400 tokens each (MultiRC's mean); and
one sequence of 2,048 tokens in fp16, beside the plain forward passes of which a step has two. A peer that walks writes
all weights three times a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import is_in

if TYPE_CHECKING:
    from labkit.bench.mezo_steps import Setting
    from labkit.scale import Scale

TITLE = "Milliseconds of a step: MeZO, its forward passes, and full fine-tuning."
UNITS = {
    "predicted_mib": "MiB, the peak by formula",
    "peak_allocated_mib": "MiB",
    "peak_reserved_mib": "MiB",
    "driver_mib": "MiB",
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s",
    "seconds": "s",
    "gpus": "A100s of 80 GB",
}
_SOURCE = "Malladi et al. 2023, arXiv:2305.17333, table 23: A100s of 80 GB, MultiRC (lecture 000)"
_SIZES = ("opt-1.3b", "opt-2.7b", "opt-13b", "opt-30b", "opt-66b")
_SECONDS: dict[tuple[str, int], tuple[tuple[float, int], ...]] = {
    ("mezo", 16): ((0.815, 1), (1.400, 1), (2.702, 1), (5.896, 1), (12.438, 4)),
    ("mezo", 8): ((0.450, 1), (0.788, 1), (1.927, 1), (4.267, 1), (7.580, 2)),
    ("full", 8): ((0.784, 1), (1.326, 1), (13.638, 4), (45.608, 8), (84.098, 20)),
}
PUBLISHED: list[dict[str, Any]] = [
    {"model": model, "method": method, "batch": batch, "seconds": seconds, "gpus": gpus, "source": _SOURCE}
    for (method, batch), found in _SECONDS.items()
    for model, (seconds, gpus) in zip(_SIZES, found, strict=True)
]


@dataclass(frozen=True)
class Plan:
    """Models, and (method, batch, length, dtype) of their rows."""

    models: Sequence[str]
    steps: Sequence[tuple[str, int, int, str]]
    timed: int
    room: int | None = None


_LONG = tuple((method, 1, 2048, "float16") for method in ("zero-shot", "mezo", "mezo walk"))
_PAPER = (("mezo", 16, 400, "float16"), ("mezo", 8, 400, "float16"), ("full", 8, 400, "bfloat16"))
_GPU = Plan(_SIZES[:4], (*_LONG, *_PAPER), 10)
_CPU = Plan(("llama-2x64",), tuple((method, 1, 16, "float32") for method in ("zero-shot", "mezo", "full")), 1, 2**30)


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """A row a model and step; not those that are `done`."""
    from labkit.bench.mezo_steps import row_of

    plan = _CPU if scale.device == "cpu" else _GPU
    for setting in settings(plan):
        if not is_in(setting, done):
            yield row_of(setting, scale.device, plan.timed, plan.room)


def settings(plan: Plan) -> Iterator[Setting]:
    """All rows."""
    from labkit.bench.mezo_steps import Setting

    for model in plan.models:
        for method, batch, seq_len, dtype in plan.steps:
            yield Setting(model, method, dtype, batch, seq_len)
