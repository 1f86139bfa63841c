"""How much of its speed each GPU keeps when there are more of them (lesson 07): weak and strong scaling.

    weak      each rank keeps its sequences, so the batch grows: is a step as fast as on few ranks?
    strong    the batch stays, so each rank has fewer: does a step shrink as ranks are added?

Efficiency is tokens a second and rank, as a share of those on the fewest ranks that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.style import PALETTE
from labkit.show.zero_steps import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
KINDS = ("weak", "strong")
Curves = dict[str, list[tuple[int, float]]]


def same_share(rows: Sequence[Row]) -> list[Row]:
    """The measured rows in which every rank has the fewest sequences that a rank has on the fewest ranks; by model."""
    measured = [row for row in rows if row.get("step_ms")]
    least: dict[str, tuple[int, int]] = {}
    for row in measured:
        share = row["batch"] // row["world_size"]
        least[row["model"]] = min(least.get(row["model"], (row["world_size"], share)), (row["world_size"], share))
    return [row for row in measured if row["batch"] == least[row["model"]][1] * row["world_size"]]


def same_batch(rows: Sequence[Row]) -> list[Row]:
    """The measured rows whose batch was run on the most numbers of ranks, if on more than one; by model."""
    measured, found = [row for row in rows if row.get("step_ms")], []
    for model in dict.fromkeys(row["model"] for row in measured):
        own = [row for row in measured if row["model"] == model]
        ranks: dict[int, set[int]] = {}
        for row in own:
            ranks.setdefault(row["batch"], set()).add(row["world_size"])
        batch = max(ranks, key=lambda b: len(ranks[b]))
        found += [row for row in own if row["batch"] == batch and len(ranks[batch]) > 1]
    return found


def efficiencies(rows: Sequence[Row]) -> Curves:
    """Of each method, by number of ranks, the share of speed that a rank keeps.

    Args:
        rows: of one model.
    """
    found: Curves = {}
    for name in dict.fromkeys(label(row) for row in rows):
        each = {row["world_size"]: row["tokens_per_s"] / row["world_size"] for row in rows if label(row) == name}
        fewest = each[min(each)]
        found[name] = [(ranks, each[ranks] / fewest) for ranks in sorted(each)]
    return found


def curves(rows: Sequence[Row], model: str) -> dict[str, Curves]:
    """Both kinds, of those that were measured on more than one number of ranks.

    Raises:
        LabError: where there is neither.
    """
    own = [row for row in rows if row["model"] == model]
    both = {kind: efficiencies(some(own)) for kind, some in zip(KINDS, (same_share, same_batch), strict=True)}
    found = {kind: {n: c for n, c in each.items() if len(c) > 1} for kind, each in both.items()}
    if not any(found.values()):
        raise LabError(
            f"{model} was measured on one number of ranks only.", "Record it on more GPUs with: labkit bench zero."
        )
    return {kind: each for kind, each in found.items() if each}


def figure(rows: Sequence[Row], model: str) -> Figure:
    """A panel a kind: what share of its speed a rank keeps, by the number of ranks, a line a method."""
    import matplotlib.pyplot as plt

    found = curves(rows, model)
    fig, axes = plt.subplots(1, len(found), figsize=(8.8, 3.6), sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    colours = list(PALETTE.values())
    for axis, (kind, each) in zip(axes[0], found.items(), strict=True):
        for name, points in each.items():
            look = names.index(name)
            style = {"color": colours[look % len(colours)], "marker": "osD^v<>Ph"[look % 9], "linewidth": 1.2}
            axis.plot(*zip(*((n, 100 * share) for n, share in points), strict=True), label=name, **style)
        ticks = sorted({n for points in each.values() for n, _ in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.axhline(100, color=PALETTE["grey"], linestyle=":", linewidth=1)
        axis.set(xlabel="ranks")
        axis.set_title(f"{kind} scaling", fontsize="small", fontweight="normal")
    axes[0][0].set_ylabel("tokens a second and rank (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    fig.suptitle(finding(rows, model), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def finding(rows: Sequence[Row], model: str) -> str:
    """The best and the worst method of each kind at its most ranks."""
    told = []
    for kind, each in curves(rows, model).items():
        most = max(n for points in each.values() for n, _ in points)
        ends = {name: dict(points)[most] for name, points in each.items() if most in dict(points)}
        low, high = min(ends, key=lambda n: ends[n]), max(ends, key=lambda n: ends[n])
        told.append(f"{kind}, {most} ranks: {ends[low]:.0%} ({low}) to {ends[high]:.0%} ({high})")
    return f"{model} keeps of a rank's speed\n" + "; ".join(told)


def words(rows: Sequence[Row], model: str) -> str:
    """Both panels in words."""
    told = []
    for kind, each in curves(rows, model).items():
        lines = (f"{name} " + ", ".join(f"{share:.0%} at {n}" for n, share in points) for name, points in each.items())
        told.append(f"{kind} scaling: {'; '.join(lines)}")
    return f"Share of a rank's speed by number of ranks. {' '.join(finding(rows, model).split())}. {'. '.join(told)}."
