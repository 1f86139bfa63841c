"""The host's half of an offloaded optimizer: master weights, moments, and a thread that updates them.

Everything lies flat, parameter after parameter, and is worked on in pieces: stretches of a parameter's values that
travelled in one bucket. AdamW is elementwise, so pieces in any order give what whole tensors give, to the bit, as long
as a cut falls on a multiple of `GRAIN`: torch's CPU kernel (aten/src/ATen/native/cpu/FusedAdamKernel.cpp) rounds the
values left over by its vectors a little differently, and a cut elsewhere would make other values be left over.

Host bytes of n values in t tensors, sent in b-byte weights and gradients:

    master weights 4 n    moments 8 n    step counts 4 t    staging b n    and, if b < 4, scratch 4 a value of a bucket

The staging buffer holds a gradient on its way down and, where weights have 16 bits, the rounded new weight on its way
back up in the same place. Only what crosses the bus is pinned: the staging buffer, and 32-bit master weights, which are
sent from where they lie. Torch rounds pinned memory up to a power of two, so each of these (at most) two buffers takes
less than twice its bytes: at most 2 b n wasted, and for n = 2^k nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from labkit.ledger import storage_bytes
from labkit.memory.lanes import Bus, Ticket, host_buffer
from labkit.memory.timeline import HOST

GRAIN = 64


def host_bytes(count: int, tensors: int, itemsize: int, capacity: int) -> dict[str, int]:
    """The formula of this file's head: host bytes by kind for `count` values in `tensors` parameters.

    Args:
        itemsize: bytes of a weight, and so of a gradient.
        capacity: values in a bucket.
    """
    return {
        "master_weights": 4 * count,
        "optimizer_states": 8 * count + 4 * tensors,
        "gradients": itemsize * count,
        "scratch": 4 * capacity if itemsize < 4 else 0,
    }


@dataclass
class Piece:
    """Values `begin` to `end` of parameter number `index`, from place `at` in the staging buffer on."""

    index: int
    group: int
    begin: int
    end: int
    at: int


@dataclass
class Bucket:
    """What travels in one copy, and how far it has come.

    Attributes:
        slot: the device buffer that it is gathered in, [values].
        begin, end: its stretch of the staging buffer.
        arrived: passed when the gradients are on the host.
        settings: a parameter group's lr, betas, eps and weight_decay each, as they were at this step.
        factor: what clipping multiplies gradients by, a host scalar, and when it is there.
        uploaded: promises the ticket of the way back, or the worker's exception.
    """

    name: str
    slot: int
    begin: int
    end: int
    pieces: list[Piece] = field(default_factory=list)
    arrived: Ticket = field(default_factory=Ticket)
    settings: list[dict[str, Any]] = field(default_factory=list)
    factor: tuple[Tensor, Ticket] | None = None
    uploaded: Future = field(default_factory=Future)


class HostAdamW:
    """Master weights and moments of `parameters` in host memory, and AdamW on them.

    Args:
        parameters: contiguous, fp32; master weights start as their copies.
        dtype: in which gradients come and weights go.
        bus: to send them over. Where it does not overlap, there is no thread: `submit` returns when all is done.
        capacity: values in a bucket.
    """

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype, bus: Bus, capacity: int):
        self.parameters, self.bus, self.dtype = list(parameters), bus, dtype
        sizes = [p.numel() for p in self.parameters]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        count, wide = sum(sizes), dtype == torch.float32
        self.masters = host_buffer(count, torch.float32, pinned=bus.on_gpu and wide)
        self.moments = [host_buffer(count, torch.float32, pinned=False) for _ in range(2)]
        self.steps = torch.zeros(len(sizes), dtype=torch.float32)
        self.staging = host_buffer(count, dtype, pinned=bus.on_gpu)
        self.scratch = None if wide else host_buffer(capacity, torch.float32, pinned=False)
        for index, parameter in enumerate(self.parameters):
            self.of(self.masters, index).copy_(parameter.detach())
        self._pending: list[Bucket] = []
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = ThreadPoolExecutor(1, "labkit-host-adamw") if bus.overlap else None

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
            "scratch": 0 if self.scratch is None else storage_bytes([self.scratch]),
        }

    def submit(self, buckets: list[Bucket]) -> None:
        """Have buckets updated and sent back; `Bucket.uploaded` says when, or what went wrong."""
        with self._lock:
            self._pending += buckets
        for _ in buckets:
            if self._thread is None:
                self._work()
            else:
                self._thread.submit(self._work)

    def _next(self) -> Bucket:
        """Of the buckets that have arrived the latest, else the first that will.

        Gradients come last layer first, and the next forward needs the first layer first.
        """
        if (factor := self._pending[0].factor) is not None:
            with suppress(Exception):  # raised again where the bucket is updated
                factor[1].wait()  # it is sent after all buckets: they have arrived as well
        with self._lock:
            arrived = [bucket for bucket in self._pending if bucket.arrived.done()]
            bucket = arrived[-1] if arrived else self._pending[0]
            self._pending.remove(bucket)
            return bucket

    def _work(self) -> None:
        bucket = self._next()
        try:
            if self._failure is not None:
                raise self._failure
            bucket.uploaded.set_result(self._update(bucket))
        except BaseException as failure:  # it is raised again where the training step waits
            self._failure = failure
            bucket.uploaded.set_exception(failure)

    @torch.no_grad()
    def _update(self, bucket: Bucket) -> Ticket:
        """AdamW on the bucket's values as soon as they are here, and the new weights on their way back."""
        bucket.arrived.wait()
        if bucket.factor is not None:
            bucket.factor[1].wait()
        with self.bus.span(HOST, bucket.name):
            gradients = self._gradients(bucket)
            for group, settings in enumerate(bucket.settings):
                pieces = [piece for piece in bucket.pieces if piece.group == group]
                if pieces:
                    self._adamw(pieces, gradients, bucket.begin, settings)
            if self.scratch is not None:
                for piece in bucket.pieces:
                    self._place(piece).copy_(self._part(self.masters, piece))
        return self.bus.upload([(self._weights(p), self._source(p)) for p in bucket.pieces], bucket.name)

    def _gradients(self, bucket: Bucket) -> Tensor:
        """The bucket's gradients in fp32, clipped: [values]. 32-bit ones are clipped where they lie."""
        gradients = self.staging[bucket.begin : bucket.end]
        if self.scratch is not None:
            gradients = self.scratch[: len(gradients)].copy_(gradients)
        return gradients if bucket.factor is None else gradients.mul_(bucket.factor[0])

    def _adamw(self, pieces: list[Piece], gradients: Tensor, begin: int, settings: dict[str, Any]) -> None:
        """The kernel behind torch.optim.AdamW(fused=True), on pieces of one parameter group."""
        masters, averages, squares = ([self._part(flat, p) for p in pieces] for flat in (self.masters, *self.moments))
        sent = [gradients[p.at - begin : p.at - begin + p.end - p.begin] for p in pieces]
        steps = [self.steps[p.index] for p in pieces]
        kernel: Any = torch._fused_adamw_
        kernel(masters, sent, averages, squares, [], steps, amsgrad=False, maximize=False, **settings)

    def _part(self, flat: Tensor, piece: Piece) -> Tensor:
        start = self.starts[piece.index]
        return flat[start + piece.begin : start + piece.end]

    def _place(self, piece: Piece) -> Tensor:
        return self.staging[piece.at : piece.at + piece.end - piece.begin]

    def _source(self, piece: Piece) -> Tensor:
        return self._part(self.masters, piece) if self.scratch is None else self._place(piece)

    def _weights(self, piece: Piece) -> Tensor:
        # detach() and not .data: it shares the version counter, so that autograd refuses to go on with a weight that
        # changed under a backward pass which still needed the old one.
        return self.parameters[piece.index].detach().view(-1)[piece.begin : piece.end]

    def close(self) -> None:
        """Finish what was submitted, end the threads."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self.bus.close()
