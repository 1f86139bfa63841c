"""Figures of lesson 09: outlier columns, code books, blocks of weights, bits against error, Adam's moments.

Each function returns a matplotlib Figure for `labkit.show.figure`; the lesson supplies the numbers. The widget is in
`labkit.show.blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.numerics.quantize import CodeBook
    from labkit.run import Run

# One colour and one dash for each way to store a weight, in every figure.
_STYLES: dict[str, tuple[str, Any]] = {
    "int8": ("blue", "-"),
    "int4": ("orange", "--"),
    "fp4": ("purple", "-."),
    "nf4": ("green", "-"),
    "dynamic8": ("red", ":"),
}


def style_of(name: str) -> tuple[str, Any]:
    """Colour and dash of a code book or a recipe, by the first word that it shares with a known one."""
    for known, (colour, dash) in _STYLES.items():
        if known in name:
            return PALETTE[colour], dash
    return PALETTE["grey"], "-"


def column_figure(maxima: Mapping[str, Tensor], threshold: float) -> Figure:
    """The largest magnitude of every input column, largest first, one line a layer, with the threshold.

    Args:
        maxima: layer name to the columns' largest magnitudes.
        threshold: from which on a column counts as an outlier.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    for name, values in maxima.items():
        ranked = values.sort(descending=True).values.cpu().numpy()
        axis.semilogy(np.arange(len(ranked)) / len(ranked) * 100, ranked, label=name)
    axis.axhline(threshold, color=PALETTE["black"], linewidth=1)
    axis.text(100, threshold * 1.05, f"threshold {threshold:g}", ha="right", va="bottom", fontsize="small")
    name, values = max(maxima.items(), key=lambda pair: float(pair[1].max() / pair[1].median()))
    axis.set(xlabel="columns of the input, largest first (%)", ylabel="largest magnitude in the column")
    axis.set_title(f"In {name} one column reaches {float(values.max() / values.median()):.0f} times the median column")
    axis.legend()
    return fig


def threshold_figure(curves: Mapping[str, Sequence[dict]]) -> Figure:
    """Error of an int8 product against the outlier threshold, and the share of columns that go in 16 bits.

    Args:
        curves: input's name to rows of `threshold`, `error` (relative) and `columns` (share).
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 4.8), sharex=True, height_ratios=(3, 2))
    for name, rows in curves.items():
        at = [row["threshold"] for row in rows]
        top.loglog(at, [100 * row["error"] for row in rows], marker="o", label=name)
        bottom.semilogx(at, [100 * row["columns"] for row in rows], marker="o")
    for axis in (top, bottom):
        axis.axvline(6.0, color=PALETTE["black"], linewidth=1)
    top.text(6.2, top.get_ylim()[1], "6.0", va="top", fontsize="small")
    top.set(ylabel="error of the product (%)")
    bottom.set(xlabel="threshold: columns with a larger magnitude go in 16 bits", ylabel="16-bit columns (%)")
    spared = {n: max(r["error"] for r in rows) / min(r["error"] for r in rows) for n, rows in curves.items()}
    name = max(spared, key=lambda n: spared[n])
    top.set_title(f"A lower threshold costs columns and saves error, up to {spared[name]:.1f} times ({name})")
    top.legend()
    return fig


def book_lines(books: Sequence[CodeBook]) -> Figure:
    """Every number of each code book as a tick on a line, under the density of normal weights in blocks of 64."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        len(books) + 1, 1, figsize=(7.4, 1.5 + 0.75 * len(books)), sharex=True, height_ratios=[1.6] + [1] * len(books)
    )
    blocks = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    # The largest of each block is ±1 by construction; without it the density is smooth.
    axes[0].hist(scaled[scaled.abs() < 1].numpy(), bins=80, density=True, color=PALETTE["sky"])
    axes[0].set_yticks([])
    axes[0].set_ylabel("normal\nweights", rotation=0, ha="right", va="center")
    for axis, book in zip(axes[1:], books, strict=True):
        values = book.values.unique().cpu().numpy()
        colour, _ = style_of(book.name)
        axis.vlines(values, 0, 1, color=colour, linewidth=2 if len(values) < 20 else 0.6)
        axis.set_yticks([])
        axis.set_ylabel(f"{book.name}\n{len(values)} values", rotation=0, ha="right", va="center")
    for axis in axes:
        axis.grid(visible=False)
        axis.spines["left"].set_visible(False)
    axes[0].set_title("NF4 puts its numbers where normal weights are")
    axes[-1].set_xlabel("weight, divided by the largest magnitude of its block")
    return fig


def block_error_figure(rows: Sequence[dict]) -> Figure:
    """Relative error against stored bits a weight, one line a code book, one point a block size.

    Args:
        rows: of `book`, `block_size`, `bits` and `error` (relative).
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    for name in dict.fromkeys(row["book"] for row in rows):
        mine = [row for row in rows if row["book"] == name]
        colour, dash = style_of(name)
        axis.plot([r["bits"] for r in mine], [100 * r["error"] for r in mine], marker="o", ms=4, color=colour,
                  linestyle=dash, label=name)  # fmt: skip
    best = min((row for row in rows if row["block_size"] == 64), key=lambda row: row["error"])
    axis.annotate(
        "blocks of 64", (best["bits"], 100 * best["error"]), (12, -14), textcoords="offset points", fontsize="small"
    )
    axis.set(xlabel="stored bits a weight, with the constants", ylabel="error of the weights (%)")
    axis.set_title(f"At blocks of 64 {best['book']} errs least: {100 * best['error']:.1f} %")
    axis.legend()
    return fig


def divergence_bars(rows: Sequence[dict]) -> Figure:
    """How far each recipe moves the model's predictions, on a logarithmic axis, with its bits a weight.

    Args:
        rows: of `method`, `divergence` (nats a token) and `bits_per_parameter`.

    Raises:
        LabError: when no row has a divergence.
    """
    import matplotlib.pyplot as plt

    kept = [row for row in rows if row.get("divergence")]
    if not kept:
        raise LabError("No row has a divergence.", "Give the rows of quantized models.")
    fig, axis = plt.subplots(figsize=(7.2, 1.2 + 0.34 * len(kept)))
    names = [f"{row['method']} ({row['bits_per_parameter']:.3g} bits)" for row in kept]
    values = [row["divergence"] for row in kept]
    axis.barh(names, values, color=[style_of(row["method"])[0] for row in kept])
    for place, value in enumerate(values):
        axis.text(value, place, f" {value:.2g}", va="center", fontsize="small")
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 3, max(values) * 3)
    axis.set(xlabel="divergence from the model before (nats a token)")
    best = min((row for row in kept if row["bits_per_parameter"] < 6), key=lambda r: r["divergence"], default=kept[0])
    axis.set_title(f"Of the 4-bit books {best['method'].split('+')[0]} moves the predictions least")
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    return fig


def moment_figure(moment: Tensor, books: Mapping[str, CodeBook]) -> Figure:
    """Adam's second moment over its block's largest value, and what each code book has there.

    Args:
        moment: values divided by their block's largest; zeros are left out.
        books: label to code book, whose positive numbers are drawn below.
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 4.0), sharex=True, height_ratios=(3, 1.3))
    logs = moment[moment > 0].log10().cpu().numpy()
    top.hist(logs, bins=80, weights=np.full(len(logs), 100 / len(logs)), color=PALETTE["sky"])
    top.set(ylabel="share of the values (%)")
    low = max(float(np.quantile(logs, 0.0001)) - 0.3, -9.0)
    for place, (name, book) in enumerate(books.items()):
        values = book.values[book.values > 0].log10().cpu().numpy()
        bottom.vlines(values[values > low], place, place + 0.8, color=style_of(book.name)[0], linewidth=0.7)
        bottom.text(low, place + 0.4, name, va="center", fontsize="small", backgroundcolor="white")
        # Below half of its smallest positive number a book has nothing but zero.
        if place == 0:
            edge = float(values.min() + np.log10(0.5))
            top.axvspan(low, edge, color=PALETTE["red"], alpha=0.15)
            lost = 100 * float((logs < edge).mean())
            top.set_title(f"{name} turns {lost:.3g} % of the second moments into zero")
    bottom.set(xlabel="log10 of the second moment over the largest of its block", yticks=[], xlim=(low, 0.05))
    bottom.grid(visible=False)
    return fig


def optimizer_curves(runs: Mapping[str, Run], title: str, window: int = 6) -> Figure:
    """Training loss of a few runs as moving means, one line each; runs that agree lie on each other.

    Args:
        runs: label to run; the first is drawn broad, so that one upon it shows.
        title: what was found.
        window: steps of the moving mean.
    """
    import matplotlib.pyplot as plt

    from labkit.show.plots import smoothed

    fig, axis = plt.subplots()
    for place, (name, run) in enumerate(runs.items()):
        line = smoothed(run.losses, window)
        axis.plot(range(1, len(line) + 1), line, label=name, linewidth=4 if place == 0 else 1.5,
                  alpha=0.4 if place == 0 else 1)  # fmt: skip
    axis.set(xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)", title=title)
    axis.legend()
    return fig


def recorded_curves(rows: Sequence[dict]) -> Figure:
    """The recorded table `adam8bit`: mean loss curves, and the band between the 32-bit seeds."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    base = rows[0]
    steps = range(1, len(base["curve"]) + 1)
    label = f"{base['method']}, between its seeds"
    axis.fill_between(steps, base["curve_low"], base["curve_high"], color=PALETTE["sky"], alpha=0.35, label=label)
    for row in rows:
        axis.plot(steps, row["curve"], label=row["method"])
    axis.set(xlabel="step", ylabel="training loss (nats, mean of 10 steps and all seeds)")
    gap = max(row["gap_nats"] for row in rows[1:])
    spread = base["spread_nats"]
    axis.set_title(f"8-bit states: at most {gap:.3f} nats from 32-bit; seeds differ by {spread:.2f}")
    axis.legend()
    return fig
