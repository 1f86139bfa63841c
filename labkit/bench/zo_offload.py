"""Table `zo-offload`: MeZO with all weights on the GPU beside ZO-Offload, OPT-125M to 175B, random weights.

`write_back` is the k of every k-th upload, `transfer` the format that crosses the bus where it is not the weights' own;
coded blocks that train are written back and coded anew at every `renew`-th upload; without that their updates are made
again at every upload, so that such rows say after how many steps (`moves`) they were timed. `predicted_ms` is the
roofline's from the bus (`up_gb_per_s` alone, `up_both_gb_per_s` while as much goes down) and the noise as measured in
this run, and from MeZO's row of the same step. Rows with `cap_gb` had an allocator that refuses more.

The most important rows come first: a visit to a machine may end before the last. `host_gib` is what the process had
resident. LABKIT_HOST_GIB says how much host memory a machine has that shows less until it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import is_in

if TYPE_CHECKING:
    from labkit.bench.zo_offload_steps import Setting
    from labkit.scale import Scale

TITLE = "Models that do not fit, at the speed of the bus: ZO-Offload beside MeZO."
UNITS = {
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s",
    "peak_allocated_mib": "MiB",
    "peak_reserved_mib": "MiB",
    "driver_mib": "MiB",
    "host_gib": "GiB",
    "blocks_gib": "GiB",
    "predicted_mib": "MiB, weights on the GPU",
    "predicted_ms": "ms, by the roofline",
    "up_gb_per_s": "GB/s",
    "up_both_gb_per_s": "GB/s",
    "joules_per_step": "J",
    "moves": "steps before the timed ones",
    "cap_gb": "GB",
    "memory_mb": "MB",
}
_POSTER = "Wang et al., ZO-Offload poster (lecture 001): batch 1 × 2048 tokens"
# MB and tokens/s: MeZO and ZO-Offload in fp32, then in fp16.
_FOUND: dict[str, tuple[tuple[int | None, int | None], ...]] = {
    "opt-125m": ((3091, 14889), (2941, 13074), (1801, 31058), (1661, 31058)),
    "opt-350m": ((4219, 5274), (3393, 5099), (2389, 13508), (1643, 12284)),
    "opt-1.3b": ((9117, 1954), (4413, 1954), (4887, 6788), (2651, 6788)),
    "opt-2.7b": ((15277, 1087), (5261, 1087), (7933, 4227), (3111, 4227)),
    "opt-6.7b": ((32083, 499), (8329, 499), (16311, 2455), (4539, 2455)),
    "opt-13b": ((58251, 270), (12113, 270), (29411, 1406), (6445, 1340)),
    "opt-30b": ((None, None), (18879, 122), (63953, 651), (10369, 597)),
    "opt-66b": ((None, None), (29937, 40), (None, None), (14143, 273)),
    "opt-175b": ((None, None), (49203, 14), (None, None), (24667, 37)),
}
_COLUMNS = (("mezo", "float32"), ("zo-offload", "float32"), ("mezo", "float16"), ("zo-offload", "float16"))
PUBLISHED: list[dict[str, Any]] = [
    {"model": m, "method": how, "dtype": dtype, "memory_mb": mb, "tokens_per_s": rate, "source": _POSTER}
    for m, found in _FOUND.items()
    for (how, dtype), (mb, rate) in zip(_COLUMNS, found, strict=True)
]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        model, seq_len, dtype, periods, batches: the main model, its words, its k, its batches beyond 1.
        larger, grid, capped: other models; by dtype; by format, on a GPU of which only a part may be used.
        timed, later: timed steps, and after how many steps coded blocks are timed once more.
    """

    model: str
    seq_len: int
    dtype: str
    periods: Sequence[int]
    batches: Sequence[int]
    larger: Sequence[str]
    grid: Sequence[tuple[str, str]]
    capped: Sequence[tuple[str, str]]
    timed: int
    later: int


_SMALL = ("opt-6.7b", "opt-2.7b", "opt-1.3b", "opt-350m", "opt-125m")
WHOLE = ("opt-125m",)  # a third of its block is larger than the room in which modules hold it, so there are fewer turns
_GRID = tuple((m, dtype) for dtype in ("float16", "float32") for m in _SMALL)
_CAPPED = (("opt-175b", "nf4"), ("opt-66b", "int8"), ("opt-66b", ""), ("opt-175b", "int8"), ("opt-175b", ""))
_GPU = Plan("opt-13b", 2048, "float16", (8, 4, 1, 2, 16), (8, 2, 4), ("opt-30b",), _GRID, _CAPPED, 8, 16)
_CPU = Plan("llama-3x64", 16, "float32", (1, 2), (2,), (), (("llama-2x64", "float16"),), (("llama-2x64", "nf4"),), 2, 4)
CAP_GB, CODED_TIMED = 24.0, 3
RENEWED = ((8, 3, 3), (8, 3, 5), (6, 3, 7), (8, 1, 3))  # uploads between codings, parts of a block, and slots


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """A row a setting; not those that are `done`."""
    from labkit.bench.zo_offload_steps import row_of

    plan, known = _CPU if scale.device == "cpu" else _GPU, list(done)
    for setting in settings(plan):
        if not is_in(setting, known):
            # Each step of coded blocks that train takes longer than the one before, where they are not coded anew.
            grows = setting.transfer and not setting.renew
            timed = min(plan.timed, CODED_TIMED) if grows else plan.timed
            known.append(row_of(setting, scale.device, timed, known))
            yield known[-1]


def settings(plan: Plan) -> Iterator[Setting]:
    """All rows, the most important first."""
    from labkit.bench.zo_offload_steps import LORA, MEZO, OFFLOAD, WALK, Setting

    def pair(model: str, dtype: str, batch: int, k: int, parts: int = 3) -> Iterator[Setting]:
        mezo = Setting(model, MEZO, dtype, batch, plan.seq_len)
        yield mezo
        yield replace(mezo, method=OFFLOAD, write_back=k, parts=parts, slots=3, moves=k + 1)

    first, *others = plan.periods
    mezo, offload = pair(plan.model, plan.dtype, 1, first)
    yield from (mezo, offload)
    coded = replace(offload, transfer="int8", write_back=0, moves=1)
    yield from (replace(coded, renew=k, moves=k + 1, parts=parts, slots=n) for k, parts, n in RENEWED)
    yield from (coded, replace(coded, moves=plan.later))
    for batch in plan.batches[:1]:
        yield from pair(plan.model, plan.dtype, batch, 1)
    for model in plan.larger:
        yield from pair(model, plan.dtype, 1, first)
    yield from (replace(offload, write_back=k, moves=k + 1) for k in others)
    yield from (replace(coded, method=LORA, transfer=form, moves=3) for form in ("int8", "nf4", ""))
    yield replace(mezo, method=WALK)
    for model, form in plan.capped:
        capped = replace(offload, model=model, transfer=form, parts=3, cap_gb=CAP_GB)
        yield replace(capped, write_back=0, moves=1) if form else capped
    for model, dtype in plan.grid:
        yield from pair(model, dtype, 1, 2, 1 if model in WHOLE else 3)
    for batch in plan.batches[1:]:
        yield from pair(plan.model, plan.dtype, batch, 1)
    yield from (replace(offload, parts=1, slots=slots) for slots in (2, 3))
    yield from (replace(offload, slots=slots) for slots in (2, 4))
