"""Table `anatomy`: the bytes of a training step predicted by formula, traced under fake tensors, and measured.

One row a case of the grid: `predicted_mib` is the formula's peak (labkit.ledger.predict), `traced_mib` that of the same
step under fake tensors (labkit.memory.step.trace; null where it cannot be traced), `peak_allocated_mib` the most that
the CUDA allocator had handed out in the second of two steps, and `residual` how far that lies above the prediction. On
a CPU the measured peak is that of the true storages (labkit.memory.step.follow). `workspaces_mib` is what the libraries
of matrix products took from the allocator for themselves, measured before the first case and counted in the prediction;
`driver_mib` what the driver counts for the whole process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import median_ms, rounded
from labkit.run import UNITS as RUN_UNITS

if TYPE_CHECKING:
    from labkit.ledger.case import Case
    from labkit.scale import Scale

TITLE = "Memory of a training step: predicted by formula, traced under fake tensors, and measured."
UNITS = RUN_UNITS | {
    "flops": "operations a step, by formula",
    "predicted_mib": "MiB",
    "traced_mib": "MiB",
    "peak_reserved_mib": "MiB",
    "driver_mib": "MiB",
    "workspaces_mib": "MiB",
    "residual": "share of the prediction",
}
PUBLISHED = [
    {
        "model": "llama-65b",
        "method": "16-bit fine-tuning",
        "result": "more than 780 GB of GPU memory",
        "source": "Dettmers et al. 2023, arXiv:2305.14314, introduction",
    },
]
TIMED_STEPS = 3
AUTO = {"compute": "bfloat16"}
BF16 = {"weights": "bfloat16"}
MASTER = {**BF16, "master": True}
LORA = {**BF16, "train": "lora"}
IDLE = {**BF16, "train": "nothing"}
EVERY = ("q", "k", "v", "o", "up", "down")
ALL = -1  # segments: as many as layers

# Model, batch, tokens, and what differs from fp32 weights, AdamW, flash attention and no checkpointing.
GRID: Sequence[tuple[str, int, int, dict]] = (
    *(("tiny", batch, 256, options) for batch in (16, 64) for options in ({}, AUTO, BF16)),
    *(("smollm2-135m", 16, 512, o) for o in ({}, AUTO, BF16, MASTER, LORA, {"optimizer": "sgd"})),
    ("smollm2-135m", 16, 512, {**AUTO, "optimizer": "adamw8bit"}),
    ("smollm2-135m", 64, 512, IDLE),
    ("smollm2-135m", 32, 512, {**AUTO, "segments": ALL}),
    ("smollm2-135m", 8, 512, {**BF16, "attention": "eager"}),
    ("opt-125m", 8, 1024, {}),
    ("opt-125m", 16, 1024, AUTO),
    ("opt-125m", 16, 2048, BF16),
    ("opt-125m", 8, 512, {"train": "lora"}),
    ("opt-125m", 16, 1024, {"segments": ALL}),
    ("opt-125m", 1, 128, {"optimizer": "momentum"}),
    ("opt-1.3b", 2, 512, {}),
    ("opt-1.3b", 4, 512, AUTO),
    ("opt-1.3b", 8, 1024, BF16),
    ("opt-1.3b", 4, 1024, MASTER),
    ("opt-1.3b", 4, 1024, {**AUTO, "optimizer": "adamw8bit"}),
    ("opt-1.3b", 8, 1024, LORA),
    ("opt-1.3b", 8, 1024, {**LORA, "targets": EVERY, "rank": 64}),
    ("opt-1.3b", 1, 128, {**BF16, "optimizer": "sgd"}),
    ("opt-1.3b", 16, 2048, {**BF16, "segments": ALL}),
    ("opt-1.3b", 8, 2048, {**BF16, "segments": 5}),
    ("opt-1.3b", 8, 2048, IDLE),
    ("opt-1.3b", 2, 512, {**BF16, "attention": "eager"}),
    ("opt-2.7b", 4, 1024, BF16),
    ("opt-2.7b", 2, 512, AUTO),
    ("opt-2.7b", 8, 1024, LORA),
    ("opt-2.7b", 8, 2048, {**BF16, "segments": ALL}),
    ("opt-2.7b", 2, 512, {**AUTO, "optimizer": "adamw8bit"}),
    ("opt-6.7b", 1, 512, {**BF16, "optimizer": "sgd"}),
    ("opt-6.7b", 1, 512, BF16),
    ("opt-6.7b", 4, 1024, LORA),
    ("opt-6.7b", 8, 2048, {**LORA, "segments": ALL}),
    ("opt-6.7b", 8, 2048, IDLE),
)
GRIDS = {"tiny": tuple(("tiny", 4, 64, options) for *_, options in GRID[:6:2]), "small": GRID, "full": GRID}


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """One row a case, as soon as it is measured; not those `done`."""
    spaces = workspaces(scale.device)
    for model, batch, seq_len, options in GRIDS[scale.name][len(done) :]:
        config = _config(model)
        case = _case(config, batch, seq_len, options, scale.device)
        yield {
            **_facts(model, case),
            **_predicted(case, config, spaces),
            **_measured(case, config, scale.device, spaces),
        }


def predictions(rows: Sequence[dict]) -> list[dict]:
    """Formula, trace and residual of rows that were measured over a grid. Raises LabError where they are no grid's."""
    from labkit.errors import LabError
    from labkit.ledger import CATEGORIES, MIB

    parts = (*CATEGORIES, "logits", "temporary")
    device = "cuda" if any(row["workspaces_mib"] for row in rows) else "cpu"
    grid = GRIDS["small" if device == "cuda" else "tiny"]
    if len(rows) > len(grid):
        raise LabError("The table has more rows than the grid has cases.", "Measure it again: labkit bench anatomy.")
    found = []
    for row, (model, batch, seq_len, options) in zip(rows, grid, strict=False):
        config = _config(model)
        case = _case(config, batch, seq_len, options, device)
        if not _facts(model, case).items() <= row.items():
            raise LabError(f"No case of the grid is {row}.", "Measure the table again: labkit bench anatomy.")
        gone = dict.fromkeys((f"{part}_mib" for part in parts if f"{part}_mib" in row), 0.0)
        new = gone | _predicted(case, config, round(row["workspaces_mib"] * MIB))
        if row.get("peak_allocated_mib"):
            new["residual"] = _residual(case, row["peak_allocated_mib"], row["workspaces_mib"])
        found.append(new)
    return found


def _config(model: str) -> Any:
    from labkit import models, published

    return published.config(model) if model in published.NAMES else models.config(model)


def _case(config: Any, batch: int, seq_len: int, options: dict, device: str) -> Case:
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture

    arch = Architecture.of(config)
    segments = options.get("segments", 0)
    chosen = {**options, "segments": arch.layers if segments == ALL else segments}
    return Case(arch, batch, seq_len, device=device, **chosen)


def _facts(model: str, case: Case) -> dict:
    from labkit.ledger import flops

    return {
        "model": model,
        "method": case.train,
        "dtype": case.weights + (f", products {case.compute}" if case.autocast else ""),
        "master_weights": case.master,
        "optimizer": case.optimizer if case.train != "nothing" else None,
        "batch": case.batch,
        "seq_len": case.seq_len,
        "segments": case.segments,
        "attention": case.attention,
        "trainable_params": sum(case.trained),
        "products": case.compute or case.weights,
        "flops": flops.step(case),
    }


def _predicted(case: Case, config: Any, spaces: int) -> dict:
    from labkit.errors import LabError
    from labkit.ledger import MIB
    from labkit.ledger.predict import predict
    from labkit.memory.step import trace

    peak = predict(case).peak
    try:
        traced = round((trace(case, config).peak.total + spaces) / MIB, 1)
    except LabError:
        traced = None
    return {
        "predicted_mib": round((peak.total + spaces) / MIB, 1),
        "traced_mib": traced,
        "workspaces_mib": round(spaces / MIB, 1),
        "peak_at": peak.place,
        **{f"{name}_mib": round(count / MIB, 1) for name, count in peak.bytes.items()},
    }


def _measured(case: Case, config: Any, device: str, spaces: int) -> dict:
    """The peak and the step's time; what does not fit is null, with a note."""
    import torch

    from labkit.bench.workers import clear
    from labkit.ledger import MIB

    found: dict[str, Any] = {"note": None}
    try:
        found |= _on_gpu(case, config) if device == "cuda" else _on_cpu(case, config)
        found["residual"] = _residual(case, found["peak_allocated_mib"], spaces / MIB)
    except torch.OutOfMemoryError as error:
        found["note"] = f"does not fit: {str(error).split('. ')[0]}"
    clear(device)
    return found


def _residual(case: Case, allocated_mib: float, workspaces_mib: float) -> float:
    from labkit.ledger import MIB
    from labkit.ledger.predict import predict

    return round(allocated_mib / (predict(case).peak.total / MIB + workspaces_mib) - 1, 4)


def _on_cpu(case: Case, config: Any) -> dict:
    from labkit.ledger import MIB
    from labkit.memory.step import Step, follow

    step = Step(case, config, "cpu")
    step.warm_up()
    peak = round(follow(step).peak.total / MIB, 1)
    return {"peak_allocated_mib": peak, "step_ms": rounded(median_ms(step.run, TIMED_STEPS, "cpu"), 2)}


def _on_gpu(case: Case, config: Any) -> dict:
    import torch

    from labkit.ledger import MIB
    from labkit.memory.step import Step

    step = Step(case, config, "cuda")
    step.run()
    torch.cuda.reset_peak_memory_stats()
    step.run()
    free, whole = torch.cuda.mem_get_info()
    return {
        "peak_allocated_mib": round(torch.cuda.max_memory_allocated() / MIB, 1),
        "peak_reserved_mib": round(torch.cuda.max_memory_reserved() / MIB, 1),
        "driver_mib": round((whole - free) / MIB, 1),
        "step_ms": rounded(median_ms(step.run, TIMED_STEPS, "cuda"), 2),
    }


def workspaces(device: str) -> int:
    """Bytes that the libraries of matrix products take from the CUDA allocator for themselves; 0 on a CPU."""
    if device != "cuda":
        return 0
    import torch

    before = torch.cuda.memory_allocated()
    for dtype in (torch.float32, torch.bfloat16):
        # With a bias a product goes through cuBLASLt, without one through cuBLAS, and backward runs in another thread.
        layer = torch.nn.Linear(64, 64, device=device, dtype=dtype)
        layer(torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)).sum().backward()
        torch.ones(64, 64, device=device, dtype=dtype) @ layer.weight.detach()
    del layer
    gc.collect()
    return torch.cuda.memory_allocated() - before
