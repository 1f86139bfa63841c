"""The bus between device and host: one lane down, one lane up, and tickets to wait by.

On a GPU a lane is a CUDA stream of its own and a ticket is an event: whoever needs a copy tells its own stream to wait
for the event, and the host goes on. Copies are asynchronous only from and to pinned (page-locked) host memory. Without
a GPU the same schedule runs on threads: a lane is a thread that copies in order, a ticket is its promise, and whoever
needs a copy waits for it. With `overlap=False` every copy is over when the call returns, on the current stream.

Torch's allocator of pinned memory rounds every allocation up to a power of two (aten/src/ATen/core/
CachingHostAllocator.h): a buffer takes less than twice what it holds, and a thousand small ones as a pile. So what is
pinned here is one flat buffer a kind, or a pool of slots that are powers of two from the start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.timeline import COPIES, DOWNLOAD, UPLOAD, WAIT, Timeline

Copies = Sequence[tuple[Tensor, Tensor]]  # (to, from) of the same shape and dtype


class Ticket:
    """A point in a lane's work to wait for; this one is passed already."""

    def wait(self) -> None:
        """The calling thread waits; raises what the work raised."""

    def gate(self) -> None:
        """What is queued on the current stream from now on waits; where there are no streams, the thread does."""

    def done(self) -> bool:
        """Whether the point is passed."""
        return True

    def before_free(self) -> None:
        """To be called before the memory of such a copy is given back, where nothing else has waited for it."""


class EventTicket(Ticket):
    """A point in the work of the stream that is current when this is made."""

    def __init__(self, device: torch.device):
        # Blocking: a host thread that waits sleeps, and leaves its core to the arithmetic.
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(device))
        self._device = device

    def wait(self) -> None:
        """The host sleeps until the stream has come here."""
        self._event.synchronize()

    def gate(self) -> None:
        """The current stream waits, the host does not."""
        torch.cuda.current_stream(self._device).wait_event(self._event)

    def done(self) -> bool:
        """Asked of the driver, without waiting."""
        return self._event.query()

    def before_free(self) -> None:
        """The allocator knows nothing of other streams' copies."""
        self._event.synchronize()


class ThreadTicket(Ticket):
    """The promise of a lane that is a thread."""

    def __init__(self, promise: Future):
        self._promise = promise

    def wait(self) -> None:
        """Until the thread has copied."""
        self._promise.result()

    def gate(self) -> None:
        """There is no stream to tell: the thread waits."""
        self._promise.result()

    def done(self) -> bool:
        """Whether the thread has copied."""
        return self._promise.done()


class Bus:
    """Copies between device and host memory, down and up at the same time.

    Args:
        device: where the model is; on "cpu" the schedule is the same, and both ends are host memory.
        overlap: False makes every copy on the current stream and waits for it.
        synthetic_gb_per_s: without a GPU, make every copy last as long as it would on a bus of so many GB/s (10^9
            bytes a second) each way. Synthetic: the time is slept, to show on a laptop what overlaps with what.
        timeline: records a span for each copy.

    Raises:
        LabError: for a synthetic rate on a GPU, whose bus is real, or one that is not positive.
    """

    def __init__(
        self,
        device: torch.device | str,
        overlap: bool = True,
        synthetic_gb_per_s: float | None = None,
        timeline: Timeline | None = None,
    ):
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        if synthetic_gb_per_s is not None and (self.on_gpu or synthetic_gb_per_s <= 0):
            cause = f"A synthetic bus of {synthetic_gb_per_s} GB/s cannot stand in for that of {self.device}."
            raise LabError(cause, "Leave synthetic_gb_per_s away, or give a positive rate on a CPU.")
        self.overlap, self.timeline = overlap, timeline
        self._rate = synthetic_gb_per_s
        self._together = threading.Lock()
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._streams: dict[str, torch.cuda.Stream] = {}
        if overlap and self.on_gpu:
            self._streams = {lane: torch.cuda.Stream(self.device) for lane in COPIES}
        elif overlap:
            self._threads = {lane: ThreadPoolExecutor(1, f"labkit-{lane}") for lane in COPIES}

    def here(self) -> Ticket:
        """The work that is queued so far on the current stream."""
        return EventTicket(self.device) if self.on_gpu else Ticket()

    def span(self, lane: str, name: str) -> AbstractContextManager:
        """A span of the timeline, where there is one."""
        return nullcontext() if self.timeline is None else self.timeline.span(lane, name)

    def download(self, copies: Copies, name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """Copy device tensors into host tensors, after `after`. Both must live until the ticket is passed."""
        return self._copy(DOWNLOAD, copies, name, after)

    def upload(self, copies: Copies, name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """Copy host tensors into device tensors, after `after`. Both must live until the ticket is passed."""
        return self._copy(UPLOAD, copies, name, after)

    def _copy(self, lane: str, copies: Copies, name: str, after: Sequence[Ticket]) -> Ticket:
        if self._threads:
            return ThreadTicket(self._threads[lane].submit(self._move, lane, copies, name, after))
        if not self._streams:
            with self.span(WAIT, name):
                ticket = self._move(lane, copies, name, after)
                ticket.wait()
            return ticket
        # What one call queues stays together, whichever threads call.
        with self._together, torch.cuda.stream(self._streams[lane]):
            return self._move(lane, copies, name, after)

    @torch.no_grad()
    def _move(self, lane: str, copies: Copies, name: str, after: Sequence[Ticket]) -> Ticket:
        for ticket in after:
            ticket.gate()
        with self.span(lane, name):
            begun = time.perf_counter()
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            if self._rate:
                due = begun + sum(t.nbytes for t, _ in copies) / (1e9 * self._rate)
                time.sleep(max(0.0, due - time.perf_counter()))
        return self.here()

    def close(self) -> None:
        """Finish what is queued and end the lanes' threads; the bus cannot be used again."""
        for thread in self._threads.values():
            thread.shutdown(wait=True)
        for stream in self._streams.values():
            stream.synchronize()


def host_buffer(count: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """`count` zeros in host memory, pages touched, pinned where asked for: shape [count]."""
    return torch.empty(count, dtype=dtype, pin_memory=pinned).zero_()


def pinned_bytes(nbytes: int) -> int:
    """What torch takes for a pinned allocation of `nbytes`: the next power of two."""
    return 1 << (nbytes - 1).bit_length() if nbytes > 0 else 0
