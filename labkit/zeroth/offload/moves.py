"""Updates that are noted down, and made when a piece is next on the device.

A move of all weights (`labkit.zeroth.groups.Pass`) is a few seeds and scales: the update of a step, or with "walk" a
step out to w ± εz. The list of all moves so far is the run; a piece at version v has made the first v of them. It may
be uploaded, brought up to date, used and thrown away again any number of times, before what it has become is written
back: moves are made again from their seeds, in order, each with its own rounding, and give the same bits each time.

Making k moves again costs k passes over the piece on the device; writing back costs the bus. Where a piece is written
back at every k-th upload, it has k + 1 moves to make at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from labkit.zeroth.groups import Group, Pass
from labkit.zeroth.perturb import Terms, Weight
from labkit.zeroth.restore import Exact, Walk


class Moves:
    """The run's moves, of which those that every piece has made are forgotten.

    Attributes:
        made: how many there were.
    """

    def __init__(self) -> None:
        self.made = 0
        self._kept: list[Pass] = []

    def note(self, move: Pass) -> None:
        """Add one, if it moves anything."""
        if move.keep != 1.0 or any(scale for _, scale in (*move.terms, *move.plain)):
            self._kept.append(move)
            self.made += 1

    def between(self, version: int, target: int) -> list[Pass]:
        """What leads from one version to a later one."""
        first = self.made - len(self._kept)
        assert first <= version <= target <= self.made
        return self._kept[version - first : target - first]

    def forget(self, version: int) -> None:
        """All before this version."""
        del self._kept[: max(0, version - (self.made - len(self._kept)))]

    def make(self, group: Group, version: int, target: int) -> None:
        """Bring tensors that lie where they compute from one version to a later one."""
        group.make(self.between(version, target))


class LateExact(Exact):
    """`Exact`, its updates noted down; `labkit.zeroth.offload.engine` computes at w ± εz beside each piece."""

    def __init__(self, weights: Sequence[Weight], slot_bytes: int | None, moves: Moves, flush: Callable[[], None]):
        super().__init__(weights, slot_bytes)
        self._moves, self._flush = moves, flush

    def at(self, terms: Terms) -> AbstractContextManager:
        """Nothing is written at w ± εz, so nothing is to be noted."""
        return nullcontext()

    def _make(self, move: Pass) -> None:
        self._moves.note(move)

    def settle(self) -> None:
        """Make every move, everywhere."""
        self._flush()


class LateWalk(Walk):
    """`Walk`, each of its moves noted down."""

    def __init__(self, weights: Sequence[Weight], moves: Moves, flush: Callable[[], None]):
        super().__init__(weights)
        self._moves, self._flush = moves, flush

    def _make(self, move: Pass) -> None:
        self._moves.note(move)

    def settle(self) -> None:
        """Go to w, and make every move, everywhere."""
        super().settle()
        self._flush()
