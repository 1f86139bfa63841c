"""Table `allreduce`: bytes and time of an all-reduce by size, and what it adds to a training step.

Rows with `mib` are one all-reduce of a tensor of so many MiB. `ring` is ours, of sends and receives, `through-rank-0`
the obvious way, in which one rank adds everything; torch's all-reduce stands beside torch's reduce-scatter and
all-gather. `formula_mib` is what the ring's formula has, 2 (N - 1) / N of the tensor, `sent_mib` what our collectives
counted, `nvlink_mib` what the GPU's own counter saw; of ranks that differ, the largest counts. `sent_gb_per_s` is
`formula_mib` over the time ("bus bandwidth" in NCCL's tests), the same measure for all ways.

Rows with `model` are whole steps of data parallelism with AdamW, fp32 weights under autocast: gradients averaged after
the backward pass one by one (`ddp-naive`), in buckets during it (`ddp`) by torch's all-reduce or by our ring, and by
torch's DDP (`torch.ddp`). `exposed_ms` is what a step takes longer than one of `no-communication`, which sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.ranks import measured, ranks_here, row, together
from labkit.bench.steps import rounded

if TYPE_CHECKING:
    from labkit.bench.allreduce_steps import Payload, Training
    from labkit.scale import Scale

TITLE = "All-reduce: bytes sent and time by size and number of ranks, and what it adds to a training step."
SEEDS = (0,)
UNITS = {
    "mib": "MiB, the tensor",
    "step_ms": "ms, median",
    "sent_mib": "MiB a rank, counted where it is sent",
    "formula_mib": "MiB a rank, by the ring's formula",
    "nvlink_mib": "MiB a rank, by the GPU's counter",
    "messages": "sends of a rank",
    "sent_gb_per_s": "GB/s: formula_mib over step_ms",
    "batch": "sequences over all ranks",
    "exposed_ms": "ms more than without communication",
    "tokens_per_s": "tokens/s over all ranks",
    "joules_per_step": "J over all ranks",
    "peak_allocated_mib": "MiB a rank",
}
PUBLISHED = [
    {
        "method": "ring",
        "result": "every rank sends 2 (N - 1) / N times the tensor's bytes, the least that is possible",
        "source": "Patarasuk & Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations",
    },
    {
        "method": "torch.ddp",
        "result": "overlap with the backward pass makes training 38.0 % (ResNet50) and 35.2 % (BERT) faster with NCCL "
        "on 32 GPUs",
        "source": "Li et al. 2020, arXiv:2006.15704, section 5.1",
    },
]
_COLUMNS = (
    *("method", "dtype", "world_size", "backend", "mib", "step_ms", "sent_mib", "messages", "formula_mib"),
    *("nvlink_mib", "sent_gb_per_s", "model", "batch", "seq_len", "collective", "exposed_ms", "tokens_per_s"),
    *("joules_per_step", "peak_allocated_mib", "note"),
)
STEPS: tuple[tuple[str, str | None], ...] = (
    ("no-communication", None),
    ("ddp-naive", "torch"),
    ("ddp", "torch"),
    ("ddp", "ring"),
    ("torch.ddp", None),
)


@dataclass(frozen=True)
class Plan:
    """Sizes in MiB, and models with the sequences of a rank and their length."""

    sizes: Sequence[float]
    dtypes: Sequence[str]
    models: Sequence[tuple[str, int, int]]
    compute: str
    world_sizes: Sequence[int]


_GPU = Plan(
    (2**-10, 2**-7, 2**-4, 0.5, 4.0, 32.0, 256.0, 1024.0),
    ("float32", "bfloat16"),
    (("smollm2-135m", 16, 256), ("opt-1.3b", 8, 1024)),
    "bfloat16",
    (2, 4, 8),
)
_CPU = Plan((2**-10, 2**-5, 1.0, 8.0), ("float32",), (("tiny", 4, 32),), "float32", (2, 4))
PLANS = {"tiny": _CPU, "small": _GPU, "full": _GPU}


def rows(scale: Scale) -> Iterator[dict]:
    """On each number of ranks that this machine has devices for: collectives, then training steps."""
    from labkit.bench.allreduce_steps import measured as of_payload
    from labkit.bench.zero_steps import measured as of_training

    plan = PLANS["tiny" if scale.device == "cpu" else scale.name]
    for count in ranks_here(scale.device, plan.world_sizes, max(plan.world_sizes)):
        for payload, found, note in measured(of_payload, payloads(plan, count), count, scale.device):
            yield _of_payload(payload, found, note)
    for name, share, seq_len in plan.models:
        count = min(plan.world_sizes)
        silent: float | None = None
        todo = trainings(plan, name, share, seq_len, count)
        for training, found, note in measured(of_training, todo, count, scale.device):
            if training.method == "no-communication" and found:
                silent = together(found)["step_ms"]
            yield _of_training(training, found, note, silent)


def payloads(plan: Plan, ranks: int) -> list[Payload]:
    """What is measured in one launch, small ones first."""
    from labkit.bench.allreduce_steps import METHODS, Payload

    return [Payload(method, dtype, ranks, mib) for dtype in plan.dtypes for mib in plan.sizes for method in METHODS]


def trainings(plan: Plan, name: str, share: int, seq_len: int, ranks: int) -> list[Training]:
    """Steps of one model, first the one that sends nothing."""
    from labkit.bench.allreduce_steps import Training

    return [
        Training(name, method, plan.compute, ranks, share * ranks, seq_len, collective=collective)
        for method, collective in STEPS
    ]


def _of_payload(payload: Payload, ranks: list[dict], note: str) -> dict[str, Any]:
    if not ranks:
        return row(_COLUMNS, payload, note=note)
    found = together(ranks)
    right = all(rank["right"] for rank in ranks)
    del found["right"]
    speed = found["formula_mib"] * 2**20 / found["step_ms"] / 1e6
    return row(_COLUMNS, payload, **found, sent_gb_per_s=rounded(speed), note=note if right else "the sum is wrong")


def _of_training(training: Training, ranks: list[dict], note: str, silent: float | None) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(training).items() if name in _COLUMNS}
    if not ranks:
        return row(_COLUMNS, None, **facts, note=note)
    found = {name: value for name, value in together(ranks, ("joules_per_step",)).items() if name in _COLUMNS}
    step, world = found["step_ms"], training.world_size
    gradients = ranks[0]["gradients_mib"] * (training.method != "no-communication")
    return row(
        _COLUMNS,
        None,
        **facts,
        **found
        | {
            "formula_mib": rounded(2 * (world - 1) / world * gradients),
            "exposed_ms": None if silent is None else rounded(step - silent),
            "tokens_per_s": rounded(1e3 * training.batch * training.seq_len / step, 1),
            "note": note,
        },
    )
