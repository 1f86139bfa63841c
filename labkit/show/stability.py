"""Figures and widgets of lesson 03: scores against fp16's range, gradients by layer, what became of deep stacks.

Figure functions return a matplotlib Figure for `labkit.show.figure`; titles are computed from what they draw. The two
widgets that repaint them are in `labkit.show.stability_widgets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.numerics.attention_softmax import LIBRARY, Damage, attention_scores, damage
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from labkit.numerics.depth import DepthRun

# One colour and one dash for each normalization in every figure of the lesson.
NORM_STYLES: dict[str, tuple[str, Any]] = {
    "pre-ln": (PALETTE["blue"], "-"),
    "post-ln": (PALETTE["red"], "--"),
    "deepnorm": (PALETTE["green"], "-."),
    "deepnorm-glm": (PALETTE["purple"], ":"),
}
SOFTMAX_STYLES: dict[str, tuple[str, Any]] = {
    "line 2, divided late": (PALETTE["red"], "--"),
    "line 1": (PALETTE["blue"], "-"),
    "line 2": (PALETTE["orange"], "-."),
    LIBRARY: (PALETTE["black"], ":"),
}


def score_histogram(q: Tensor, k: Tensor, alpha: float = 1.0, factor: float = 1.0) -> Figure:
    """Magnitudes of the causal scores `factor`·q·k/(alpha·sqrt(d)), before fp16 rounds them, against fp16's range."""
    import matplotlib.pyplot as plt

    size = _magnitudes(q, k, alpha, factor)
    over, below = float(np.mean(size >= 65520)), float(np.mean(size < 2.0**-14))
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    bins = np.arange(-30, 31, 1.0).tolist()
    logs = np.clip(np.log2(np.maximum(size, 2.0**-30)), -30, 29.9)
    ax.hist(logs, bins, weights=np.full(len(size), 100 / len(size)), color=PALETTE["blue"])
    marks = [(-24, "smallest\nsubnormal"), (-14, "smallest\nnormal"), (16, "overflow")]
    top = 1.25 * ax.get_ylim()[1]
    for place, name in marks:
        ax.axvline(place, color=PALETTE["grey"], linestyle="--", linewidth=1)
        ax.text(place + 0.3, top, name, fontsize="small", va="top")
    ax.set(xlim=(-30, 30), ylim=(0, top), xlabel="log2 of the score's magnitude", ylabel="share of scores (%)")
    ax.set_title(f"α = {alpha:g}: {percent(over)} of the scores overflow, {percent(below)} are below fp16's normals")
    return fig


def _magnitudes(q: Tensor, k: Tensor, alpha: float, factor: float) -> np.ndarray:
    import torch

    scores = attention_scores(q.double(), k.double(), alpha) * factor
    read = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores[read].abs().cpu().numpy()


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def alpha_sweep(
    q: Tensor, k: Tensor, v: Tensor, factor: float, alphas: Sequence[float]
) -> dict[str, list[tuple[float, Damage]]]:
    """What fp16 does at each alpha to attention whose scores are `factor` times the real ones, by variant."""
    root = factor**0.5
    return {name: [(a, damage(name, q * root, k * root, v, a)) for a in alphas] for name in SOFTMAX_STYLES}


def alpha_figure(sweep: Mapping[str, list[tuple[float, Damage]]]) -> Figure:
    """Lost rows and the error of the others against alpha, one line a variant."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for name, points in sweep.items():
        colour, dash = SOFTMAX_STYLES[name]
        alphas = [a for a, _ in points]
        left.plot(alphas, [100 * d.lost for _, d in points], color=colour, linestyle=dash, label=name)
        right.plot(alphas, [d.error for _, d in points], color=colour, linestyle=dash)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("α")
    left.set_ylabel("output rows lost (%)")
    right.set_yscale("log")
    right.set_ylabel("relative error of the other rows")
    saved = min((a for a, d in sweep["line 2"] if d.lost == 0), default=None)
    left.set_title(f"No row is lost from α = {saved:g} on" if saved else "Rows are lost at every α")
    right.set_title("What α does to the rest")
    left.legend(fontsize="small")
    return fig


def profile_figure(profiles: Mapping[str, Sequence[float]], title: str = "", when: str = "before training") -> Figure:
    """Gradient norm by layer, one line a normalization, on a logarithmic axis."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for norm, values in profiles.items():
        colour, dash = NORM_STYLES[norm]
        ax.plot(range(1, len(values) + 1), values, color=colour, linestyle=dash, label=norm)
    ax.set(yscale="log", xlabel="layer (1 is next to the input)", ylabel=f"gradient norm, {when}")
    ax.set_title(title or profile_words(profiles))
    ax.legend()
    return fig


def profile_words(profiles: Mapping[str, Sequence[float]]) -> str:
    """First against last layer, one clause a normalization."""
    clauses = [f"{norm} {_times(values[0] / values[-1])}" for norm, values in profiles.items() if values[-1] > 0]
    return "First layer's gradient over the last's: " + ", ".join(clauses)


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if 0.01 <= ratio < 1000 else f"{ratio:.0e}"


def loss_figure(runs: Sequence[DepthRun], bar: float) -> Figure:
    """Loss by step, smoothed over five steps, one line a normalization (a second rate is thinner), and the bar."""
    import matplotlib.pyplot as plt

    from labkit.show.plots import smoothed

    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    rates = sorted({run.learning_rate for run in runs}, reverse=True)
    for run in runs:
        colour, dash = NORM_STYLES[run.config.norm]
        line = smoothed(run.losses, 5)
        width = 1.8 if run.learning_rate == rates[0] else 0.9
        label = f"{run.config.norm}, rate {run.learning_rate:g}"
        ax.plot(range(1, len(line) + 1), line, color=colour, linestyle=dash, linewidth=width, label=label)
    ax.axhline(bar, color=PALETTE["grey"], linewidth=1)
    ax.text(len(runs[0].losses), bar, "letter frequencies alone", ha="right", va="bottom", fontsize="small")
    ax.set(xlabel="step", ylabel="loss (nats a byte)")
    ax.set_title(f"{runs[0].config.layers} layers: {verdict_words(runs)}")
    ax.legend(fontsize="small")
    return fig


def verdict_words(runs: Sequence[DepthRun]) -> str:
    """Which normalizations learn, are stuck, or diverge; "partly" where runs of one differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(run.config.norm, set()).add(run.outcome)
    return ", ".join(f"{n} {' or '.join(sorted(o))}" for n, o in found.items())


def outcome_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The recorded depth rows: a panel a depth, a cell a setting with its final loss, coloured by what became of it."""
    import matplotlib.pyplot as plt

    depths = sorted({row["layers"] for row in rows})
    norms = [n for n in NORM_STYLES if any(row["norm"] == n for row in rows)]
    settings = sorted({(row["learning_rate"], row["warmup_steps"]) for row in rows})
    shape = (len(depths), 1)
    fig, axes = plt.subplots(*shape, figsize=(7.6, 0.6 + len(depths) * (0.55 + 0.36 * len(norms))), squeeze=False)
    for ax, layers in zip(axes[:, 0], depths, strict=True):
        for row in (r for r in rows if r["layers"] == layers):
            x, y = settings.index((row["learning_rate"], row["warmup_steps"])), norms.index(row["norm"])
            name, colour = _fate(row)
            ax.add_patch(plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=PALETTE[colour], alpha=0.35))
            loss = "–" if row["loss"] is None else f"{row['loss']:.2f}"
            ax.text(x, y, f"{name} {loss}", ha="center", va="center", fontsize="small")
        ax.set(xlim=(-0.5, len(settings) - 0.5), ylim=(len(norms) - 0.5, -0.5))
        ax.set_yticks(range(len(norms)), norms)
        labels = [f"{rate:g}\n{'no warm-up' if not w else f'warm-up {w}'}" for rate, w in settings]
        ax.set_xticks(range(len(settings)), labels if layers == depths[-1] else [""] * len(settings))
        ax.grid(visible=False)
        ax.set_title(f"{layers} layers")
    axes[-1, 0].set_xlabel("learning rate, warm-up steps")
    return fig


def _fate(row: Mapping[str, Any]) -> tuple[str, str]:
    """What became of a setting's seeds: the name of the worst, and its colour."""
    if row["diverged"]:
        return f"diverged {row['diverged']}×", "red"
    if row["stuck"]:
        return f"stuck {row['stuck']}×", "orange"
    return "learns", "blue"


def outcome_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each depth and normalization, in how many settings every seed learned."""
    parts = []
    for layers in sorted({row["layers"] for row in rows}):
        for norm in NORM_STYLES:
            here = [row for row in rows if row["layers"] == layers and row["norm"] == norm]
            if here:
                good = sum(_fate(row)[0] == "learns" for row in here)
                parts.append(f"{norm} at {layers} layers in {good} of {len(here)}")
    return "; ".join(parts)
