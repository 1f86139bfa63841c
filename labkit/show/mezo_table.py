"""The recorded tables of lesson 15: seconds of a step, and what is learned in steps and in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit import published
from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.show.mezo import SECONDS, TIMED
from labkit.show.style import CYCLE, DASHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
LONG = 2048
CURVES = ("mezo", "mezo-lora", "mezo-prefix", "full")
LINES = ("zero-shot", "in-context", "probing")


def long_rows(rows: Rows) -> list[dict[str, Any]]:
    """Of table `mezo-time`: milliseconds with one sequence of 2,048 tokens, by model: two passes, and MeZO's step.

    The last column is what the step that leaves w alone takes beyond two passes, for each billion of its weights.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        ms = {row["method"]: row["step_ms"] for row in rows if row["model"] == model and row["seq_len"] == LONG}
        passes = 2 * ms["zero-shot"]
        found.append(
            {
                "model": model,
                "two passes": round(passes, 1),
                "MeZO, exact": ms["mezo"],
                "MeZO, walk": ms["mezo walk"],
                "exact beyond the passes": round(ms["mezo"] - passes, 1),
                "for 10⁹ weights": round((ms["mezo"] - passes) * 1e9 / _weights(model), 1),
            }
        )
    return found


def _weights(model: str) -> int:
    return Architecture.of(published.config(model)).parameters


def paper_rows(rows: Rows) -> list[dict[str, Any]]:
    """Of table `mezo-time`: seconds of the paper's batches, ours on one GPU beside the published with their GPUs."""
    found = []
    for place, model in enumerate(TIMED):
        own = {(row["method"], row["batch"]): row["step_ms"] for row in rows if row["model"] == model}
        if not own:
            continue
        row: dict[str, Any] = {"model": model}
        for name, (method, batch) in {
            "MeZO, batch 16": ("mezo", 16),
            "MeZO, batch 8": ("mezo", 8),
            "full, batch 8": ("full", 8),
        }.items():
            ms = own.get((method, batch))
            seconds, gpus = SECONDS[name][place]
            row[name] = "does not fit" if ms is None else f"{ms / 1e3:.3f}"
            row[f"published, {name}"] = f"{seconds:.3f} ({gpus})"
        found.append(row)
    return found


def learned_rows(rows: Rows) -> list[dict[str, Any]]:
    """Of table `mezo-accuracy`: accuracy at the end by method, mean and standard deviation over seeds, in percent.

    "peak" is the most that the training allocated, in MiB.
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        last = max(row["step"] for row in own)
        ends = [100 * row["accuracy"] for row in own if row["step"] == last]
        spread = statistics.stdev(ends) if len(ends) > 1 else None
        found.append(
            {
                "method": method,
                "accuracy": round(statistics.fmean(ends), 1),
                "± over seeds": None if spread is None else round(spread, 1),
                "steps": last,
                "seconds": own[-1].get("seconds"),
                "peak": own[-1].get("peak_allocated_mib"),
                "learning rate": own[-1].get("learning_rate"),
            }
        )
    return found


def gain(rows: Rows, method: str = "mezo", before: str = "zero-shot") -> tuple[float, float]:
    """Points of accuracy that a method has over another one, and its spread over seeds."""
    found = {row["method"]: row for row in learned_rows(rows)}
    return round(found[method]["accuracy"] - found[before]["accuracy"], 1), found[method]["± over seeds"] or 0.0


def curves_figure(rows: Rows) -> Figure:
    """Accuracy by steps, and by seconds: means of seeds, with a band from the least to the most."""
    import matplotlib.pyplot as plt

    names = [name for name in CURVES if any(row["method"] == name for row in rows)]
    if not names:
        raise LabError("The rows have no curve to draw.", "Record the table again: labkit bench mezo-accuracy.")
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.9), sharey=True)
    for name, colour, dash in zip(names, CYCLE, DASHES, strict=False):
        points = _by_step([row for row in rows if row["method"] == name])
        means = [100 * statistics.fmean(values) for values, _ in points.values()]
        for axis, x in zip(axes, (list(points), [seconds for _, seconds in points.values()]), strict=True):
            axis.plot(x, means, color=colour, linestyle=dash, marker="o", ms=3, label=name)
            low, high = ([100 * pick(values) for values, _ in points.values()] for pick in (min, max))
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for row in learned_rows(rows):
        if row["method"] in LINES:
            for axis in axes:
                axis.axhline(row["accuracy"], color="0.5", linewidth=0.8, linestyle=":")
            axes[0].annotate(row["method"], (0.01, row["accuracy"]), xycoords=("axes fraction", "data"),
                             va="bottom", fontsize="x-small")  # fmt: skip
    axes[0].set(xlabel="steps", ylabel="accuracy on the test sentences (%)", xscale="log")
    axes[1].set(xlabel="seconds in steps", xscale="log")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize="small")
    fig.suptitle(curves_finding(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _by_step(rows: Rows) -> dict[int, tuple[list[float], float]]:
    """Accuracies of all seeds, and seconds, at each step that was evaluated."""
    found: dict[int, tuple[list[float], float]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        found.setdefault(row["step"], ([], row["seconds"]))[0].append(row["accuracy"])
    return found


def curves_finding(rows: Rows) -> str:
    """MeZO's end against the prompt alone, and against fine-tuning."""
    found = {row["method"]: row for row in learned_rows(rows)}
    if not {"zero-shot", "mezo", "full"} <= set(found):
        return "Accuracy at the end: " + ", ".join(f"{name} {row['accuracy']:.1f} %" for name, row in found.items())
    before, mezo, full = (found[name] for name in ("zero-shot", "mezo", "full"))
    ends = f"Prompt alone {before['accuracy']:.1f} %, MeZO {mezo['accuracy']:.1f} %"
    return f"{ends}, full {full['accuracy']:.1f} % in {100 * full['seconds'] / mezo['seconds']:.0f} % of MeZO's time"


def curves_words(rows: Rows) -> str:
    """The lines in words."""
    told = "; ".join(
        f"{row['method']} {row['accuracy']:.1f} % after {row['steps']} steps" for row in learned_rows(rows)
    )
    return f"Lines of accuracy by steps and by seconds. {told}."
