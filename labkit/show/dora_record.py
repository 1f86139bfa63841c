"""Figures of the table `dora`: what was measured of each method, and the averages that the paper reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.bench.dora import SEEDS, SENTENCES
from labkit.errors import LabError
from labkit.show.dora import COSTS, LOOK
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("lora", "dora-half", "dora")
NAMES = {"lora": "LoRA", "dora-half": "DoRA, half rank", "dora": "DoRA"}


def record_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each cost, a bar for each method; accuracy with one standard error each way."""
    import matplotlib.pyplot as plt

    _some(rows)
    fig, panels = plt.subplots(1, len(COSTS), figsize=(9.6, 3.3))
    for ax, (column, label, factor) in zip(panels, COSTS, strict=True):
        for place, row in enumerate(rows):
            colour = PALETTE[LOOK[row["method"]][0]]
            if row[column] is None:
                ax.text(place, 0, "not\nmeasured", ha="center", va="bottom", fontsize="x-small")
                continue
            value = factor * row[column]
            error = 100 * error_of(row) if column == "accuracy" else None
            ax.bar(place, value, color=colour, yerr=error, capsize=3)
            ax.text(place, value + (error or 0), f"{value:.3g}", ha="center", va="bottom", fontsize="x-small")
        ax.set_title(label, fontsize="small")
        ax.set_xticks([])
        ax.margins(y=0.15)
    _zoom(panels[0], rows)
    panels[1].set_yscale("log")
    panels[1].set_title("share that trains (%), log axis", fontsize="small")
    names = [row["method"] for row in rows]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PALETTE[LOOK[name][0]]) for name in names]
    fig.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    fig.suptitle(record_finding(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _zoom(ax: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracies from a little below the lowest: they differ by less than bars from 0 would show."""
    low = min(100 * (row["accuracy"] - error_of(row)) for row in rows)
    high = max(100 * (row["accuracy"] + error_of(row)) for row in rows)
    ax.set_ylim(low - (high - low) - 1, high + 0.5 * (high - low) + 1)
    ax.set_title("accuracy (%), axis cut", fontsize="small")


def record_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """DoRA's gain over LoRA, its standard error, and whether it is more than luck would give."""
    gain, error = gain_of(rows, "dora")
    where = "more" if abs(gain) > 2 * error else "not more"
    return f"DoRA against LoRA: {gain:+.1f} points, standard error {error:.1f}: {where} than luck would give"


def gain_of(rows: Sequence[Mapping[str, Any]], name: str, than: str = "lora") -> tuple[float, float]:
    """By how many points a method is more accurate than another, and the standard error of that."""
    by_method = {row["method"]: row for row in rows}
    mine, other = by_method[name], by_method[than]
    return 100 * (mine["accuracy"] - other["accuracy"]), 100 * math.hypot(error_of(mine), error_of(other))


def error_of(row: Mapping[str, Any]) -> float:
    """Standard error of a row's accuracy, as a share: that of the seeds' mean, and that of the test sentences.

    All seeds are tested on the same sentences, whose part does not shrink with more of them. Taken of a difference it
    is too large rather than too small: methods that are asked the same sentences err together.
    """
    share = row["accuracy"]
    return math.sqrt(row["accuracy_std"] ** 2 / len(SEEDS) + share * (1 - share) / SENTENCES)


def record_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The finding and all values."""
    _some(rows)
    said = []
    for row in rows:
        values = [
            f"{label} {'not measured' if row[name] is None else format(factor * row[name], '.3g')}"
            for name, label, factor in COSTS
        ]
        said.append(f"{row['method']}: {', '.join(values)} (± {100 * error_of(row):.1f} in accuracy)")
    return f"Bars for {rows[0]['model']}. {record_finding(rows)}. {'; '.join(said)}."


def published_figure(published: Sequence[Mapping[str, Any]]) -> Figure:
    """The paper's average accuracy of LoRA and both DoRAs, by model."""
    import matplotlib.pyplot as plt

    models = _models(published)
    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for place, name in enumerate(DRAWN):
        own = {row["model"]: row["average"] for row in published if row["method"] == name}
        colour, mark = LOOK[name]
        # Side by side: two of them are equal to 0.3 points, and one would hide the other.
        across = [k + 0.16 * (place - 1) for k in range(len(models))]
        ax.plot(across, [own[model] for model in models], mark, color=PALETTE[colour], ls="none", ms=8,
                label=NAMES[name])  # fmt: skip
    ax.set_xticks(range(len(models)), models)
    ax.set(
        xlabel="one training each; the paper gives no spread",
        ylabel="average of eight tasks (%)",
        xlim=(-0.5, len(models) - 0.5),
    )
    ax.set_title(published_finding(published))
    ax.legend(loc="lower right")
    return fig


def _models(published: Sequence[Mapping[str, Any]]) -> list[str]:
    _some(published)
    return list(dict.fromkeys(row["model"] for row in published if row["method"] == "lora"))


def published_finding(published: Sequence[Mapping[str, Any]]) -> str:
    """By how much half-rank DoRA is above LoRA, least and most."""
    average = {(row["model"], row["method"]): row["average"] for row in published}
    gains = [average[model, "dora-half"] - average[model, "lora"] for model in _models(published)]
    return f"Published: DoRA at half the rank is {min(gains):.1f} to {max(gains):.1f} points above LoRA"


def published_words(published: Sequence[Mapping[str, Any]]) -> str:
    """The finding and all averages that are drawn."""
    average = {(row["model"], row["method"]): row["average"] for row in published}
    said = [
        f"{model} {', '.join(f'{NAMES[name]} {average[model, name]}' for name in DRAWN)}"
        for model in _models(published)
    ]
    return f"Marks by model. {published_finding(published)}. {'; '.join(said)}."


def _some(given: Any) -> None:
    if not given:
        raise LabError("There is nothing to draw.", "Record the table with: labkit bench dora.")
