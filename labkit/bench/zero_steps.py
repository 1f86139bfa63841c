"""What the ranks of table `zero` run: one method after the other on the same model, batch and ranks.

Weights and words are random and the same for all methods. A method first takes a step in which its bytes are counted,
then steps which are timed from the beginning of one to the beginning of the next, without anything that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.bench.ranks import settle
from labkit.bench.steps import configuration, median_ms
from labkit.energy import EnergyMeter
from labkit.ledger import Ledger
from labkit.parallel.ddp import DDP, NaiveDDP, TorchDDP
from labkit.parallel.group import device
from labkit.parallel.nvlink import SentOverNvlink
from labkit.parallel.zero import Zero1, Zero2, Zero3
from labkit.parallel.zero_torch import TorchFsdp2, TorchZero1
from labkit.tasks import Batch

WARM, TIMED = 3, 10
MIB = 2**20
STANDING = ("weights", "master_weights", "gradients", "optimizer_states")


class Silent(DDP):
    """Data parallelism of which nothing is sent: what a step takes if communication costs nothing. Replicas part."""

    def _backward(self, loss: Tensor) -> None:
        loss.backward()


REPLICATED: dict[str, Any] = {
    "no-communication": Silent,
    "ddp-naive": NaiveDDP,
    "ddp": DDP,
    "torch.ddp": TorchDDP,
    "torch.zero1": TorchZero1,
}
SHARDED = {"zero1": Zero1, "zero2": Zero2, "zero3": Zero3, "torch.fsdp2": TorchFsdp2}


@dataclass(frozen=True)
class Setting:
    """A row of the table: `method` on `world_size` ranks, `batch` sequences over all of them.

    Attributes:
        dtype: of the products; fp32 weights under autocast where nothing is sharded, else weights of this dtype.
        hold_weights: of our stage 3; None elsewhere.
        reshard: of FSDP2; None elsewhere.
    """

    model: str
    method: str
    dtype: str
    world_size: int
    batch: int
    seq_len: int
    hold_weights: bool | None = None
    reshard: bool | None = None


class RandomText:
    """Random words as a task, for models with random weights."""

    name = "random-text"

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Mean next-token loss."""
        return model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss  # type: ignore[no-any-return]


def make(setting: Setting) -> Any:
    """The method; all of them clip gradients at the norm 1."""
    common: dict[str, Any] = {"learning_rate": 1e-5, "max_grad_norm": 1.0}
    for option in ("hold_weights", "reshard", "collective"):
        if (value := getattr(setting, option, None)) is not None:
            common[option] = value
    if setting.method in REPLICATED:
        return REPLICATED[setting.method](compute_dtype=setting.dtype, **common)
    return SHARDED[setting.method](weights=setting.dtype, **common)


def model(setting: Setting, here: torch.device) -> torch.nn.Module:
    """Random weights in fp32, made on the device, the same on every rank."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with here:
        made: torch.nn.Module = AutoModelForCausalLM.from_config(configuration(setting.model), dtype=torch.float32)
    return made.train()


def words(setting: Any) -> Batch:
    """The global batch of a setting's `model`, `batch` and `seq_len`, on the host: every rank moves its own share."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = configuration(setting.model).vocab_size
    ids = torch.randint(vocabulary, (setting.batch, setting.seq_len), generator=generator)
    return Batch(ids, torch.ones_like(ids), ids)


def measured(setting: Setting) -> dict[str, Any]:
    """Times and bytes of one method on this rank."""
    here, method, batch = device(), make(setting), words(setting)
    method.prepare(model(setting, here), RandomText(), WARM + TIMED + 1)
    gpu = here.type == "cuda"
    try:
        ledger = Ledger(predicted=method.predicted_bytes())
        losses = [method.measured_step(batch, ledger)]
        for _ in range(WARM):
            method.step(batch)
        settle(here)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        energy, link = EnergyMeter(str(here)), SentOverNvlink(here)
        step_ms = median_ms(lambda: losses.append(method.step(batch)), TIMED, here.type)
        joules, sent = energy.joules(), link.bytes()
        facts = {
            "backend": dist.get_backend(),
            "step_ms": step_ms,
            "first_loss": float(losses[0]),
            "loss": float(losses[-1]),
            "joules_per_step": None if joules is None else joules / TIMED,
            "nvlink_mib": None if sent is None else sent / TIMED / MIB,
            "peak_allocated_mib": torch.cuda.max_memory_allocated() / MIB if gpu else None,
            "peak_reserved_mib": torch.cuda.max_memory_reserved() / MIB if gpu else None,
        }
        return facts | _bytes(ledger) | _observed(method)
    finally:
        method.close()


def _bytes(ledger: Ledger) -> dict[str, Any]:
    """Counted and predicted bytes of one rank by category, and of all that stands from step to step."""
    found: dict[str, Any] = {}
    for name in (*STANDING, "activations"):
        found[f"{name}_mib"] = ledger.measured[name] / MIB if name in ledger.measured else None
    for name in STANDING:
        found[f"predicted_{name}_mib"] = ledger.predicted[name] / MIB if name in ledger.predicted else None
    found["measured_mib"] = sum(ledger.measured.get(name, 0) for name in STANDING) / MIB
    found["predicted_mib"] = sum(ledger.predicted.get(name, 0) for name in STANDING) / MIB
    return found


def _observed(method: Any) -> dict[str, Any]:
    """What only our stages tell of a step: bytes sent, and what is there for moments."""
    if not hasattr(method, "predicted_traffic"):
        return dict.fromkeys(("sent_mib", "predicted_sent_mib", "gathered_mib", "gradients_in_flight_mib"))
    seen = method.observed()
    return {
        "sent_mib": (seen["all_gather_bytes"] + seen["reduce_scatter_bytes"]) / MIB,
        "predicted_sent_mib": method.predicted_traffic() / MIB,
        "gathered_mib": seen["gathered_bytes"] / MIB,
        "gradients_in_flight_mib": seen["gradients_in_flight_bytes"] / MIB,
    }
