"""Figures of the table `dora`: what was measured of each method, and the averages that the paper reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.dora import COSTS, LOOK
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("lora", "dora-half", "dora")
NAMES = {"lora": "LoRA", "dora-half": "DoRA, half rank", "dora": "DoRA"}


def record_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each cost, a bar for each method; accuracy with one standard deviation over the seeds each way."""
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
            error = 100 * row["accuracy_std"] if column == "accuracy" else None
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
    low = min(100 * (row["accuracy"] - row["accuracy_std"]) for row in rows)
    high = max(100 * (row["accuracy"] + row["accuracy_std"]) for row in rows)
    ax.set_ylim(low - (high - low) - 1, high + 0.5 * (high - low) + 1)
    ax.set_title("accuracy (%), axis cut", fontsize="small")


def record_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """DoRA's gain over LoRA, and whether the seeds' spread is larger than it."""
    by_method = {row["method"]: row for row in rows}
    lora, dora = by_method["lora"], by_method["dora"]
    gain = 100 * (dora["accuracy"] - lora["accuracy"])
    spread = 100 * max(dora["accuracy_std"], lora["accuracy_std"])
    where = "within" if abs(gain) <= spread else "beyond"
    return f"DoRA against LoRA: {gain:+.1f} points, {where} the seeds' spread of {spread:.1f}"


def record_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The finding and all values."""
    _some(rows)
    said = []
    for row in rows:
        values = [
            f"{label} {'not measured' if row[name] is None else format(factor * row[name], '.3g')}"
            for name, label, factor in COSTS
        ]
        said.append(f"{row['method']}: {', '.join(values)} (± {100 * row['accuracy_std']:.1f} in accuracy)")
    return f"Bars for {rows[0]['model']}. {record_finding(rows)}. {'; '.join(said)}."


def published_figure(published: Sequence[Mapping[str, Any]]) -> Figure:
    """The paper's average accuracy of LoRA and both DoRAs, by model."""
    import matplotlib.pyplot as plt

    models = _models(published)
    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for name in DRAWN:
        own = {row["model"]: row["average"] for row in published if row["method"] == name}
        colour, mark = LOOK[name]
        ax.plot(range(len(models)), [own[model] for model in models], mark, color=PALETTE[colour], ls="none", ms=8,
                label=NAMES[name])  # fmt: skip
    ax.set_xticks(range(len(models)), models)
    ax.set(ylabel="average of eight tasks (%)", xlim=(-0.5, len(models) - 0.5))
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
