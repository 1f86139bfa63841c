"""Steps of MeZO with all weights on the GPU and of ZO-Offload, on models with random weights.

Both minimize the same loss, whose logits are never whole (`labkit.zeroth.offload.head`), so that their losses are equal
to the bit. A model is made in pieces, at random, in the host memory that it stays in; MeZO's is moved to the GPU from
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import psutil
import torch

from labkit.bench.steps import attempt, bus_rates, configuration, median_ms, rounded
from labkit.bench.workers import clear
from labkit.energy import EnergyMeter
from labkit.errors import LabError
from labkit.ledger import MIB
from labkit.tasks import Batch
from labkit.zeroth import perturb
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.offload.head import NextToken
from labkit.zeroth.offload.load import at_random, on_device
from labkit.zeroth.offload.method import ZoOffload, ZoOffloadLora
from labkit.zeroth.offload.roofline import Machine
from labkit.zeroth.offload.store import Lodging, Store

MEZO, WALK, OFFLOAD, LORA = "mezo", "mezo walk", "zo-offload", "zo-offload-lora"
GIB = 2**30
NOISE_VALUES = 2**28  # of the tensor that making noise is timed on
SYNTHETIC_GB_PER_S = 1.0
MEASURED = (
    "step_ms", "tokens_per_s", "peak_allocated_mib", "peak_reserved_mib", "driver_mib", "host_gib", "blocks_gib",
    "predicted_mib", "predicted_ms", "up_gb_per_s", "up_both_gb_per_s", "joules_per_step", "loss", "losses",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        model: a name that `configuration_of` knows.
        method: MEZO, WALK, OFFLOAD or LORA.
        transfer: "" for the weights' dtype.
        renew: of `ZoOffload`, for coded blocks.
        write_back, parts, slots: of `ZoOffload`; 0 for MeZO.
        moves: steps before those that are timed; of coded blocks that train each step's moves are made again later.
        cap_gb: of 10^9 bytes that the GPU may allocate; 0 for all it has.
    """

    model: str
    method: str
    dtype: str
    batch: int
    seq_len: int
    transfer: str = ""
    write_back: int = 0
    parts: int = 0
    slots: int = 0
    moves: int = 3
    cap_gb: float = 0.0
    renew: int = 0


def configuration_of(name: str) -> Any:
    """As `labkit.bench.steps.configuration`, and OPT-350M, whose blocks normalize late."""
    if name != "opt-350m":
        return configuration(name)
    return configuration_350m()


def configuration_350m() -> Any:
    """OPT-350M as released (facebook/opt-350m on the hub), without dropout."""
    from transformers import OPTConfig

    return OPTConfig(
        hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16,
        do_layer_norm_before=False, dropout=0.0,
    )  # fmt: skip


def row_of(setting: Setting, device: str, timed: int, done: Sequence[dict] = ()) -> dict[str, Any]:
    """A measured row, or one with the reason why nothing was measured.

    Args:
        timed: steps that are timed.
        done: rows before; MeZO's of the same step says how long the arithmetic takes.
    """
    clear(device)
    row = asdict(setting) | dict.fromkeys(MEASURED)
    try:
        with _capped(setting.cap_gb, device):
            found, note = attempt(lambda: measured(setting, device, timed), device)
    except LabError as error:
        found, note = None, str(error)
    clear(device)
    row |= found or {}
    if found and setting.method == OFFLOAD:
        up, both, _ = machine_rates(device)
        rates = {"up_gb_per_s": rounded(up, 2), "up_both_gb_per_s": rounded(both, 2)}
        row |= rates | {"predicted_ms": _predicted_ms(setting, row, done, device)}
    return row | {"note": note}


@contextmanager
def _capped(gb: float, device: str) -> Iterator[None]:
    """In which the GPU's allocator refuses more than so much."""
    if not gb or device != "cuda":
        yield
        return
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gb * 1e9 / whole))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measured(setting: Setting, device: str, timed: int) -> dict[str, Any]:
    """Times, peaks and losses; the peaks are those of steps after the first."""
    method, model = _made(setting, device)
    batch, losses = _words(setting).to(device), []
    method.prepare(model, NextToken(), 100_000)
    try:
        for _ in range(setting.moves):
            losses.append(method.step(batch).item())
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        meter = EnergyMeter(device)
        step_ms = median_ms(lambda: losses.append(method.step(batch).item()), timed, device)
        joules = meter.joules()
        return {
            "step_ms": rounded(step_ms, 2),
            "tokens_per_s": rounded(1e3 * setting.batch * setting.seq_len / step_ms, 1),
            "joules_per_step": None if joules is None else rounded(joules / timed, 2),
            "predicted_mib": rounded(sum(method.predicted_bytes().values()) / MIB, 1),
            "loss": rounded(losses[-1], 6),
            "losses": [rounded(loss, 6) for loss in losses],
            **_peaks(device, Store.of(model)),
        }
    finally:
        _ended(method)


def _peaks(device: str, store: Store | None) -> dict[str, Any]:
    host = {
        "host_gib": rounded(psutil.Process().memory_info().rss / GIB),
        "blocks_gib": None if store is None else rounded(store.memory.nbytes / GIB, 6),
    }
    if device != "cuda":
        return host
    free, whole = torch.cuda.mem_get_info()
    return {
        "peak_allocated_mib": rounded(torch.cuda.max_memory_allocated() / MIB, 1),
        "peak_reserved_mib": rounded(torch.cuda.max_memory_reserved() / MIB, 1),
        "driver_mib": rounded((whole - free) / MIB, 1),
        **host,
    }


def _made(setting: Setting, device: str) -> tuple[Any, Any]:
    """The method, and a model that is where the method begins."""
    dtype, config = getattr(torch, setting.dtype), configuration_of(setting.model)
    common: dict[str, Any] = {"learning_rate": 1e-7, "perturbation_scale": 1e-2 if dtype == torch.bfloat16 else 1e-3}
    if setting.method in (MEZO, WALK):
        return Mezo(restore="walk" if setting.method == WALK else "exact", **common), on_device(config, dtype, device)
    lodging = Lodging(setting.parts, setting.transfer, "", device, both=bool(setting.renew))
    kind = ZoOffloadLora if setting.method == LORA else ZoOffload
    common = {} if setting.method == LORA else {**common, "renew": setting.renew}
    synthetic = None if device == "cuda" else SYNTHETIC_GB_PER_S
    method = kind(slots=setting.slots, write_back=setting.write_back, synthetic_gb_per_s=synthetic, **common)
    return method, at_random(config, dtype, lodging)


def _words(setting: Setting) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        configuration_of(setting.model).vocab_size, (setting.batch, setting.seq_len), generator=generator
    )
    return Batch(ids, torch.ones_like(ids), ids)


def _ended(method: Any) -> None:
    """Give everything back: blocks that were made here need not be brought up to date."""
    if isinstance(method, ZoOffload):
        method.abandon()
    else:
        method.close()


@cache
def machine_rates(device: str) -> tuple[float, float, float]:
    """GB/s up alone, GB/s up while as much goes down, and nanoseconds to make a value's noise and add it."""
    synthetic = None if device == "cuda" else SYNTHETIC_GB_PER_S
    rates = bus_rates(device, synthetic)
    count = NOISE_VALUES if device == "cuda" else NOISE_VALUES // 2**10
    tensor = torch.zeros(count, dtype=torch.float16 if device == "cuda" else torch.float32, device=device)
    perturb.add_(tensor, "w", [(1, 1e-3)])
    noise_ms = median_ms(lambda: perturb.add_(tensor, "w", [(1, 1e-3)]), 5, device)
    return rates["upload"], rates["upload_both"], 1e6 * noise_ms / count


def _predicted_ms(setting: Setting, row: dict, done: Sequence[dict], device: str) -> float | None:
    """By the roofline, from MeZO's step where there is one: it has three passes of noise, and the same arithmetic."""
    same = ("model", "dtype", "batch", "seq_len")
    known = [r for r in done if r["method"] == MEZO and r["step_ms"] and all(r[n] == row[n] for n in same)]
    if not known or setting.transfer:
        return None
    up, both, noise_ns = machine_rates(device)
    values = row["blocks_gib"] * GIB / getattr(torch, setting.dtype).itemsize
    noise_ms = noise_ns * values / 1e6
    tokens = setting.batch * setting.seq_len
    token_us = max(0.0, known[0]["step_ms"] - 3 * noise_ms) / 2 / tokens * 1e3
    machine = Machine(up, both, token_us, noise_ms)
    return rounded(machine.step_ms(round(row["blocks_gib"] * GIB), tokens, setting.write_back), 1)
