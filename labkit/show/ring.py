"""Figures of lesson 06: a ring all-reduce step by step, and what each way of adding makes a rank send.

Every rank's values are powers of ten, 10^rank, so that a partial sum shows in its digits which ranks are in it.
The order is that of `labkit.parallel.collectives`: chunk c starts at rank c + 1 and is finished by rank c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.show.anatomy_style import number
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 8
RATES = (("blue", "o"), ("green", "^"), ("purple", "D"), ("red", "s"))


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

    moment = ring_moments(world_size)[step]
    fig, ax = plt.subplots(figsize=(7.2, 0.9 + 0.5 * world_size))
    _grid(ax, moment, world_size)
    ax.set_xticks([c + 0.5 for c in range(world_size)], [f"chunk {c}" for c in range(world_size)], fontsize="small")
    ax.set_yticks([r + 0.5 for r in range(world_size)], [f"rank {r}" for r in range(world_size)])
    ax.set_title(_title(moment, world_size))
    return fig


def _grid(ax: Axes, moment: Moment, world_size: int, size: float = 10) -> None:
    from matplotlib.patches import Rectangle

    whole = (10**world_size - 1) // 9
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
    for rank, row in enumerate(moment.values):
        for chunk, value in enumerate(row):
            done = value == whole
            came = moment.arrived is not None and moment.arrived[rank] == chunk
            style: dict[str, Any] = {
                "facecolor": PALETTE["blue"] if done else "white",
                "edgecolor": PALETTE["red"] if came else PALETTE["grey"],
                "linewidth": 3 if came else 0.8,
            }
            ax.add_patch(Rectangle((chunk + 0.06, rank + 0.1), 0.88, 0.8, **style))
            ink = "white" if done else "black"
            ax.text(chunk + 0.5, rank + 0.5, f"{value:0{world_size}d}", color=ink, **centred)
    ax.set(xlim=(0, world_size), ylim=(world_size, 0))
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def frames_figure(world_size: int) -> Figure:
    """All steps side by side, four in a row."""
    import matplotlib.pyplot as plt

    moments = ring_moments(world_size)
    down = -(-len(moments) // 4)
    fig, axes = plt.subplots(down, 4, figsize=(7.2, 0.5 + 1.6 * down), squeeze=False)
    for ax in axes.flat[len(moments) :]:
        ax.set_axis_off()
    for ax, moment in zip(axes.flat, moments, strict=False):
        _grid(ax, moment, world_size, 7)
        adds = "adds" if moment.step < world_size else "copies"
        ax.set_title(f"step {moment.step}, {adds}" if moment.step else "beginning", fontsize="small")
        ax.set_xticks([])
        ax.set_yticks([r + 0.5 for r in range(world_size)], [str(r) for r in range(world_size)], fontsize="small")
    for ax in axes[:, 0]:
        ax.set_ylabel("rank", fontsize="small")
    fig.suptitle(_frames_title(world_size), fontsize="medium", fontweight="bold", x=0.01, ha="left")
    return fig


def _frames_title(world_size: int) -> str:
    return f"{world_size - 1} steps that add, then {world_size - 1} that copy: every rank has every finished sum"


def frames_words(world_size: int) -> str:
    """The title, and each step's number of finished chunks."""
    each = "; ".join(_title(moment, world_size) for moment in ring_moments(world_size))
    return f"Grids of ranks and chunks, one for each step. {_frames_title(world_size)}. {each}."


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
        # Filled over hollow, so that both show where they are equal.
        face = PALETTE[colour] if mark == "o" else "none"
        style: dict[str, Any] = {"ms": 6 if mark == "o" else 11, "mew": 2, "mfc": face}
        ax.plot(*zip(*mine, strict=True), mark, color=PALETTE[colour], label=method, **style)
    ax.axhline(1, color=PALETTE["black"], linestyle=":", linewidth=1.2, label="one copy")
    ax.set(xlabel="ranks (N)", ylabel="sent by the busiest rank (copies)", ylim=(-0.1, None))
    ax.set_xticks(range(1, most + 1))
    ax.set_title(_sent_title(rows))
    ax.legend(fontsize="small")
    return fig


def _sent_title(rows: Sequence[Mapping[str, Any]]) -> str:
    most = max(row["world_size"] for row in rows)
    each = [f"{row['copies']:.3g} ({row['method']})" for row in rows if row["world_size"] == most]
    return f"On {most} ranks the busiest sends, in copies: {', '.join(each)}"


def sent_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every point."""
    each = [f"{row['method']} on {row['world_size']}: {row['copies']:.3g}" for row in rows]
    return f"Copies that the busiest rank sends, by number of ranks. {_sent_title(rows)}. {'; '.join(each)}."


def rates_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time of an all-reduce by size, and α + n/β drawn through the smallest and the largest of each method.

    Args:
        rows: of table `allreduce`, of one dtype and number of ranks: `method`, `mib`, `step_ms`.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    for (method, points), (colour, mark) in zip(_by_method(rows).items(), RATES, strict=False):
        sizes, times = zip(*points, strict=True)
        fine = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 100) for i in range(101)]
        ax.plot(fine, [_between(points, size) for size in fine], "-", color=PALETTE[colour], linewidth=1)
        ax.plot(sizes, times, mark, color=PALETTE[colour], label=method)
    ax.set(xscale="log", yscale="log", xlabel="tensor (MiB)", ylabel="time (ms)")
    ax.set_title(_rates_title(rows))
    ax.legend(title="measured; lines: α + n/β", fontsize="small", title_fontsize="small")
    return fig


def _by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    methods = dict.fromkeys(row["method"] for row in rows if row["step_ms"])
    return {
        method: sorted((row["mib"], row["step_ms"]) for row in rows if row["method"] == method and row["step_ms"])
        for method in methods
    }


def _between(points: Sequence[tuple[float, float]], size: float) -> float:
    """The straight line through the first and the last point."""
    (low, least), (high, most) = points[0], points[-1]
    return least + (size - low) * (most - least) / (high - low)


def _rates_title(rows: Sequence[Mapping[str, Any]]) -> str:
    each = _by_method(rows).values()
    off = max(abs(_between(points, size) / time - 1) for points in each for size, time in points)
    return f"Small tensors cost α, large ones n/β: the formula is within {100 * off:.0f} %"


def rates_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The title, and the ends of each line."""
    each = []
    for method, points in _by_method(rows).items():
        (low, least), (high, most) = points[0], points[-1]
        each.append(f"{method} {number(least)} ms at {number(low)} MiB and {number(most)} ms at {number(high)} MiB")
    return f"Time of an all-reduce by size, on logarithmic axes. {_rates_title(rows)}. {'; '.join(each)}."
