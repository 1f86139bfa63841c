"""Table `pipeline`: schedules with their bubble and what they hold, and tensor parallelism beside them.

A step is forward and backward, without an optimizer. `gpipe` and `1f1b` are ours, `torch.gpipe` and `torch.1f1b` are
torch's on the same stages, `tensor` and `torch.tensor` the model cut inside its layers, `one-process` the same
micro-batches accumulated on one device. A micro-batch always has `rows` sequences, so that more micro-batches are a
larger batch: the bubble's formula speaks of micro-batches that take the same time whatever their number.

`bubble` is the share of all stages' time in which they stood still, from what ran when on the ranks (ours tell);
`predicted_bubble` is (p - 1) / (m + p - 1), and `bubble_over_work` = bubble / (1 - bubble) what Narayanan et al. call
the bubble, (p - 1) / m, idle time over useful time. `spans` are a step's actions, [stage, kind, micro-batch, start,
end] in ms. `live` is the most micro-batches that a rank held at once, here of the rank with most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.ranks import measured, ranks_here, row, together
from labkit.bench.steps import rounded

if TYPE_CHECKING:
    from labkit.bench.pipeline_steps import Setting
    from labkit.scale import Scale

TITLE = "Pipeline schedules: bubble, memory and step time by micro-batches, beside tensor parallelism."
SEEDS = (0,)
UNITS = {
    "rows": "sequences a micro-batch",
    "batch": "sequences",
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s",
    "bubble": "share of all stages' time, measured",
    "predicted_bubble": "share, (p - 1) / (m + p - 1)",
    "bubble_over_work": "idle over useful time, measured",
    "predicted_over_work": "idle over useful time, (p - 1) / m",
    "live": "micro-batches held at once, at most",
    "weights_mib": "MiB a rank",
    "peak_allocated_mib": "MiB a rank",
    "sent_mib": "MiB a rank and step, to neighbours",
    "all_reduced_mib": "MiB a rank and step, the tensors",
    "all_reduces": "a step",
}
PUBLISHED = [
    {
        "method": "gpipe",
        "result": "the bubble is (p - 1) / (m + p - 1) of the time, negligible from m = 4 p on",
        "source": "Huang et al. 2019, arXiv:1811.06965, section 2.3",
    },
    {
        "method": "1f1b",
        "result": "idle time over ideal time is (p - 1) / m, and a stage holds at most p micro-batches instead of m",
        "source": "Narayanan et al. 2021, arXiv:2104.04473, section 2.2",
    },
]
_SCHEDULES = ("gpipe", "1f1b", "torch.gpipe", "torch.1f1b")
_TENSOR = ("tensor", "torch.tensor")
_COLUMNS = (
    *("model", "method", "dtype", "world_size", "micro_batches", "rows", "batch", "seq_len", "backend", "step_ms"),
    *("tokens_per_s", "bubble", "predicted_bubble", "bubble_over_work", "predicted_over_work", "live", "weights_mib"),
    *("peak_allocated_mib", "sent_mib", "all_reduced_mib", "all_reduces", "spans", "note"),
)
_DRAWN = 8  # micro-batches, for which the actions are kept


@dataclass(frozen=True)
class Plan:
    """A Llama, sequences a micro-batch and their length, numbers of micro-batches and of ranks."""

    model: str
    rows: int
    seq_len: int
    dtype: str
    micro_batches: Sequence[int]
    world_sizes: Sequence[int]


_GPU = Plan("llama-7b", 1, 1024, "bfloat16", (1, 2, 4, 8, 16), (2, 4, 8))
PLANS = {"tiny": Plan("tiny", 2, 32, "float32", (1, 2, 8), (2,)), "small": _GPU, "full": _GPU}


def rows(scale: Scale) -> Iterator[dict]:
    """On each number of ranks that this machine has devices for."""
    from labkit.bench.pipeline_steps import measured as measure

    plan = PLANS["tiny" if scale.device == "cpu" else scale.name]
    for count in ranks_here(scale.device, plan.world_sizes, max(plan.world_sizes)):
        todo = settings(plan, count)
        for setting, found, note in measured(measure, [s for s in todo if not refused(s)], count, scale.device):
            yield _row(setting, found, note)
        for setting in todo:
            if refused(setting):
                yield _row(setting, [], refused(setting))


def refused(setting: Setting) -> str:
    """Why a library does not run a setting; nothing if it does."""
    few = setting.method == "torch.1f1b" and setting.micro_batches < setting.world_size
    return "torch's Schedule1F1B wants at least as many micro-batches as stages" if few else ""


def settings(plan: Plan, ranks: int) -> list[Setting]:
    """What runs in one launch, small batches first; tensor parallelism and one process at two sizes of the batch."""
    from labkit.bench.pipeline_steps import Setting

    fixed: dict[str, Any] = {"rows": plan.rows, "seq_len": plan.seq_len}
    middle = plan.micro_batches[len(plan.micro_batches) // 2]
    found = [Setting(plan.model, "one-process", plan.dtype, ranks, m, **fixed) for m in (1, middle)]
    found += [Setting(plan.model, name, plan.dtype, ranks, m, **fixed) for name in _TENSOR for m in (1, middle)]
    return found + [
        Setting(plan.model, s, plan.dtype, ranks, m, **fixed) for m in plan.micro_batches for s in _SCHEDULES
    ]


def _row(setting: Setting, ranks: list[dict], note: str) -> dict[str, Any]:
    batch = setting.rows * setting.micro_batches
    if not ranks:
        return row(_COLUMNS, setting, batch=batch, note=note)
    spans = [span for rank in ranks for span in rank.pop("ran") or []]
    found = together(ranks)
    speed = 1e3 * batch * setting.seq_len / found["step_ms"]
    return row(
        _COLUMNS, setting, batch=batch, tokens_per_s=rounded(speed, 1), **found, **_bubbles(setting, spans), note=note
    )


def _bubbles(setting: Setting, spans: list[list]) -> dict[str, Any]:
    from labkit.parallel.pipeline_schedule import Action, Ran, bubble, ideal_bubble

    if not spans:
        return {}
    stages, m = setting.world_size, setting.micro_batches
    idle = bubble([Ran(stage, Action(kind, k), start, end) for stage, kind, k, start, end in spans])
    return {
        "bubble": rounded(idle, 4),
        "predicted_bubble": rounded(ideal_bubble(stages, m), 4),
        "bubble_over_work": rounded(idle / (1 - idle), 4),
        "predicted_over_work": rounded((stages - 1) / m, 4),
        "spans": spans if m <= _DRAWN else None,
    }
