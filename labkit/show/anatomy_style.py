"""What the figures of lessons 04 and 05 share: a category's colour, GPU sizes, and bytes in words.

The colours of the six categories that other lessons draw are theirs (`labkit.show.plots`); logits and temporary
tensors get the two that are left. A "24 GB" card holds 24 GiB: makers of memory count in powers of two. Tensors may
fill less of it (`labkit.ledger.gpus.usable`), and that is where a figure draws its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from labkit.ledger.gpus import usable
from labkit.ledger.trace import Moment, Trace
from labkit.show.plots import CATEGORY_COLOURS
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From bottom to top, as long as a step keeps them: first what stays, then what comes and goes.
CATEGORIES = (
    "weights",
    "master_weights",
    "optimizer_states",
    "gradients",
    "activations",
    "logits",
    "temporary",
    "buffers",
)
COLOURS = {n: PALETTE[{**CATEGORY_COLOURS, "logits": "purple", "temporary": "yellow"}[n]] for n in CATEGORIES}
MIB, GIB = 2**20, 2**30
GPUS = {f"{size} GB": usable(size * GIB) for size in (8, 16, 24, 48, 80)}
HAIR = 1 / 500  # of the whole: what is thinner gets no colour, and no place in a legend
_DARK = (PALETTE["blue"], PALETTE["red"], PALETTE["green"], PALETTE["grey"])


def called(category: str) -> str:
    """A category's name as it is read."""
    return category.replace("_", " ")


def ink(category: str) -> str:
    """The colour of letters that can be read on a category's colour."""
    return "white" if COLOURS[category] in _DARK else "black"


def unit_of(count: float) -> tuple[int, str]:
    """The unit in which so many bytes, and fewer, are drawn: its size and its name."""
    return (GIB, "GiB") if count >= GIB else (MIB, "MiB")


def number(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def amount(count: float) -> str:
    """Bytes in words."""
    size, unit = (2**10, "KiB") if count < MIB else unit_of(count)
    return f"{number(count / size)} {unit}"


def off(found: float, predicted: float) -> str:
    """By how many percent something differs from the prediction."""
    return signed(100 * (found / predicted - 1)) + " %"


def signed(percent: float) -> str:
    """A number with its sign, and zero without one."""
    return f"{round(percent, 1) or 0.0:{'+' if round(percent, 1) else ''}.1f}"


def visible(moments: Iterable[Moment]) -> list[str]:
    """The categories that are more than a hair of the largest moment, from bottom to top."""
    moments = list(moments)
    least = HAIR * max(moment.total for moment in moments)
    return [name for name in CATEGORIES if any(moment.bytes.get(name, 0) > least for moment in moments)]


def parts(moment: Moment) -> str:
    """The categories of a moment that are more than a hair of it, with their bytes, largest first."""
    found = sorted(((c, name) for name, c in moment.bytes.items() if c > HAIR * moment.total), reverse=True)
    return ", ".join(f"{called(name)} {amount(count)}" for count, name in found)


def where(moment: Moment) -> str:
    """The moment's place in the step, in words."""
    if moment.bytes.get("logits"):
        return "at the loss"
    held = moment.bytes.get("activations", 0)
    if moment.place == "backward" and 20 * held <= moment.bytes.get("gradients", 0):
        return "at the end of the backward pass"
    names = {"start": "before the step", "update": "in the update", "end": "after the step"}
    return names.get(moment.place, f"in the {moment.place} pass")


def highest(trace: Trace) -> dict[str, int]:
    """For each category the most bytes that it has at any moment of the step."""
    return {n: found for n in CATEGORIES if (found := max(m.bytes.get(n, 0) for m in trace.moments))}


def holder(count: float, gpus: Mapping[str, int]) -> str | None:
    """The smallest GPU that holds so many bytes of tensors; None where none does."""
    return min((name for name, size in gpus.items() if size >= count), key=lambda name: gpus[name], default=None)


def axis_end(count: float, gpus: Mapping[str, int]) -> float:
    """How far an axis goes: to the GPU that holds so many bytes, unless they would be too small to see there."""
    name = holder(count, gpus)
    size = gpus[name] if name and gpus[name] <= 8 * count else count
    return 1.12 * max(size, count)


def gpu_lines(ax: Axes, gpus: Mapping[str, int], size: int, end: float, upright: bool = False) -> None:
    """A dashed line for each GPU that the axis reaches, in units of `size` bytes; names too close share a place."""
    groups: list[list[str]] = []
    reached = sorted((name for name, count in gpus.items() if count <= end), key=lambda name: gpus[name])
    apart = (0.07 if upright else 0.045) * end  # a name is wider than it is high
    for name in reached:
        if groups and gpus[name] - gpus[groups[-1][-1]] < apart:
            groups[-1].append(name)
        else:
            groups.append([name])
        line: dict[str, Any] = {"color": PALETTE["black"], "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 0.9}
        (ax.axvline if upright else ax.axhline)(gpus[name] / size, **line)
    for group in groups:
        middle = (gpus[group[0]] + gpus[group[-1]]) / 2 / size
        at: tuple[float, float]
        style: dict[str, Any]
        names = ", ".join([*(name.removesuffix(" GB") for name in group[:-1]), group[-1]])
        if upright:
            # A name in the middle of a line at the axis's left end would stand outside of it.
            left = middle * size < 0.06 * end
            at = (0 if left else middle, 1.02)
            style = {"ha": "left" if left else "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
        else:
            at, style = (1.01, middle), {"ha": "left", "va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(*at, names, fontsize="small", **style)


def legend_below(fig: Figure, ax: Axes, columns: int = 4) -> None:
    """All labels of an axis below the figure, side by side."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize="small")
