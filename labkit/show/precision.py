"""Figures of lesson 02: values against a format's range, losses of runs that may break, a loss scale's trace, a table.

Each function returns a matplotlib Figure for `labkit.show.figure`; titles and the `*_words` for alternative text are
computed from what is drawn. The widget is in `labkit.show.precision_widgets`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.numerics.gradients import borders, histogram, shares
from labkit.show.stability import percent
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from labkit.run import Run

ZONES = {"zero": "red", "subnormal": "orange", "normal": "blue", "infinite": "purple"}
PANELS = {
    "accuracy": "accuracy (%)",
    "step_ms": "step (ms)",
    "peak_allocated_mib": "peak memory (MiB)",
    "joules_per_step": "energy (J a step)",
}


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


def loss_figure(runs: Mapping[str, Run], factor: float = 1.0, window: int = 3) -> Figure:
    """Training loss of runs on a logarithmic axis, as moving means; a cross marks where a run broke.

    Args:
        runs: label to run.
        factor: multiplies the losses, where the task had divided them.
        window: steps of the moving mean.
    """
    import matplotlib.pyplot as plt

    from labkit.show.plots import smoothed

    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for label, run in runs.items():
        finite = [factor * loss for loss in run.losses if math.isfinite(loss)]
        line = smoothed(finite, window)
        (drawn,) = ax.plot(range(1, len(line) + 1), line, label=label)
        if run.stopped and line:
            ax.plot(len(line), line[-1], "X", color=drawn.get_color(), markersize=10)
    ax.axhline(math.log(2), color=PALETTE["grey"], linewidth=1)
    ax.text(1, math.log(2), "guessing", va="bottom", fontsize="small")
    ax.set(yscale="log", xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)")
    ax.set_yticks(ticks := _ticks(ax.get_ylim()), [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_title(textwrap.fill(loss_words(runs, factor), 76))
    ax.legend()
    return fig


def _ticks(limits: tuple[float, float]) -> list[float]:
    low, high = limits
    for digits in ((1, 2, 5), range(1, 10)):
        ticks = [m * 10.0**e for e in range(-4, 6) for m in digits if low <= m * 10.0**e <= high]
        if len(ticks) > 2:
            break
    return ticks


def last_loss(run: Run, factor: float = 1.0, last: int = 5) -> float:
    """Mean of a run's last losses times `factor`, to three digits; NaN where the run broke."""
    tail = run.losses[-last:]
    return round(factor * sum(tail) / len(tail), 3)


def loss_words(runs: Mapping[str, Run], factor: float = 1.0) -> str:
    """Where each run ends: the mean of its last losses, or the step at which it broke."""
    parts = []
    for label, run in runs.items():
        end = f"ends at {last_loss(run, factor):.2f}"
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


def recorded_figure(rows: Sequence[Mapping[str, Any]], seeds: int) -> Figure:
    """The recorded runs: accuracy with its spread over seeds, time, memory and energy, one line a method.

    Args:
        rows: of the table `precision` with `part` "training"; what was not measured is None.
        seeds: how many runs each row is the mean of.
    """
    import matplotlib.pyplot as plt

    shape = (1, len(PANELS))
    fig, axes = plt.subplots(*shape, figsize=(9.6, 1.5 + 0.3 * len(rows)), sharey=True, squeeze=False)
    for ax, (key, label) in zip(axes[0], PANELS.items(), strict=True):
        _recorded_panel(ax, rows, key)
        ax.set_xlabel(label)
        ax.grid(False, axis="y")
    broken = [seeds - row["finished"] for row in rows]
    names = [row["method"] + (f" (NaN: {n} of {seeds})" if n else "") for row, n in zip(rows, broken, strict=True)]
    axes[0, 0].set_yticks(range(len(rows)), names)
    axes[0, 0].invert_yaxis()
    fig.suptitle(recorded_words(rows), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _recorded_panel(ax: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    learners = learned(rows)
    for place, row in enumerate(rows):
        if row.get(key) is None:
            ax.text(0.02, place, "not measured", va="center", fontsize="small", transform=ax.get_yaxis_transform())
            continue
        value = 100 * row[key] if key == "accuracy" else row[key]
        spread = 100 * row["accuracy_std"] if key == "accuracy" else None
        ax.barh(place, value, xerr=spread, color=PALETTE["blue" if row in learners else "red"])
        text = f" {value:.3g}" if value < 1000 else f" {value:.0f}"
        ax.text(0, place, text, va="center", color="white", fontsize="small")


def learned(rows: Sequence[Mapping[str, Any]], guess: float = 0.5) -> list[Mapping[str, Any]]:
    """The rows whose accuracy lies nearer to the best than to guessing."""
    best = max(row["accuracy"] for row in rows)
    return [row for row in rows if row["accuracy"] > (guess + best) / 2]


def recorded_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Between which accuracies the methods that learn end, and which do not learn."""
    good = learned(rows)
    shares = [100 * row["accuracy"] for row in good]
    words = f"{len(good)} of {len(rows)} ways end between {min(shares):.1f} and {max(shares):.1f} %"
    rest = [row["method"] for row in rows if row not in good]
    return f"{words}; {', '.join(rest)} did not learn" if rest else words
