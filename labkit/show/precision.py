"""Figures of lesson 02: values against a format's range, losses of runs that may break, a loss scale's trace.

Each function returns a matplotlib Figure for `labkit.show.figure`; titles and the `*_words` for alternative text are
computed from what is drawn. The widget is in `labkit.show.precision_widgets`, the recorded table's figure in
`labkit.show.precision_record`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.numerics.gradients import borders, histogram, shares
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from labkit.run import Run

ZONES = {"zero": "red", "subnormal": "orange", "normal": "blue", "infinite": "purple"}
# A way to train looks the same in every figure of the lesson.
STYLES: dict[str, tuple[str, str]] = {
    "fp32": ("black", "-"),
    "fp16": ("red", "--"),
    "fp16-moments": ("purple", ":"),
    "fp16-weights": ("green", "-."),
    "fp16+master": ("orange", "--"),
    "fp16-recipe": ("blue", "-."),
    "bf16": ("orange", "--"),
    "bf16+stochastic": ("blue", "-."),
}
LAST = 5  # steps whose mean loss a curve shows, and its end in a title


def percent(share: float) -> str:
    """A share in % with three digits, or as many as it takes not to say 100 of what is less."""
    digits = 3
    while share < 1 and float(f"{100 * share:.{digits}g}") == 100 and digits < 12:
        digits += 1
    return f"{100 * share:.{digits}g} %"


def zone_edges(fmt: str) -> list[float]:
    """log2 of where a format's zero ends, its normal numbers begin, and infinity (or its lack) begins."""
    return [math.log2(edge) if edge < math.inf else math.inf for edge in borders(fmt)]


def range_words(sizes: Tensor, fmt: str, scale: float = 1.0) -> str:
    """What becomes of magnitudes times `scale` in a format, as one clause."""
    found = shares([sizes], fmt, scale)
    parts = [f"{percent(found.underflow)} become zero", f"{percent(found.subnormal)} subnormal"]
    if found.overflow:
        parts.append(f"{percent(found.overflow)} overflow")
    return ", ".join(parts)


def range_figure(
    populations: Mapping[str, Tensor], fmt: str = "fp16", scale: float = 1.0, span: tuple[int, int] = (-48, 40)
) -> Figure:
    """Histograms by powers of two of magnitudes times `scale`, one panel each, coloured by what a format makes of them.

    Args:
        populations: name to magnitudes, without zeros.
        fmt: whose range is drawn.
        scale: a power of two, such as a loss scale.
        span: first and last power of two of the axis.
    """
    import matplotlib.pyplot as plt

    size = (7.4, 1.2 + 2.2 * len(populations))
    fig, axes = plt.subplots(len(populations), 1, figsize=size, sharex=True, squeeze=False)
    for ax, (name, sizes) in zip(axes[:, 0], populations.items(), strict=True):
        _range_panel(ax, sizes, fmt, scale, span)
        ax.set_title(f"{name}, {fmt}: {range_words(sizes, fmt, scale)}")
    axes[-1, 0].set_xlabel("magnitude (power of two)")
    return fig


def _range_panel(ax: Axes, sizes: Tensor, fmt: str, scale: float, span: tuple[int, int]) -> None:
    edges = [-math.inf, *zone_edges(fmt), math.inf]
    moved = round(math.log2(scale))
    found = {k + moved: 100 * share for k, share in histogram(sizes).items()}
    for place, (zone, colour) in enumerate(ZONES.items()):
        # A power of two belongs to the zone that holds its middle: borders are powers of two, or just below one.
        mine = {k: v for k, v in found.items() if edges[place] <= k + 0.5 < edges[place + 1]}
        ax.bar([k + 0.5 for k in mine], list(mine.values()), width=0.9, color=PALETTE[colour])
        low, high = max(edges[place], span[0]), min(edges[place + 1], span[1])
        if low < high:
            ax.axvspan(low, high, color=PALETTE[colour], alpha=0.08, linewidth=0)
            if high - low > 5:  # a narrow strip has no room for its name; those beside it say which one it is
                middle = (low + high) / 2
                ax.text(middle, 0.98, zone, transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize="small")
    largest = scale * float(sizes.max())
    if span[0] < (at := math.log2(largest)) < span[1]:  # single values have bars too low to see
        ax.axvline(at, color=PALETTE["black"], linewidth=1, linestyle=":")
        ax.text(at + 0.4, 0.7, f"largest:\n{largest:.2g}", transform=ax.get_xaxis_transform(), fontsize="small")
    ax.set(xlim=span, ylabel="share of values (%)")
    ax.set_ylim(0, 1.15 * max(found.values()))


def layer_figure(rows: Sequence[Mapping[str, Any]], fmt: str = "fp16") -> Figure:
    """Shares of gradient values that become zero or subnormal, layer by layer, on a logarithmic axis.

    Args:
        rows: of `labkit.numerics.gradients.by_layer`.
        fmt: the format that they were counted in.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.4, 3.2))
    for key, label, colour, mark in (("subnormal", "subnormal", "orange", "s"), ("underflow", "zero", "red", "o")):
        ax.plot(range(len(rows)), [100 * row[key] or math.nan for row in rows], mark, color=PALETTE[colour],
                linestyle="none", label=label)  # fmt: skip
    for place, row in enumerate(rows):  # a logarithmic axis has no place for nothing
        missing = [label for key, label in (("subnormal", "subnormal"), ("underflow", "zero")) if not row[key]]
        text = "\n".join(f"no {label}" for label in missing)
        ax.text(place, 0.03, text, transform=ax.get_xaxis_transform(), ha="center", fontsize="small")
    ax.set(yscale="log", ylabel=f"share of values (%), {fmt}")
    names = [row["layer"].removeprefix("layer ") for row in rows]
    ax.set_xticks(range(len(rows)), names, rotation=90 if len(rows) > 14 else 20, fontsize="small")
    ax.set_xlabel("layer, from the input to the output")
    ax.set_title(layer_words(rows))
    ax.legend()
    return fig


def layer_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which layer loses most."""
    worst = max(rows, key=lambda row: (row["underflow"], row["subnormal"]))
    if not worst["underflow"]:
        return "No layer has a gradient value that becomes zero"
    return f"Most is lost in {worst['layer']}: {percent(worst['underflow'])} of its values become zero"


def loss_figure(runs: Mapping[str, Run], factor: float = 1.0, window: int = LAST) -> Figure:
    """Training loss of runs on a logarithmic axis, as moving means; a cross marks where a run broke.

    Lines that come first are drawn wider, so that one that covers them leaves their edges to be seen.

    Args:
        runs: label to run.
        factor: multiplies the losses, where the task had divided them.
        window: steps of the moving mean.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    drawn = [math.log(2)]
    for place, (label, run) in enumerate(runs.items()):
        line = _means(run, factor, window)
        colour, dash = STYLES.get(label, (None, DASHES[place % len(DASHES)]))
        colour = PALETTE[colour] if colour else CYCLE[place % len(CYCLE)]
        width = 1.6 + 1.2 * (len(runs) - 1 - place)
        ax.plot(range(1, len(line) + 1), line, dash, label=label, color=colour, linewidth=width)
        if run.stopped and line:
            ax.plot(len(line), line[-1], "X", color=colour, markersize=10)
            paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            ax.annotate(f"NaN at step {len(run.losses)}", (len(line), line[-1]), (9, -3), textcoords="offset points",
                        fontsize="small", bbox=paper)  # fmt: skip
        drawn += line
    ax.axhline(math.log(2), color=PALETTE["grey"], linewidth=1)
    beside = ax.get_yaxis_transform()
    ax.text(1.01, math.log(2), "guessing", transform=beside, va="center", fontsize="small")
    ax.set(yscale="log", xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)")
    ticks = _ticks(min(drawn), max(drawn))
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_ylim(ticks[0], ticks[-1])
    ax.minorticks_off()
    ax.set_title(textwrap.fill(loss_words(runs, factor, window), 76))
    ax.legend()
    return fig


def _means(run: Run, factor: float, window: int) -> list[float]:
    from labkit.show.plots import smoothed

    return smoothed([factor * loss for loss in run.losses if math.isfinite(loss)], window)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, the first not above `low` and the last not below `high`."""
    digits = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    nice = [m * 10.0**e for e in range(-12, 12) for m in digits]
    first, last = max(t for t in nice if t <= low), min(t for t in nice if t >= high)
    return [t for t in nice if first <= t <= last]


def last_loss(run: Run, factor: float = 1.0, last: int = LAST) -> float:
    """Mean of a run's last losses times `factor`, to three digits; NaN where the run broke."""
    tail = run.losses[-last:]
    return round(factor * sum(tail) / len(tail), 3)


def loss_words(runs: Mapping[str, Run], factor: float = 1.0, last: int = LAST) -> str:
    """Where each run ends: the mean of its last losses, or the step at which it broke."""
    parts = []
    for label, run in runs.items():
        end = f"ends at {last_loss(run, factor, last):.2f}"
        parts.append(f"{label} {f'breaks at step {len(run.losses)}' if run.stopped else end}")
    return ", ".join(parts)


def scale_rows(run: Run) -> list[dict[str, float]]:
    """The loss scale of a run, in the form of `labkit.numerics.scaling.trace`.

    Raises:
        LabError: when the run had no loss scale.
    """
    if "loss_scale" not in run.traces:
        raise LabError(f"The run of {run.method} had no loss scale.", "Draw a run whose method scales the loss.")
    pairs = zip(run.traces["loss_scale"], run.traces["found_inf"], strict=True)
    return [{"scale": scale, "found_inf": found} for scale, found in pairs]


def trace_figure(
    rows: Sequence[Mapping[str, float]], library: Sequence[Mapping[str, float]] | None = None, library_name: str = ""
) -> Figure:
    """A loss scale step by step, with crosses at the steps that were thrown away, and the library's scale upon it."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.0))
    scales = [row["scale"] for row in rows]
    steps = range(1, len(rows) + 1)
    ax.step(steps, scales, where="mid", color=PALETTE["blue"], label="ours")
    skipped = [(step, row["scale"]) for step, row in zip(steps, rows, strict=True) if row["found_inf"]]
    if library is not None:
        ax.plot(steps, [row["scale"] for row in library], "o", mfc="none", color=PALETTE["black"], linestyle="none",
                label=library_name or "the library")  # fmt: skip
    if skipped:
        ax.plot(*zip(*skipped, strict=True), "X", color=PALETTE["red"], markersize=9, linestyle="none",
                label="overflow: step skipped")  # fmt: skip
    ax.set_yscale("log", base=2)
    ax.set_ylim(min(scales) / 2, max(scales) * 2)
    ax.set(xlabel="step", ylabel="loss scale")
    ax.set_title(trace_words(rows))
    ax.legend(fontsize="small")
    return fig


def trace_words(rows: Sequence[Mapping[str, float]]) -> str:
    """How many steps were skipped, and from where to where the scale went."""
    first, last = rows[0]["scale"], rows[-1].get("next_scale", rows[-1]["scale"])
    skipped = sum(row["found_inf"] > 0 for row in rows)
    return f"{skipped} of {len(rows)} steps skipped; the scale goes from {_power(first)} to {_power(last)}"


def _power(value: float) -> str:
    exponent = math.log2(value)
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{value:.4g}"
