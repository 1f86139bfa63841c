"""Figures of lesson 03 on attention: scores against fp16's range, and what alpha saves and costs.

Figure functions return a matplotlib Figure for `labkit.show.figure`; titles are computed from what they draw. Deep
stacks are in `labkit.show.stability_depth`, the two widgets that repaint figures in `labkit.show.stability_widgets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.numerics.attention_softmax import LIBRARY, Damage, attention_scores, damage
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

SOFTMAX_STYLES: dict[str, tuple[str, Any]] = {
    "line 2, divided late": (PALETTE["red"], "--"),
    "line 1": (PALETTE["blue"], "-"),
    "line 2": (PALETTE["orange"], "-."),
    LIBRARY: (PALETTE["black"], ":"),
}


def score_histogram(
    q: Tensor, k: Tensor, alpha: float = 1.0, factor: float = 1.0, lost: Mapping[str, float] | None = None
) -> Figure:
    """Magnitudes of the causal scores `factor`·q·k/(alpha·sqrt(d)), before fp16 rounds them, against fp16's range.

    Args:
        lost: share of rows lost by each variant, drawn beside the histogram.
    """
    import matplotlib.pyplot as plt

    size = _magnitudes(q, k, alpha, factor)
    over, below = float(np.mean(size >= 65520)), float(np.mean(size < 2.0**-14))
    panels = 2 if lost else 1
    fig, axes = plt.subplots(
        1, panels, figsize=(8.6 if lost else 7.2, 3.2), squeeze=False, width_ratios=(5, 2)[:panels]
    )
    ax = axes[0, 0]
    bins = np.arange(-30, 31, 1.0).tolist()
    logs = np.clip(np.log2(np.maximum(size, 2.0**-30)), -30, 29.9)
    ax.hist(logs, bins, weights=np.full(len(size), 100 / len(size)), color=PALETTE["blue"])
    marks = [(-24, "smallest\nsubnormal"), (-14, "smallest\nnormal"), (16, "overflow")]
    top = 1.25 * ax.get_ylim()[1]
    for place, name in marks:
        ax.axvline(place, color=PALETTE["grey"], linestyle="--", linewidth=1)
        ax.text(place + 0.3, top, name, fontsize="small", va="top")
    ax.set(xlim=(-30, 30), ylim=(0, top), xlabel="log2 of the score's magnitude", ylabel="share of scores (%)")
    ax.set_title(f"α = {alpha:g}: {percent(over)} of the scores become ±∞, {percent(below)} are below the normals")
    if lost:
        _lost_bars(axes[0, 1], lost)
    return fig


def _lost_bars(ax: Axes, lost: Mapping[str, float]) -> None:
    places = range(len(lost))
    ax.barh(places, [100 * share for share in lost.values()], color=PALETTE["red"])
    for place, share in zip(places, lost.values(), strict=True):
        ax.text(100 * share + 2, place, percent(share), va="center", fontsize="small")
    ax.set_yticks(places, list(lost), fontsize="small")
    ax.set(xlim=(0, 130), xticks=[0, 50, 100], xlabel="output rows lost (%)", ylim=(len(lost) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")


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
    """Lost rows against alpha, and the error where no row is lost, one line a variant, a mark a measurement."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.6))
    for name, points in sweep.items():
        colour, dash = SOFTMAX_STYLES[name]
        style = {"color": colour, "linestyle": dash, "marker": "o", "markersize": 2.5}
        left.plot([a for a, _ in points], [100 * d.lost for _, d in points], label=name, **style)
        whole = [(a, d.whole_error) for a, d in points if d.whole_error is not None]
        right.plot([a for a, _ in whole], [e for _, e in whole], **style)
    alphas = [a for a, _ in next(iter(sweep.values()))]
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(alphas[:: max(1, len(alphas) // 8)])
        ax.set_xlabel("α")
    left.set_yscale("symlog", linthresh=0.1)
    left.set(ylim=(-0.02, 300), yticks=[0, 0.1, 1, 10, 100], yticklabels=["0", "0.1", "1", "10", "100"])
    left.set_ylabel("output rows lost (%)")
    right.set_yscale("log")
    right.set_ylabel("relative error, where no row is lost")
    absent = [name for name, points in sweep.items() if all(d.lost for _, d in points)]
    if absent:
        words = f"not drawn: {', '.join(absent)}\n(rows lost at every α)"
        right.text(0.03, 0.97, words, transform=right.transAxes, va="top", fontsize="small")
    for ax, words in zip((left, right), alpha_words(sweep), strict=True):
        ax.set_title(words)
    left.legend(fontsize="small")
    return fig


def alpha_words(sweep: Mapping[str, list[tuple[float, Damage]]]) -> tuple[str, str]:
    """The first measured alpha at which line 2 loses no row, and from which on its error is over twice the one there.

    Single points below that may lie higher or lower: a few rows with two scores that are nearly equal decide.
    """
    whole = [(alpha, found.error) for alpha, found in sweep["line 2"] if found.lost == 0]
    if not whole:
        return "Line 2 loses rows at every α", "No error to compare"
    first, start = whole[0]
    worse = None
    for alpha, error in reversed(whole):
        if error <= 2 * start:
            break
        worse = alpha
    price = f"From α = {_power(worse)} on line 2's error has doubled" if worse else "Line 2: no α is too large"
    return f"Line 2 loses no row from α = {_power(first)} on", price


def _power(number: float) -> str:
    exponent = np.log2(number)
    return f"2^{exponent:.0f}" if number > 1000 and exponent == round(exponent) else f"{number:g}"
