"""When each average of gradients begins and ends, beside the backward pass that it hides behind.

Times are of one rank. On a CPU they are the host's clock, and an average ends when its wait returns; on CUDA they are
events on the streams, so that a bucket begins when the compute stream has come to it, not when the host has queued it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.parallel.reducers import Reducer


@dataclass(frozen=True)
class Sent:
    """One average.

    Attributes:
        bytes: of its gradients.
        begun, done: in ms since the backward pass began; it waits between the two for those before it, too.
    """

    bytes: int
    begun: float
    done: float


@dataclass(frozen=True)
class Watched:
    """A backward pass with its averages.

    Attributes:
        backward_ms: until autograd is done.
        sent: in the order in which they are begun.
    """

    backward_ms: float
    sent: tuple[Sent, ...]

    @property
    def early(self) -> int:
        """Averages that began while the backward pass went on."""
        return sum(one.begun < self.backward_ms for one in self.sent)

    @property
    def exposed_ms(self) -> float:
        """What is left to wait for when autograd is done."""
        return max(0.0, max(one.done for one in self.sent) - self.backward_ms)


class _HostClock:
    """Marks are the host's time; one thread waits for the averages in their order."""

    def __init__(self) -> None:
        self._waits = ThreadPoolExecutor(1, "labkit-watch")
        self.start = time.perf_counter()

    def mark(self) -> float:
        return time.perf_counter()

    def when_done(self, wait: Callable[[], object], note: Callable[[Any], None]) -> Callable[[], object]:
        def to_the_end() -> None:
            wait()
            note(self.mark())

        return self._waits.submit(to_the_end).result

    def ms(self, mark: float) -> float:
        return 1e3 * (mark - self.start)

    def close(self) -> None:
        self._waits.shutdown()


class _DeviceClock:
    """Marks are CUDA events; a stream of its own waits for the averages."""

    def __init__(self, device: torch.device) -> None:
        self._beside = torch.cuda.Stream(device)
        torch.cuda.synchronize(device)
        self.start = self.mark()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def when_done(self, wait: Callable[[], object], note: Callable[[Any], None]) -> Callable[[], object]:
        with torch.cuda.stream(self._beside):
            wait()
            note(self.mark())
        return wait

    def ms(self, mark: torch.cuda.Event) -> float:
        mark.synchronize()
        return self.start.elapsed_time(mark)

    def close(self) -> None:
        pass


def watched_backward(reducer: Reducer, loss: Tensor) -> Watched:
    """Run `loss.backward()` and `reducer.finish()`, and return when what happened on this rank.

    Raises:
        LabError: as the reducer; nothing of the watch stays on it then either.
    """
    device, averager = loss.device, reducer.averager
    clock: Any = _DeviceClock(device) if device.type == "cuda" else _HostClock()
    begun: list[tuple[int, Any]] = []
    done: list[Any] = []

    def start(flat: Tensor) -> Callable[[], object]:
        begun.append((flat.nbytes, clock.mark()))
        return clock.when_done(type(averager).start(averager, flat), done.append)

    averager.start = start  # type: ignore[method-assign]
    try:
        loss.backward()
        end = clock.mark()
        reducer.finish()
    finally:
        del averager.start
        clock.close()
    spans = [Sent(size, clock.ms(a), clock.ms(b)) for (size, a), b in zip(begun, done, strict=True)]
    return Watched(clock.ms(end), tuple(spans))
