"""What the ranks of table `capstone` run: steps of large models with random weights, and whole trainings of small ones.

Weights of a large model are drawn in shards (`labkit.parallel.sharded_weights`); torch's DDP, which needs all of them
on every GPU, has them drawn there.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from labkit.bench.ranks import settle
from labkit.bench.steps import configuration, median_ms
from labkit.bench.zero_steps import RandomText, model, words
from labkit.energy import EnergyMeter
from labkit.ledger import Ledger
from labkit.methods import FirstOrder
from labkit.parallel.ddp import TorchDDP
from labkit.parallel.fsdp_lora import FsdpLora
from labkit.parallel.group import device
from labkit.parallel.jobs.capstone import Recipe, capstone
from labkit.parallel.jobs.train import Job, trained
from labkit.parallel.sharded_weights import allocate, fill, skeleton
from labkit.parallel.zero_torch import TorchFsdp2
from labkit.tasks import Task

WARM, TIMED = 2, 5
MIB = 2**20
LORA, FSDP2, DDP = "torch.fsdp2+peft.lora", "torch.fsdp2", "torch.ddp"
RATES = {LORA: 1e-3, FSDP2: 1e-4, DDP: 1e-4}


@dataclass(frozen=True)
class Setting:
    """A row of the table: `batch` sequences over `world_size` ranks.

    Attributes:
        steps: of a training on sentiment; 0 for timed steps on random text.
        tests: sentences that a training is judged on.
    """

    model: str
    method: str
    world_size: int
    dtype: str
    batch: int
    seq_len: int
    checkpointed: bool
    seed: int = 0
    steps: int = 0
    tests: int = 0


class Sharded(TorchFsdp2):
    """Full fine-tuning of a skeleton: sharded, then allocated and filled at random."""

    def prepare(self, model: nn.Module, task: Task, steps: int) -> None:
        """Shard, allocate, fill; then optimizer and schedule."""
        self._device = device()
        model.requires_grad_(True)
        allocate(self.wrap(model), self._device)
        fill(model, None)
        FirstOrder.prepare(self, model, task, steps)


def measured(setting: Setting) -> dict[str, Any]:
    """What this rank finds of a setting."""
    if not setting.steps:
        return _steps(setting)
    return _recipe(setting) if setting.method == LORA else _training(setting)


def _method(setting: Setting) -> tuple[Any, nn.Module]:
    config, here = configuration(setting.model), device()
    if setting.method == DDP:
        return TorchDDP(compute_dtype=setting.dtype), model(setting, here)  # type: ignore[arg-type]
    if setting.method == FSDP2:
        return Sharded(weights=setting.dtype), skeleton(config, torch.float32).train()
    method = FsdpLora(weights=setting.dtype, checkpointed=setting.checkpointed)
    return method, skeleton(config, getattr(torch, setting.dtype)).train()


def _steps(setting: Setting) -> dict[str, Any]:
    """Bytes and time of a step on random text."""
    here, begun = device(), time.perf_counter()
    gpu = here.type == "cuda"
    (method, net), batch = _method(setting), words(setting)
    method.prepare(net, RandomText(), WARM + TIMED + 1)
    try:
        build_s, ledger = time.perf_counter() - begun, Ledger(predicted=method.predicted_bytes())
        losses = [method.measured_step(batch, ledger)]
        for _ in range(WARM):
            method.step(batch)
        settle(here)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        meter = EnergyMeter(str(here))
        step_ms = median_ms(lambda: losses.append(method.step(batch)), TIMED, here.type)
        joules = meter.joules()
        peak = torch.cuda.max_memory_allocated() if gpu else None
        count = sum(p.numel() for p in net.parameters() if p.requires_grad)
        return _facts(ledger, peak, joules, TIMED) | {
            "step_ms": step_ms,
            "tokens_per_s": 1e3 * setting.batch * setting.seq_len / step_ms,
            "trainable_params": count,
            "loss": float(losses[-1]),
            "build_s": build_s,
        }
    finally:
        method.close()


def _facts(ledger: Ledger, peak: int | None, joules: float | None, steps: int) -> dict[str, Any]:
    """Bytes that stand from step to step, and the rest that all settings tell."""
    standing = ledger.predicted
    return {
        "backend": dist.get_backend(),
        "standing_mib": sum(ledger.measured.get(name, 0) for name in standing) / MIB,
        "predicted_standing_mib": sum(standing.values()) / MIB,
        "peak_allocated_mib": None if peak is None else peak / MIB,
        "joules_per_step": None if joules is None else joules / steps,
    }


def _recipe(setting: Setting) -> dict[str, Any]:
    """The capstone's recipe, saved, and loaded again for one more step."""
    with tempfile.TemporaryDirectory() as mine:
        folder = [mine]
        dist.broadcast_object_list(folder, src=0)
        asked: dict[str, Any] = {"steps": setting.steps, "batch": setting.batch, "seq_len": setting.seq_len}
        asked |= {"dtype": setting.dtype, "checkpointed": setting.checkpointed, "seed": setting.seed}
        place = str(Path(folder[0]) / "run")
        found = capstone(Recipe(setting.model, learning_rate=RATES[LORA], tests=setting.tests, out=place, **asked))
        begun = time.perf_counter()
        again = {**asked, "steps": setting.steps + 1}
        loaded = capstone(Recipe(setting.model, learning_rate=RATES[LORA], tests=0, resume=place, **again))
        load_s = time.perf_counter() - begun
        dist.barrier()  # rank 0's folder stays until all have read it
    ledger = Ledger(predicted=found["predicted"], measured=found["measured"])
    seconds = sorted(found["step_seconds"])
    return _facts(ledger, found["peak_allocated"], found["joules"], setting.steps) | {
        "step_ms": 1e3 * seconds[len(seconds) // 2],
        "tokens_per_s": found["tokens"] / sum(seconds),
        "trainable_params": found["trainable_params"],
        "loss": sum(found["losses"][-20:]) / len(found["losses"][-20:]),
        "accuracy_before": found["accuracy_before"],
        "accuracy": found["accuracy"],
        "build_s": found["build_s"],
        "save_s": found["save_s"],
        "load_s": load_s - sum(loaded["step_seconds"]) - (loaded["save_s"] or 0.0),
    }


def _training(setting: Setting) -> dict[str, Any]:
    """The same training by full fine-tuning."""
    asked = {name: getattr(setting, name) for name in ("steps", "batch", "seq_len", "dtype", "seed", "tests")}
    run = trained(Job(setting.model, setting.method, learning_rate=RATES[setting.method], **asked))
    return _facts(run.ledger, run.ledger.peak_allocated, run.joules, setting.steps) | {
        "step_ms": run.step_ms,
        "tokens_per_s": run.tokens_per_s,
        "trainable_params": run.trainable_params,
        "loss": sum(run.losses[-20:]) / len(run.losses[-20:]),
        "accuracy": run.accuracy,
    }
