"""How rarely to write back, found by trying: k settings in turn, while the run trains.

The exact k has no influence on the numbers, only on what the bus and the arithmetic have to do (`roofline`). So the
first steps of a run try some, each until its pieces have all been written back once, and then for as many steps as are
timed. Two steps of one k differ, because other pieces are written back in them; so k of them, or more, are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

CHOICES = (1, 2, 4, 8)
MEASURED = "measured"
_FEWEST = 3  # steps that are timed
_EQUAL = 1.01  # a longer time by so little is none: the smaller k has less to make up at an evaluation


class Chooser:
    """Tries each k, then keeps the best.

    Args:
        set_write_back: is told the k of the next steps.
        choices: to try, rising.

    Attributes:
        times: seconds a step by k, of those tried so far.
        chosen: the best; None while it is tried.
    """

    def __init__(self, set_write_back: Callable[[int], None], choices: Sequence[int] = CHOICES) -> None:
        self._set, self._left = set_write_back, list(choices)
        self.times: dict[int, float] = {}
        self.chosen: int | None = None
        self._seen: list[float] = []
        self._set(self._left[0])

    def note(self, seconds: float) -> None:
        """A step took so long."""
        if self.chosen is not None:
            return
        k = self._left[0]
        self._seen.append(seconds)
        if len(self._seen) < k + max(k, _FEWEST):
            return
        self.times[k] = statistics.fmean(self._seen[k:])
        self._seen.clear()
        self._left.pop(0)
        if not self._left:
            fastest = min(self.times.values())
            self.chosen = min(k for k, time in self.times.items() if time <= fastest * _EQUAL)
        self._set(self._left[0] if self._left else self.chosen or 1)
