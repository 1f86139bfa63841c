"""Figures of lesson 09 on Adam in 8 bits: what a code book makes of the moments, and the losses of training with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from labkit.show.quantization import style_of
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.numerics.quantize import CodeBook
    from labkit.run import Run

# The line that others lie upon.
_BROAD: dict[str, Any] = {"linewidth": 5, "alpha": 0.35, "linestyle": "-"}


def moment_figure(moment: Tensor, books: Mapping[str, CodeBook]) -> Figure:
    """Adam's second moment over its block's largest value, and what each code book has there.

    Args:
        moment: values divided by their block's largest; zeros are left out.
        books: label to code book. Its positive numbers are ticks; hatched is what it turns into zero.
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.4, 4.2), sharex=True, height_ratios=(3, 1.4))
    logs = moment[moment > 0].log10().cpu().numpy()
    # Up to half of its smallest positive number a book has nothing but zero (a tie goes down).
    edges = {name: float((book.values[book.values > 0].min() / 2).log10()) for name, book in books.items()}
    low = max(min(float(np.quantile(logs, 0.0001)), *edges.values()) - 0.5, -12.0)
    top.hist(logs, 80, (low, 0), weights=np.full(len(logs), 100 / len(logs)), color=PALETTE["sky"])
    top.set(ylabel="share of the values (%)")
    for place, (name, book) in enumerate(books.items()):
        values = book.values[book.values > 0].log10().cpu().numpy()
        bottom.barh(place, edges[name] - low, 0.8, low, facecolor="none", edgecolor=PALETTE["grey"], hatch="///")
        bottom.vlines(values, place - 0.4, place + 0.4, color=style_of(name)[0], linewidth=0.7)
    lost = {name: 100 * float((logs <= edge).mean()) for name, edge in edges.items()}
    top.set_title("Turned into zero: " + ", ".join(f"{share:.2g} % by {name}" for name, share in lost.items()))
    bottom.set(xlabel="log10 of second moment over its block's largest (hatched: becomes zero)", xlim=(low, 0.05))
    bottom.set_yticks(range(len(books)), list(books))
    bottom.grid(visible=False)
    return fig


def optimizer_curves(runs: Mapping[str, Run], title: str, window: int = 6) -> Figure:
    """Training loss of a few runs as moving means, from the first full window on; runs that agree lie on each other.

    Args:
        runs: label to run; the first is drawn broad, so that one upon it shows.
        title: what was found.
        window: steps of the moving mean.
    """
    import matplotlib.pyplot as plt

    from labkit.show.plots import smoothed

    fig, axis = plt.subplots()
    for place, (name, run) in enumerate(runs.items()):
        line = smoothed(run.losses, window)[window - 1 :]
        axis.plot(range(window, len(run.losses) + 1), line, label=name, **_BROAD if place == 0 else {"linewidth": 1.5})
    axis.set(xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)", title=title)
    axis.locator_params(axis="x", integer=True)
    axis.legend()
    return fig


def recorded_curves(rows: Sequence[dict], window: int = 10) -> Figure:
    """The recorded table `adam8bit`: mean loss curves, and the band from the lowest to the highest 32-bit seed.

    Args:
        rows: of the table, 32-bit AdamW first.
        window: steps of the recorded moving means, which start with fewer: those are left out.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    base, whole = rows[0], slice(window - 1, None)
    steps = range(1, len(base["curve"]) + 1)[whole]
    label = f"{base['method']}, lowest to highest seed"
    low, high = (base[column][whole] for column in ("curve_low", "curve_high"))
    axis.fill_between(steps, low, high, color=PALETTE["sky"], alpha=0.3, label=label)
    for place, row in enumerate(rows):
        axis.plot(steps, row["curve"][whole], label=row["method"], **_BROAD if place == 0 else {"linewidth": 1.5})
    axis.set(xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)")
    gap, spread = max(row["gap_nats"] for row in rows[1:]), base["spread_nats"]
    axis.set_title(f"8-bit states: at most {gap:.3f} nats from 32-bit; its seeds span {spread:.2f} on average")
    axis.legend()
    return fig
