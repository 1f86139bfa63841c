"""What ran when: named spans on lanes, so that a figure can show which copies hid behind which arithmetic.

On a GPU a span is two events recorded on the stream that the lane's work is queued on. They are read once, at the end,
against the event that the timeline began with: nothing waits in between, so watching does not change what is watched.
The host's own work is timed by its clock, set to the same origin (one synchronisation, at the beginning), which puts
the two within some ten microseconds of each other. Without a GPU every lane is timed by the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from labkit.errors import LabError

COMPUTE, WAIT, DOWNLOAD, HOST, UPLOAD = LANES = ("compute", "wait", "download", "host", "upload")
COPIES = (DOWNLOAD, UPLOAD)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """Something called `name` ran on `lane` from `start_ms` to `end_ms`, milliseconds since the timeline began."""

    lane: str
    name: str
    start_ms: float
    end_ms: float


class Timeline:
    """Collects spans; may be written to by several threads.

    Lane `wait` holds the time in which compute stands still for a copy: it lies inside a span of `compute`, and
    `overlapped` takes it out again.

    Args:
        device: whose streams the lanes are; any device but a CUDA one is timed by the host's clock.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.restart()

    def restart(self) -> None:
        """Forget all spans; now is zero. On CUDA this waits for the device."""
        self._timed: list[Span] = []
        self._events: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record(torch.cuda.current_stream(self.device))
            self._start.synchronize()
        self._origin = time.perf_counter()

    @contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """Record the block as a span: of the current stream's work on CUDA, else (and for `host`) of this thread."""
        if self.device.type == "cuda" and lane != HOST:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            begin.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._events.append((lane, name, begin, end))
            return
        begun = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self._timed.append(Span(lane, name, 1e3 * (begun - self._origin), 1e3 * (ended - self._origin)))

    def spans(self) -> list[Span]:
        """All spans so far in the order of their beginnings. On CUDA this waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timed = list(self._timed)
        for lane, name, begin, end in list(self._events):
            timed.append(Span(lane, name, self._start.elapsed_time(begin), self._start.elapsed_time(end)))
        return sorted(timed, key=lambda span: (span.start_ms, span.end_ms))


def overlapped(spans: Iterable[Span], copies: Iterable[str] = COPIES) -> float:
    """The share (0 to 1) of the time on the copy lanes in which compute went on: in a compute span and not waiting.

    Raises:
        LabError: where nothing was copied.
    """
    spans, copies = list(spans), tuple(copies)
    moved = [(s.start_ms, s.end_ms) for s in spans if s.lane in copies]
    total = sum(end - start for start, end in moved)
    if total <= 0:
        raise LabError("No span lies on a copy lane.", f"Record some on {' or '.join(copies)}.")
    busy = without(_of(spans, COMPUTE), _of(spans, WAIT))
    return sum(shared(span, busy) for span in moved) / total


def _of(spans: list[Span], lane: str) -> list[Interval]:
    return union((s.start_ms, s.end_ms) for s in spans if s.lane == lane)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as disjoint intervals in ascending order."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def without(intervals: list[Interval], holes: list[Interval]) -> list[Interval]:
    """What is left of disjoint `intervals` where disjoint, ascending `holes` are cut out."""
    left: list[Interval] = []
    for begin, end in intervals:
        start = begin
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if hole_start > start:
                left.append((start, hole_start))
            start = hole_end
        if start < end:
            left.append((start, end))
    return left


def shared(span: Interval, intervals: list[Interval]) -> float:
    """How much of `span` lies in disjoint `intervals`."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in intervals)
