"""Figures of lesson 11: rows as arrows, changes of length against changes of direction, and what each method costs.

A method has one colour and marker in all of them. Changes are those of `labkit.adapters.decompose`; recorded and
published figures are rows of the table `dora`. Titles and the `*_words` for alternative text are computed from what is
drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.adapters.decompose import Change, at_end, between, correlation, interval, slope
from labkit.errors import LabError
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

LOOK = {  # colour and marker
    "full": ("black", "o"),
    "lora": ("orange", "s"),
    "dora-half": ("sky", "^"),
    "dora": ("blue", "D"),
    "peft.dora": ("purple", "x"),
}
COSTS = (
    ("accuracy", "accuracy (%)", 100.0),
    ("share", "share that trains (%)", 100.0),
    ("step_ms", "a step (ms)", 1.0),
    ("peak_allocated_mib", "peak (GiB)", 1 / 1024),
)
STEP_SIZES = (18, 34, 54, 80)  # of a mark, by moment


def arrows_figure(weight: Tensor, states: Mapping[str, Tensor]) -> Figure:
    """Rows of two values as arrows: grey where they began, coloured where each state has brought them.

    Args:
        weight: [out, 2], where training began.
        states: name to the same matrix later; a panel each.
    """
    import matplotlib.pyplot as plt

    _some(states)
    fig, axes = plt.subplots(1, len(states), figsize=(3.6 * len(states), 4.3), sharex=True, sharey=True, squeeze=False)
    reach = 1.15 * max(float(m.norm(dim=1).max()) for m in (weight, *states.values()))
    dotted: dict[str, Any] = {"color": PALETTE["grey"], "ls": ":", "lw": 0.8}
    for ax, (name, after) in zip(axes[0], states.items(), strict=True):
        for row, (old, new) in enumerate(zip(weight.tolist(), after.tolist(), strict=True)):
            ax.add_patch(plt.Circle((0, 0), math.hypot(*old), fill=False, **dotted))
            for (x, y), colour, width in ((old, "grey", 3.0), (new, "blue", 1.6)):
                arrow = {"arrowstyle": "-|>", "color": PALETTE[colour], "lw": width, "shrinkA": 0, "shrinkB": 0}
                ax.annotate("", (x, y), (0, 0), arrowprops=arrow)
            _numbered(ax, row + 1, old, new)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="weight of input 1")
        ax.set_title(_arrows_finding(name, between(weight, after)), fontsize="medium")
    axes[0, 0].set_ylabel("weight of input 2")
    lines = [plt.Line2D([], [], color=PALETTE[c], lw=w) for c, w in (("grey", 3.0), ("blue", 1.6))]
    names = ["row before", "row after, with its number", "places of the same length as before"]
    fig.legend([*lines, plt.Line2D([], [], **dotted)], names, loc="outside lower center", ncols=3, fontsize="small")
    return fig


def _numbered(ax: Axes, number: int, old: Sequence[float], new: Sequence[float]) -> None:
    """A row's number at the tip of its arrow, on the side away from where it began: no arrow lies there."""
    length = math.hypot(*new) or 1.0
    along = new[0] / length, new[1] / length
    side = math.copysign(0.2, old[0] * new[1] - old[1] * new[0])
    place = new[0] + 0.1 * along[0] - side * along[1], new[1] + 0.1 * along[1] + side * along[0]
    ax.text(*place, f"{number}", ha="center", va="center", color=PALETTE["blue"], fontweight="bold")


def _arrows_finding(name: str, change: Change) -> str:
    kept = change.magnitude < 0.005
    return f"{name}:\nrows turn, " + ("no length changes" if kept else f"lengths change by {change.magnitude:.2f}")


def arrows_words(weight: Tensor, states: Mapping[str, Tensor]) -> str:
    """How the length of each row changes, and by how many degrees it turns, state by state."""
    said = []
    for name, after in states.items():
        change = between(weight, after)
        rows = (
            f"row {k + 1} {m:+.2f} and {degrees(d):.0f}°"
            for k, (m, d) in enumerate(zip(change.lengths.tolist(), change.turns.tolist(), strict=True))
        )
        said.append(f"{name}: {', '.join(rows)}")
    return f"Arrows of {len(weight)} rows before and after. Change of length and angle turned in {'; in '.join(said)}."


def degrees(turn: float) -> float:
    """The angle of which `turn` is 1 - cos; NaN for NaN."""
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(turn / 2)))) if turn == turn else math.nan


def changes_figure(seen: Mapping[str, Sequence[Change]]) -> Figure:
    """ΔM against ΔD, a panel for each method on the same axes: a mark a matrix and moment, larger for later ones.

    Circles are query matrices, crosses all others (values, in the lesson); the line fits the last moment's.
    """
    import matplotlib.pyplot as plt

    _some(seen)
    size = (2.9 * len(seen), 3.9)
    fig, axes = plt.subplots(1, len(seen), figsize=size, squeeze=False, sharex=True, sharey=True)
    for ax, (name, changes) in zip(axes[0], seen.items(), strict=True):
        moments = sorted({change.step for change in changes})
        colour = PALETTE[LOOK.get(name, ("grey", "o"))[0]]
        for change in changes:
            place = moments.index(change.step)
            # Earlier moments are paler, so that the last one, to which the line belongs, is seen as one cloud.
            look = {
                "s": STEP_SIZES[min(place, len(STEP_SIZES) - 1)],
                "alpha": 1.0 if change.step == moments[-1] else 0.35,
            }
            round_mark = {"marker": "o", "facecolors": "none", "edgecolors": colour}
            mark = round_mark if _query(change) else {"marker": "x", "c": colour}
            ax.scatter(change.direction, change.magnitude, linewidths=1.2, **look, **mark)
        _line(ax, at_end(changes))
        ax.set_title(f"{name}: r = {correlation(at_end(changes)):+.2f}\n95 %: {interval_words(at_end(changes))}")
        ax.set_xlabel("ΔD (1 - cos)")
        ax.ticklabel_format(style="sci", scilimits=(-2, 2))
    every = [change for changes in seen.values() for change in changes]
    # Room for the largest mark, which would be cut by the frame.
    tops = (1.08 * max(c.direction for c in every), 1.08 * max(c.magnitude for c in every))
    axes[0, 0].set(ylabel="ΔM (units of weight)", xlim=(0, tops[0]), ylim=(0, tops[1]))
    fig.legend(*_marks(), loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(changes_finding(seen).replace("; ", ";\n"), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _marks() -> tuple[list[Any], list[str]]:
    """Handles and labels of the legend of `changes_figure`."""
    import matplotlib.pyplot as plt

    grey, red = PALETTE["grey"], PALETTE["red"]
    marks: list[Any] = [plt.Line2D([], [], ls="none", marker=m, mfc="none", color=grey, ms=7) for m in ("o", "x")]
    marks.append(plt.Line2D([], [], ls="none", marker="o", mfc="none", color=grey, ms=4, alpha=0.35))
    marks.append(plt.Line2D([], [], ls="--", color=red))
    return marks, ["queries, at the end", "values, at the end", "small and pale: earlier", "line of the end's marks"]


def interval_words(changes: Sequence[Change]) -> str:
    """The 95 % interval of the correlation, as "-0.79 to +0.02"."""
    low, high = interval(changes)
    return f"{low:+.2f} to {high:+.2f}"


def sure(seen: Mapping[str, Sequence[Change]]) -> list[str]:
    """The methods whose r at the end has a 95 % interval without 0."""
    bounds = {name: interval(at_end(changes)) for name, changes in seen.items()}
    return [name for name, (low, high) in bounds.items() if low > 0 or high < 0]


def _query(change: Change) -> bool:
    return change.layer.endswith("q_proj")


def _line(ax: Axes, changes: Sequence[Change]) -> None:
    xs, ys = [c.direction for c in changes], [c.magnitude for c in changes]
    steep, ends = slope(changes), (min(xs), max(xs))
    level = sum(ys) / len(ys) - steep * sum(xs) / len(xs)
    ax.plot(ends, [level + steep * x for x in ends], "--", color=PALETTE["red"], linewidth=1.2)


def changes_finding(seen: Mapping[str, Sequence[Change]]) -> str:
    """In which methods the correlation at the end can be told from 0, and where lengths change most and least."""
    told, size = sure(seen), {name: _mean_length(changes) for name, changes in seen.items()}
    most, least = max(size, key=lambda name: size[name]), min(size, key=lambda name: size[name])
    sizes = f"lengths change {size[most] / size[least]:.1f} times as much in {most} as in {least}"
    who = f"r differs from 0 only in {' and '.join(told)}" if told else "no r can be told from 0"
    return f"At the end {who}; {sizes}"


def _mean_length(changes: Sequence[Change]) -> float:
    end = at_end(changes)
    return sum(change.magnitude for change in end) / len(end)


def changes_words(seen: Mapping[str, Sequence[Change]]) -> str:
    """The finding, and each method's correlations with the ranges that are drawn."""
    said = []
    for name, changes in seen.items():
        xs, ys = [c.direction for c in changes], [c.magnitude for c in changes]
        end, pooled = correlation(at_end(changes)), correlation(changes)
        said.append(
            f"{name}: r = {end:+.2f} (95 %: {interval_words(at_end(changes))}) at the end "
            f"and {pooled:+.2f} over all moments, "
            f"ΔD {min(xs):.2g} to {max(xs):.2g}, ΔM {min(ys):.2g} to {max(ys):.2g}"
        )
    return f"ΔM against ΔD by matrix and moment. {changes_finding(seen)}. {'; '.join(said)}."


class RowsExplorer(Explorer):
    """Choose a method, a matrix and a moment: how far each row has turned, and how its length has changed.

    Args:
        seen: method to the changes of one training.
    """

    def __init__(self, seen: Mapping[str, Sequence[Change]]) -> None:
        _some(seen)
        self.seen = seen
        first = next(iter(seen.values()))
        layers = list(dict.fromkeys(change.layer for change in first))
        steps = sorted({change.step for change in first})
        names = [(layer.removeprefix("model.").replace("self_attn.", ""), layer) for layer in layers]
        super().__init__(
            {"step": ("after step", steps, steps[-1])},
            {"method": ("method", list(seen), next(iter(seen))), "layer": ("matrix", names, layers[0])},
        )

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The figure of the rows, and its words."""
        method, layer, step = values["method"], values["layer"], values["step"]
        change = next(c for c in self.seen[method] if (c.layer, c.step) == (layer, step))
        words = rows_words(change, method)
        return f"{figure_html(rows_figure(change, method), words)}<p>{html.escape(words)}</p>", words


def rows_figure(change: Change, method: str = "") -> Figure:
    """Each row of one matrix: degrees turned, and change of length with its sign."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 3.4))
    colour, mark = LOOK.get(method, ("grey", "o"))
    ax.axhline(0, color=PALETTE["grey"], linewidth=1)
    ax.plot([degrees(d) for d in change.turns.tolist()], change.lengths.tolist(), mark, color=PALETTE[colour], ms=4,
            ls="none", alpha=0.6)  # fmt: skip
    ax.set(xlabel="row turned by (degrees)", ylabel="change of its length\n(units of weight)", xlim=(0, None))
    grown = float((change.lengths > 0).double().mean())
    where = change.layer.removeprefix("model.").replace("self_attn.", "")
    ax.set_title(f"{method}, {where}, step {change.step}: {grown:.0%} of the rows grew")
    return fig


def _mean_change_exact(change: Change) -> str:
    return f"ΔM {change.magnitude:.2g}, ΔD {change.direction:.2g}"


def rows_words(change: Change, method: str = "") -> str:
    """How many rows grew, and the means and extremes."""
    grown = int((change.lengths > 0).sum())
    low, high = float(change.lengths.min()), float(change.lengths.max())
    angles = [degrees(d) for d in change.turns.tolist() if d == d]
    return (
        f"{method}, {change.layer} after step {change.step}: {grown} of {len(change.lengths)} rows grew, "
        f"lengths change by {low:+.2g} to {high:+.2g}, "
        f"rows turn by {min(angles):.2g} to {max(angles):.2g} degrees; {_mean_change_exact(change)}."
    )


def _some(given: Any) -> None:
    if not given:
        raise LabError("There is nothing to draw.", "Give at least one training's changes, or rows of a table.")
