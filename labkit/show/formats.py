"""Figures of lesson 01: gaps, ranges, number lines, a stalled sum and the error of rounded weights.

Each function returns a matplotlib Figure for `labkit.show.figure`; the lesson supplies the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.numerics import formats as nf
from labkit.numerics.formats import Format
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour and one dash for each format in every figure, so that a reader learns them once.
_STYLES = {name: (CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)]) for i, name in enumerate(nf.FORMATS)}


def style_of(name: str) -> tuple[str, Any]:
    """Colour and dash of the format called `name`; grey and solid for one without a name of its own."""
    return _STYLES.get(name, (PALETTE["grey"], "-"))


def spacing_figure(fmts: Sequence[Format], low: int = -34, high: int = 34, marked: Format | None = None) -> Figure:
    """Gap between neighbours against magnitude, 2^low to 2^high, one line a format, on log-log axes.

    For the format `marked` two points are named: eps at 1, and the first value whose gap is 2.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.4, 4.4))
    x = 2.0 ** np.arange(low, high + 1 / 32, 1 / 32)
    for fmt in fmts:
        colour, dash = style_of(fmt.name)
        gap = np.asarray(nf.spacing(x, fmt))
        ax.loglog(x, gap, base=2, color=colour, linestyle=dash, linewidth=1.6)
        last = np.flatnonzero(np.isfinite(gap))[-1]
        if last < len(x) - 1:  # the format ends inside the picture
            ax.plot(x[last], gap[last], "o", color=colour)
        # above a flat beginning, under a rising one: there no other line passes
        shift, side = ((4, 2), "bottom") if gap[0] == fmt.smallest_subnormal else ((8, -1), "top")
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "left", "va": side, "color": colour}
        ax.annotate(fmt.name, (x[0], gap[0]), shift, **place)
    if marked is not None:
        _mark_gaps(ax, marked)
    ticks = 2.0 ** np.arange(-64, 65, 8)
    ax.set_xticks(ticks[(ticks >= x[0]) & (ticks <= x[-1])])
    ax.set_yticks(ticks)
    ax.set_xlim(x[0], x[-1] * 2)
    ax.set_ylim(2.0 ** (low - 30), 2.0 ** (high - 5))
    ax.set(xlabel="magnitude of the value", ylabel="gap to the next value")
    ax.set_title("The gap doubles at every power of two; the flat parts are subnormals")
    return fig


def _mark_gaps(ax: Any, fmt: Format) -> None:
    """Name the gap at 1 (eps), and the value from which on the gap is 2 or more."""
    m = fmt.mantissa_bits
    points = {f"{fmt.name} at 1: eps = 2^-{m}": (1.0, fmt.eps), f"at {2 ** (m + 1)}: gap 2": (2.0 ** (m + 1), 2.0)}
    # the lower right corner is free: every line rises to the right
    for (text, (x, gap)), corner in zip(points.items(), [(0.55, 0.12), (0.68, 0.28)], strict=True):
        ax.plot(x, gap, "s", color=style_of(fmt.name)[0])
        line = {"arrowstyle": "-", "color": PALETTE["grey"]}
        ax.annotate(text, (x, gap), corner, textcoords="axes fraction", arrowprops=line)


def range_figure(fmts: Sequence[Format]) -> Figure:
    """From the smallest subnormal over the smallest normal to the largest value, one bar a format."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.4, 0.5 * len(fmts) + 1.3))
    for y, fmt in enumerate(reversed(fmts)):
        ends, colour = np.log2([fmt.smallest_subnormal, fmt.smallest_normal, fmt.max]), style_of(fmt.name)[0]
        ax.barh(y, ends[2] - ends[1], left=ends[1], height=0.55, color=colour)
        ax.barh(y, ends[1] - ends[0], left=ends[0], height=0.55, color="white", edgecolor=colour, hatch="////")
        ax.text(ends[2] + 3, y, f"eps 2^-{fmt.mantissa_bits}", va="center")
    ax.set_yticks(range(len(fmts)), [fmt.name for fmt in reversed(fmts)])
    ax.set_xlim(-155, 178)
    ax.set(xlabel="log2 of the value (solid: normal, hatched: subnormal)")
    ax.set_title("Exponent bits buy range, mantissa bits buy precision")
    ax.grid(axis="y", visible=False)
    return fig


def number_lines(fmts: Sequence[Format], limit: float) -> Figure:
    """Every value of each small format between -limit and limit, one tick a value."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(fmts), 1, figsize=(7.4, 0.75 * len(fmts) + 1.1), sharex=True)
    for ax, fmt in zip(np.atleast_1d(axes), fmts, strict=True):
        value = nf.values(fmt)
        inside = value[np.abs(value) <= limit]
        ax.vlines(inside, 0, 1, color=style_of(fmt.name)[0], linewidth=1)
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.set_ylabel(f"{fmt.name}\n{len(inside)} of {len(value)}", rotation=0, ha="right", va="center")
        ax.spines["left"].set_visible(False)
    np.atleast_1d(axes)[0].set_title("Floating-point values crowd around zero")
    np.atleast_1d(axes)[-1].set_xlabel(f"value, between -{limit:g} and {limit:g}")
    return fig


def stalled_sum_figure(nearest: np.ndarray, stochastic: np.ndarray, name: str) -> Figure:
    """Running sums of ones: `nearest` [steps], `stochastic` [runs, steps], and the exact line."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    colour = style_of(name)[0]
    steps = np.arange(1, len(nearest) + 1)
    for i, run in enumerate(stochastic):
        label = f"stochastic rounding, {len(stochastic)} runs" if i == 0 else None
        ax.plot(steps, run, color=PALETTE["grey"], linestyle="-", linewidth=0.6, alpha=0.6, label=label)
    ax.plot(steps, stochastic.mean(0), color=colour, linestyle="-.", linewidth=1.8, label="their mean")
    ax.plot(steps, nearest, color=colour, linestyle="-", linewidth=1.8, label="nearest even")
    ax.plot(steps, steps, color="black", linestyle=":", linewidth=1.2, label="exact")
    ax.set(xlabel="ones added", ylabel=f"running sum in {name}")
    ax.set_title(f"Nearest rounding stalls at {nearest[-1]:,.0f}; stochastic rounding keeps the mean on the line")
    ax.legend()
    return fig


def error_histogram(errors: Mapping[str, np.ndarray]) -> Figure:
    """Relative errors of rounded weights on a log axis, one outline a format.

    Weights that became 0 (error 1) stand in the legend; exact ones are left out.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.4, 4.0))
    bins = np.arange(-20, 1.01, 0.25).tolist()
    for name, error in errors.items():
        colour, dash = style_of(name)
        kept = error[(error > 0) & (error != 1)]
        share = np.full(len(kept), 1 / len(error))
        label = f"{name}: {100 * np.mean(error == 1):.2f} % became 0"
        ax.hist(np.log2(kept), bins, weights=share, histtype="step", color=colour, linestyle=dash, label=label)
    bits = sorted({Format.parse(name).mantissa_bits for name in errors}, reverse=True)
    ax.set(xlabel="log2 of the relative error", ylabel="share of the weights", xlim=(-20, 0.5))
    ax.set_title(f"Mantissa bits {', '.join(map(str, bits))}: each bit less about doubles the error")
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend above the peaks
    ax.legend(loc="upper center", ncols=2)
    return fig
