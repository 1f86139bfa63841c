"""Table `quantization`: one model with its linear layers kept in 16, 8 and 4 bits.

Perplexity is that of the pretrained model on the task's test sentences, read as plain text; divergence is the mean KL
from the 16-bit model's next-token distribution to the quantized model's, at the same places. Accuracy is that of the
model fine-tuned in full precision, once a seed, and quantized afterwards. Rows named `bitsandbytes.*` are that
library's layers in the same run. Times are medians over 100 M bf16 values, NF4 with double quantization; extra memory
is the allocator's peak above input and output.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from labkit.numerics.quantize.peer import library_recipes, stored_bytes
from labkit.scale import Scale

if TYPE_CHECKING:
    import torch

TITLE = "Linear layers in 16, 8 and 4 bits: perplexity, accuracy, memory, and the time to quantize."
SEEDS = (0, 1, 2)
UNITS = {
    "loss": "nats a token",
    "divergence": "nats a token",
    "accuracy": "share",
    "accuracy_std": "share",
    "bits_per_parameter": "bit",
    "measured_mib": "MiB",
    "quantize_ms": "ms",
    "dequantize_ms": "ms",
    "quantize_extra_mib": "MiB",
    "dequantize_extra_mib": "MiB",
}
TIMED_VALUES = 100_000_000
_QLORA = "Dettmers et al. 2023, arXiv:2305.14314, table 3; repeated in a lecture on efficient tuning (2023)"
_GLUE, _NI = "GLUE, RoBERTa-large (accuracy %)", "Super-NaturalInstructions, T5 (Rouge-L)"
_SIZES = ("80M", "250M", "780M", "3B", "11B")
_FIGURES: dict[str, tuple[float | None, ...]] = {
    "BF16": (88.6, 40.1, 42.1, 48.0, 54.3, 62.0),
    "BF16 replication": (88.6, 40.0, 42.2, 47.3, 54.9, None),
    "LoRA BF16": (88.8, 40.5, 42.6, 47.1, 55.4, 60.7),
    "QLoRA Int8": (88.8, 40.4, 42.9, 45.4, 56.5, 60.7),
    "QLoRA FP4": (88.6, 40.3, 42.4, 47.5, 55.6, 60.9),
    "QLoRA NF4 + DQ": (None, 40.4, 42.7, 47.7, 55.3, 60.9),
}
PUBLISHED = [
    {"method": name, _GLUE: glue, **{f"{_NI} {s}": v for s, v in zip(_SIZES, rest, strict=True)}, "source": _QLORA}
    for name, (glue, *rest) in _FIGURES.items()
]


def rows(scale: Scale) -> Iterator[dict]:
    """One row a recipe, ours and then bitsandbytes'."""
    import torch

    from labkit import models
    from labkit.numerics.quantize.evaluate import RECIPES
    from labkit.tasks import Sentiment

    task = Sentiment.load(scale)
    pretrained = models.load(scale.model, dtype=torch.bfloat16, device=scale.device)
    tuned = [_fine_tuned(scale, task, seed) for seed in SEEDS]
    recipes: dict[str, Callable | None] = {"bf16": None, **RECIPES, **library_recipes()}
    for name, make in recipes.items():
        facts = {"model": scale.model, "method": name, "dtype": "bfloat16"}
        yield facts | _measured(pretrained, tuned, task, make) | _times(name, scale.device)


def _fine_tuned(scale: Scale, task: Any, seed: int) -> torch.nn.Module:
    import torch

    from labkit import models
    from labkit.methods import FullFineTuning
    from labkit.training import train

    model = models.load(scale.model, device=scale.device)
    method = FullFineTuning(learning_rate=scale.learning_rate, compute_dtype=scale.dtype)
    train(model, task, method, steps=scale.steps, batch_size=scale.batch_size, seed=seed, progress=False)
    model.zero_grad(set_to_none=True)
    tuned: torch.nn.Module = model
    return tuned.to(torch.bfloat16).eval()


def _measured(pretrained: torch.nn.Module, tuned: list[torch.nn.Module], task: Any, make: Callable | None) -> dict:
    from labkit.ledger import MIB
    from labkit.numerics.quantize.evaluate import read_text
    from labkit.training import evaluate

    model, linear_bytes, count = _with(pretrained, make)
    whole = stored_bytes(model)  # before the first product: bitsandbytes then moves or repacks what it keeps
    text = read_text(model, task, batch_size=128, reference=None if make is None else pretrained)
    facts = {
        "loss": round(text.loss, 4),
        "perplexity": round(text.perplexity, 2),
        "divergence": None if text.divergence is None else round(text.divergence, 6),
        "bits_per_parameter": round(8 * linear_bytes / count, 4),
        "measured_mib": round(whole / MIB, 2),
    }
    found = [evaluate(_with(each, make)[0], task, batch_size=128)["accuracy"] for each in tuned]
    accuracy = {"accuracy": round(statistics.fmean(found), 4), "accuracy_std": round(statistics.stdev(found), 4)}
    return {**accuracy, **facts}


def _with(model: torch.nn.Module, make: Callable | None) -> tuple[torch.nn.Module, int, int]:
    """A copy with its layers made by `make`, the bytes of those layers' weights, and how many weights they hold."""
    import copy

    from labkit.numerics.quantize import quantize_linears

    model = copy.deepcopy(model)
    made: list[tuple[torch.nn.Module, int]] = []

    def remember(layer: torch.nn.Linear) -> torch.nn.Module:
        new = layer if make is None else make(layer)
        made.append((new, layer.weight.numel()))
        return new

    quantize_linears(model, remember)
    # A bias is no part of the weight; the models here have none.
    return model.eval(), sum(stored_bytes(layer) for layer, _ in made), sum(n for _, n in made)


def _times(name: str, device: str) -> dict:
    """Milliseconds to quantize 100 M values and to read them back, and memory beyond input and output."""
    columns = ("quantize_ms", "dequantize_ms", "quantize_extra_mib", "dequantize_extra_mib")
    if name not in ("nf4+dq", "bitsandbytes.nf4+dq"):
        return dict.fromkeys(columns)
    if device != "cuda":
        return dict.fromkeys(columns) | {"note": "kernel times are taken on a GPU"}
    import torch

    x = torch.randn(TIMED_VALUES, device=device, dtype=torch.bfloat16)
    if name == "nf4+dq":
        from labkit.numerics.quantize import quantize_blockwise

        def forth() -> Any:
            return quantize_blockwise(x, "nf4", 64, double=True)

        def back(stored: Any) -> Any:
            return stored.dequantize()
    else:
        from bitsandbytes import functional

        def forth() -> Any:
            return functional.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type="nf4")

        def back(stored: Any) -> Any:
            return functional.dequantize_4bit(*stored)

    stored = forth()
    undo = partial(back, stored)
    figures = (_median_ms(forth), _median_ms(undo), _extra_mib(forth), _extra_mib(undo))
    return dict(zip(columns, figures, strict=True))


def _median_ms(work: Callable[[], Any], repeats: int = 30) -> float:
    import torch

    times = []
    for i in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 4)


def _extra_mib(work: Callable[[], Any]) -> float:
    """The allocator's peak above what was there before and what stays as the result."""
    import torch

    from labkit.ledger import MIB

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return round((peak - max(after, before)) / MIB, 2)
