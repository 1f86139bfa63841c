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
    """Lost rows against alpha, and the error where no row is lost, one line a variant."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for name, points in sweep.items():
        colour, dash = SOFTMAX_STYLES[name]
        left.plot([a for a, _ in points], [100 * d.lost for _, d in points], color=colour, linestyle=dash, label=name)
        whole = [(a, d.error) for a, d in points if d.lost == 0]  # the rows that are left would be another attention
        right.plot([a for a, _ in whole], [e for _, e in whole], color=colour, linestyle=dash)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("α")
    left.set_yscale("symlog", linthresh=0.1)
    left.set(ylim=(-0.02, 300), yticks=[0, 0.1, 1, 10, 100], yticklabels=["0", "0.1", "1", "10", "100"])
    left.set_ylabel("output rows lost (%)")
    right.set_yscale("log")
    right.set_ylabel("relative error, where no row is lost")
    for ax, words in zip((left, right), alpha_words(sweep), strict=True):
        ax.set_title(words)
    left.legend(fontsize="small")
    return fig


def alpha_words(sweep: Mapping[str, list[tuple[float, Damage]]]) -> tuple[str, str]:
    """From which alpha on line 2 loses no row, and from which on its error has doubled."""
    whole = [(alpha, found.error) for alpha, found in sweep["line 2"] if found.lost == 0]
    if not whole:
        return "Line 2 loses rows at every α", "No error to compare"
    least = min(error for _, error in whole)
    worse = next((alpha for alpha, error in whole if error > 2 * least and alpha > whole[0][0]), None)
    price = f"Its error has doubled at α = {_power(worse)}" if worse else "No α is too large"
    return f"Line 2 loses no row from α = {_power(whole[0][0])} on", price


def _power(number: float) -> str:
    exponent = np.log2(number)
    return f"2^{exponent:.0f}" if number > 1000 and exponent == round(exponent) else f"{number:g}"


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
    return f"First layer's gradient over the last's: {_ratios(profiles)}"


def _ratios(profiles: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{norm} {_times(p[0] / p[-1])}" for norm, p in profiles.items() if p[-1] > 0)


def ratio_figure(profiles: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    """First layer's gradient over the last layer's against depth, one line a normalization."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    depths = sorted(profiles)
    for norm in profiles[depths[-1]]:
        colour, dash = NORM_STYLES[norm]
        ratios = [profiles[layers][norm][0] / profiles[layers][norm][-1] for layers in depths]
        ax.plot(depths, ratios, color=colour, linestyle=dash, marker="o", markersize=4, label=norm)
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, [str(layers) for layers in depths])
    ax.set(yscale="log", xlabel="layers", ylabel="first layer's gradient / last's")
    ax.set_title(f"{depths[-1]} layers, first over last: {_ratios(profiles[depths[-1]])}")
    ax.legend()
    return fig


def spread_figure(spreads: Mapping[str, Sequence[float]], when: str) -> Figure:
    """Share of the stream that differs between places, from the input (0) through the layers, one line a norm."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for norm, values in spreads.items():
        colour, dash = NORM_STYLES[norm]
        ax.plot(range(len(values)), values, color=colour, linestyle=dash, label=norm)
    ax.set(yscale="log", xlabel="layer (0 is the input)", ylabel=f"share that differs, {when}")
    ends = ", ".join(f"{norm} {_times(values[-1])}" for norm, values in spreads.items())
    ax.set_title(f"What differs between places, at the end: {ends}")
    ax.legend()
    return fig


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
    ax.text(1, bar, "letter frequencies alone", va="bottom", fontsize="small")  # where all losses are far above
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
    norms = {n: [m for m in NORM_STYLES if any((r["layers"], r["norm"]) == (n, m) for r in rows)] for n in depths}
    settings = sorted({(row["learning_rate"], row["warmup_steps"]) for row in rows})
    heights = [len(norms[layers]) for layers in depths]
    size = (7.8, 0.6 + 0.6 * len(depths) + 0.34 * sum(heights))
    fig, axes = plt.subplots(len(depths), 1, figsize=size, squeeze=False, height_ratios=heights)
    for ax, layers in zip(axes[:, 0], depths, strict=True):
        here = [row for row in rows if row["layers"] == layers]
        for row in here:
            x, y = settings.index((row["learning_rate"], row["warmup_steps"])), norms[layers].index(row["norm"])
            name, colour = fate(row)
            ax.add_patch(plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=PALETTE[colour], alpha=0.35))
            loss = "–" if row["loss"] is None else f"{row['loss']:.2f}"
            ax.text(x, y, f"{name} {loss}", ha="center", va="center", fontsize="small")
        ax.set(xlim=(-0.5, len(settings) - 0.5), ylim=(len(norms[layers]) - 0.5, -0.5))
        ax.set_yticks(range(len(norms[layers])), norms[layers])
        labels = [f"rate {rate:g}\n{f'warm-up {w}' if w else 'no warm-up'}" for rate, w in settings]
        ax.set_xticks(range(len(settings)), labels if layers == depths[-1] else [""] * len(settings))
        ax.grid(visible=False)
        ax.set_title(f"{layers} layers. {_learning(here)}", fontsize="small")
    return fig


def fate(row: Mapping[str, Any]) -> tuple[str, str]:
    """What became of a recorded setting, and its colour; where seeds differ, with how many of them."""
    seeds = row["learns"] + row["stuck"] + row["diverged"]
    for outcome, colour in (("diverged", "red"), ("stuck", "orange")):
        if row[outcome]:
            return _counted(outcome, row[outcome], seeds), colour
    return "learns", "blue"


def _counted(name: str, count: int, seeds: int) -> str:
    return name if count == seeds else f"{name} {count}/{seeds}"


def _learning(rows: Sequence[Mapping[str, Any]]) -> str:
    """Settings in which every seed learned, one clause a normalization."""
    parts = []
    for norm in NORM_STYLES:
        fates = [fate(row)[0] for row in rows if row["norm"] == norm]
        if fates:
            parts.append(f"{norm} {sum(f == 'learns' for f in fates)}/{len(fates)}")
    return f"All seeds learn: {', '.join(parts)}"


def outcome_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each depth, in how many settings of a normalization every seed learned, and how the others are called."""
    parts = []
    for layers in sorted({row["layers"] for row in rows}):
        here = [row for row in rows if row["layers"] == layers]
        others = sorted({f"{row['norm']} {fate(row)[0]}" for row in here if fate(row)[0] != "learns"})
        parts.append(f"{layers} layers. {_learning(here)}. Others: {', '.join(others) or 'none'}")
    return ". ".join(parts)


def update_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Final loss against the size of the first update, a mark for each recorded setting."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    for (norm, (colour, _)), mark in zip(NORM_STYLES.items(), "osD^", strict=True):
        here = [row for row in rows if row["norm"] == norm and row["loss"] is not None]
        if here:
            place = [row["update"] for row in here], [row["loss"] for row in here]
            ax.scatter(*place, color=colour, marker=mark, s=28, label=norm)
    bar = rows[0]["unigram_loss"]
    ax.axhline(bar, color=PALETTE["grey"], linewidth=1)
    place_of_words = ax.get_yaxis_transform()  # across the axis, whatever its scale
    ax.text(0.01, bar, "letter frequencies alone", transform=place_of_words, va="bottom", fontsize="small")
    ax.set(xscale="log", xlabel="change of the output by the first step", ylabel="loss at the end (nats a byte)")
    ax.set_title(update_words(rows))
    ax.legend(fontsize="small")
    return fig


def update_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The smallest first update of a setting in which no seed learned, and the largest where all did."""
    lost = [row["update"] for row in rows if not row["learns"]]
    fine = [row["update"] for row in rows if fate(row)[0] == "learns"]
    parts = [f"as little as {min(lost):.2g} and stuck"] if lost else []
    parts += [f"as much as {max(fine):.2g} and learning"] if fine else []
    return f"First update: {', '.join(parts)}"
