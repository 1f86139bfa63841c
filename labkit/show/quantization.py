"""Figures of lesson 09 on weights and inputs: outlier columns, code books, bits against error, divergences.

Each function returns a matplotlib Figure for `labkit.show.figure`; the lesson supplies the numbers. The figures of
Adam's moments are in `labkit.show.moments`, the widget in `labkit.show.blocks`.
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


def _times(ratio: float) -> str:
    """A ratio for a title: 6.6, 16, 2430."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def column_figure(maxima: Mapping[str, Mapping[str, Tensor]], threshold: float) -> Figure:
    """The largest magnitude of every input column, largest first: a panel a kind of token, a line a layer.

    Args:
        maxima: kind of token (such as "all tokens") to layer name to the columns' largest magnitudes; the same layers
            in each.
        threshold: from which on a column counts as an outlier.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(maxima), figsize=(7.6, 3.8), squeeze=False, sharey=True)
    told = []
    for axis, (kind, layers) in zip(axes[0], maxima.items(), strict=True):
        for name, values in layers.items():
            ranked = values.sort(descending=True).values.cpu().numpy()
            axis.semilogy(np.arange(len(ranked)) / len(ranked) * 100, ranked, label=name)
        axis.axhline(threshold, color=PALETTE["black"], linewidth=1)
        axis.text(100, threshold * 1.05, f"{threshold:g}", ha="right", va="bottom", fontsize="small")
        axis.set(xlabel="columns, largest first (%)")
        axis.set_title(kind, fontsize="small", fontweight="normal")
        ratios = {name: float(values.max() / values.median()) for name, values in layers.items()}
        name = max(ratios, key=lambda n: ratios[n])
        told.append(f"{kind} {_times(ratios[name])} times ({name})")
    _plain_logarithm(axes[0][0].yaxis)
    axes[0][0].set_ylabel("largest magnitude in the column")
    axes[0][-1].legend(fontsize="small")
    _suptitle(fig, "Largest column over the median column:\n" + ", ".join(told))
    return fig


def _suptitle(fig: Figure, text: str) -> None:
    """A title over all panels, on the left, as the titles of single panels are."""
    fig.suptitle(text, fontsize="medium", fontweight="bold", x=0.01, ha="left")


def threshold_figure(curves: Mapping[str, Sequence[dict]], threshold: float = 6.0, about: str | None = None) -> Figure:
    """Error of an int8 product against the outlier threshold, and the share of columns that it keeps out.

    Args:
        curves: input's name to rows of `threshold`, `error` (relative) and `columns` (share).
        threshold: one of those of the rows: it is marked, and the title says what it gains.
        about: the input whose gain the title tells; the one that gains most if None.
    """
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 4.8), sharex=True, height_ratios=(3, 2))
    gains, most = {}, 0.0
    for name, rows in curves.items():
        at = [row["threshold"] for row in rows]
        top.loglog(at, [100 * row["error"] for row in rows], marker="o", ms=4, label=name)
        bottom.semilogx(at, [100 * row["columns"] for row in rows], marker="o", ms=4)
        errors, most = {row["threshold"]: row["error"] for row in rows}, max(at)
        gains[name] = errors[most] / errors[threshold]
    for axis in (top, bottom):
        axis.axvline(threshold, color=PALETTE["black"], linewidth=1, linestyle="-")
    _plain_logarithm(top.yaxis)
    _plain_logarithm(bottom.xaxis)
    top.text(1.03 * threshold, top.get_ylim()[1], f"{threshold:g}", va="top", fontsize="small")
    top.set(ylabel="error of the product (%)")
    bottom.set(xlabel="threshold (a column that reaches it is kept out of the 8-bit product)", ylabel="kept out (%)")
    name = about or max(gains, key=lambda n: gains[n])
    top.set_title(f"At {threshold:g} the error is {gains[name]:.1f} times smaller than at {most:g} ({name})")
    top.legend(fontsize="small")
    return fig


def book_lines(books: Sequence[CodeBook], block_size: int = 64) -> Figure:
    """Every number of each code book as a tick on a line, under the density of normal weights in blocks.

    The title says how far each book is off on those weights. Numbers too near each other to be seen apart are counted.
    """
    import matplotlib.pyplot as plt

    from labkit.numerics.quantize import quantize_blockwise

    size = (7.4, 1.8 + 0.75 * len(books))
    fig, axes = plt.subplots(len(books) + 1, 1, figsize=size, sharex=True, height_ratios=[1.6] + [1] * len(books))
    blocks = torch.randn(4096, block_size, generator=torch.Generator().manual_seed(0))
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    axes[0].hist(scaled.flatten().numpy(), bins=81, range=(-1, 1), density=True, color=PALETTE["sky"])
    axes[0].set_ylabel("normal\nweights", rotation=0, ha="right", va="center")
    errors = {}
    for axis, book in zip(axes[1:], books, strict=True):
        back = quantize_blockwise(blocks, book, block_size).dequantize()
        errors[book.name] = 100 * float((back - blocks).norm() / blocks.norm())
        values = book.values.unique().cpu().numpy()
        axis.vlines(values, 0, 1, color=style_of(book.name)[0], linewidth=2 if len(values) < 20 else 0.6)
        axis.set_ylabel(f"{book.name}\n{len(values)} values", rotation=0, ha="right", va="center")
        for group in _crowds(values) if len(values) < 20 else []:
            axis.text(group[-1] + 0.012, 0.5, f"×{len(group)}", va="center", fontsize="small")
    for axis in axes:
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.spines["left"].set_visible(False)
    told = ", ".join(f"{name} {error:.1f} %" for name, error in sorted(errors.items(), key=lambda pair: pair[1]))
    _suptitle(fig, f"Error on normal weights in blocks of {block_size}:\n{told}")
    axes[-1].set_xlabel("weight, divided by the largest magnitude of its block")
    return fig


def _crowds(values: np.ndarray, nearest: float = 0.01) -> list[np.ndarray]:
    """Groups of ascending numbers that a line's width would merge."""
    groups = np.split(values, np.flatnonzero(np.diff(values) > nearest) + 1)
    return [group for group in groups if len(group) > 1]


def block_error_figure(rows: Sequence[dict]) -> Figure:
    """Relative error against stored bits a weight, one line a code book, one point a block size.

    Args:
        rows: of `book`, `block_size`, `bits` and `error` (relative); a book name that ends with "+dq" has quantized
            scales, and other bits for the same block size.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.2, 4.2))
    books = list(dict.fromkeys(row["book"] for row in rows))
    # Books with fp32 scales stand above each other: their block sizes are written once, on the highest.
    highest = max((row for row in rows if not row["book"].endswith("+dq")), key=lambda row: row["error"])["book"]
    for name in books:
        mine = sorted((row for row in rows if row["book"] == name), key=lambda row: row["bits"])
        colour, dash = style_of(name)
        bits, errors = [row["bits"] for row in mine], [100 * row["error"] for row in mine]
        double = name.endswith("+dq")
        face = "white" if double else colour
        axis.plot(bits, errors, marker="o", ms=5, color=colour, linestyle=dash, label=name, markerfacecolor=face)
        shift = (0, -14) if double else (4, 4)
        for row in _apart(mine) if double else mine if name == highest else []:
            at, ha = (row["bits"], 100 * row["error"]), "center" if double else "left"
            axis.annotate(f"{row['block_size']}", at, shift, textcoords="offset points", fontsize="small", ha=ha)
    best = min((row for row in rows if row["block_size"] == 64), key=lambda row: (row["error"], row["bits"]))
    axis.margins(y=0.1)  # room for the numbers below the lowest point
    axis.set(xlabel="stored bits a weight, with the scales (numbers: block size)", ylabel="error of the weights (%)")
    axis.set_title(f"At blocks of 64 {best['book']} errs least: {100 * best['error']:.1f} % at {best['bits']:.2f} bits")
    axis.legend()
    return fig


def _apart(rows: list[dict], gap: float = 0.1) -> list[dict]:
    """From many bits to few, those rows whose numbers do not run into each other."""
    kept = rows[-1:]
    for row in reversed(rows[:-1]):
        if kept[-1]["bits"] - row["bits"] < gap:
            break
        kept.append(row)
    return kept


# What a recipe rounds: colour and marker.
_ROUNDED = {"weights and inputs": ("blue", "o"), "weights": ("orange", "s")}


def divergence_figure(panels: Mapping[str, Sequence[dict]]) -> Figure:
    """How far each recipe moves a model's predictions, on a logarithmic axis, one panel a model.

    Args:
        panels: the model's name to rows of `method`, `divergence` (nats a token), `bits_per_parameter` and `rounded`,
            "weights" or "weights and inputs"; rows without a divergence are left out.

    Raises:
        LabError: when a panel has no row with a divergence.
    """
    import matplotlib.pyplot as plt

    kept = {label: [row for row in rows if row.get("divergence")] for label, rows in panels.items()}
    if not kept or not all(kept.values()):
        raise LabError("No row has a divergence.", "Give the rows of quantized models.")
    longest = max(len(rows) for rows in kept.values())
    size = (max(7.4, 4.4 * len(kept)), 1.9 + 0.3 * longest)
    fig, axes = plt.subplots(1, len(kept), figsize=size, squeeze=False, sharex=True)
    values = [row["divergence"] for rows in kept.values() for row in rows]
    for axis, (label, rows) in zip(axes[0], kept.items(), strict=True):
        for what, (colour, marker) in _ROUNDED.items():
            mine = [(row["divergence"], place) for place, row in enumerate(rows) if row["rounded"] == what]
            axis.plot(*zip(*mine, strict=True) if mine else ([], []), marker, color=PALETTE[colour], ms=8, label=what)
        for place, row in enumerate(rows):
            told, at = f"{row['divergence']:.2g}", (row["divergence"], place)
            axis.annotate(told, at, (8, 0), textcoords="offset points", va="center", fontsize="small")
        axis.set_yticks(range(len(rows)), [f"{row['method']}, {row['bits_per_parameter']:.3g} bits" for row in rows])
        axis.set(xscale="log", xlim=(min(values) / 3, max(values) * 5), xlabel="divergence (nats a token)")
        axis.set_title(label, fontsize="small", fontweight="normal")
        axis.set_ylim(len(rows) - 0.5, -0.5)
    fig.legend(*axes[0][0].get_legend_handles_labels(), title="rounded", ncols=2, loc="outside lower center")
    _suptitle(fig, _least_moved(kept))
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
