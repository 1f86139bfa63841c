"""Table `zero`: bytes of a rank, bytes sent and step time of data parallelism, ZeRO's stages and torch's own.

`ddp`, `zero1`, `zero2`, `zero3` are ours; `torch.ddp`, `torch.zero1` (ZeroRedundancyOptimizer over DDP) and
`torch.fsdp2` (`fully_shard`, with and without `reshard`) torch's, all in one run on the same ranks, weights and words.
With `hold_weights` stage 3 keeps its part of the 16-bit weights beside the masters, as the paper has it; without, they
are rounded from the masters at every gather, as FSDP2's are. All clip the norm of gradients at 1.

`dtype` is of the products: `ddp`, `torch.ddp` and `torch.zero1` hold fp32 weights and cast them as they go (autocast);
the stages hold weights of this dtype with fp32 masters; FSDP2 holds fp32 shards and gathers them in this dtype.
Per category `…_mib` is counted from true storages and `predicted_…_mib` the formula. `predicted_mib` and
`measured_mib` are what stands from step to step: weights, masters, gradients, states. `sent_mib` is what our wire
counted, `nvlink_mib` what the GPU's own counter saw, all a rank and a step; of ranks that differ, the larger counts.

Each model runs with the same sequences on every rank (weak scaling), and again with the same over all ranks, however
many there are (strong scaling): as many as the most ranks have together.

The rows of `7.5b` are the formula of `labkit.parallel.zero_formula` for the paper's example, which the lecture repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.ranks import measured, ranks_here, row, together
from labkit.bench.steps import is_in, rounded

if TYPE_CHECKING:
    from labkit.bench.zero_steps import Setting
    from labkit.scale import Scale

TITLE = "Data parallelism, ZeRO's stages, ZeroRedundancyOptimizer and FSDP2: bytes of a rank, traffic, step time."
SEEDS = (0,)
_CATEGORIES = ("weights", "master_weights", "gradients", "optimizer_states")
_OTHERS = ("predicted", "measured", "activations", "gathered", "gradients_in_flight", "peak_allocated", "peak_reserved")
_MIB_A_RANK = [f"{name}_mib" for name in (*_CATEGORIES, *(f"predicted_{name}" for name in _CATEGORIES), *_OTHERS)]
UNITS = {
    "batch": "sequences over all ranks",
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s over all ranks",
    "joules_per_step": "J over all ranks",
    **dict.fromkeys(_MIB_A_RANK, "MiB a rank"),
    **dict.fromkeys(("sent_mib", "predicted_sent_mib", "nvlink_mib"), "MiB a rank and step"),
}
PUBLISHED = [
    {
        "model": "7.5b",
        "world_size": 64,
        "method": method,
        "gb_per_rank": size,
        "source": "Rajbhandari et al. 2020, arXiv:1910.02054, figure 1 (K = 12)",
    }
    for method, size in (("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9))
]
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "ddp"},
    {"method": "torch.ddp"},
    {"method": "torch.zero1"},
    {"method": "zero1"},
    {"method": "zero2"},
    {"method": "zero3", "hold_weights": True},
    {"method": "zero3", "hold_weights": False},
    {"method": "torch.fsdp2", "reshard": True},
    {"method": "torch.fsdp2", "reshard": False},
)
_SETTING = ("model", "method", "dtype", "world_size", "batch", "seq_len", "hold_weights", "reshard")
_TIMES = ("step_ms", "tokens_per_s", "joules_per_step", "first_loss", "loss")
_TRAFFIC = ("sent_mib", "predicted_sent_mib", "nvlink_mib")
_COLUMNS = (*_SETTING, *_TIMES, *_MIB_A_RANK, *_TRAFFIC, "backend", "note")
_SUMS = ("joules_per_step",)


@dataclass(frozen=True)
class Plan:
    """Models with the sequences of a rank, the numbers of ranks, and the length of sequences."""

    models: Sequence[tuple[str, int]]
    seq_len: int
    dtype: str
    world_sizes: Sequence[int]


_GPU = Plan((("opt-1.3b", 8), ("opt-2.7b", 4), ("opt-6.7b", 2)), 1024, "bfloat16", (2, 4, 8))
PLANS = {"tiny": Plan((("tiny", 4),), 32, "float32", (2,)), "small": _GPU, "full": _GPU}


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """By formula, then each model on each number of ranks that this machine has devices for; not those `done`."""
    from labkit.bench.zero_steps import measured as measure

    plan = PLANS["tiny" if scale.device == "cpu" else scale.name]
    if not done:
        yield from by_formula()
    for name, share in plan.models:
        for count in ranks_here(scale.device, plan.world_sizes, max(plan.world_sizes)):
            todo = [s for s in settings(plan, name, share, count) if not is_in(s, done)]
            for setting, found, note in measured(measure, todo, count, scale.device):
                yield row(_COLUMNS, setting, note=note, **(_together(setting, found) if found else {}))


def settings(plan: Plan, name: str, share: int, ranks: int) -> list[Setting]:
    """What runs in one launch."""
    from labkit.bench.zero_steps import Setting

    common: dict[str, Any] = {"model": name, "dtype": plan.dtype, "world_size": ranks, "seq_len": plan.seq_len}
    batches = dict.fromkeys((share * ranks, share * max(plan.world_sizes)))
    return [Setting(batch=batch, **common, **method) for batch in batches for method in METHODS]


def by_formula() -> Iterator[dict]:
    """The paper's example: 7.5 billion parameters on 64 ranks, 2 + 2 + 12 bytes a parameter."""
    from labkit.parallel.zero_formula import bytes_per_rank, traffic_per_step

    for stage, method in enumerate(("ddp", "zero1", "zero2", "zero3")):
        yield row(
            _COLUMNS,
            None,
            model="7.5b",
            method=method,
            world_size=64,
            predicted_mib=rounded(bytes_per_rank(stage, 7.5e9, 64) / 2**20),
            predicted_sent_mib=rounded(traffic_per_step(stage, 7.5e9, 64) / 2**20),
            note="by formula; not measured",
        )


def _together(setting: Setting, ranks: list[dict]) -> dict[str, Any]:
    """One row of what ranks found; the loss is the same on all."""
    found = together(ranks, _SUMS)
    speed = 1e3 * setting.batch * setting.seq_len / found["step_ms"]
    return found | {"tokens_per_s": rounded(speed, 1)}
