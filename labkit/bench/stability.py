"""Table `stability`: fp16 softmax on real attention, and deep stacks by normalization, learning rate and warm-up.

Rows with `part` "softmax" attend with queries, keys and values of the scale's model on one real sentence, both enlarged
so that scores grow by `score_scale` (labkit.numerics.attention_softmax). Rows with `part` "depth" train byte language
models of width 64 (labkit.numerics.depth): means over the seeds, and counts of seeds by what became of them. All seeds,
learning rates and warm-ups of a depth and a norm are trained at once, and `step_ms` and `peak_allocated_mib` belong to
that whole group of `group` stacks. A CPU, which takes some twenty times as long, trains deep stacks at one rate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.numerics.depth import DepthRun
    from labkit.scale import Scale

TITLE = "Training stability: attention softmax in fp16, and deep stacks by normalization."
SEEDS = (0, 1, 2)
UNITS = {
    "overflow_share": "share",
    "lost_share": "share",
    "loss_start": "nats",
    "loss": "nats",
    "loss_std": "nats",
    "unigram_loss": "nats",
    "step_ms": "ms",
    "peak_allocated_mib": "MiB",
}
PUBLISHED = [
    {
        "model": "glm-130b",
        "layers": 70,
        "norm": "deepnorm-glm",
        "embedding_alpha": 0.1,
        "note": "embedding gradients several orders of magnitude above other layers' early on; attention scores beyond "
        "fp16's range; Pre-LN, Post-LN and Sandwich-LN runs did not stay stable",
        "source": "Zeng et al. 2023, arXiv:2210.02414, sections 2.1 and 3",
    },
    {
        "model": "deepnet",
        "layers": 1000,
        "norm": "deepnorm",
        "note": "2,500 sub-layers trained; 200 layers with 3.2B parameters beat 48 layers with 12B by 5 BLEU points",
        "source": "Wang et al. 2022, arXiv:2203.00555, abstract",
    },
]
NORMS = ("pre-ln", "post-ln", "deepnorm")
GLM_LAYERS = (12, 64)  # GLM-130B's constants are measured at the depth nearest to its 70 layers
RATES = (3e-4, 1e-3, 3e-3)
SCORE_SCALES = (1, 4, 16, 64, 256, 1024, 4096)
ALPHA = 64.0

# By scale: depths, steps, warm-ups. Width 64, 8 pieces of 64 bytes a step. 8 layers are the control.
PLANS: dict[str, tuple[Sequence[int], int, Sequence[int]]] = {
    "tiny": ((4, 12), 60, (0, 20)),
    "small": ((8, 64, 128, 256), 240, (0, 80)),
    "full": ((8, 64, 128, 256), 240, (0, 80)),
}


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """Softmax rows first (seconds), then one row for each depth, norm, learning rate and warm-up; not those `done`."""
    if not any(row["part"] == "softmax" for row in done):
        yield from softmax_rows(scale)
    finished = {(row["layers"], row["norm"]) for row in done if row["part"] == "depth"}
    depths, steps, warmups = PLANS[scale.name]
    rates = RATES[1:2] if scale.device == "cpu" and scale.name != "tiny" else RATES
    for layers in depths:
        for norm in (*NORMS, "deepnorm-glm") if layers in GLM_LAYERS else NORMS:
            if (layers, norm) not in finished:
                yield from depth_rows(layers, norm, steps, warmups, scale.device, rates)


def softmax_rows(scale: Scale) -> Iterator[dict]:
    """One row for each score scale and each variant of the softmax, over all heads of all layers."""
    import torch

    from labkit import models
    from labkit.numerics.attention_softmax import LIBRARY, VARIANTS, attention_inputs, damage
    from labkit.tasks import Sentiment

    model = models.load(scale.model, device=scale.device)
    task = Sentiment.load(scale)
    batch = task.batch(task.test[:1]).to(scale.device)
    caught = attention_inputs(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    # The layers become one more dimension of heads.
    q, k, v = (torch.cat(parts, dim=1) for parts in zip(*caught, strict=True))
    products = (q.double() @ k.double().mT).tril()
    largest = products.abs().max().item()
    for factor in SCORE_SCALES:
        for name in (*VARIANTS, LIBRARY):
            alpha = ALPHA if VARIANTS.get(name, (False,))[0] else None
            found = damage(name, q * factor**0.5, k * factor**0.5, v, alpha or 1.0)
            yield {
                "part": "softmax",
                "model": scale.model,
                "dtype": "float16",
                "softmax": name,
                "score_scale": factor,
                "alpha": alpha,
                "largest_product": round(largest * factor, 1),
                "overflow_share": _rounded(found.overflow),
                "lost_share": _rounded(found.lost),
                "error": _rounded(found.error),
            }


def depth_rows(
    layers: int, norm: str, steps: int, warmups: Sequence[int], device: str, rates: Sequence[float] = RATES
) -> Iterator[dict]:
    """Train one group and give one row for each of its learning rates and warm-ups."""
    import torch

    from labkit.numerics.depth import train_stack
    from labkit.numerics.stack import StackConfig

    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = StackConfig(layers, norm)
    runs = train_stack(config, SEEDS, rates, steps=steps, warmups=warmups, device=device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None
    for rate in rates:
        for warmup in warmups:
            chosen = [r for r in runs if (r.learning_rate, r.warmup) == (rate, warmup)]
            yield {**_depth_row(chosen), "steps": steps, "group": len(runs), "peak_allocated_mib": _rounded(peak)}


def _depth_row(runs: list[DepthRun]) -> dict[str, Any]:
    """Means over the seeds of one setting, counts of outcomes, and two short curves."""
    from labkit.numerics.depth import OUTCOMES, unigram_loss

    first = runs[0]
    layers = first.config.layers
    stops = [r.stopped_at for r in runs if r.stopped_at is not None]
    row: dict[str, Any] = {
        "part": "depth",
        "layers": layers,
        "norm": first.config.norm,
        "learning_rate": first.learning_rate,
        "warmup_steps": first.warmup,
        "loss_start": _mean(r.start for r in runs),
        "loss": _mean(r.loss for r in runs),
        "loss_std": _std([r.loss for r in runs]),
        "unigram_loss": _rounded(unigram_loss()),
        **{outcome: sum(r.outcome == outcome for r in runs) for outcome in OUTCOMES},
        "stopped_at": min(stops) if stops else None,
        "update": _mean(r.update for r in runs),
    }
    places = {"first": 0, "middle": layers // 2, "last": layers - 1}
    for when in ("first", "last"):
        profiles = [getattr(r, f"gradients_{when}") for r in runs]
        suffix = "" if when == "first" else "_end"
        for name, at in places.items():
            row[f"grad_{name}{suffix}"] = _mean(p[at] for p in profiles)
    shown = sorted({round(i * (layers - 1) / 16) for i in range(17)})
    row["layer"] = [i + 1 for i in shown]
    row["grad_by_layer"] = [_mean(r.gradients_first[i] for r in runs) for i in shown]
    row["grad_by_layer_end"] = [_mean(r.gradients_last[i] for r in runs) for i in shown]
    marks = sorted({round(i * (len(first.losses) - 1) / 15) for i in range(16)})
    row["step"] = [i + 1 for i in marks]
    row["loss_by_step"] = [_mean(r.losses[i] for r in runs) for i in marks]
    size = {"width": first.config.width, "seq_len": first.config.seq_len, "batch": 8}
    return {**row, **size, "step_ms": _rounded(first.step_ms)}


def _mean(values) -> float | None:
    return _rounded(statistics.fmean(values))


def _std(values: list[float]) -> float | None:
    """None where a run has diverged: `statistics.stdev` fails on what is not a number."""
    return _rounded(statistics.stdev(values)) if all(map(math.isfinite, values)) else None


def _rounded(value: float | None) -> float | None:
    """Four significant digits; None for what is no finite number, which JSON does not have."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
