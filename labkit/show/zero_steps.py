"""Figures of lesson 07: bytes of a rank by method, measured on their formula, and what is there in the midst of a step.

Rows are those of the reference table `zero`; `row_of` makes one of a learner's own ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.parallel.zero_watch import BACKWARD, FORWARD, NEEDED, Look
from labkit.show.anatomy_style import COLOURS, MIB, amount, called, number
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Looks = Sequence[Look]
STANDING = ("weights", "master_weights", "gradients", "optimizer_states")
LINES = (("blue", "-"), ("red", "--"), ("green", "-."))


def row_of(method: str, world_size: int, measured: Mapping[str, int], predicted: Mapping[str, int]) -> dict[str, Any]:
    """Bytes of one rank by category, in MiB, in the columns of table `zero`."""
    found: dict[str, Any] = {"method": method, "world_size": world_size}
    found |= {f"{name}_mib": measured.get(name, 0) / MIB for name in (*STANDING, "activations")}
    found |= {f"predicted_{name}_mib": predicted.get(name, 0) / MIB for name in STANDING}
    for column, sizes in (("measured_mib", measured), ("predicted_mib", predicted)):
        found[column] = sum(sizes.get(name, 0) for name in STANDING) / MIB
    return found


def bytes_figure(rows: Sequence[Row]) -> Figure:
    """Stacked bars of what stands on a rank by method, a mark where the formula puts the sum; times where they are.

    Args:
        rows: of one model; a panel for each world size. Rows that were not measured are left out.
    """
    import matplotlib.pyplot as plt

    panels = _by_world_size(rows)
    deep = [len(mine) for mine in panels.values()]
    tall = 1.2 + 0.3 * sum(deep) + 0.4 * len(deep)
    grid: dict[str, Any] = {"sharex": True, "squeeze": False, "height_ratios": deep}
    fig, axes = plt.subplots(len(panels), 1, figsize=(7.2, tall), **grid)
    most = max(row["measured_mib"] for mine in panels.values() for row in mine)
    size, unit = (1024, "GiB") if most >= 1024 else (1, "MiB")
    for ax, (world_size, mine) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(ax, mine, size, most / size)
        ax.set_title(_bytes_title(world_size, mine), fontsize="small")
    axes[-1, 0].set(xlabel=f"standing on one rank ({unit})", xlim=(0, 1.22 * most / size))
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, fontsize="small")
    return fig


def _by_world_size(rows: Sequence[Row]) -> dict[int, list[Row]]:
    measured = [row for row in rows if row.get("measured_mib")]
    if not measured:
        raise LabError("No row was measured.", "Give rows with `measured_mib`.")
    sizes = sorted({row["world_size"] for row in measured})
    return {size: [row for row in measured if row["world_size"] == size] for size in sizes}


def label(row: Row) -> str:
    """A row's method, with the option that sets it apart."""
    more = []
    if row.get("hold_weights") is False:
        more.append("weights from masters")
    if row.get("reshard") is not None:
        more.append("reshard" if row["reshard"] else "weights stay")
    return f"{row['method']} ({', '.join(more)})" if more else str(row["method"])


def _bars(ax: Axes, rows: Sequence[Row], size: float, most: float) -> None:
    left = [0.0] * len(rows)
    places = range(len(rows))
    for name in STANDING:
        widths = [(row.get(f"{name}_mib") or 0) / size for row in rows]
        if not any(widths):
            continue
        ax.barh(places, widths, 0.7, left, color=COLOURS[name], edgecolor="white", linewidth=0.5, label=called(name))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    style: dict[str, Any] = {"linestyle": "", "marker": "|", "ms": 15, "mew": 2, "color": PALETTE["black"]}
    ax.plot([row["predicted_mib"] / size for row in rows], places, label="formula", **style)
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        time = f", {number(row['step_ms'])} ms" if row.get("step_ms") else ""
        ax.text(end + 0.015 * most, place, f"{number(end)}{time}", va="center", fontsize="small")
    ax.set_yticks(places, [label(row) for row in rows], fontsize="small")
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    ax.grid(False, axis="y")
    ax.set_axisbelow(True)


def _bytes_title(world_size: int, rows: Sequence[Row]) -> str:
    least, most = (f(rows, key=lambda row: row["measured_mib"]) for f in (min, max))
    off = max(abs(row["measured_mib"] / row["predicted_mib"] - 1) for row in rows)
    share = 100 * least["measured_mib"] / most["measured_mib"]
    told = f"{world_size} ranks: {least['method']} holds {share:.0f} % of {most['method']}"
    return f"{told}; formula within {100 * off:.2g} %"


def bytes_words(rows: Sequence[Row]) -> str:
    """Each method's sum, measured and by formula, and its time where there is one."""
    told = []
    for world_size, mine in _by_world_size(rows).items():
        each = []
        for row in mine:
            time = f", {number(row['step_ms'])} ms a step" if row.get("step_ms") else ""
            sizes = f"{amount(MIB * row['measured_mib'])} (formula {amount(MIB * row['predicted_mib'])})"
            each.append(f"{label(row)} {sizes}{time}")
        told.append(f"{_bytes_title(world_size, mine)}: {'; '.join(each)}")
    return f"Stacked bars of the bytes that stand on one rank. {'. '.join(told)}."


def gradients_figure(runs: Mapping[str, Looks]) -> Figure:
    """Bytes of whole gradients on a rank as the backward pass goes on, a line for each stage."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    for (name, looks), (colour, line) in zip(runs.items(), LINES, strict=False):
        sizes = _in_backward(looks)
        ax.step(range(len(sizes)), sizes, where="post", color=PALETTE[colour], linestyle=line, label=name)
    ax.set(xlabel="events of the backward pass, from the last layer to the root", ylabel="whole gradients (MiB)")
    ax.set_ylim(0, None)
    ax.set_title(_gradients_title(runs))
    ax.legend(fontsize="small")
    return fig


def _in_backward(looks: Looks) -> list[float]:
    """Where gradients arrive or leave, in MiB."""
    return [look.gradient_bytes / MIB for look in looks if look.event in ("arrived", "reduced")]


def _gradients_title(runs: Mapping[str, Looks]) -> str:
    each = [f"{name} {number(max(_in_backward(looks)))}" for name, looks in runs.items()]
    return f"Most whole gradients at once, in MiB: {', '.join(each)}"


def gradients_words(runs: Mapping[str, Looks]) -> str:
    """Each run's peak and what is there at the end of the backward pass."""
    each = []
    for name, looks in runs.items():
        sizes = _in_backward(looks)
        each.append(f"{name} rises to {number(max(sizes))} and ends with {number(sizes[-1])}")
    return f"Lines of whole gradients over the backward pass, in MiB. {'; '.join(each)}."


def gathered_figure(looks: Looks) -> Figure:
    """Which units' weights are whole on a rank, event by event, and their bytes: stage 3 through one step."""
    import matplotlib.pyplot as plt

    units = _units(looks)
    tall = 0.3 + 0.2 * len(units)
    fig, (lanes, size) = plt.subplots(2, 1, figsize=(7.2, tall + 2.2), sharex=True, height_ratios=(tall, 1))
    for row, name in enumerate(units):
        there = [(x, 1) for x, look in enumerate(looks) if name in look.gathered]
        lanes.broken_barh(there, (row - 0.36, 0.72), facecolors=PALETTE["sky"])
        needed = [x + 0.5 for x, look in enumerate(looks) if look.event == NEEDED and look.unit == name]
        lanes.plot(
            needed, [row] * len(needed), "o", ms=4, color=PALETTE["black"], label="needed now" if not row else None
        )
    lanes.set_yticks(range(len(units)), [name.removeprefix("model.") for name in units], fontsize="small")
    lanes.set(ylim=(len(units) - 0.4, -0.6))
    lanes.grid(False)
    lanes.legend(fontsize="small", loc="lower right")
    lanes.set_title(_gathered_title(looks))
    size.step(range(len(looks)), [look.gathered_bytes / MIB for look in looks], where="post", color=PALETTE["blue"])
    size.set(xlabel="events of one step, in order", ylabel="gathered\n(MiB)", ylim=(0, None), xlim=(0, len(looks)))
    turn = next((x for x, look in enumerate(looks) if look.phase != FORWARD), len(looks))
    end = next((x for x, look in enumerate(looks) if look.phase not in (FORWARD, BACKWARD)), len(looks))
    for ax in (lanes, size):
        for place in (turn, end):
            ax.axvline(place, color=PALETTE["grey"], linewidth=1, linestyle="--")
    low = {"va": "bottom", "fontsize": "small", "color": PALETTE["grey"]}
    size.text(turn / 2, 0, "forward", ha="center", **low)
    size.text((turn + end) / 2, 0, "backward", ha="center", **low)
    return fig


def _units(looks: Looks) -> list[str]:
    """In the order in which they are first gathered."""
    return list(dict.fromkeys(name for look in looks for name in look.gathered))


def _gathered_title(looks: Looks) -> str:
    peak = max(looks, key=lambda look: look.gathered_bytes)
    beside = len([name for name in peak.gathered if name != "root"])
    times = sum(bool(set(now.gathered) - set(before.gathered)) for before, now in pairwise(looks))
    return f"{times + 1} gathers; at most the root and {beside} layers are whole: {amount(peak.gathered_bytes)}"


def gathered_words(looks: Looks) -> str:
    """The peak, and for each unit how often it comes."""
    each = []
    for name in _units(looks):
        there = [name in look.gathered for look in looks]
        came = sum(now and not before for before, now in zip([False, *there], there, strict=False))
        each.append(f"{name} {came} time{'s' * (came != 1)}")
    return (
        f"Bars of the units that are gathered, over the events of a step. {_gathered_title(looks)}. {', '.join(each)}."
    )
