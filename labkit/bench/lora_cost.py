"""Table `lora-cost`: operations, time and memory of a step with LoRA and DoRA, ours and peft's, and with all weights.

Rows with `part` "flops" count the operations of a forward and a backward pass: torch's counter, with attention as
single products, and the formula of `labkit.ledger.flops`. Rows with `part` "step" measure. Ours and peft's start with
the same weights, see the same words and draw the same dropout; `loss_difference` is the largest difference of their
losses over the first 20 steps. Times are medians of steps that both libraries make in turn, one and one, so that what
else a machine does meets both; `step_iqr_ms` is from the first quartile to the third. `measured_mib` is what autograd
keeps for the backward pass. Adapters have the frozen weights' dtype, or fp32, peft's default.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import alternating_ms, is_in, rounded

if TYPE_CHECKING:
    from labkit.bench.lora_steps import Setting
    from labkit.scale import Scale

TITLE = "What a step with LoRA and DoRA costs: operations, milliseconds and MiB, beside peft and full fine-tuning."
UNITS = {
    "flops_forward": "FLOP",
    "flops_backward": "FLOP",
    "predicted_flops": "FLOP",
    "step_ms": "ms, median",
    "step_iqr_ms": "ms",
    "peak_allocated_mib": "MiB",
    "measured_mib": "MiB",
    "loss_difference": "nats",
    "dropout": "probability",
}
FIRST, WARM, TIMED = 20, 3, 60
MODELS = {"tiny": ("tiny",), "small": ("smollm2-135m", "opt-1.3b")}
SIZES = {"tiny": (4, 64), "smollm2-135m": (16, 64), "opt-1.3b": (8, 512)}
WAYS = ("lora", "dora")
CHOICES = (("q,v", 0.0), ("all-linear", 0.0), ("all-linear", 0.1))  # targets and dropout
_HU = "Hu et al. 2021, arXiv:2106.09685, section 4.2"
PUBLISHED = [
    {"model": "GPT-3 175B", "method": "lora", "result": result, "source": _HU}
    for result in ("25 % more tokens/s: 43.1 against 32.5", "350 GB of GPU memory in training instead of 1.2 TB")
]


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """Counted operations first, then measured steps; not those `done`."""
    names = MODELS["tiny" if scale.name == "tiny" else "small"]
    for model, method in product(names, ("full", *WAYS, "lora formed")):
        setting = _setting(scale, model, method)
        if not is_in(setting, [row for row in done if row["part"] == "flops"]):
            yield {"part": "flops"} | asdict(setting) | _counted(setting, scale.device)
    for setting in _settings(scale, names):
        if not is_in(setting, [row for row in done if row["part"] == "step"]):
            yield from _measured(setting, scale.device, done)


def _setting(scale: Scale, model: str, method: str, **changes: Any) -> Setting:
    from labkit.bench.lora_steps import Setting

    batch, seq_len = SIZES[model]
    return replace(Setting(model, method, scale.dtype, scale.dtype, batch, seq_len), **changes)


def _settings(scale: Scale, names: Sequence[str]) -> Iterator[Setting]:
    """Full fine-tuning, and our half of each pair."""
    for model in names:
        yield _setting(scale, model, "full")
        for method, (targets, dropout) in product(WAYS, CHOICES):
            yield _setting(scale, model, method, targets=targets, dropout=dropout)
        if scale.dtype != "float32":
            for method in WAYS:
                yield _setting(scale, model, method, adapter_dtype="float32")


def _counted(setting: Setting, device: str) -> dict:
    from labkit.adapters.cost import counted
    from labkit.bench.lora_steps import Steps
    from labkit.bench.steps import configuration
    from labkit.ledger import flops
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture

    steps = Steps(setting, device)
    steps.model.set_attn_implementation("eager")  # a fused kernel computes scores again, and is counted as it pleases
    found = counted(steps.forward)
    case = Case(Architecture.of(configuration(setting.model)), setting.batch, setting.seq_len)
    if setting.method != "full":
        adapter = "dora" if setting.method == "dora" else "lora"
        case = case.with_(train="lora", adapter=adapter, rank=setting.rank, targets=tuple(setting.targets.split(",")))
    predicted = None if setting.method == "lora formed" else flops.step(case)
    return {"flops_forward": found.forward, "flops_backward": found.backward, "predicted_flops": predicted}


def _measured(setting: Setting, device: str, done: Sequence[dict]) -> Iterator[dict]:
    """A row of ours and one of peft's; one alone for full fine-tuning."""
    pair = [setting] if setting.method == "full" else [setting, replace(setting, method=setting.peer)]
    apiece = [_one(each, device) for each in pair]
    losses = [found["losses"] for found in apiece]
    apart = None if len(pair) == 1 else max(abs(a - b) for a, b in zip(*losses, strict=True))
    for each, found, times in zip(pair, apiece, _times(pair, device), strict=True):
        low, middle, high = statistics.quantiles(times, n=4)
        yield {
            "part": "step",
            **asdict(each),
            "step_ms": rounded(middle, 3),
            "step_iqr_ms": rounded(high - low, 3),
            "peak_allocated_mib": rounded(found["peak_allocated_mib"], 1),
            "measured_mib": rounded(found["measured_mib"], 3),
            "loss_difference": None if apart is None else float(f"{apart:.3g}"),
            "loss": rounded(losses[0][-1], 4),
        }


def _one(setting: Setting, device: str) -> dict:
    """One library's first losses, its peak, and what autograd keeps."""
    import torch

    from labkit.bench.lora_steps import Steps
    from labkit.bench.workers import clear
    from labkit.ledger import MIB, saved_for_backward

    clear(device)
    steps = Steps(setting, device)
    found: dict[str, Any] = {"losses": steps.losses(FIRST), "peak_allocated_mib": None}
    with saved_for_backward(steps.model) as saved:
        steps.forward()
    found["measured_mib"] = saved["activations"] / MIB
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        steps.run()
        found["peak_allocated_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found


def _times(pair: Sequence[Setting], device: str) -> list[list[float]]:
    """Milliseconds of steps in turn, after some of each."""
    from labkit.bench.lora_steps import Steps
    from labkit.bench.workers import clear

    clear(device)
    both = [Steps(each, device) for each in pair]
    runs = [each.run for each in both]
    alternating_ms(runs, WARM, device)
    found = alternating_ms(runs, TIMED if device == "cuda" else 3, device)
    del both, runs
    clear(device)
    return found
