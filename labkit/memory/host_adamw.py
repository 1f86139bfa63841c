"""The host's half of an offloaded optimizer: master weights, moments, and the threads that update them.

Everything lies flat, parameter after parameter, and is worked on in pieces (`labkit.memory.buckets`).

AdamW in host memory is bound by that memory, and the more cores ask, the more it gives. Each of `host_workers` threads
takes a chunk of at most `CHUNK` values and works on it alone. One thread that spreads every kernel over all cores, as
torch does by itself, comes to the same where nothing else runs. Beside a training step it took 1.4 times as long on an
H100's host: between two buckets the cores fall asleep, and every kernel waits for the one that wakes last. A chunk is
large all the same: between its kernels a thread needs Python's lock, for which the training loop waits as well.

Host bytes of n values in t tensors, sent in b-byte weights and gradients, with w workers:

    master weights 4 n    moments 8 n    step counts 4 t    staging b n    and, if b < 4, scratch 4 w a value of a chunk

The staging buffer holds a gradient on its way down and, where weights have 16 bits, the rounded new weight on its way
back up in the same place. Only what crosses the bus is pinned: the staging buffer, and 32-bit master weights, which are
sent from where they lie. Torch rounds pinned memory up to a power of two, so each of these (at most) two buffers takes
less than twice its bytes: at most 2 b n wasted, and for n = 2^k nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from labkit.ledger import storage_bytes
from labkit.memory.buckets import Bucket, Piece, chunks
from labkit.memory.lanes import Bus, Ticket, host_buffer
from labkit.memory.timeline import HOST

CHUNK = 2**22
SPARE = 2  # cores for the training loop and for autograd, where there are more than FEW
FEW = 4


def host_workers(overlap: bool) -> int:
    """Threads that update, of as many as torch would use; without overlap the training loop's own does it."""
    threads = torch.get_num_threads()
    return (threads - SPARE if threads > FEW else threads) if overlap else 1


def host_bytes(count: int, tensors: int, itemsize: int, capacity: int, workers: int) -> dict[str, int]:
    """The formula of this file's head: host bytes by kind for `count` values in `tensors` parameters.

    Args:
        itemsize: bytes of a weight, and so of a gradient.
        capacity: values in a bucket.
        workers: `host_workers`.
    """
    return {
        "master_weights": 4 * count,
        "optimizer_states": 8 * count + 4 * tensors,
        "gradients": itemsize * count,
        "scratch": 4 * workers * min(capacity, CHUNK) if itemsize < 4 else 0,
    }


class HostAdamW:
    """Master weights and moments of `parameters` in host memory, and AdamW on them.

    Args:
        parameters: contiguous, fp32; master weights start as their copies.
        dtype: in which gradients come and weights go.
        bus: to send them over. Where it does not overlap, there are no threads: `submit` returns when all is done.
        capacity: values in a bucket.
        landing: [capacity], on the device: where weights that travel wider than they are come down before they are
            rounded.
    """

    def __init__(
        self, parameters: Sequence[Tensor], dtype: torch.dtype, bus: Bus, capacity: int, landing: Tensor | None = None
    ):
        self.parameters, self.bus, self.dtype, self.landing = list(parameters), bus, dtype, landing
        sizes = [p.numel() for p in self.parameters]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        count, wide = sum(sizes), dtype == torch.float32
        self.masters = host_buffer(count, torch.float32, pinned=bus.on_gpu and wide)
        self.moments = [host_buffer(count, torch.float32, pinned=False) for _ in range(2)]
        self.steps = torch.zeros(len(sizes), dtype=torch.float32)
        self.staging = host_buffer(count, dtype, pinned=bus.on_gpu)
        self.workers = host_workers(bus.overlap)
        size = min(capacity, CHUNK)
        self.scratch = [] if wide else [host_buffer(size, torch.float32, pinned=False) for _ in range(self.workers)]
        for index, parameter in enumerate(self.parameters):
            self.of(self.masters, index).copy_(parameter.detach())
        self._free = list(self.scratch)
        self._pending: list[Bucket] = []
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._threads = one_core_each(self.workers, "labkit-host-adamw") if bus.overlap else None

    def of(self, flat: Tensor, index: int) -> Tensor:
        """The part of a flat buffer that belongs to parameter number `index`, in its shape."""
        shape, start = self.parameters[index].shape, self.starts[index]
        return flat[start : start + shape.numel()].view(shape)

    def state(self, index: int) -> dict[str, Tensor]:
        """What `torch.optim.AdamW` keeps of a parameter, and its master weights: views of the flat buffers."""
        names = ("master", "exp_avg", "exp_avg_sq")
        flats = (self.masters, *self.moments)
        views = {name: self.of(flat, index) for name, flat in zip(names, flats, strict=True)}
        return {"step": self.steps[index], **views}

    def measured_bytes(self) -> dict[str, int]:
        """Bytes of the true storages on the host."""
        return {
            "master_weights": storage_bytes([self.masters]),
            "optimizer_states": storage_bytes([*self.moments, self.steps]),
            "gradients": storage_bytes([self.staging]),
            "scratch": storage_bytes(self.scratch),
        }

    def submit(self, buckets: list[Bucket]) -> None:
        """Have buckets updated and sent back; `Bucket.uploaded` says when, or what went wrong."""
        for bucket in buckets:
            bucket.todo = list(chunks(bucket.pieces, CHUNK))
            bucket.left = len(bucket.todo)
        count = sum(bucket.left for bucket in buckets)
        with self._lock:
            self._pending += buckets
        for _ in range(count):
            if self._threads is None:
                self._work()
            else:
                self._threads.submit(self._work)

    def _next(self) -> tuple[Bucket, list[Piece]]:
        """A chunk of the bucket that arrived last, else of the first that will arrive.

        Gradients come last layer first, and the next forward needs the first layer first.
        """
        if (factor := self._pending[-1].factor) is not None:
            with suppress(Exception):  # raised again where the bucket is updated
                factor[1].wait()  # it is sent after all buckets: they have arrived as well
        with self._lock:
            # They arrive in order, and no more of them are on the way than there are buckets on the device.
            latest = next((bucket for bucket in reversed(self._pending) if bucket.arrived.done()), self._pending[0])
            chunk = latest.todo.pop(0)
            if not latest.todo:
                self._pending.remove(latest)
            return latest, chunk

    def _work(self) -> None:
        bucket, chunk = self._next()
        try:
            if self._failure is not None:
                raise self._failure
            bucket.arrived.wait()
            if bucket.factor is not None:
                bucket.factor[1].wait()
            self.update(bucket, chunk)
            with self._lock:
                bucket.left -= 1
                last = bucket.left == 0
            if last:
                bucket.uploaded.set_result(self._upload(bucket))
        except BaseException as failure:  # it is raised again where the training step waits
            self._failure = failure
            with self._lock:
                if not bucket.uploaded.done():
                    bucket.uploaded.set_exception(failure)

    def all_of(self, bucket: Bucket, todo: list[list[Piece]]) -> None:
        """Update these chunks, side by side where there are threads, and wait for it; nothing is sent."""
        work = map if self._threads is None else self._threads.map
        list(work(partial(self.update, bucket), todo))

    @torch.no_grad()
    def update(self, bucket: Bucket, chunk: list[Piece]) -> None:
        """AdamW on gradients that are here; new weights of fewer than 32 bits take their place."""
        with self.bus.span(HOST, bucket.name), self._borrowed() as scratch:
            gradients = self._gradients(chunk, bucket.factor, scratch)
            for group, settings in enumerate(bucket.settings):
                pieces = [piece for piece in chunk if piece.group == group]
                if pieces:
                    self._adamw(pieces, gradients, chunk[0].at, settings)
            if scratch is not None:
                for piece in chunk:
                    self._place(piece).copy_(self._part(self.masters, piece))

    @contextmanager
    def _borrowed(self) -> Iterator[Tensor | None]:
        """A thread's own scratch, where gradients have to be widened."""
        if not self.scratch:
            yield None
            return
        scratch = self._free.pop()
        try:
            yield scratch
        finally:
            self._free.append(scratch)

    def _upload(self, bucket: Bucket) -> Ticket:
        copies = [(self._weights(p), self._source(p)) for p in bucket.pieces]
        if self.landing is not None:
            landed = [self.landing[p.at - bucket.begin :][: len(p)] for p in bucket.pieces]
            weights, sources = zip(*copies, strict=True)
            copies = [*zip(landed, sources, strict=True), *zip(weights, landed, strict=True)]
        return self.bus.upload(copies, bucket.name)

    def _gradients(self, chunk: list[Piece], factor: tuple[Tensor, Ticket] | None, scratch: Tensor | None) -> Tensor:
        """A chunk's gradients in fp32, clipped: [values]. 32-bit ones are clipped where they lie."""
        gradients = self.staging[chunk[0].at : chunk[-1].at + len(chunk[-1])]
        if scratch is not None:
            gradients = scratch[: len(gradients)].copy_(gradients)
        return gradients if factor is None else gradients.mul_(factor[0])

    def _adamw(self, pieces: list[Piece], gradients: Tensor, begin: int, settings: dict[str, Any]) -> None:
        """The kernel behind torch.optim.AdamW(fused=True), on pieces of one parameter group."""
        masters, averages, squares = ([self._part(flat, p) for p in pieces] for flat in (self.masters, *self.moments))
        sent = [gradients[p.at - begin : p.at - begin + len(p)] for p in pieces]
        steps = [self.steps[p.index] for p in pieces]
        kernel: Any = torch._fused_adamw_
        kernel(masters, sent, averages, squares, [], steps, amsgrad=False, maximize=False, **settings)

    def _part(self, flat: Tensor, piece: Piece) -> Tensor:
        start = self.starts[piece.index]
        return flat[start + piece.begin : start + piece.end]

    def _place(self, piece: Piece) -> Tensor:
        return self.staging[piece.at : piece.at + len(piece)]

    def _source(self, piece: Piece) -> Tensor:
        return self._part(self.masters, piece) if not self.scratch else self._place(piece)

    def _weights(self, piece: Piece) -> Tensor:
        # detach() and not .data: it shares the version counter, so that autograd refuses to go on with a weight that
        # changed under a backward pass which still needed the old one.
        return self.parameters[piece.index].detach().view(-1)[piece.begin : piece.end]

    def close(self) -> None:
        """Finish what was submitted, end the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        self.bus.close()


def one_core_each(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads whose kernels use no core but their thread's; the caller's and later threads' stay as they are.

    Torch keeps the number twice: each thread its own, from its first kernel on, and one for threads to come.
    """
    threads, all_set = torch.get_num_threads(), threading.Barrier(workers + 1)

    def one() -> None:
        torch.get_num_threads()  # from here on the thread has its own number
        torch.set_num_threads(1)
        all_set.wait()

    pool = ThreadPoolExecutor(workers, name)
    for _ in range(workers):
        pool.submit(one)
    all_set.wait()
    torch.set_num_threads(threads)
    return pool
