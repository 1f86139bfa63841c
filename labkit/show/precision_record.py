"""The recorded table of lesson 02 as a figure: accuracy with its spread, time, memory and energy by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "accuracy": ("accuracy (%)\n± standard deviation", ".1f"),
    "step_ms": ("step (ms)", ".0f"),
    "peak_allocated_mib": ("peak memory (MiB)", ".0f"),
    "joules_per_step": ("energy (J a step)", ".1f"),
}
GUESS = 0.5  # accuracy without knowledge, two classes


def recorded_figure(rows: Sequence[Mapping[str, Any]], seeds: int) -> Figure:
    """The recorded runs: accuracy with its spread over seeds, time, memory and energy, one line a method.

    Args:
        rows: of the table `precision` with `part` "training"; what was not measured is None.
        seeds: how many runs each row is the mean of.
    """
    import matplotlib.pyplot as plt

    shape, ratios = (1, len(PANELS)), [2] + [1] * (len(PANELS) - 1)
    size = (9.6, 1.8 + 0.3 * len(rows))
    fig, axes = plt.subplots(*shape, figsize=size, sharey=True, squeeze=False, width_ratios=ratios)
    for ax, (key, (label, digits)) in zip(axes[0], PANELS.items(), strict=True):
        (_accuracy_panel if key == "accuracy" else _recorded_panel)(ax, rows, key, digits)
        ax.set_xlabel(label)
        ax.grid(False, axis="y")
    broken = [seeds - row["finished"] for row in rows]
    names = [row["method"] + (f" (NaN: {n} of {seeds})" if n else "") for row, n in zip(rows, broken, strict=True)]
    axes[0, 0].set_yticks(range(len(rows)), names)
    axes[0, 0].invert_yaxis()
    for name, colour in (("learned", "blue"), ("did not learn", "red")):
        axes[0, -1].plot([], [], "s", color=PALETTE[colour], label=name)
    fig.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize="small")
    fig.suptitle(recorded_words(rows), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _accuracy_panel(ax: Axes, rows: Sequence[Mapping[str, Any]], key: str, digits: str) -> None:
    """Points, since bars would have to begin at zero, and then differences of a few points could not be seen."""
    learners = learned(rows)
    for place, row in enumerate(rows):
        value, spread = 100 * row[key], 100 * row["accuracy_std"]
        colour = PALETTE["blue" if row in learners else "red"]
        ax.errorbar(value, place, xerr=spread, fmt="o", markersize=4, color=colour, ecolor=colour, capsize=4)
        right = value < 75
        edge = value + spread + 1.5 if right else value - spread - 1.5
        ax.text(edge, place, f"{value:{digits}}", ha="left" if right else "right", va="center", fontsize="small")
    ax.axvline(100 * GUESS, color=PALETTE["grey"], linewidth=1)
    ax.text(100 * GUESS, 1.0, "guessing", transform=ax.get_xaxis_transform(), ha="center", va="bottom",
            fontsize="small")  # fmt: skip
    ax.set_xlim(min(100 * GUESS, *(100 * (row[key] - row["accuracy_std"]) for row in rows)) - 4, 100)


def _recorded_panel(ax: Axes, rows: Sequence[Mapping[str, Any]], key: str, digits: str) -> None:
    learners = learned(rows)
    for place, row in enumerate(rows):
        if row.get(key) is None:
            ax.text(0.02, place, "not measured", va="center", fontsize="small", transform=ax.get_yaxis_transform())
            continue
        ax.barh(place, row[key], color=PALETTE["blue" if row in learners else "red"])
        ax.text(0, place, f" {row[key]:{digits}}", va="center", color="white", fontsize="small")


def learned(rows: Sequence[Mapping[str, Any]], guess: float = GUESS) -> list[Mapping[str, Any]]:
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
