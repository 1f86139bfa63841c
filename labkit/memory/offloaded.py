"""Offloading as methods: the optimizer on the host, activations on the host, or both.

`labkit.memory.offload_optimizer` and `labkit.memory.offload_activations` say how they work.

Bytes on the GPU for n parameters with b-byte weights: b n of weights, no master weights, no moments, and of gradients
the buckets and the largest one that autograd hands over. On the host: 12 n and the staging buffer's b n.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.ledger import Ledger, measure, saved_for_backward
from labkit.memory.buckets import bucket_values
from labkit.memory.host_adamw import host_bytes, host_workers
from labkit.memory.offload_activations import SMALL, OffloadedActivations
from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.memory.timeline import COMPUTE, Timeline
from labkit.methods import FirstOrder, FullFineTuning
from labkit.numerics.products import products_in
from labkit.tasks import Batch, Task

_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass
class OffloadedFineTuning(FullFineTuning):
    """Every weight trains, and the optimizer lives on the host.

    Attributes:
        weights: dtype of the weights and gradients on the device; master weights on the host are fp32.
        transfer: dtype in which they cross the bus: "float32", or empty for that of `weights`.
        max_grad_norm: as in the other methods; None lets updates begin during the backward pass.
        bucket_mib, buckets, overlap, layerwise, synthetic_gb_per_s: see `OffloadedAdamW`.

    Raises:
        UnknownNameError: for a dtype that is not there.
    """

    max_grad_norm: float | None = 1.0  # type: ignore[assignment]
    weights: str = "float32"
    transfer: str = ""
    bucket_mib: float = 16.0
    buckets: int = 2
    overlap: bool = True
    layerwise: bool = True
    synthetic_gb_per_s: float | None = None
    name: str = "offloaded"

    def __post_init__(self) -> None:
        for dtype in (self.weights, self.transfer or self.weights):
            if dtype not in _FORMATS:
                raise UnknownNameError.among("dtype of weights", dtype, _FORMATS)
        self._timeline: Timeline | None = None

    def watch(self, timeline: Timeline | None) -> None:
        """Record the steps from now on in `timeline`, or no longer."""
        self._timeline = timeline
        if optimizer := getattr(self, "_optimizer", None):
            optimizer.bus.timeline = timeline

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """As every method's; what an earlier `prepare` left on a model is taken off."""
        self.close()
        self._device = next(model.parameters()).device.type
        self._whole = model
        super().prepare(model, task, steps)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """`OffloadedAdamW`, which takes the fp32 weights as masters and turns them into `weights`."""
        return OffloadedAdamW(
            self._whole,
            trained,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            dtype=getattr(torch, self.weights),
            transfer=self._transfer,
            bucket_mib=self.bucket_mib,
            buckets=self.buckets,
            overlap=self.overlap,
            layerwise=self.layerwise,
            synthetic_gb_per_s=self.synthetic_gb_per_s,
            timeline=self._timeline,
        )

    @property
    def optimizer(self) -> OffloadedAdamW:
        """The optimizer, after `prepare`."""
        assert isinstance(self._optimizer, OffloadedAdamW)
        return self._optimizer

    @contextmanager
    def computing(self) -> Iterator[None]:
        """All weights are back, and products are in their format."""
        self.optimizer.synchronize()
        with products_in(_FORMATS[self.weights], self._device):
            yield

    def _loss(self, batch: Batch) -> Tensor:
        with self.optimizer.bus.span(COMPUTE, "forward"), products_in(_FORMATS[self.weights], self._device):
            return super()._loss(batch)

    def _update(self, loss: Tensor) -> None:
        """Backward, during which gradients leave; then whatever of the update has not begun yet."""
        with self.optimizer.bus.span(COMPUTE, "backward"), products_in(_FORMATS[self.weights], self._device):
            loss.backward()
        self._optimizer.step()
        self._schedule.step()

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes on the device counted; `measured_host_bytes` tells the host's."""
        with saved_for_backward(self._model) as saved:
            loss = self._loss(batch)
        self._update(loss)
        self.optimizer.synchronize()
        gradients = self.optimizer.gradient_bytes()
        ledger.measured = {**measure(self._model, None, saved["activations"]), "gradients": gradients}
        ledger.host = self.measured_host_bytes()
        return loss.detach()

    def predicted_bytes(self) -> dict[str, int]:
        """Bytes on the device, by the formula of this file's head."""
        size = getattr(torch, self.weights).itemsize
        buckets = self.buckets + (self._transfer.itemsize != size)  # where fp32 weights land
        largest = max(p.numel() for p in self._trained)
        return {
            "weights": size * sum(p.numel() for p in self._model.parameters()),
            "gradients": self._transfer.itemsize * buckets * self._capacity() + size * largest,
            "optimizer_states": 0,
        }

    @property
    def _transfer(self) -> torch.dtype:
        return getattr(torch, self.transfer or self.weights)

    def _capacity(self) -> int:
        return bucket_values(sum(p.numel() for p in self._trained), self._transfer, self.bucket_mib)

    def host_bytes(self) -> dict[str, int]:
        """Bytes on the host by kind, by formula, after `prepare`."""
        count = sum(p.numel() for p in self._trained)
        workers = host_workers(self.overlap)
        return host_bytes(count, len(self._trained), self._transfer.itemsize, self._capacity(), workers)

    def measured_host_bytes(self) -> dict[str, int]:
        """Bytes of the true storages on the host, by kind."""
        return self.optimizer.host.measured_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Master weights, moments and the schedule's place; the device's weights are the rounded masters."""
        return {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back, and the weights on the device."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Finish, and take hooks and threads away; the model stays as it was trained."""
        if optimizer := getattr(self, "_optimizer", None):
            optimizer.close()


@dataclass
class ActivationOffloading(FirstOrder):
    """What the forward pass saves goes to the host; put before another method, as in `OffloadedActivationTuning`.

    Attributes:
        min_bytes, in_flight, prefetch: see `OffloadedActivations`.
        overlap, synthetic_gb_per_s: see `labkit.memory.lanes.Bus`; shared with an offloaded optimizer beside it.
    """

    overlap: bool = True
    synthetic_gb_per_s: float | None = None
    min_bytes: int = SMALL
    in_flight: int = 2
    prefetch: int = 2

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """As the other method's, and a way to the host for activations."""
        super().prepare(model, task, steps)
        self.offload = OffloadedActivations(
            model, self.min_bytes, self.in_flight, self.prefetch, self.overlap, self.synthetic_gb_per_s
        )
        self.offload.bus.timeline = getattr(self, "_timeline", None)

    def _loss(self, batch: Batch) -> Tensor:
        with self.offload:
            return super()._loss(batch)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step; activations are those that stay, and the most that lay on the device of those that move."""
        loss = super().measured_step(batch, ledger)
        ledger.measured["activations"] = self.offload.kept_bytes + self.offload.peak_bytes
        return loss


@dataclass
class OffloadedActivationTuning(ActivationOffloading, FullFineTuning):
    """Full fine-tuning with activations on the host."""

    name: str = "offloaded-activations"


@dataclass
class OffloadedTuning(ActivationOffloading, OffloadedFineTuning):
    """Full fine-tuning with both, activations and the optimizer, on the host."""

    name: str = "offloaded-both"

    def watch(self, timeline: Timeline | None) -> None:
        """Record both in `timeline`."""
        super().watch(timeline)
        if hasattr(self, "offload"):
            self.offload.bus.timeline = timeline
