"""Figures of lesson 08: which stage of a pipeline works when, as planned and as measured, and its bubble.

Figure functions return a matplotlib Figure for `labkit.show.figure`; the `*_words` function beside each gives its
alternative text from the same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.parallel.pipeline_schedule import (
    BACKWARD,
    FORWARD,
    SCHEDULES,
    Action,
    Ran,
    bubble,
    ideal_bubble,
    live_peaks,
    schedule,
    simulate,
)
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {FORWARD: ("blue", "white"), BACKWARD: ("orange", "black")}
IDLE = "#E4E4E4"
NARROW = 0.012  # of the chart's width, below which a block has no number
CALLED = {"gpipe": "GPipe", "1f1b": "1F1B"}
Charts = Mapping[str, Sequence[Ran]]
Steps = Mapping[tuple[str, int], Sequence[Ran]]  # by schedule and micro-batches


def planned(name: str, stages: int, micro_batches: int, backward: float = 2.0) -> list[Ran]:
    """A schedule where every forward takes 1 on every stage and every backward `backward`."""
    return simulate(schedule(name, stages, micro_batches), 1.0, backward)


def from_table(row: Mapping[str, Any]) -> list[Ran]:
    """What ran when, from the `spans` of a row of table `pipeline`.

    Raises:
        LabError: for a row without them.
    """
    if not row.get("spans"):
        raise LabError(f"This row of {row.get('method')} has no spans.", "Take a pipeline of 8 micro-batches or less.")
    return [Ran(stage, Action(kind, k), start, end) for stage, kind, k, start, end in row["spans"]]


def takes(ran: Sequence[Ran], kind: str) -> list[float]:
    """The median time of each stage's forwards or backwards."""
    stages = sorted({r.stage for r in ran})
    return [statistics.median(r.end - r.start for r in ran if (r.stage, r.action.kind) == (s, kind)) for s in stages]


def evened(ran: Sequence[Ran]) -> list[Ran]:
    """The same orders if all stages took the same time and messages none: what the formula speaks of."""
    forward, backward = (statistics.mean(takes(ran, kind)) for kind in (FORWARD, BACKWARD))
    return simulate(_orders(ran), forward, backward)


def steadied(ran: Sequence[Ran]) -> list[Ran]:
    """The same orders if each stage took its own median time for every micro-batch, and messages none."""
    return simulate(_orders(ran), takes(ran, FORWARD), takes(ran, BACKWARD))


def _orders(ran: Sequence[Ran]) -> list[list[Action]]:
    return [[r.action for r in sorted(ran, key=lambda r: r.start) if r.stage == s] for s in range(_stages(ran))]


def reason_rows(steps: Steps, again: Steps | None = None) -> list[dict[str, Any]]:
    """For each step by schedule and micro-batches its bubble in %: by formula, with unequal stages, and as measured.

    What lies between the first two is due to stages that differ. The rest is due to micro-batches of one stage that
    differ, and to messages.

    Args:
        again: another step of each, whose bubble stands beside the first.
    """
    return [
        {
            "schedule": CALLED[name],
            "micro-batches": m,
            "formula (%)": round(100 * ideal_bubble(_stages(ran), m)),
            "each stage its own median (%)": round(100 * bubble(steadied(ran))),
            "measured (%)": round(100 * bubble(ran)),
            **({"again (%)": round(100 * bubble(again[name, m]))} if again else {}),
            "the step (ms)": round(_length(ran)),
        }
        for (name, m), ran in steps.items()
    ]


def _stages(ran: Sequence[Ran]) -> int:
    return len({r.stage for r in ran})


def schedule_figure(charts: Charts, unit: str = "ms") -> Figure:
    """A chart for each name, one below the other on one scale of time: forwards, backwards, and grey where none runs.

    Args:
        charts: what ran, by name.
        unit: of the times; empty for planned ones, which count forward passes.
    """
    import matplotlib.pyplot as plt

    heights = [_stages(ran) + 0.9 for ran in charts.values()]
    fig, axes = plt.subplots(
        len(charts), 1, figsize=(8.4, 0.7 + 0.36 * sum(heights)), sharex=True, squeeze=False, height_ratios=heights
    )
    longest = max(_length(ran) for ran in charts.values())
    for ax, (name, ran) in zip(axes[:, 0], charts.items(), strict=True):
        _chart(ax, ran, longest)
        ax.set_title(f"{name}: {_idle(ran)}", fontsize="medium")
    axes[-1, 0].set(xlim=(0, longest), xlabel=f"time ({unit})" if unit else "time (forward passes of a micro-batch)")
    for kind, (colour, _) in COLOURS.items():
        axes[0, 0].bar(0, 0, color=PALETTE[colour], label=f"{kind} of micro-batch …")
    axes[0, 0].bar(0, 0, color=IDLE, label="stands still")
    fig.legend(loc="outside lower center", ncols=3, fontsize="small")
    return fig


def _chart(ax: Axes, ran: Sequence[Ran], longest: float) -> None:
    import matplotlib.pyplot as plt

    begin, end, stages = min(r.start for r in ran), max(r.end for r in ran), _stages(ran)
    ax.barh(range(stages), end - begin, height=0.86, color=IDLE)
    for r in ran:
        colour, ink = COLOURS[r.action.kind]
        at, width = r.start - begin, r.end - r.start
        ax.add_patch(plt.Rectangle((at, r.stage - 0.43), width, 0.86, facecolor=PALETTE[colour], edgecolor="white"))
        if width > NARROW * longest:
            middle = (at + width / 2, r.stage)
            ax.text(*middle, str(r.action.micro_batch), color=ink, ha="center", va="center", fontsize="small")
    ax.set_yticks(range(stages), [f"rank {s}" for s in range(stages)])
    ax.set_ylim(stages - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)


def _length(ran: Sequence[Ran]) -> float:
    return max(r.end for r in ran) - min(r.start for r in ran)


def _idle(ran: Sequence[Ran]) -> str:
    micro_batches = len({r.action.micro_batch for r in ran})
    formula = 100 * ideal_bubble(_stages(ran), micro_batches)
    return f"{100 * bubble(ran):.0f} % of all time stands still (formula {formula:.0f} %)"


def schedule_words(charts: Charts, unit: str = "ms") -> str:
    """For each chart its length, its bubble and each rank's first and last action."""
    told = []
    for name, ran in charts.items():
        orders = [sorted((r for r in ran if r.stage == s), key=lambda r: r.start) for s in range(_stages(ran))]
        ends = [f"rank {s} from {o[0].action} to {o[-1].action}" for s, o in enumerate(orders)]
        told.append(f"{name}, {_length(ran):.3g} {unit or 'forward passes'}: {_idle(ran)}; {', '.join(ends)}")
    return f"Charts with a row for each rank and time to the right. {'. '.join(told)}."


def bubble_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Measured bubbles by number of micro-batches on the formula's line, a panel for each number of stages.

    Args:
        rows: with `method`, `world_size`, `micro_batches` and `bubble` (share of all time), as in table `pipeline`.

    Raises:
        LabError: where no row has a bubble.
    """
    import matplotlib.pyplot as plt

    rows = _with_bubble(rows)
    sizes = sorted({row["world_size"] for row in rows})
    fig, axes = plt.subplots(1, len(sizes), figsize=(8.4, 3.5), sharey=True, squeeze=False)
    for ax, stages in zip(axes[0], sizes, strict=True):
        mine = [row for row in rows if row["world_size"] == stages]
        most = max(row["micro_batches"] for row in mine)
        fine = [1 + i / 10 for i in range(10 * (most - 1) + 1)]
        line = [100 * (stages - 1) / (m + stages - 1) for m in fine]
        ax.plot(fine, line, "-", color=PALETTE["sky"], linewidth=6, alpha=0.5, label="(p − 1) / (m + p − 1)")
        for method, (colour, mark) in zip(("gpipe", "1f1b"), (("blue", "o"), ("red", "s")), strict=True):
            points = [(row["micro_batches"], 100 * row["bubble"]) for row in mine if row["method"] == method]
            if points:
                ax.plot(*zip(*points, strict=True), mark, color=PALETTE[colour], label=CALLED[method], fillstyle="none")
        ax.set(xlabel="micro-batches (m)", ylim=(0, 100))
        ax.set_xscale("log", base=2)
        ticks = sorted({row["micro_batches"] for row in mine})
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.minorticks_off()
        ax.set_title(_most(mine), fontsize="medium")
    axes[0, 0].set_ylabel("stands still (% of all time)")
    axes[0, 0].legend(fontsize="small")
    return fig


def _with_bubble(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found = [row for row in rows if row.get("bubble") is not None]
    if not found:
        raise LabError("No row has a measured bubble.", "Give rows of gpipe or 1f1b.")
    return found


def _most(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured with the most micro-batches, and what the formula says there."""
    stages, most = rows[0]["world_size"], max(row["micro_batches"] for row in rows)
    found = [f"{CALLED[r['method']]} {100 * r['bubble']:.0f} %" for r in rows if r["micro_batches"] == most]
    return f"p = {stages}, m = {most}: {', '.join(found)}, formula {100 * ideal_bubble(stages, most):.0f} %"


def bubble_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every measured point, with the formula's value."""
    told = [
        f"{CALLED[row['method']]}, p = {row['world_size']}, m = {row['micro_batches']}: {100 * row['bubble']:.0f} % "
        f"(formula {100 * ideal_bubble(row['world_size'], row['micro_batches']):.0f} %)"
        for row in _with_bubble(rows)
    ]
    return f"Share of all ranks' time that stands still, by number of micro-batches. {'; '.join(told)}."


class ScheduleExplorer(Explorer):
    """A planned schedule for p stages, m micro-batches, and backwards that take so many times a forward."""

    def __init__(self, name: str = "1f1b", stages: int = 4, micro_batches: int = 8) -> None:
        sliders: dict[str, tuple[str, Sequence[Any], Any]] = {
            "stages": ("p, stages", list(range(1, 9)), stages),
            "micro_batches": ("m, micro-batches", [1, 2, 3, 4, 6, 8, 12, 16], micro_batches),
            "backward": ("backward / forward", [0.5, 1.0, 2.0, 3.0], 2.0),
        }
        super().__init__(sliders, {"name": ("schedule", [(CALLED[n], n) for n in SCHEDULES], name)})

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The chart, its bubble by both formulas, and the micro-batches that each rank holds."""
        v = self._values(values)
        p, m = v["stages"], v["micro_batches"]
        held = live_peaks(schedule(v["name"], p, m))
        title = f"{CALLED[v['name']]}, p = {p}, m = {m}"
        charts = {title: planned(v["name"], p, m, v["backward"])}
        more = (
            f" That is {(p - 1) / m:.3g} of the useful time. Micro-batches held at most: {', '.join(map(str, held))}."
        )
        words = schedule_words(charts, "") + more
        return figure_html(schedule_figure(charts, ""), words) + f"<p>{more.strip()}</p>", words
