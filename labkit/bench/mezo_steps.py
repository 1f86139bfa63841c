"""Single steps of MeZO, of plain inference and of training by backpropagation, on models with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from labkit.bench.steps import attempt, configuration, median_ms, room_here, rounded
from labkit.bench.workers import clear
from labkit.bench.zero_steps import RandomText, words
from labkit.ledger import MIB
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture

EXACT, WALK = "mezo", "mezo walk"
INFERENCE = ("zero-shot", "in-context")
WARM = 2


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        model: a name that `labkit.bench.steps.configuration` knows.
        method: one of INFERENCE, EXACT, WALK, "prefix" or "full".
        dtype: of the weights; "full" has fp32 weights and computes in this dtype, "prefix" an fp32 prefix.
    """

    model: str
    method: str
    dtype: str
    batch: int
    seq_len: int


def row_of(setting: Setting, device: str, timed: int, room: int | None = None) -> dict[str, Any]:
    """A measured row, or one with its prediction and the reason why nothing was measured.

    Args:
        timed: steps that are timed.
        room: bytes that tensors may fill; None for those of the GPU that is here.
    """
    clear(device)
    count = predicted(setting, device)
    row = {**asdict(setting), "predicted_mib": None if count is None else rounded(count / MIB, 1)}
    row |= dict.fromkeys(("peak_allocated_mib", "peak_reserved_mib", "driver_mib", "step_ms", "tokens_per_s", "loss"))
    room = room_here() if room is None else room
    if count is not None and count > room:
        return row | {"note": f"planned only: more than the {room / MIB:,.0f} MiB that tensors may fill"}
    found, note = attempt(lambda: measured(setting, device, timed), device)
    return row | (found or {}) | {"note": note}


def predicted(setting: Setting, device: str) -> int | None:
    """Bytes at the peak by formula: MeZO's are inference's; None for a prefix, of which there is no formula."""
    if setting.method == "prefix":
        return None
    given: dict[str, Any] = {"weights": setting.dtype, "train": "nothing"}
    if setting.method == "full":
        given = {"compute": setting.dtype if setting.dtype != "float32" else ""}
    case = Case(Architecture.of(configuration(setting.model)), setting.batch, setting.seq_len, device=device, **given)
    return predict(case).peak.total


def measured(setting: Setting, device: str, timed: int) -> dict[str, Any]:
    """Time, peaks and loss of a step; the peaks are those of steps after the first."""
    run, close = _step(setting, device)
    try:
        for _ in range(WARM):
            loss = run()
        found: dict[str, Any] = {}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["step_ms"] = rounded(median_ms(run, timed, device), 2)
        found["tokens_per_s"] = rounded(1e3 * setting.batch * setting.seq_len / found["step_ms"], 1)
        if device == "cuda":
            free, whole = torch.cuda.mem_get_info()
            found["peak_allocated_mib"] = rounded(torch.cuda.max_memory_allocated() / MIB, 1)
            found["peak_reserved_mib"] = rounded(torch.cuda.max_memory_reserved() / MIB, 1)
            found["driver_mib"] = rounded((whole - free) / MIB, 1)
        return found | {"loss": rounded(float(loss), 4)}
    finally:
        close()


def _step(setting: Setting, device: str) -> tuple[Callable[[], torch.Tensor], Callable[[], None]]:
    """A step, which returns its loss, and what to call when all are done."""
    method, dtype = setting.method, getattr(torch, setting.dtype)
    model = _built(setting.model, torch.float32 if method == "full" else dtype, device)
    batch, task = words(setting).to(device), RandomText()
    if method in INFERENCE:
        model.eval()

        @torch.no_grad()
        def look() -> torch.Tensor:
            return task.loss(model, batch)

        return look, lambda: None
    made = _method(setting)
    made.prepare(model if method.startswith("mezo") else model.train(), task, 1000)
    return lambda: made.step(batch), made.close


def _method(setting: Setting) -> Any:
    from labkit.adapters.prefix import PrefixTuning
    from labkit.methods import FullFineTuning
    from labkit.zeroth.mezo import Mezo

    if setting.method == "full":
        return FullFineTuning(learning_rate=1e-6, compute_dtype=setting.dtype)
    if setting.method == "prefix":
        return PrefixTuning(learning_rate=1e-3, start="random")
    return Mezo(learning_rate=1e-7, restore="walk" if setting.method == WALK else "exact")


def _built(name: str, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(configuration(name), dtype=dtype)
