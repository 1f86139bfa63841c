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

# One colour and one dash for each way to store a number, in every figure.
_STYLES: dict[str, tuple[str, Any]] = {
    "int8": ("blue", "-"),
    "int4": ("orange", "--"),
    "fp4": ("purple", "-."),
    "nf4": ("green", "-"),
    "dynamic8": ("red", ":"),
}
_DOUBLE = (0, (5, 1))


def style_of(name: str) -> tuple[str, Any]:
    """Colour and dash of a code book or a recipe, by the book in its name; double quantization has its own dash."""
    for known, (colour, dash) in _STYLES.items():
        if known in name:
            return PALETTE[colour], _DOUBLE if name.endswith("+dq") else dash
    return PALETTE["grey"], "-"


def _plain_logarithm(axis: Any) -> None:
    """Write 0.5, 1, 2, 5, 10 … at the ticks of a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
    _plain_logarithm(axis.yaxis)
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
        top.loglog(at, [100 * row["error"] for row in rows], marker="o", ms=4, label=name)
        bottom.semilogx(at, [100 * row["columns"] for row in rows], marker="o", ms=4)
    for axis in (top, bottom):
        axis.axvline(6.0, color=PALETTE["black"], linewidth=1, linestyle="-")
    _plain_logarithm(top.yaxis)
    _plain_logarithm(bottom.xaxis)
    top.text(6.2, top.get_ylim()[1], "6.0", va="top", fontsize="small")
    top.set(ylabel="error of the product (%)")
    bottom.set(xlabel="threshold (a column that reaches it goes in 16 bits)", ylabel="16-bit columns (%)")
    spared = {n: max(r["error"] for r in rows) / min(r["error"] for r in rows) for n, rows in curves.items()}
    name = max(spared, key=lambda n: spared[n])
    top.set_title(f"16-bit columns lower the error up to {spared[name]:.1f} times ({name})")
    top.legend(fontsize="small")
    return fig


def book_lines(books: Sequence[CodeBook], block_size: int = 64) -> Figure:
    """Every number of each code book as a tick on a line, under the density of normal weights in blocks.

    The title says how far each book is off on those weights.
    """
    import matplotlib.pyplot as plt

    from labkit.numerics.quantize import quantize_blockwise

    fig, axes = plt.subplots(
        len(books) + 1, 1, figsize=(7.4, 1.5 + 0.75 * len(books)), sharex=True, height_ratios=[1.6] + [1] * len(books)
    )
    blocks = torch.randn(4096, block_size, generator=torch.Generator().manual_seed(0))
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    # The largest of each block is ±1 by construction; without it the density is smooth.
    axes[0].hist(scaled[scaled.abs() < 1].numpy(), bins=80, density=True, color=PALETTE["sky"])
    axes[0].set_ylabel("normal\nweights", rotation=0, ha="right", va="center")
    errors = {}
    for axis, book in zip(axes[1:], books, strict=True):
        back = quantize_blockwise(blocks, book, block_size).dequantize()
        errors[book.name] = 100 * float((back - blocks).norm() / blocks.norm())
        values = book.values.unique().cpu().numpy()
        axis.vlines(values, 0, 1, color=style_of(book.name)[0], linewidth=2 if len(values) < 20 else 0.6)
        axis.set_ylabel(f"{book.name}\n{len(values)} values", rotation=0, ha="right", va="center")
    for axis in axes:
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.spines["left"].set_visible(False)
    told = ", ".join(f"{name} {error:.1f} %" for name, error in sorted(errors.items(), key=lambda pair: pair[1]))
    axes[0].set_title(f"Error on normal weights in blocks of {block_size}: {told}")
    axes[-1].set_xlabel("weight, divided by the largest magnitude of its block")
    return fig


def block_error_figure(rows: Sequence[dict]) -> Figure:
    """Relative error against stored bits a weight, one line a code book, one point a block size.

    Args:
        rows: of `book`, `block_size`, `bits` and `error` (relative); a book name that ends with "+dq" has quantized
            scales.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    for name in dict.fromkeys(row["book"] for row in rows):
        mine = sorted((row for row in rows if row["book"] == name), key=lambda row: row["bits"])
        colour, dash = style_of(name)
        bits, errors = [row["bits"] for row in mine], [100 * row["error"] for row in mine]
        axis.plot(bits, errors, marker="o", ms=4, color=colour, linestyle=dash, label=name)
        sizes = {row["block_size"]: (row["bits"], 100 * row["error"]) for row in mine}
        if 64 in sizes:
            axis.plot(*sizes[64], "s", ms=9, markerfacecolor="none", color=colour)
    best = min((row for row in rows if row["block_size"] == 64), key=lambda row: (row["error"], row["bits"]))
    axis.set(xlabel="stored bits a weight, with the scales (squares: blocks of 64)", ylabel="error of the weights (%)")
    axis.set_title(f"At blocks of 64 {best['book']} errs least: {100 * best['error']:.1f} % at {best['bits']:.2f} bits")
    axis.legend()
    return fig


def divergence_bars(panels: Mapping[str, Sequence[dict]]) -> Figure:
    """How far each recipe moves a model's predictions, on a logarithmic axis, one panel a model.

    Args:
        panels: the model's name to rows of `method`, `divergence` (nats a token) and `bits_per_parameter`; rows without
            a divergence are left out.

    Raises:
        LabError: when a panel has no row with a divergence.
    """
    import matplotlib.pyplot as plt

    kept = {label: [row for row in rows if row.get("divergence")] for label, rows in panels.items()}
    if not kept or not all(kept.values()):
        raise LabError("No row has a divergence.", "Give the rows of quantized models.")
    longest = max(len(rows) for rows in kept.values())
    size = (max(7.4, 4.2 * len(kept)), 1.4 + 0.32 * longest)
    fig, axes = plt.subplots(1, len(kept), figsize=size, squeeze=False, sharex=True)
    values = [row["divergence"] for rows in kept.values() for row in rows]
    for axis, (label, rows) in zip(axes[0], kept.items(), strict=True):
        names = [f"{row['method']}, {row['bits_per_parameter']:.3g} bits" for row in rows]
        axis.barh(names, [row["divergence"] for row in rows], color=[style_of(row["method"])[0] for row in rows])
        for place, row in enumerate(rows):
            axis.text(row["divergence"], place, f" {row['divergence']:.2g}", va="center", fontsize="small")
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 5)
        axis.set_title(label, fontsize="small", fontweight="normal")
        axis.set_xlabel("divergence (nats a token)")
        axis.invert_yaxis()
        axis.grid(False, axis="y")
    fig.suptitle(_least_moved(kept), fontsize="medium", fontweight="bold", x=0.01, ha="left")
    return fig


def _least_moved(panels: Mapping[str, Sequence[dict]]) -> str:
    """Which recipe moves the predictions least, among all and among those of less than 6 bits."""
    told = []
    for label, rows in panels.items():
        least = min(rows, key=lambda row: row["divergence"])["method"]
        narrow = [row for row in rows if row["bits_per_parameter"] < 6]
        best = f", of the 4-bit ones {min(narrow, key=lambda r: r['divergence'])['method']}" if narrow else ""
        told.append((label, f"{least} moves the predictions least{best}"))
    if len({finding for _, finding in told}) == 1:
        return told[0][1]
    return "\n".join(f"{label}: {finding}" for label, finding in told)


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
    axis.locator_params(axis="x", integer=True)
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
    axis.set(xlabel="step", ylabel="training loss (nats, mean of 10 steps)")
    gap = max(row["gap_nats"] for row in rows[1:])
    spread = base["spread_nats"]
    axis.set_title(f"8-bit states: at most {gap:.3f} nats from 32-bit; seeds differ by {spread:.2f}")
    axis.legend()
    return fig
