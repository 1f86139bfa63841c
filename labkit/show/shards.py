"""Figures and widget of lesson 07: who holds which bytes of a unit's parameters, by ZeRO stage and number of ranks.

A unit's parameters lie one after the other in a flat buffer, padded to N equal parts, and rank r owns part r
(`labkit.parallel.zero_units`). For mixed precision a value takes 2 bytes of weight, 2 of gradient, 4 of master weight
and 8 of moments; the columns of the map are as wide as these, so that a coloured area is bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import STAGES
from labkit.ledger.predict import SHARDED
from labkit.memory.buckets import GRAIN
from labkit.parallel.zero_units import part_size
from labkit.show.anatomy_style import COLOURS, called, ink, number
from labkit.show.display import figure_html, html_table
from labkit.show.explorer import Explorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BYTES = {"weights": 2, "gradients": 2, "master_weights": 4, "optimizer_states": 8}
MOST = 8
GAP = 0.35  # between columns, in bytes a parameter


@dataclass(frozen=True)
class Piece:
    """Values of one parameter that a rank owns: `begin` to `end` of its own values, `at` in the flat buffer."""

    name: str
    begin: int
    end: int
    at: int


@dataclass(frozen=True)
class ShardMap:
    """A unit's flat buffer on N ranks.

    Attributes:
        numels: values of each parameter, by name.
        world_size: N.
        part: values that each rank owns, S.
    """

    numels: Mapping[str, int]
    world_size: int
    part: int

    @classmethod
    def of(cls, numels: Mapping[str, int], world_size: int) -> ShardMap:
        """Cut a unit.

        Raises:
            LabError: without parameters, or for less than 1 rank or more than 8.
        """
        if not numels:
            raise LabError("A unit without parameters has no parts.", "Give at least one parameter.")
        if not 1 <= world_size <= MOST:
            raise LabError(f"A map of {world_size} ranks is not drawn.", f"Choose 1 to {MOST}.")
        return cls(dict(numels), world_size, part_size(numels.values(), world_size))

    @property
    def padded(self) -> int:
        """Values of the flat buffer."""
        return self.part * self.world_size

    def places(self) -> list[tuple[str, int, int]]:
        """Each parameter's name with where it begins and ends in the flat buffer."""
        found, begin = [], 0
        for name, numel in self.numels.items():
            found.append((name, begin, begin + numel))
            begin += -(-numel // GRAIN) * GRAIN
        return found

    def pieces(self, rank: int) -> list[Piece]:
        """What `rank` owns, in order."""
        low, high = rank * self.part, (rank + 1) * self.part
        cuts = [(name, begin, max(begin, low), min(end, high)) for name, begin, end in self.places()]
        return [Piece(name, left - begin, right - begin, left) for name, begin, left, right in cuts if left < right]

    def each(self, stage: int) -> float:
        """Bytes that a rank holds for each value of the buffer.

        Raises:
            LabError: for another stage than 0 to 3.
        """
        if stage not in STAGES:
            raise LabError(f"ZeRO has no stage {stage!r}.", "Give 0 for none, or 1, 2 or 3.")
        return sum(size / (self.world_size if stage >= SHARDED[name] else 1) for name, size in BYTES.items())


def shard_figure(numels: Mapping[str, int], world_size: int, stage: int) -> Figure:
    """A row a rank, a column a category: coloured where the rank holds it."""
    import matplotlib.pyplot as plt

    shards = ShardMap.of(numels, world_size)
    fig, ax = plt.subplots(figsize=(7.2, 1.15 + 0.34 * world_size))
    _map(ax, shards, stage)
    ax.set_title(_title(shards, stage))
    return fig


def stages_figure(numels: Mapping[str, int], world_size: int) -> Figure:
    """The maps of no sharding and of the three stages below each other."""
    import matplotlib.pyplot as plt

    shards = ShardMap.of(numels, world_size)
    fig, axes = plt.subplots(len(STAGES), 1, figsize=(7.2, len(STAGES) * (0.75 + 0.2 * world_size)))
    for stage, ax in zip(STAGES, axes, strict=True):
        _map(ax, shards, stage)
        ax.set_title(_title(shards, stage), fontsize="small")
    return fig


def _map(ax: Axes, shards: ShardMap, stage: int) -> None:
    left, ticks = 0.0, []
    for name, size in BYTES.items():
        for rank in range(shards.world_size):
            _row(ax, shards, rank, left, size, COLOURS[name], stage >= SHARDED[name])
        ticks.append((left + size / 2, f"{called(name)} ({size} B)"))
        left += size + GAP
    ax.set(xlim=(-0.1, left - GAP + 0.1), ylim=(shards.world_size, 0))
    ax.set_xticks(*zip(*ticks, strict=True), fontsize="small")  # type: ignore[arg-type]
    ranks = range(shards.world_size)
    ax.set_yticks([rank + 0.5 for rank in ranks], [f"rank {rank}" for rank in ranks], fontsize="small")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _row(ax: Axes, shards: ShardMap, rank: int, left: float, size: int, colour: str, sharded: bool) -> None:
    """One rank's row of one category: the whole buffer's outline, what is held of it, and the parameters' edges."""
    each = size / shards.padded
    frame: dict[str, Any] = {"facecolor": "none", "edgecolor": "#BBBBBB", "linewidth": 0.8}
    held = (rank * shards.part, (rank + 1) * shards.part) if sharded else (0, shards.padded)
    ax.broken_barh([(left + each * held[0], each * (held[1] - held[0]))], (rank + 0.1, 0.8), facecolors=colour)
    last = max(end for _, _, end in shards.places())
    if last < held[1]:
        begin = max(last, held[0])
        hatch: dict[str, Any] = {"facecolors": "white", "edgecolor": colour, "hatch": "////", "linewidth": 0}
        ax.broken_barh([(left + each * begin, each * (held[1] - begin))], (rank + 0.1, 0.8), **hatch)
    for _, begin, _ in shards.places()[1:]:
        ax.plot([left + each * begin] * 2, [rank + 0.1, rank + 0.9], color="white", linewidth=0.7)
    ax.broken_barh([(left, size)], (rank + 0.1, 0.8), **frame)
    if sharded and shards.world_size <= 4 and size >= 4 and last >= held[1]:
        middle = left + each * (held[0] + held[1]) / 2
        light = ink(next(name for name, own in COLOURS.items() if own == colour))
        ax.text(middle, rank + 0.5, f"1/{shards.world_size}", ha="center", va="center", color=light, fontsize="x-small")


def _title(shards: ShardMap, stage: int) -> str:
    name = f"Stage {stage}" if stage else "No sharding"
    count = f"{shards.world_size} rank{'s' * (shards.world_size > 1)}"
    return f"{name} on {count}: a rank holds {number(shards.each(stage))} bytes a parameter"


def shard_words(numels: Mapping[str, int], world_size: int, stage: int) -> str:
    """The title, what is whole and what is cut, and how."""
    shards = ShardMap.of(numels, world_size)
    cut = [called(name) for name in BYTES if stage >= SHARDED[name]]
    whole = [called(name) for name in BYTES if stage < SHARDED[name]]
    told = f"Map of ranks and categories. {_title(shards, stage)}."
    if whole:
        told += f" Whole on every rank: {', '.join(whole)}."
    if cut:
        told += f" Cut into {world_size} parts, one a rank: {', '.join(cut)}."
    padding = shards.padded - sum(numels.values())
    return f"{told} {sum(numels.values())} values and {padding} of padding make parts of {shards.part}."


def stages_words(numels: Mapping[str, int], world_size: int) -> str:
    """Every stage's bytes a parameter."""
    shards = ShardMap.of(numels, world_size)
    told = "; ".join(_title(shards, stage) for stage in STAGES)
    return f"Four maps of ranks and categories, one below the other. {told}."


def owned_rows(numels: Mapping[str, int], world_size: int) -> list[dict[str, Any]]:
    """What every rank owns, as rows for `show.table`: its part of the flat buffer, and the parameters' pieces in it."""
    shards = ShardMap.of(numels, world_size)
    rows = []
    for rank in range(world_size):
        pieces = shards.pieces(rank)
        rows.append(
            {
                "rank": rank,
                "from": rank * shards.part,
                "to": (rank + 1) * shards.part,
                "padding": shards.part - sum(piece.end - piece.begin for piece in pieces),
                "owns": ", ".join(_piece(piece, numels[piece.name]) for piece in pieces) or "nothing but padding",
            }
        )
    return rows


def _piece(piece: Piece, numel: int) -> str:
    whole = (piece.begin, piece.end) == (0, numel)
    return piece.name if whole else f"{piece.name}[{piece.begin}:{piece.end}]"


class ShardExplorer(Explorer):
    """Sliders for stage and number of ranks above the map, with what each rank owns below.

    Args:
        numels: values of each parameter of a unit, by name.
        stage, world_size: where the sliders begin.
    """

    def __init__(self, numels: Mapping[str, int], stage: int = 1, world_size: int = 4) -> None:
        self.numels = dict(numels)
        stages = [("0 (none)", 0), ("1", 1), ("2", 2), ("3", 3)]
        ranks = [(str(n), n) for n in range(1, MOST + 1)]
        super().__init__({"stage": ("stage", stages, stage), "world_size": ("ranks (N)", ranks, world_size)})

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The map, and a table of the pieces."""
        chosen = self._values(values)
        given = self.numels, chosen["world_size"]
        words = shard_words(*given, chosen["stage"])
        rows = owned_rows(*given)
        heads, body = list(rows[0]), [[str(value) for value in row.values()] for row in rows]
        numeric = [name != "owns" for name in heads]
        listing = html_table(heads, body, numeric, "The flat buffer's parts: the owner holds what is cut")
        return f"{figure_html(shard_figure(*given, chosen['stage']), words)}{listing}", words
