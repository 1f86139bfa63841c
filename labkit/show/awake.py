"""Lesson 13: which layers are awake step by step, what that holds, and a widget to try it.

The schedules are those of the methods themselves (`InTurns.rehearsed`), the bytes those of the formula
(`labkit.layerwise.lisa.standing_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE
from labkit.layerwise.badam import BAdam
from labkit.layerwise.lisa import Lisa, standing_bytes
from labkit.layerwise.turns import InTurns
from labkit.ledger.shapes import Architecture
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.plots import CATEGORY_COLOURS
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GB = 10**9
METHODS = ("LISA", "LISA, outside asleep", "BAdam, ordered", "BAdam, descending", "BAdam, random")
Schedule = Sequence[Sequence[str]]


def method_of(name: str, layers: int, period: int, seed: int = 0) -> InTurns:
    """The method behind a name of METHODS; BAdam has one layer awake, whatever `layers` says.

    Raises:
        LabError: for another name.
    """
    if name not in METHODS:
        raise LabError(f"There is no schedule {name!r}.", f"Choose one of: {'; '.join(METHODS)}.")
    if name.startswith("BAdam"):
        return BAdam(order=name.split(", ")[1], period=period, seed=seed)
    return Lisa(layers=layers, period=period, outside=name == "LISA", seed=seed)


def shares(schedule: Schedule, layers: int) -> list[float]:
    """Of each layer, the share of steps in which it was awake."""
    return [sum(str(layer) in names for names in schedule) / len(schedule) for layer in range(layers)]


def finding(schedule: Schedule, layers: int) -> str:
    """How evenly the layers had their turns."""
    found = shares(schedule, layers)
    never = sum(share == 0 for share in found)
    told = f"; {never} of {layers} never" if never else ""
    span = f"{min(found):.0%}" if min(found) == max(found) else f"{min(found):.0%} to {max(found):.0%}"
    return f"In {len(schedule)} steps a layer was awake in {span} of them{told}"


def awake_figure(schedule: Schedule, layers: int, name: str) -> Figure:
    """A row a layer and one for what lies outside, a column a step, dark where it is awake.

    Raises:
        LabError: without steps.
    """
    import matplotlib.pyplot as plt

    if not schedule:
        raise LabError("There is nothing to draw.", "Give the blocks of at least one step.")
    fig, axis = plt.subplots(figsize=(7.6, _height(layers)))
    _grid(axis, schedule, layers, name)
    return fig


def _height(layers: int) -> float:
    return 1.3 + 0.16 * layers


def _grid(axis: Any, schedule: Schedule, layers: int, name: str) -> None:
    rows = [OUTSIDE, *(str(layer) for layer in range(layers))]
    for row, block in enumerate(rows):
        spans = [(step, 1) for step, names in enumerate(schedule) if block in names]
        axis.broken_barh([(0, len(schedule))], (row - 0.42, 0.84), color=PALETTE["grey"], alpha=0.12)
        axis.broken_barh(spans, (row - 0.42, 0.84), color=PALETTE["orange" if block == OUTSIDE else "blue"])
    named = [0, *range(1, len(rows), -(-layers // 12))]
    axis.set_yticks(named, [rows[row] for row in named], fontsize="small")
    axis.set(xlabel="step", ylabel="layer", xlim=(0, len(schedule)), ylim=(-0.6, len(rows) - 0.4))
    axis.grid(False)
    axis.set_title(f"{name}\n{finding(schedule, layers)}")


def awake_words(schedule: Schedule, layers: int, name: str) -> str:
    """The grid in words."""
    first = ", ".join(schedule[0])
    changes = sum(one != other for one, other in zip(schedule[1:], schedule[:-1], strict=True))
    return (
        f"A grid of {layers} layers and what lies outside of them over steps, {name}. {finding(schedule, layers)}. "
        f"In the first step {first} are awake; who is awake changes {changes} times."
    )


def bytes_figure(schedule: Schedule, arch: Architecture, name: str, at: int) -> Figure:
    """The grid with a step (from 1) framed, and what stands in that step, by formula, beside full fine-tuning's."""
    import matplotlib.pyplot as plt

    height = _height(arch.layers)
    fig, (grid, axis) = plt.subplots(2, 1, figsize=(7.6, height + 1.6), height_ratios=(height - 0.4, 1.0))
    _grid(grid, schedule, arch.layers, name)
    frame = plt.Rectangle((at - 1, -0.5), 1, arch.layers + 1, fill=False, edgecolor=PALETTE["black"], linewidth=1.5)
    grid.add_patch(frame)
    for row, parts in enumerate((at_step(schedule, arch, at), standing_bytes(arch, arch.layers))):
        left = 0.0
        for part, count in parts.items():
            label = None if row else part.replace("_", " ")
            axis.barh(row, count / GB, left=left, color=PALETTE[CATEGORY_COLOURS[part]], label=label)
            left += count / GB
        axis.text(left, row, f" {left:.3g}", va="center", fontsize="small")
    axis.set_yticks((0, 1), (f"step {at}", "full"))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(False, axis="y")
    axis.set_xlabel("GB, without activations")
    fig.legend(ncols=3, fontsize="small", loc="outside lower center")
    return fig


def at_step(schedule: Schedule, arch: Architecture, at: int) -> dict[str, int]:
    """Bytes by category that stand in a step, counted from 1."""
    names = schedule[at - 1]
    return standing_bytes(arch, sum(name != OUTSIDE for name in names), OUTSIDE in names)


class AwakeExplorer(Explorer):
    """Choose a method, γ, K and a step: who is awake then, and which bytes stand.

    Args:
        arch: of the model; its bytes are shown.
        model: its name.
        steps: how many the grid has.

    Raises:
        LabError: for a model of one layer, where nothing can take turns.
    """

    def __init__(self, arch: Architecture, model: str, steps: int = 60) -> None:
        if arch.layers < 2:
            raise LabError("A model of one layer has no turns.", "Take one with more.")
        self.arch, self.model, self.steps = arch, model, steps
        counts = [count for count in (1, 2, 3, 4, 6, 8, 12, 16) if count <= arch.layers]
        periods = [period for period in (1, 2, 3, 5, 10, 20, 30) if period <= steps]
        super().__init__(
            {
                "layers": ("γ, layers awake", counts, 2),
                "period": ("K, steps a turn", periods, 5),
                "at": ("step", list(range(1, steps + 1)), 1),
            },
            {"method": ("method", list(METHODS), "LISA")},
        )

    def picture_of(self, **given: Any) -> tuple[str, str]:
        """The grid with the step framed, and the bars."""
        chosen = self._values(given)
        name, at = chosen["method"], chosen["at"]
        schedule = method_of(name, chosen["layers"], chosen["period"]).rehearsed(self.arch.layers, self.steps)
        held, full = (
            sum(at_step(schedule, self.arch, at).values()),
            sum(standing_bytes(self.arch, self.arch.layers).values()),
        )
        title = f"{name} on {self.model}, K = {chosen['period']}"
        words = (
            f"{awake_words(schedule, self.arch.layers, title)} In step {at} {held / GB:.3g} GB stand without "
            f"activations, {held / full:.0%} of full fine-tuning's {full / GB:.3g}."
        )
        return figure_html(bytes_figure(schedule, self.arch, title, at), words), words
