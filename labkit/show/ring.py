"""Figures of lesson 06: a ring all-reduce step by step, and what each way of adding makes a rank send.

Every rank's values are powers of ten, 10^rank, so that a partial sum shows in its digits which ranks are in it.
The order is that of `labkit.parallel.collectives`: chunk c starts at rank c + 1 and is finished by rank c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8


@dataclass(frozen=True)
class Moment:
    """What each rank holds after a step.

    Attributes:
        step: 0 is the beginning, N - 1 the end of the reduce-scatter, 2 (N - 1) the end.
        values: of chunk c on rank r, `values[r][c]`.
        arrived: the chunk that each rank has just received; None at the beginning.
    """

    step: int
    values: tuple[tuple[int, ...], ...]
    arrived: tuple[int, ...] | None


def ring_moments(world_size: int) -> list[Moment]:
    """All 2 (N - 1) + 1 moments of a ring all-reduce of 10^rank in every chunk.

    Raises:
        LabError: for less than 1 rank or more than 8.
    """
    if not 1 <= world_size <= MOST:
        raise LabError(f"A ring of {world_size} ranks is not drawn.", f"Choose 1 to {MOST}.")
    everyone = range(world_size)
    values = [[10**rank] * world_size for rank in everyone]
    moments = [Moment(0, tuple(map(tuple, values)), None)]
    for step in range(1, 2 * (world_size - 1) + 1):
        adds = step < world_size
        # What a rank receives is what the one before it sends.
        arrived = [(rank - 1 - step) % world_size for rank in everyone]
        before = [row[:] for row in values]
        for rank, chunk in enumerate(arrived):
            came = before[(rank - 1) % world_size][chunk]
            values[rank][chunk] = came + before[rank][chunk] if adds else came
        moments.append(Moment(step, tuple(map(tuple, values)), tuple(arrived)))
    return moments


def ring_figure(world_size: int, step: int) -> Figure:
    """The chunks of every rank after `step`; what has just arrived is framed, finished sums are filled."""
    import matplotlib.pyplot as plt

    moment, whole = ring_moments(world_size)[step], (10**world_size - 1) // 9
    fig, ax = plt.subplots(figsize=(7.2, 0.9 + 0.5 * world_size))
    for rank, row in enumerate(moment.values):
        for chunk, value in enumerate(row):
            done = value == whole
            came = moment.arrived is not None and moment.arrived[rank] == chunk
            style: dict[str, Any] = {
                "facecolor": PALETTE["blue"] if done else "white",
                "edgecolor": PALETTE["red"] if came else PALETTE["grey"],
                "linewidth": 3 if came else 0.8,
            }
            ax.add_patch(plt.Rectangle((chunk + 0.06, rank + 0.1), 0.88, 0.8, **style))
            ink = "white" if done else "black"
            ax.text(chunk + 0.5, rank + 0.5, f"{value:0{world_size}d}", ha="center", va="center", color=ink)
    ax.set(xlim=(0, world_size), ylim=(world_size, 0))
    ax.set_xticks([c + 0.5 for c in range(world_size)], [f"chunk {c}" for c in range(world_size)], fontsize="small")
    ax.set_yticks([r + 0.5 for r in range(world_size)], [f"rank {r}" for r in range(world_size)])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(_title(moment, world_size))
    return fig


def _title(moment: Moment, world_size: int) -> str:
    whole = (10**world_size - 1) // 9
    done = sum(value == whole for row in moment.values for value in row)
    half = "reduce-scatter" if moment.step < world_size else "all-gather"
    name = "Before the first step" if moment.step == 0 else f"Step {moment.step} of {2 * (world_size - 1)}, {half}"
    return f"{name}: {done} of {world_size**2} chunks are finished sums"


def ring_words(world_size: int, step: int) -> str:
    """The title, what has arrived, and every rank's chunks."""
    moment = ring_moments(world_size)[step]
    arrived = ""
    if moment.arrived is not None:
        each = [f"rank {r} chunk {c} from rank {(r - 1) % world_size}" for r, c in enumerate(moment.arrived)]
        arrived = f" Just received: {', '.join(each)}."
    rows = "; ".join(f"rank {r}: {', '.join(map(str, row))}" for r, row in enumerate(moment.values))
    return f"Grid of ranks and chunks. {_title(moment, world_size)}.{arrived} Values: {rows}."


class RingExplorer(Explorer):
    """Play, or step through, a ring all-reduce.

    Args:
        world_size: ranks.
        step: where it begins.
    """

    def __init__(self, world_size: int = 4, step: int = 0) -> None:
        import ipywidgets as w

        self.world_size = world_size
        last = len(ring_moments(world_size)) - 1
        super().__init__({"step": ("step", list(range(last + 1)), step)})
        self.play = w.Play(value=step, min=0, max=last, interval=900, description="play the steps")
        w.jslink((self.play, "value"), (self.sliders["step"], "index"))
        self.box.children = (self.play, *self.box.children)

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The grid after the step."""
        step = self._values(values)["step"]
        words = ring_words(self.world_size, step)
        return figure_html(ring_figure(self.world_size, step), words), words


def sent_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The most that a rank sends, in copies of the tensor, by number of ranks, with the ring's formula.

    Args:
        rows: with `method`, `world_size` and `copies` (bytes sent over the tensor's bytes).
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    most = max(row["world_size"] for row in rows)
    fine = [1 + i / 20 for i in range(20 * (most - 1) + 1)]
    ax.plot(fine, [2 * (n - 1) / n for n in fine], color=PALETTE["sky"], linewidth=6, alpha=0.5, label="2 (N − 1) / N")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method, (colour, mark) in zip(methods, (("blue", "o"), ("red", "s"), ("green", "^")), strict=False):
        mine = [(row["world_size"], row["copies"]) for row in rows if row["method"] == method]
        ax.plot(*zip(*mine, strict=True), mark, color=PALETTE[colour], label=method)
    ax.axhline(1, color=PALETTE["black"], linestyle=":", linewidth=1.2, label="one copy")
    ax.set(xlabel="ranks (N)", ylabel="sent by the busiest rank (copies)", ylim=(-0.1, None))
    ax.set_xticks(range(1, most + 1))
    ax.set_title(_sent_title(rows))
    ax.legend(fontsize="small")
    return fig


def _sent_title(rows: Sequence[Mapping[str, Any]]) -> str:
    most = max(row["world_size"] for row in rows)
    each = [f"{row['method']} {row['copies']:.3g}" for row in rows if row["world_size"] == most]
    return f"On {most} ranks the busiest sends, in copies: {', '.join(each)}"


def sent_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every point."""
    each = [f"{row['method']} on {row['world_size']}: {row['copies']:.3g}" for row in rows]
    return f"Copies that the busiest rank sends, by number of ranks. {_sent_title(rows)}. {'; '.join(each)}."
