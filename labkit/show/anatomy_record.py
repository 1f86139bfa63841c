"""Figures of lesson 04 over many cases: measured against predicted peaks, and what grows with what.

Rows are those of the reference table `anatomy`. Figure functions return a matplotlib Figure for `labkit.show.figure`;
the `*_words` function beside each gives its alternative text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.trace import Moment
from labkit.show.anatomy_style import (
    CATEGORIES,
    COLOURS,
    MIB,
    amount,
    called,
    highest,
    number,
    signed,
    unit_of,
    visible,
)
from labkit.show.style import DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 5.0  # percent
LETTER = 0.085  # inches of a small letter of a name on an axis
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
# A dash for each category, so that lines differ on paper too.
LINE_DASHES: dict[str, Any] = dict(zip(CATEGORIES, (*DASHES, "-"), strict=True))
Row = Mapping[str, Any]
Sweep = Mapping[float, Case]


def residual(row: Row, column: str) -> float | None:
    """Percent by which a column lies above the prediction; None where it was not measured."""
    found = row.get(column)
    # Rounded, so that 95 of 100 are 5 % less and not a trillionth more than that.
    return None if found is None else round(100 * (found / row["predicted_mib"] - 1), 9)


def residual_figure(rows: Sequence[Row]) -> Figure:
    """Measured against predicted peaks on logarithmic axes, and what is left in percent, sorted.

    Args:
        rows: with `model`, `method`, `dtype`, `predicted_mib`, and `traced_mib` and `peak_allocated_mib`, of which
            either may be None.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.0), width_ratios=(1, 1.15))
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
    marks, found = _styles(rows), _measured(rows)
    ax.axhspan(-BAND, BAND, color=PALETTE["grey"], alpha=0.3, linewidth=0)
    ax.axhline(0, color=PALETTE["black"], linewidth=0.8)
    for x, (row, left) in enumerate(found, start=1):
        ax.scatter([x], [left], color=_colour(left), marker=marks[row["method"]], s=24, linewidths=0, zorder=3)
    if _column(rows) != "traced_mib":
        traced = [(x, residual(row, "traced_mib")) for x, (row, _) in enumerate(found, start=1)]
        pairs = [(x, left) for x, left in traced if left is not None]
        ax.plot([x for x, _ in pairs], [y for _, y in pairs], "_", color=PALETTE["black"], ms=7, label="traced")
    reach = 1.15 * max(2 * BAND / 1.6, *(abs(left) for _, left in found))
    ax.set(ylim=(-reach, reach), xlabel="case, sorted", ylabel="above the prediction (%)")
    ax.set_xticks([1, len(found)])
    ax.grid(False, axis="x")


def _source(rows: Sequence[Row]) -> str:
    return "traced peak" if _column(rows) == "traced_mib" else "allocator's peak"


def _residual_title(rows: Sequence[Row]) -> str:
    found = _measured(rows)
    inside = sum(abs(left) <= BAND for _, left in found)
    row, left = max(found, key=lambda pair: abs(pair[1]))
    kind = "traced" if _column(rows) == "traced_mib" else "measured"
    return (
        f"{inside} of {len(found)} {kind} peaks lie within {BAND:g} % of the formula\n"
        f"the furthest is {signed(left)} % ({_case(row)})"
    )


def _case(row: Row) -> str:
    shape = f"{row['batch']} × {row['seq_len']}" if row.get("batch") and row.get("seq_len") else ""
    return ", ".join(str(part) for part in (row["model"], row["method"], row.get("dtype"), shape) if part)


def residual_words(rows: Sequence[Row]) -> str:
    """How many lie in the band, the lowest and the highest residual, and how far the trace is off."""
    found = _measured(rows)
    first, last = found[0], found[-1]
    text = (
        f"{_source(rows).capitalize()} against predicted peak, both logarithmic, and the residuals sorted. "
        f"{_residual_title(rows).splitlines()[0]}; they reach from {signed(first[1])} % ({_case(first[0])}) to "
        f"{signed(last[1])} % ({_case(last[0])}), between {amount(min(_bytes(rows)))} and {amount(max(_bytes(rows)))}."
    )
    traced = [left for row in rows if (left := residual(row, "traced_mib")) is not None]
    if traced and _column(rows) != "traced_mib":
        text += f" The trace lies {signed(min(traced))} to {signed(max(traced))} % from the formula."
    return text


def _bytes(rows: Sequence[Row]) -> list[float]:
    return [MIB * row["predicted_mib"] for row, _ in _measured(rows)]


def growth_figure(sweeps: Mapping[str, Sweep], over: str = "sequence length (tokens)") -> Figure:
    """The most bytes of each category in a step, and the peak of their sum, against one size, on logarithmic axes.

    On such axes a power of x is a straight line and its exponent is the slope. A panel a sweep.

    Args:
        sweeps: by the panel's name, cases by the value on the axis, two or more.
        over: what that value is, with its unit.
    """
    import matplotlib.pyplot as plt

    tall = max(predict(case).peak.total for sweep in sweeps.values() for case in sweep.values())
    (size, unit), lowest = unit_of(tall), list[int]()
    fig, axes = plt.subplots(1, len(sweeps), figsize=(7.2 if len(sweeps) < 3 else 9, 3.9), sharey=True, squeeze=False)
    for ax, (name, sweep) in zip(axes[0], sweeps.items(), strict=True):
        xs, lines, peaks = _grown(sweep)
        for category, counts in lines.items():
            ax.plot(xs, [c / size for c in counts], label=called(category), linewidth=1.8, **_line(category))
            lowest.append(min(c for c in counts if c))
        style = {"color": PALETTE["black"], "linestyle": "-", "linewidth": 1, "label": "peak of the sum"}
        ax.plot(xs, [p / size for p in peaks], **style)
        ax.set(xscale="log", yscale="log", xlabel=over)
        ax.set_xticks(xs, _apart(xs, 0.8 * fig.get_figwidth() / len(sweeps)), fontsize="small")
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda value, _: number(value))
        fastest, power = _fastest(xs, lines)
        ax.set_title(f"{name}: {called(fastest)} grow as $x^{{{power:.1f}}}$", fontsize="small")
    axes[0, 0].set(ylabel=f"highest in the step ({unit})", ylim=(min(lowest) / size / 1.5, 1.7 * tall / size))
    shown = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(_growth_title(sweeps, over), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _line(category: str) -> dict[str, Any]:
    """A category's colour and dash; yellow gets an outline, for it is pale on white."""
    from matplotlib.patheffects import Normal, Stroke

    style = {"color": COLOURS[category], "linestyle": LINE_DASHES[category], "marker": "o", "ms": 3}
    pale = COLOURS[category] == PALETTE["yellow"]
    return style | ({"path_effects": [Stroke(linewidth=3.2, foreground=PALETTE["grey"]), Normal()]} if pale else {})


def _grown(sweep: Sweep) -> tuple[list[float], dict[str, list[int]], list[int]]:
    """The values, for each category that matters somewhere its bytes, and the peaks."""
    if len(sweep) < 2:
        raise LabError("Growth needs two sizes at least.", "Add a case to the sweep.")
    xs = sorted(sweep)
    traces = [predict(sweep[x]) for x in xs]
    tops = [highest(trace) for trace in traces]
    # A logarithmic axis also shows what matters at one end only.
    seen = {name for top in tops for name in visible([Moment("", top)])}
    names = [name for name in CATEGORIES if name in seen]
    return xs, {n: [top.get(n, 0) for top in tops] for n in names}, [trace.peak.total for trace in traces]


def _fastest(xs: Sequence[float], lines: Mapping[str, Sequence[int]]) -> tuple[str, float]:
    """The category with the largest exponent between the two last values, and that exponent."""
    powers = {n: log(c[-1] / c[-2]) / log(xs[-1] / xs[-2]) for n, c in lines.items() if c[-2]}
    # Of two that grow alike (activations and logits with the batch) the larger one counts.
    best = max(powers, key=lambda name: (round(powers[name], 1), lines[name][-1]))
    return best, powers[best]


def _apart(xs: Sequence[float], inches: float) -> list[str]:
    """Names of the sizes on a logarithmic axis of so many inches: the ends', and between them those with room."""
    names = [_short(x) for x in xs]
    places = [inches * log(x / xs[0]) / log(xs[-1] / xs[0]) for x in xs]

    def meet(i: int, k: int) -> bool:
        return abs(places[k] - places[i]) < LETTER * ((len(names[i]) + len(names[k])) / 2 + 1)

    kept = [0]
    for i in range(1, len(xs) - 1):
        if not meet(i, kept[-1]) and not meet(i, len(xs) - 1):
            kept.append(i)
    return [name if i in kept or i == len(xs) - 1 else "" for i, name in enumerate(names)]


def _short(x: float) -> str:
    for size, letter in ((1e9, " B"), (1e6, " M")):
        if x >= size:
            return f"{x / size:.3g}{letter}"
    return f"{x:g}"


def _growth_title(sweeps: Mapping[str, Sweep], over: str) -> str:
    told = []
    for name, sweep in sweeps.items():
        _, _, peaks = _grown(sweep)
        told.append(f"{number(peaks[-1] / peaks[0])} times ({name})")
    xs = sorted(next(iter(sweeps.values())))
    what = over.split(" (")[0].capitalize()
    return f"{what} from {_short(xs[0])} to {_short(xs[-1])}: the peak grows {', '.join(told)}"


def growth_words(sweeps: Mapping[str, Sweep], over: str = "sequence length (tokens)") -> str:
    """For each sweep the categories at both ends, and the exponent between the two last values."""
    told = []
    for name, sweep in sweeps.items():
        xs, lines, peaks = _grown(sweep)
        ends = ", ".join(f"{called(n)} from {amount(c[0])} to {amount(c[-1])}" for n, c in lines.items())
        fastest, power = _fastest(xs, lines)
        told.append(
            f"{name}, {over} from {_short(xs[0])} to {_short(xs[-1])}: {ends}; peak from {amount(peaks[0])} to "
            f"{amount(peaks[-1])}; {called(fastest)} grow with the power {power:.2f} at the end"
        )
    return f"Bytes by category, both axes logarithmic. {'. '.join(told)}."
