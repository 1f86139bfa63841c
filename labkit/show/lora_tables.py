"""Figures of lesson 10's recorded tables: ranks and targets, LoRA+'s ratio, and methods by what they train.

A table's columns are those of `labkit bench lora-rank`, `lora-plus`, `lora-cost` and `peft`; published rows are shown
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.bench.lora_rank import MIDDLE
from labkit.errors import LabError
from labkit.show.display import table
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X")


def _some(rows: Sequence[dict[str, Any]], name: str) -> None:
    if not rows:
        raise LabError("The table has no such rows.", f"Record it anew with: labkit bench {name}.")


def one_model(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the model that has most of them (the first of several)."""
    names = [row["model"] for row in rows]
    best = max(names, key=names.count, default=None)
    return [row for row in rows if row["model"] == best]


def ranks_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy over the rank, a line for each choice of targets, with the spread over seeds.

    Raises:
        LabError: without rows.
    """
    import matplotlib.pyplot as plt

    _some(rows, "lora-rank")
    rows = one_model(rows)
    fig, ax = plt.subplots()
    for number, targets in enumerate(dict.fromkeys(row["targets"] for row in rows)):
        own = sorted((row for row in rows if row["targets"] == targets), key=lambda row: row["rank"])
        nudge = 1.04 ** (number - 1)  # lines side by side, so that their bars can be told apart
        ax.errorbar(
            [row["rank"] * nudge for row in own],
            [100 * row["accuracy"] for row in own],
            [100 * (row["accuracy_std"] or 0) for row in own],
            color=CYCLE[number % 7],
            linestyle=DASHES[number % 7],
            marker=MARKS[number % 7],
            capsize=2,
            label=targets,
        )
    ranks = sorted({row["rank"] for row in rows})
    ax.set(xscale="log", xlabel="rank r", ylabel="accuracy (%)")
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.set_title(_ranks_finding(rows))
    ax.legend(title="adapters beside", fontsize="small")
    return fig


def spans(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """In points: mean accuracy's span over ranks (of the targets with the widest), over targets (of the rank with the
    widest), and the mean spread over seeds."""

    def widest(inside: str) -> float:
        groups: dict[Any, list[float]] = {}
        for row in rows:
            groups.setdefault(row[inside], []).append(100 * row["accuracy"])
        return max(max(values) - min(values) for values in groups.values())

    noise = [100 * row["accuracy_std"] for row in rows if row["accuracy_std"] is not None]
    return widest("targets"), widest("rank"), sum(noise) / len(noise) if noise else 0.0


def _ranks_finding(rows: Sequence[dict[str, Any]]) -> str:
    """Ranks above that at which the rates were chosen stand apart: what they lose may be the rate's."""
    within = [row for row in rows if row["rank"] <= MIDDLE]
    by_rank, by_targets, noise = spans(within or rows)
    said = f"Ranks differ by up to {by_rank:.1f} points, targets by {by_targets:.1f}, seeds by ± {noise:.1f}"
    if not within or len(within) == len(rows):
        return said
    above = [row for row in rows if row["rank"] > MIDDLE]
    least = min(above, key=lambda row: row["accuracy"])
    fallen = f"Rank {least['rank']}: {100 * least['accuracy']:.1f} % at the least"
    return f"Up to rank {MIDDLE}: {said[0].lower()}{said[1:]}\n{fallen}"


def ranks_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all numbers."""
    _some(rows, "lora-rank")
    rows = one_model(rows)
    points = "; ".join(
        f"{row['targets']} rank {row['rank']}: {100 * row['accuracy']:.1f} ± {100 * (row['accuracy_std'] or 0):.1f} %"
        for row in rows
    )
    return f"Lines of accuracy over rank for {rows[0]['model']}. {_ranks_finding(rows)}. {points}."


def plus_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Steps until the loss is reached over the ratio of rates, a line for each rate of A; never reached is left out.

    Raises:
        LabError: without rows.
    """
    import matplotlib.pyplot as plt

    _some(rows, "lora-plus")
    rows = one_model(rows)
    fig, ax = plt.subplots()
    for number, rate in enumerate(sorted({row["learning_rate"] for row in rows})):
        own = sorted((row for row in rows if row["learning_rate"] == rate), key=lambda row: row["ratio"])
        own = [row for row in own if row["steps_to_loss"] is not None]
        ax.errorbar(
            [row["ratio"] for row in own],
            [row["steps_to_loss"] for row in own],
            [row["steps_to_loss_std"] or 0 for row in own],
            color=CYCLE[number % 7],
            linestyle=DASHES[number % 7],
            marker=MARKS[number % 7],
            capsize=2,
            label=f"{rate:g}",
        )
    ratios = sorted({row["ratio"] for row in rows})
    ax.set(xscale="log", xlabel="ratio: rate of B over rate of A", ylabel="steps to the loss", ylim=(0, None))
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.minorticks_off()
    ax.set_title(_plus_finding(rows))
    ax.legend(title="rate of A", fontsize="small")
    return fig


def _plus_finding(rows: Sequence[dict[str, Any]]) -> str:
    reached = [row for row in rows if row["steps_to_loss"] is not None]
    if not reached:
        return "None of these runs reached the loss"
    plain = [row for row in reached if row["ratio"] == 1]
    best = min(reached, key=lambda row: row["steps_to_loss"])
    said = f"Fastest: ratio {best['ratio']:g} at rate {best['learning_rate']:g}, {_steps(best)} steps"
    if not plain:
        return f"{said}; none at ratio 1"
    lora = min(plain, key=lambda row: row["steps_to_loss"])
    return f"{said}; at ratio 1, {_steps(lora)}"


def _steps(row: dict[str, Any]) -> str:
    """Steps until the loss, with their spread over seeds."""
    return f"{row['steps_to_loss']:.0f} ± {row['steps_to_loss_std'] or 0:.0f}"


def plus_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all numbers."""
    _some(rows, "lora-plus")
    rows = one_model(rows)
    points = "; ".join(
        f"rate {row['learning_rate']:g}, ratio {row['ratio']:g}: "
        + ("never" if row["steps_to_loss"] is None else f"{row['steps_to_loss']:.0f} steps")
        for row in rows
    )
    return f"Lines of steps over the ratio for {rows[0]['model']}. {_plus_finding(rows)}. {points}."


def methods_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy of each method with the spread over seeds, in the order of how many values train.

    Raises:
        LabError: without rows that have an accuracy.
    """
    import matplotlib.pyplot as plt

    rows = one_model([row for row in rows if row["accuracy"] is not None])
    _some(rows, "peft")
    ordered = sorted(rows, key=lambda row: row["trainable_params"])
    fig, ax = plt.subplots(figsize=(7.2, 1.2 + 0.3 * len(ordered)))
    for place, row in enumerate(ordered):
        spread = 100 * (row["accuracy_std"] or 0)
        ax.errorbar(100 * row["accuracy"], place, xerr=spread, marker="o", capsize=3, color=PALETTE["blue"])
    ax.set(yticks=range(len(ordered)), xlabel="accuracy (%)", ylabel="values that train")
    ax.set_yticklabels([f"{row['method']}   {row['trainable_params']:,}" for row in ordered])
    ax.set_title(_methods_finding(rows))
    return fig


def _methods_finding(rows: Sequence[dict[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["accuracy"])
    level = best["accuracy"] - (best["accuracy_std"] or 0)
    near = [row for row in rows if row["accuracy"] + (row["accuracy_std"] or 0) >= level]
    least = min(near, key=lambda row: row["trainable_params"])
    return f"Within a spread of the best ({best['method']}): {len(near)} of {len(rows)}; smallest: {least['method']}"


def methods_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all numbers."""
    rows = one_model([row for row in rows if row["accuracy"] is not None])
    _some(rows, "peft")
    points = "; ".join(
        f"{row['method']}: {row['trainable_params']:,} values, {100 * row['accuracy']:.1f} ± "
        f"{100 * (row['accuracy_std'] or 0):.1f} %"
        for row in rows
    )
    return f"Marks of accuracy over trained values for {rows[0]['model']}. {_methods_finding(rows)}. {points}."


def pairs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the measured steps of table `lora-cost`: ours beside peft's of the same setting, and ours over peft's."""
    same = ("model", "adapter_dtype", "targets", "dropout", "batch", "seq_len", "rank")
    theirs = {(row["method"], *(row[name] for name in same)): row for row in rows}
    found = []
    for ours in rows:
        peer = theirs.get((f"peft.{ours['method']}", *(ours[name] for name in same)))
        if peer is None:
            continue
        shown = {name: ours[name] for name in ("model", "method", "adapter_dtype", "targets", "dropout")}
        shown |= {"ours": round(ours["step_ms"], 1), "peft": round(peer["step_ms"], 1)}
        if (spread := max(ours.get("step_iqr_ms") or 0.0, peer.get("step_iqr_ms") or 0.0)) > 0:
            shown["quartiles apart"] = round(spread, 1)
        shown["time, ours / peft"] = round(ours["step_ms"] / peer["step_ms"], 2)
        if ours["peak_allocated_mib"] and peer["peak_allocated_mib"]:
            shown["peak, ours / peft"] = round(ours["peak_allocated_mib"] / peer["peak_allocated_mib"], 2)
        found.append(shown)
    return found


def pairs_finding(rows: Sequence[dict[str, Any]]) -> str:
    """Least and most of both quotients."""
    found = pairs(rows)
    _some(found, "lora-cost")
    parts = []
    for what in ("time", "peak"):
        values = [row[f"{what}, ours / peft"] for row in found if f"{what}, ours / peft" in row]
        if values:
            parts.append(f"{what} {min(values):.2f} to {max(values):.2f}")
    return f"Ours over peft's, {len(found)} settings: {', '.join(parts)} times"


def published(rows: Sequence[dict[str, Any]]) -> None:
    """Display published rows as they are, a table for each source."""
    for source in dict.fromkeys(row.get("source", "") for row in rows):
        own = [{k: v for k, v in row.items() if k != "source"} for row in rows if row.get("source", "") == source]
        columns = list(dict.fromkeys(name for row in own for name in row))
        table([{name: row.get(name) for name in columns} for row in own], caption=f"Published: {source}")
