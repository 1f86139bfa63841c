"""Table `capstone`: recipes for several GPUs, by memory, time, accuracy and energy, up to the largest model that fits.

`torch.ddp`: fp32 weights, bf16 products by autocast, every GPU holds everything. `torch.fsdp2`: the same training
sharded, fp32 shards gathered in bf16. `torch.fsdp2+peft.lora`: frozen bf16 weights, sharded, with fp32 adapters of rank
8 beside queries and values. `dtype` is of the products.

Rows with `accuracy` are whole trainings on sentiment, `accuracy_before` without any; the loss is the mean of the last
20 steps. The other rows are steps of models with random weights. For each recipe the models go up in size: to the
largest that the planner's formula finds room for on these GPUs, checkpointed where it fits only so, and on to the next,
which is planned only and says so in `note`.

`predicted_mib` is the peak of the planner's formula, `peak_allocated_mib` the allocator's. `standing_mib` is what stays
from step to step (weights, gradients, states), counted from true storages, `predicted_standing_mib` its formula. Of
ranks that differ, the largest counts; joules are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.bench.ranks import measured, ranks_here, row, together
from labkit.bench.steps import configuration, is_in, room_here, rounded

if TYPE_CHECKING:
    from labkit.bench.capstone_steps import Setting
    from labkit.scale import Scale

TITLE = "Recipes for several GPUs: memory, time, accuracy and energy, up to the largest model that fits."
SEEDS = (0, 1)
UNITS = {
    "batch": "sequences over all ranks",
    "step_ms": "ms, median",
    "tokens_per_s": "tokens/s over all ranks",
    "joules_per_step": "J over all ranks",
    "predicted_mib": "MiB a rank, the peak by formula",
    "peak_allocated_mib": "MiB a rank",
    "standing_mib": "MiB a rank",
    "predicted_standing_mib": "MiB a rank",
    "accuracy": "share",
    "accuracy_before": "share",
    "loss": "nats",
    "build_s": "s",
    "save_s": "s",
    "load_s": "s",
}
PUBLISHED = [
    {
        "model": "gpt-3 175b",
        "method": "lora",
        "result": "GPU memory while training falls from 1.2 TB to 350 GB, a checkpoint from 350 GB to 35 MB (r = 4)",
        "source": "Hu et al. 2021, arXiv:2106.09685, section 4.2",
    },
    {
        "model": "gpt-3 175b",
        "method": "fsdp",
        "result": "173 to 186 TFLOPS a GPU in bf16 on 128 to 512 A100 of 80 GB",
        "source": "Zhao et al. 2023, arXiv:2304.11277, section 5.4",
    },
]
_SETTING = ("model", "method", "world_size", "dtype", "batch", "seq_len", "checkpointed", "seed", "steps", "tests")
_BYTES = ("predicted_mib", "peak_allocated_mib", "standing_mib", "predicted_standing_mib", "trainable_params")
_RESULTS = ("step_ms", "tokens_per_s", "joules_per_step", "accuracy_before", "accuracy", "loss")
_COLUMNS = (*_SETTING, *_BYTES, *_RESULTS, "build_s", "save_s", "load_s", "backend", "note")
_NAMES = ("torch.ddp", "torch.fsdp2", "torch.fsdp2+peft.lora")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: from small to large, for steps on random text.
        share, seq_len: sequences of a rank, and their length.
        trained: model of the trainings.
        steps, batch, tests: of a training, and sentences to be judged on.
        seeds: of the trainings on the most ranks; elsewhere the first.
        world_sizes: of the trainings; of the steps those above 1, or all where there is no other.
        room: bytes of a device; None for those of the GPU that is here.
    """

    models: Sequence[str]
    share: int
    seq_len: int
    dtype: str
    trained: str
    steps: int
    batch: int
    tests: int
    seeds: Sequence[int]
    world_sizes: Sequence[int]
    room: int | None = None


_SIZES = ("opt-1.3b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b", "opt-175b")
_GPU = Plan(_SIZES, 4, 1024, "bfloat16", "smollm2-135m", 80, 16, 750, SEEDS, (1, 2, 4, 8))
_CPU = Plan(("llama-4x64", "llama-8x256"), 2, 32, "float32", "tiny", 8, 8, 64, (0,), (1, 2), room=30 * 2**20)
PLANS = {"tiny": _CPU, "small": _GPU, "full": _GPU}


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """The trainings, then steps of ever larger models, on each number of ranks that there are devices for."""
    from labkit.bench.capstone_steps import measured as measure

    plan = PLANS["tiny" if scale.device == "cpu" else scale.name]
    room = plan.room if plan.room is not None else room_here()
    sizes = ranks_here(scale.device, plan.world_sizes, max(plan.world_sizes))
    for ranks in sizes:
        todo = [*trainings(plan, ranks, last=ranks == sizes[-1])]
        planned = [] if ranks == 1 < sizes[-1] else [*steps(plan, ranks, room, scale.device)]
        todo += [setting for setting, _, fits in planned if fits]
        predicted = {setting: peak / 2**20 for setting, peak, _ in planned}
        todo = [setting for setting in todo if not is_in(setting, done)]
        for setting, found, note in measured(measure, todo, ranks, scale.device):
            facts = together(found, ("joules_per_step",)) if found else {}
            yield row(_COLUMNS, setting, note=note, predicted_mib=rounded(predicted.get(setting)), **facts)
        for setting, peak, fits in planned:
            if not fits and not is_in(setting, done):
                note = f"planned only: more than the {room / 2**20:,.0f} MiB that tensors may fill"
                yield row(_COLUMNS, setting, note=note, predicted_mib=rounded(peak / 2**20))


def trainings(plan: Plan, ranks: int, last: bool) -> Iterator[Setting]:
    """Each recipe on sentiment; on the most ranks with all seeds."""
    from labkit.bench.capstone_steps import Setting

    for method in _NAMES:
        for seed in plan.seeds if last else plan.seeds[:1]:
            sizes: dict[str, Any] = {"batch": plan.batch, "seq_len": 64, "seed": seed, "steps": plan.steps}
            yield Setting(plan.trained, method, ranks, plan.dtype, checkpointed=False, tests=plan.tests, **sizes)


def steps(plan: Plan, ranks: int, room: int, device: str) -> Iterator[tuple[Setting, int, bool]]:
    """For each recipe the models with their predicted peak and whether that fits, up to the first that does not."""
    from labkit.bench.capstone_steps import Setting
    from labkit.ledger.predict import predict

    for method in _NAMES:
        for name in plan.models:
            peaks = [(predict(case_of(name, method, ranks, plan, device, c)).peak.total, c) for c in (False, True)]
            # Only the last recipe's methods here can be checkpointed as they are.
            peaks = peaks if method == _NAMES[-1] else peaks[:1]
            peak, checkpointed = next((found for found in peaks if found[0] <= room), peaks[-1])
            sizes: dict[str, Any] = {"batch": ranks * plan.share, "seq_len": plan.seq_len}
            yield Setting(name, method, ranks, plan.dtype, checkpointed=checkpointed, **sizes), peak, peak <= room
            if peak > room:
                break


def case_of(model: str, method: str, ranks: int, plan: Plan, device: str, checkpointed: bool) -> Any:
    """What the planner's formula is asked."""
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture
    from labkit.ways import DISTRIBUTED

    arch = Architecture.of(configuration(model))
    name = {"torch.ddp": "ddp"}.get(method, method)
    changes = next(way for way in DISTRIBUTED if way.name == name).on(ranks).changes
    if plan.dtype == "float32":
        changes = {**changes, "weights": "float32", "compute": "", "master": False}
    case = Case(arch, plan.share, plan.seq_len, device=device, **changes)
    return case.with_(segments=arch.layers) if checkpointed else case
