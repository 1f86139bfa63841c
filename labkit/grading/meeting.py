"""Where ranks that are threads say what they are about to do, and find out when none of them can go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from labkit.errors import LabError


class StoppedError(BaseException):
    """Ends a rank because another one failed; no `except Exception` of a learner's catches it."""


@dataclass
class World:
    """What the ranks tell each other, under one lock."""

    size: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    sent: dict[tuple[int, int], list[tuple]] = field(default_factory=dict)
    received: dict[tuple[int, int], list[tuple]] = field(default_factory=dict)
    joint: list[list[tuple]] = field(default_factory=list)
    waits: dict[int, tuple[str, Callable[[], bool]]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    errors: list[tuple[int | None, BaseException]] = field(default_factory=list)

    def wait(self, rank: int, what: str, there: Callable[[], bool]) -> None:
        """Return when `there()`; the lock is held. The last rank that begins to wait in vain finds the lock-up."""
        self.waits[rank] = what, there
        try:
            while not there():
                self.look()
                if self.errors:
                    raise StoppedError
                self.changed.wait()
        finally:
            del self.waits[rank]

    def look(self) -> None:
        """Record an error if no rank can go on any more; the lock is held."""
        living = set(range(self.size)) - self.ended
        stuck = living and all(rank in self.waits and not self.waits[rank][1]() for rank in living)
        if stuck and not self.errors:
            done = "".join(f"; rank {rank} has returned" for rank in sorted(self.ended))
            told = "; ".join(f"rank {rank} waits in {self.waits[rank][0]}" for rank in sorted(living))
            cause = f"The ranks wait for each other and none can go on: {told}{done}."
            self.fail(None, LabError(cause, "Let every send meet a receive, and every rank make the same collectives."))

    def fail(self, rank: int | None, error: BaseException) -> None:
        """The first failure counts and ends every rank's waiting; the lock is held."""
        self.errors.append((rank, error))
        self.changed.notify_all()
