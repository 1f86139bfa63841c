"""The training steps that table `offload` compares, each behind the same few calls.

A `Plain` step is forward and backward without any optimizer; the others put an optimizer on the device or on the host
behind it, or move activations. A step is timed from its beginning to the next one's, so that what hides behind the next
forward pass counts as hidden.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labkit.bench.steps import draw_tokens, rounding
from labkit.ledger import optimizer_tensors, storage_bytes
from labkit.ledger.predict import predict
from labkit.ledger.trace import Tracker
from labkit.memory.buckets import Bucket, Piece, chunks
from labkit.memory.host_adamw import CHUNK
from labkit.memory.lanes import Bus
from labkit.memory.offload_activations import IN_FLIGHT, PREFETCH, SMALL, OffloadedActivations
from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.memory.step import Step, build
from labkit.memory.timeline import COMPUTE, Timeline

if TYPE_CHECKING:
    from labkit.ledger.case import Case

LEARNING_RATE = 1e-5


class Plain:
    """Forward and backward; the gradients are dropped.

    Attributes:
        down, up: bytes that a step copies from the device and to it.
        turns: whether down and up come one after the other, as activations do.
        bus: whose copies are watched, where there is one.
    """

    down = up = 0
    turns = False
    bus: Bus | None = None

    def __init__(self, case: Case, config: Any, weights: str = ""):
        self.case, self.on_gpu = case, case.device == "cuda"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(case.with_(weights=weights or case.weights, master=False), config, case.device)
        self.step = Step(case, config, case.device, model)
        self.model, self._checkpointing = self.step.model, ExitStack()

    def resize(self, batch: int, seq_len: int, segments: int = 0) -> None:
        """Another size of batch, and number of checkpointed segments, from now on."""
        self._checkpointing.close()
        self.case = self.step.case = self.case.with_(batch=batch, seq_len=seq_len, segments=segments)
        self._checkpointing.enter_context(self.step.checkpointing())
        self.step.tokens = torch.zeros(batch, seq_len, dtype=torch.long, device=self.case.device)
        draw_tokens(self.step)

    def forward(self) -> Tensor:
        """The loss."""
        with self._span("forward"):
            return self.step.forward()

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        with self._span("backward"):
            self.step.backward(loss)

    def update(self) -> None:
        """There is none."""

    def run(self) -> None:
        """One step; returns before the device is through with it."""
        self.backward(self.forward())
        self.update()
        self.step.clear()

    def settle(self) -> None:
        """Wait until nothing of the steps so far is left to be done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def _span(self, name: str) -> AbstractContextManager:
        return self.bus.span(COMPUTE, name) if self.bus else nullcontext()

    def predicted(self) -> int | None:
        """Bytes on the device at the peak, by formula."""
        return predict(self.case, rounding(self.case)).peak.total

    def host_tensors(self) -> Iterable[Tensor]:
        """Tensors in host memory; they stand from step to step."""
        return ()

    def device_tensors(self) -> Iterable[Tensor]:
        """Tensors on the device beside weights, buffers and batch."""
        return (*self.step.masters, *optimizer_tensors(self.step.optimizer)) if self.step.optimizer else ()

    def host_bytes(self) -> int | None:
        """Bytes in host memory."""
        return storage_bytes(self.host_tensors())

    def host_ms(self) -> float | None:
        """Milliseconds of a step's arithmetic on the host, alone."""
        return None

    def close(self) -> None:
        """Let everything go."""
        self._checkpointing.close()


class OnDevice(Plain):
    """torch's fused AdamW on the device, on fp32 master weights where weights have 16 bits."""

    def __init__(self, case: Case, config: Any):
        super().__init__(case.with_(optimizer="adamw", master=case.weights != "float32"), config)

    def update(self) -> None:
        """The optimizer's step."""
        self.step.update()


class OnHost(Plain):
    """Our `OffloadedAdamW`."""

    def __init__(
        self,
        case: Case,
        config: Any,
        overlap: bool,
        gb_per_s: float | None,
        bucket_mib: float = 16.0,
        transfer: str | None = None,
    ):
        super().__init__(case, config, weights="float32")
        self.optimizer = OffloadedAdamW(
            self.model,
            lr=LEARNING_RATE,
            dtype=getattr(torch, case.weights),
            transfer=getattr(torch, transfer or case.weights),
            bucket_mib=bucket_mib,
            overlap=overlap,
            synthetic_gb_per_s=gb_per_s,
        )
        self.bus = self.optimizer.bus
        self.down = self.up = self.optimizer.transfer.itemsize * sum(p.numel() for p in self.model.parameters())
        self._host_ms = self._alone()

    def choose(self, layerwise: bool, max_grad_norm: float | None) -> None:
        """Settings that may change between two steps."""
        self.optimizer.synchronize()
        self.optimizer.layerwise = layerwise and self.optimizer.bus.overlap
        self.optimizer.max_grad_norm = max_grad_norm

    def update(self) -> None:
        """What of the update has not begun yet."""
        self.optimizer.step()

    def settle(self) -> None:
        """All weights are back."""
        self.optimizer.synchronize()
        super().settle()

    def predicted(self) -> int:
        """A step with gradients that stay, but of these the buckets, and the one that autograd hands over."""
        largest = max(p.nbytes for p in self.model.parameters())
        moments = predict(self.case, rounding(self.case)).moments
        return storage_bytes(self.device_tensors()) + max(
            m.total - max(0, m.bytes.get("gradients", 0) - largest) for m in moments
        )

    def host_tensors(self) -> list[Tensor]:
        """Master weights, moments, counts and the staging buffer."""
        host = self.optimizer.host
        found = [host.masters, *host.moments, host.steps, host.staging, self.optimizer._factor]
        return [*found, *host.scratch]

    def device_tensors(self) -> list[Tensor]:
        """The buckets."""
        return self.optimizer.device_buffers()

    def host_ms(self) -> float:
        """AdamW on the flat buffers, before the first step."""
        return self._host_ms

    def _alone(self) -> float:
        """The second of two rounds with a learning rate of 0; moments and gradients are zeros before and after."""
        host = self.optimizer.host
        host.steps += 1
        for _ in range(2):
            begun = time.perf_counter()
            self._round()
            spent = time.perf_counter() - begun
        for tensor in (*host.moments, host.steps, host.staging):
            tensor.zero_()
        return 1e3 * spent

    def _round(self) -> None:
        """What the host's threads do in a step."""
        host = self.optimizer.host
        whole = [
            Piece(i, 0, 0, p.numel(), at) for i, (p, at) in enumerate(zip(host.parameters, host.starts, strict=True))
        ]
        settings = {"lr": 0.0, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
        host.all_of(Bucket("alone", 0, 0, 0, settings=[settings]), list(chunks(whole, CHUNK)))

    def close(self) -> None:
        """Hooks, threads and buckets go."""
        super().close()
        self.optimizer.close()


def on_their_way(case: Case, in_flight: int = IN_FLIGHT, prefetch: int = PREFETCH) -> int:
    """The peak of a step whose activations are on their way, each as large as the largest: hardly ever more."""
    largest = case.tokens * max(case.product * case.arch.ffn, 4 * case.arch.hidden)
    room = (in_flight + 1 + prefetch) * largest
    moments = predict(case, rounding(case)).moments
    return max(m.total - max(0, m.bytes.get("activations", 0) - room) for m in moments)


class ActivationsOnHost(Plain):
    """Our `OffloadedActivations` around a plain step.

    The last storages to leave are used from where they still lie: `up` is a little more than what really comes back.
    """

    turns = True

    def __init__(self, case: Case, config: Any, overlap: bool, gb_per_s: float | None, min_bytes: int = SMALL):
        super().__init__(case, config)
        self.offload = OffloadedActivations(self.model, min_bytes, overlap=overlap, synthetic_gb_per_s=gb_per_s)
        self.bus = self.offload.bus

    def forward(self) -> Tensor:
        """The loss, while what autograd saves is on its way to the host."""
        with self.offload:
            loss = super().forward()
        self.down = self.up = self.offload.moved_bytes
        return loss

    def predicted(self) -> int:
        """Bytes on the device at the peak, by formula."""
        return on_their_way(self.case, self.offload.in_flight, self.offload.prefetch)

    def host_tensors(self) -> list[Tensor]:
        """The pool's slots; all of them between two steps."""
        return [slot for free in self.offload.pool._free.values() for slot, _ in free]

    def close(self) -> None:
        """The lanes' threads end."""
        super().close()
        self.offload.close()


def watch(rig: Plain) -> Timeline:
    """A timeline of two steps and the forward pass after them, behind which the second one's copies may hide."""
    timeline = Timeline(rig.case.device)
    rig.settle()
    timeline.restart()
    assert rig.bus is not None
    rig.bus.timeline = timeline
    try:
        for _ in range(2):
            rig.run()
        rig.forward()
        rig.settle()
    finally:
        rig.bus.timeline = None
    return timeline


def counted(rig: Plain) -> int:
    """Bytes on the device at the highest moment of a step, storage by storage, for a machine without an allocator."""
    tracker = Tracker(round_to=1)
    tracker.register(rig.model.parameters(), "weights")
    tracker.register((*rig.model.buffers(), rig.step.tokens), "buffers")
    tracker.register(rig.device_tensors(), "optimizer_states")
    tracker.register(rig.host_tensors(), "host")  # device and host are the same memory here
    with tracker:
        rig.run()
        rig.settle()
        tracker.mark()
    return max(m.total - m.bytes.get("host", 0) for m in tracker.trace.moments)
