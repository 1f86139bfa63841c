"""A bus and a device whose times are computed: what would run when, without waiting for it.

Copies are made at once, in the order in which they are queued. Beside them three clocks go on, one a stream:

    a copy of n bytes        begins when its lane is free and what it waits for is over; lasts n / B
    a pass over a piece      begins when its lane is free and what it waits for is over; lasts as long as is said here

That is what streams and events do, so that the times are those of a machine with such a bus and such a device whose
host is never late. The numbers that are trained are the real ones; the schedule is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.lanes import Copies, Ticket
from labkit.memory.timeline import COMPUTE, DOWNLOAD, LANES, UPLOAD, WAIT, Span, Timeline


class SimulatedTimeline(Timeline):
    """Spans that are put down with their times."""

    def restart(self) -> None:
        """Forget all spans; the clocks go on."""
        self.noted: list[Span] = []

    def spans(self) -> list[Span]:
        """All spans so far in the order of their beginnings."""
        return sorted(self.noted, key=lambda span: (span.start_ms, span.end_ms))


class _At(Ticket):
    """A point in time; who gates on it goes on no earlier."""

    def __init__(self, bus: SimulatedBus, ms: float):
        self._bus, self.ms = bus, ms

    def gate(self) -> None:
        self._bus.stand_until(self.ms)


class SimulatedBus:
    """In place of `labkit.memory.lanes.Bus`, on a CPU.

    Args:
        gb_per_s: 10^9 bytes a second, each way.
        compute_ms: of a span of compute by its name, in milliseconds.
        overlap: False puts everything on one clock.

    Attributes:
        timeline: what ran when.

    Raises:
        LabError: for a rate that is not positive.
    """

    def __init__(self, gb_per_s: float, compute_ms: Callable[[str], float], overlap: bool = True):
        if gb_per_s <= 0:
            raise LabError(f"A bus of {gb_per_s} GB/s moves nothing.", "Give a positive rate.")
        self.device, self.on_gpu, self.overlap = torch.device("cpu"), False, overlap
        self.timeline: SimulatedTimeline = SimulatedTimeline()
        self._rate, self._compute_ms = gb_per_s, compute_ms
        self._clock = dict.fromkeys(LANES, 0.0)

    @property
    def now_ms(self) -> float:
        """When all that was queued is over."""
        return max(self._clock.values())

    def _lane(self, lane: str) -> str:
        return lane if self.overlap else COMPUTE

    def here(self) -> Ticket:
        """What is queued so far on the compute stream."""
        return _At(self, self._clock[COMPUTE])

    def stand_until(self, ms: float) -> None:
        """Compute goes on no earlier."""
        if ms > self._clock[COMPUTE]:
            self._note(WAIT, "wait", self._clock[COMPUTE], ms)
            self._clock[COMPUTE] = ms

    @contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """Compute for as long as its name says; other lanes' spans are noted by themselves."""
        yield
        if lane == COMPUTE:
            begin = self._clock[COMPUTE]
            self._clock[COMPUTE] = begin + self._compute_ms(name)
            self._note(COMPUTE, name, begin, self._clock[COMPUTE])

    def upload(self, copies: Copies, name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """As `Bus.upload`."""
        return self._copy(UPLOAD, copies, name, after)

    def download(self, copies: Copies, name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """As `Bus.download`."""
        return self._copy(DOWNLOAD, copies, name, after)

    @torch.no_grad()
    def _copy(self, lane: str, copies: Copies, name: str, after: Sequence[Ticket]) -> Ticket:
        target: Tensor
        for target, source in copies:
            target.copy_(source)
        clock = self._lane(lane)
        begin = max([self._clock[clock], *(ticket.ms for ticket in after if isinstance(ticket, _At))])
        self._clock[clock] = begin + sum(target.nbytes for target, _ in copies) / self._rate / 1e6
        self._note(lane, name, begin, self._clock[clock])
        return _At(self, self._clock[clock])

    def _note(self, lane: str, name: str, begin: float, end: float) -> None:
        if end > begin:
            self.timeline.noted.append(Span(lane, name, begin, end))

    def close(self) -> None:
        """There is nothing to end."""
