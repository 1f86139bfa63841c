"""Figures of lesson 04 over the recorded cases: measured against predicted peaks.

Rows are those of the reference table `anatomy`. Figure functions return a matplotlib Figure for `labkit.show.figure`;
the `*_words` function beside each gives its alternative text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.anatomy_style import (
    MIB,
    amount,
    number,
    signed,
)
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND, FAR = 5.0, 1.0  # percent: the course's promise, and what is drawn by name
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
Row = Mapping[str, Any]


def residual(row: Row, column: str) -> float | None:
    """Percent by which a column lies above the prediction; None where it was not measured."""
    found = row.get(column)
    # Rounded, so that 95 of 100 are 5 % less and not a trillionth more than that.
    return None if found is None else round(100 * (found / row["predicted_mib"] - 1), 9)


def residual_figure(rows: Sequence[Row]) -> Figure:
    """Measured against predicted peaks on logarithmic axes, and the cases that are furthest from them by name.

    Args:
        rows: with `model`, `method`, `dtype`, `predicted_mib`, and `traced_mib` and `peak_allocated_mib`, of which
            either may be None.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, max(4.0, 1.6 + 0.2 * len(_far(rows)))))
    _against(left, rows)
    _strip(right, rows)
    handles, labels = left.get_legend_handles_labels()
    more, names = right.get_legend_handles_labels()
    fig.legend(handles + more, labels + names, loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(_residual_title(rows), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _styles(rows: Sequence[Row]) -> dict[str, str]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {method: MARKS[i % len(MARKS)] for i, method in enumerate(methods)}


def _column(rows: Sequence[Row]) -> str:
    """The allocator's peak, or the trace where no row has one."""
    return "peak_allocated_mib" if any(row.get("peak_allocated_mib") for row in rows) else "traced_mib"


def _measured(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The rows that have a measurement, with its residual, lowest first."""
    column = _column(rows)
    found = [(row, left) for row in rows if (left := residual(row, column)) is not None]
    if not found:
        raise LabError("No row was measured or traced.", "Give rows with peak_allocated_mib or traced_mib.")
    return sorted(found, key=lambda pair: pair[1])


def _colour(left: float) -> str:
    return PALETTE["blue" if abs(left) <= BAND else "red"]


def _against(ax: Axes, rows: Sequence[Row]) -> None:
    column, marks = _column(rows), _styles(rows)
    ends = [row[key] for row, _ in _measured(rows) for key in ("predicted_mib", column)]
    size = 1024 if max(ends) >= 1024 else 1
    line = [min(ends) / size / 1.3, max(ends) / size * 1.3]
    ax.plot(line, line, color=PALETTE["black"], linewidth=0.8, linestyle="-", zorder=1)
    low, high = ([x * (1 + sign * BAND / 100) for x in line] for sign in (-1, 1))
    ax.fill_between(line, low, high, color=PALETTE["grey"], alpha=0.3, label=f"±{BAND:g} %", linewidth=0)
    for method, mark in marks.items():
        here = [(row, left) for row, left in _measured(rows) if row["method"] == method]
        xs, ys = ([row[key] / size for row, _ in here] for key in ("predicted_mib", column))
        colours = [_colour(left) for _, left in here]
        ax.scatter(xs, ys, c=colours, marker=mark, s=24, linewidths=0, zorder=3, alpha=0.85)
        ax.scatter([], [], color=PALETTE["blue"], marker=mark, s=24, label=method)
    unit = "GiB" if size > 1 else "MiB"
    ax.set(xscale="log", yscale="log", xlim=line, ylim=line, xlabel=f"predicted peak ({unit})")
    ax.set_ylabel(f"{_source(rows)} ({unit})")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: number(value))


def _strip(ax: Axes, rows: Sequence[Row]) -> None:
    """The cases that lie furthest from the formula, by measurement or by trace, one a line with its name."""
    marks, found, traces = _styles(rows), _far(rows), _column(rows) != "traced_mib"
    ax.axvspan(-BAND, BAND, color=PALETTE["grey"], alpha=0.3, linewidth=0)
    ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
    for y, (row, left) in enumerate(found):
        ax.scatter([left], [y], color=_colour(left), marker=marks[row["method"]], s=24, linewidths=0, zorder=3)
    if traces:
        pairs = [(residual(row, "traced_mib"), y) for y, (row, _) in enumerate(found)]
        seen = [(left, y) for left, y in pairs if left is not None]
        ax.plot([x for x, _ in seen], [y for _, y in seen], "|", color=PALETTE["black"], ms=9, mew=1.6, label="traced")
    ax.set_yticks(range(len(found)), [_case(row) for row, _ in found], fontsize="x-small")
    ax.set(ylim=(-0.7, len(found) - 0.3), xlabel="above the prediction (%)")
    ax.grid(False, axis="y")
    others = len(_measured(rows)) - len(found)
    if others:
        ax.set_title(f"{others} more: within {FAR:g} %" + ", traced too" * traces, fontsize="small")


def _reach(row: Row) -> float:
    """How far the measurement or the trace of a case lies from the formula, whichever is further."""
    return max(abs(residual(row, column) or 0) for column in ("peak_allocated_mib", "traced_mib"))


def _far(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The measured cases of which either account is more than FAR off, or else all, the furthest last."""
    found = _measured(rows)
    return [pair for pair in found if _reach(pair[0]) > FAR] or found


def _source(rows: Sequence[Row]) -> str:
    return "traced peak" if _column(rows) == "traced_mib" else "allocator's peak"


def _residual_title(rows: Sequence[Row]) -> str:
    found = _measured(rows)
    inside = sum(abs(left) <= BAND for _, left in found)
    row, left = max(found, key=lambda pair: abs(pair[1]))
    kind = "traced" if _column(rows) == "traced_mib" else "measured"
    first = f"{inside} of {len(found)} {kind} peaks lie within {BAND:g} % of the formula"
    text = f"{first}; the furthest is {signed(left)} %\n({_case(row)})"
    traced = [(off, other) for other in rows if (off := residual(other, "traced_mib")) is not None]
    if traced and kind != "traced":
        most, other = max(traced, key=lambda pair: abs(pair[0]))
        text += f"; a trace is up to {signed(most)} % off ({other['model']})"
    return text


def _case(row: Row) -> str:
    """A case in a few words: the formats of weights and products, and what differs from AdamW on all weights."""
    shape = f"{row['batch']} × {row['seq_len']}" if row.get("batch") and row.get("seq_len") else ""
    formats = str(row.get("dtype") or "").replace("float32, products bfloat16", "autocast")
    formats = formats.replace("bfloat16", "bf16").replace("float32", "fp32") + " + masters" * bool(
        row.get("master_weights")
    )
    optimizer = row.get("optimizer") if row.get("optimizer") != "adamw" else ""
    more = (
        "eager" if row.get("attention") == "eager" else "",
        f"{row['segments']} segments" if row.get("segments") else "",
    )
    method = "" if row["method"] == "full" else row["method"]
    return ", ".join(str(part) for part in (row["model"], formats, method, optimizer, *more, shape) if part)


def residual_words(rows: Sequence[Row]) -> str:
    """How many lie in the band, the lowest and the highest residual, and how far the trace is off."""
    found = _measured(rows)
    first, last = found[0], found[-1]
    text = (
        f"{_source(rows).capitalize()} against predicted peak, both logarithmic, and the furthest cases by name. "
        f"{_residual_title(rows).split(';')[0]}; they reach from {signed(first[1])} % ({_case(first[0])}) to "
        f"{signed(last[1])} % ({_case(last[0])}), between {amount(min(_bytes(rows)))} and {amount(max(_bytes(rows)))}."
    )
    traced = [left for row in rows if (left := residual(row, "traced_mib")) is not None]
    if traced and _column(rows) != "traced_mib":
        text += f" The trace lies {signed(min(traced))} to {signed(max(traced))} % from the formula."
    return text


def _bytes(rows: Sequence[Row]) -> list[float]:
    return [MIB * row["predicted_mib"] for row, _ in _measured(rows)]
