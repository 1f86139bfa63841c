"""Figures of table `lisa` (lesson 13): what each method learned against what it held, and bytes over the switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.style import CYCLE, DASHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = dict(
    zip(
        ("full", "lora", "galore", "badam", "lisa", "lisa kept"),
        ("s", "o", "D", "v", "^", "X"),
        strict=True,
    )
)
VANILLA = "vanilla"
HELD = ("gradients_mib", "optimizer_states_mib")
Rows = Sequence[Mapping[str, Any]]


def learned(rows: Rows, task: str) -> list[Mapping[str, Any]]:
    """The rows of a task's runs.

    Raises:
        LabError: where there is none.
    """
    found = [row for row in rows if row.get("part") == "run" and row["task"] == task]
    if not found:
        raise LabError(f"The table has no run of {task}.", "Record it with: labkit bench lisa.")
    return found


def held(row: Mapping[str, Any]) -> float:
    """MiB of gradients and states; 0 where nothing trained."""
    return sum(row.get(name) or 0.0 for name in HELD)


RUN_UNITS = {"accuracy": "%", "±": "points", "loss": "nats", "held": "MiB", "peak": "MiB", "step": "ms",
             "energy": "J a step"}  # fmt: skip


def run_rows(rows: Rows) -> list[dict[str, Any]]:
    """Of whole runs: the rate, accuracy with its deviation over seeds, loss, gradients and states, peak, and a step."""
    found = []
    for row in (row for row in rows if row.get("part") == "run"):
        spread, peak, step = (row.get(name) for name in ("accuracy_std", "peak_allocated_mib", "step_ms"))
        found.append(
            {
                "task": row["task"],
                "method": row["method"],
                "rate": row.get("learning_rate"),
                "accuracy": round(100 * row["accuracy"], 1),
                "±": None if spread is None else round(100 * spread, 1),
                "loss": round(row["loss"], 3),
                "held": round(held(row)) if row["method"] != VANILLA else None,
                "peak": peak and round(peak),
                "step": step and round(step),
                "energy": row.get("joules_per_step"),
            }
        )
    return found


def learned_figure(rows: Rows) -> Figure:
    """A panel a task: accuracy, or held-out loss, over the MiB of gradients and states, a mark a method that trains."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.6))
    for axis, task in zip(axes, ("sentiment", "instructions"), strict=True):
        begin = ""
        for row, colour in zip(learned(rows, task), CYCLE, strict=False):
            if row["method"] == VANILLA:  # far from all others
                said = f"{100 * row['accuracy']:.1f} %" if task == "sentiment" else f"{row['loss']:.2f} nats"
                begin = f" (untrained: {said})"
                continue
            error = 100 * (row.get("accuracy_std") or 0) if task == "sentiment" else None
            height = 100 * row["accuracy"] if task == "sentiment" else row["loss"]
            mark = MARKS.get(row["method"], "o")
            style = {"marker": mark, "color": colour, "linestyle": "", "capsize": 3, "label": row["method"]}
            axis.errorbar(held(row), height, yerr=error, **style)
        axis.set_xscale("log")
        axis.set(xlabel="gradients and states (MiB)", title=task + begin)
    axes[0].set_ylabel("accuracy (%), one deviation")
    axes[1].set_ylabel("held-out loss (nats)")
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    fig.suptitle(learned_finding(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def learned_finding(rows: Rows) -> str:
    """The best method of each task that trains, and what it holds."""
    one = max((r for r in learned(rows, "sentiment") if r["method"] != VANILLA), key=lambda r: r["accuracy"])
    two = min((r for r in learned(rows, "instructions") if r["method"] != VANILLA), key=lambda r: r["loss"])
    return (
        f"Most accurate: {one['method']}, {100 * one['accuracy']:.1f} % with {held(one):,.0f} MiB; "
        f"lowest loss: {two['method']}, {two['loss']:.2f} nats with {held(two):,.0f} MiB"
    )


def learned_words(rows: Rows) -> str:
    """Both panels in words."""
    told = "; ".join(
        f"{r['task']}, {r['method']}: accuracy {100 * r['accuracy']:.1f} %, loss {r['loss']:.3f}, {held(r):,.1f} MiB"
        for task in ("sentiment", "instructions")
        for r in learned(rows, task)
    )
    return f"Marks over the bytes of gradients and states. {learned_finding(rows)}. {told}."


def series(rows: Rows) -> dict[str, list[float]]:
    """MiB of gradients and states after each step, by method, of the rows that were measured through switches.

    Raises:
        LabError: where there are none.
    """
    found: dict[str, list[float]] = {}
    for row in sorted((r for r in rows if r.get("part") == "bytes"), key=lambda r: r["step"]):
        found.setdefault(row["method"], []).append(held(row))
    if not found:
        raise LabError("The table has no bytes over steps.", "Record it with: labkit bench lisa.")
    return found


def series_figure(rows: Rows) -> Figure:
    """Bytes of gradients and states on the device after each step, a line a method."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    fig, axis = plt.subplots(figsize=(7.4, 3.4))
    for (name, values), colour, dash in zip(series(rows).items(), CYCLE, DASHES, strict=False):
        axis.step(range(1, len(values) + 1), values, where="mid", color=colour, linestyle=dash, label=name)
    axis.set(xlabel="step, each with other layers", ylabel="gradients and states (MiB)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
    axis.set_title(series_finding(rows))
    return fig


def series_finding(rows: Rows) -> str:
    """How much each method's bytes grew."""
    grown = [f"{name} ×{values[-1] / values[0]:.2f}" for name, values in series(rows).items()]
    return "From first to last step: " + ", ".join(grown)


def series_words(rows: Rows) -> str:
    """The lines in words."""
    told = "; ".join(f"{n}: {v[0]:,.1f} to {v[-1]:,.1f}, at most {max(v):,.1f}" for n, v in series(rows).items())
    return f"Lines of MiB of gradients and states over the steps. {series_finding(rows)}. {told}."


def published_rows(published: Rows, model: str) -> list[dict[str, Any]]:
    """The published accuracies of a model, a row a method."""
    return [
        {k: v for k, v in row.items() if k not in ("source", "model")} for row in published if row["model"] == model
    ]
