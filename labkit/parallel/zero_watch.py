"""A step of ZeRO, looked at whenever weights come or go and whenever a gradient arrives.

Bytes at the end of a step say what is sharded; they do not say what was there in between. `watch` notes, at every event
of a step, which units' weights are whole on this rank and how many bytes of whole gradients wait there. Events are in
the order in which the host queues them. On a GPU the streams run behind, in the same order by their events, so that
what is noted as there is there at most that long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from labkit.parallel.zero_engine import ZeroEngine, _in_backward
from labkit.parallel.zero_units import Unit

FORWARD, BACKWARD, AFTER = "forward", "backward", "after backward"
NEEDED, GATHERED, RELEASED, ARRIVED, REDUCED = "needed", "gathered", "released", "arrived", "reduced"


@dataclass(frozen=True)
class Look:
    """What is on this rank after one event.

    Attributes:
        phase: "forward", "backward" or "after backward".
        event: "arrived" (a gradient of the unit) or "reduced"; where weights are sharded also "gathered", "needed"
            (the unit computes now) or "released".
        unit: whose event it is.
        gathered: names of the units whose weights are whole here, where weights are sharded.
        gathered_bytes: bytes of their buffers.
        gradient_bytes: bytes of whole gradients.
    """

    phase: str
    event: str
    unit: str
    gathered: tuple[str, ...]
    gathered_bytes: int
    gradient_bytes: int


@contextmanager
def watch(engine: ZeroEngine) -> Iterator[list[Look]]:
    """Within, steps of `engine` fill the list; afterwards nothing of it stays on the engine."""
    looks: list[Look] = []
    began: list[bool] = []

    def look(event: str, unit: Unit) -> None:
        if _in_backward():
            began.append(True)
        phase = BACKWARD if _in_backward() else AFTER if began else FORWARD
        here = [u for u in engine.units if u.gathered_bytes] if engine.stage == 3 else []
        names, size = tuple(u.name for u in here), sum(u.gathered_bytes for u in here)
        looks.append(Look(phase, event, unit.name, names, size, engine.in_flight_bytes()))

    changed: list[tuple[Any, str]] = []
    for name, event in (("_ready", NEEDED), ("_fetch", GATHERED), ("_release", RELEASED), ("_reduce", REDUCED)):
        _wrap(engine, name, lambda unit, *_, event=event: look(event, unit), changed)
    for unit in engine.units:
        _wrap(unit, "collect", lambda *_, unit=unit: look(ARRIVED, unit), changed)
    try:
        yield looks
    finally:
        for owner, name in changed:
            delattr(owner, name)


def _wrap(owner: Any, name: str, after: Any, changed: list[tuple[Any, str]]) -> None:
    """Let `after` see the arguments of every call of a method of one object."""
    method = getattr(owner, name)

    def wrapped(*args: Any) -> Any:
        result = method(*args)
        after(*args)
        return result

    setattr(owner, name, wrapped)
    changed.append((owner, name))
