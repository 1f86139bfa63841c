"""ZeRO's stages 1, 2 and 3 as methods: full fine-tuning on N ranks, none of which holds everything.

(Rajbhandari et al. 2020, arXiv:1910.02054.) `zero_formula` has the arithmetic, `zero_units` what is sharded,
`zero_engine` the schedule, `zero_adamw` the update, `zero_checkpoint` how a training goes on at another world size.

Bytes on a rank, for P padded values (a multiple of N in each unit), b-byte weights and U units:

    stage   weights   gradients   master weights   moments and steps
    1       b P       b P         4 P/N            8 P/N + 4 U
    2       b P       b P/N       4 P/N            8 P/N + 4 U
    3       b P/N     b P/N       4 P/N            8 P/N + 4 U

fp32 weights are their own masters, in stages 1 and 2 as a stretch of the whole. Without `hold_weights` stage 3 has no
16-bit weights of its own between steps: they are rounded from the masters for every gather. Beside these stand, for
moments, the whole gradients on their way (two layers', or the root's twice) and in stage 3 the gathered weights (the
root's and two layers'): `gathered_bytes` and `observed` tell them.

What a rank sends (scalars apart): 2 b P (N-1)/N in stages 1 and 2, and in stage 3 another b (N-1)/N for every value in
a layer, gathered once more for the backward pass; the root stays. That is 3 b P (N-1)/N less b P_root (N-1)/N.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.ledger import Ledger, optimizer_tensors, storage_bytes
from labkit.methods import FullFineTuning
from labkit.numerics.products import products_in
from labkit.parallel.data import shard_batch
from labkit.parallel.group import device
from labkit.parallel.zero_adamw import ShardedAdamW
from labkit.parallel.zero_engine import ZeroEngine
from labkit.parallel.zero_formula import traffic_per_step
from labkit.tasks import Batch, Task

FORMATS = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass
class Zero(FullFineTuning):
    """Every weight trains, on all ranks of the default process group. All ranks make the same calls.

    `step` takes the global batch, the same on every rank, trains on this rank's share, and returns the global loss.

    Attributes:
        stage: 1 shards optimizer states and master weights, 2 gradients too, 3 weights too.
        weights: dtype of weights and gradients; bfloat16 has fp32 master weights beside it.
        max_grad_norm: as in the other methods, over all ranks; None for no clipping, and no norm.
        hold_weights: in stage 3, keep this rank's part of 16-bit weights beside its fp32 masters, as the paper does;
            else round it from them whenever it is gathered, and save b P/N bytes, as FSDP2 does.
        prefetch: in stage 3, gather the next layer's weights while one computes.

    Raises:
        UnknownNameError: for a dtype that is not there.
    """

    stage: int = 1
    weights: str = "float32"
    max_grad_norm: float | None = 1.0  # type: ignore[assignment]
    hold_weights: bool = True
    prefetch: bool = True
    name: str = "zero"

    def __post_init__(self) -> None:
        if self.weights not in FORMATS:
            raise UnknownNameError.among("dtype of weights", self.weights, FORMATS)
        self._engine: ZeroEngine | None = None

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Shard the model, which may lie on the host before, and build the optimizer of this rank's parts."""
        self.close()
        self._whole = model
        super().prepare(model, task, steps)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """`ShardedAdamW` on the engine's masters; weights become `weights`."""
        self._device = device()
        self._engine = self._make_engine()
        return self._make_optimizer(self.learning_rate, self.weight_decay)

    def _make_engine(self) -> ZeroEngine:
        given = self._whole, self.stage, getattr(torch, self.weights), self._device
        return ZeroEngine(*given, self.hold_weights, self.prefetch)

    def _make_optimizer(self, lr: float, weight_decay: float) -> ShardedAdamW:
        return ShardedAdamW(self.engine, lr, weight_decay=weight_decay)

    @property
    def engine(self) -> ZeroEngine:
        """What is sharded, and the bytes sent, after `prepare`."""
        assert self._engine is not None
        return self._engine

    @property
    def optimizer(self) -> ShardedAdamW:
        """The optimizer of this rank's parts, after `prepare`."""
        assert isinstance(self._optimizer, ShardedAdamW)
        return self._optimizer

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Products are in the weights' format; in stage 3 all ranks have to compute, since each gathers from all."""
        with products_in(FORMATS[self.weights], self._device.type):
            yield

    def _share_loss(self, batch: Batch) -> Tensor:
        """This rank's part of the global mean: its own mean, weighted by how many rows it has."""
        self.engine.begin()
        mine = shard_batch(batch, self.engine.wire.rank, self.engine.wire.world_size)
        with self.computing():
            return self._loss(mine.batch.to(self._device)) * mine.weight

    def _backward(self, loss: Tensor) -> None:
        with self.computing():
            loss.backward()
        self.engine.finish()

    @torch.no_grad()
    def _scalars(self, loss: Tensor) -> Tensor:
        """The global loss, and the factor of torch.nn.utils.clip_grad_norm_ for the global norm: one small all-reduce.

        Nothing of it is read by the host.
        """
        clip, optimizer = self.max_grad_norm, self.optimizer
        parts = [loss.detach().float()] + ([] if clip is None else [optimizer.squares()])
        total = self.engine.wire.sum_scalars(torch.stack(parts))
        if clip is not None:
            optimizer.factor = (clip / (total[1].sqrt() + 1e-6)).clamp(max=1.0)
        return total[0] / self.engine.wire.world_size

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward and backward on this rank's share, reduction, clipping, update; the global loss."""
        loss = self._share_loss(batch)
        self._backward(loss)
        mean = self._scalars(loss)
        self._optimizer.step()
        self._schedule.step()
        return mean

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with this rank's bytes counted: gradients before the update, the rest after it."""
        with self._saved() as saved:
            loss = self._share_loss(batch)
        self._backward(loss)
        gradients = self.measured_gradients()
        mean = self._scalars(loss)
        self._optimizer.step()
        self._schedule.step()
        ledger.measured = {**self.measured_standing(), "gradients": gradients, "activations": saved["activations"]}
        return mean

    @contextmanager
    def _saved(self) -> Iterator[dict[str, int]]:
        """As `labkit.ledger.saved_for_backward`, where weights come and go: known by their storage, not its address."""
        known = {t.untyped_storage()._cdata for t in (*self._whole.parameters(), *self._whole.buffers())}
        found = {"activations": 0}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                found["activations"] += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield found

    def measured_standing(self) -> dict[str, int]:
        """Bytes of the true storages that stay from step to step, by category."""
        units = self.engine.units
        weights = [
            *self._whole.parameters(),
            *(u.part for u in units if u.part is not None),
            *(u.weights for u in units),
        ]
        return {
            "weights": storage_bytes(weights),
            "master_weights": storage_bytes((u.master for u in units), but=weights),
            "optimizer_states": storage_bytes(optimizer_tensors(self._optimizer)),
            "buffers": storage_bytes(self._whole.buffers(), but=weights),
        }

    def measured_gradients(self) -> int:
        """Bytes of gradients that are there now, whole or reduced."""
        own = [t for u in self.engine.units for t in (u.gradient, u.whole_gradient) if t is not None]
        return storage_bytes([*own, *(p.grad for p in self._whole.parameters() if p.grad is not None)])

    def predicted_bytes(self) -> dict[str, int]:
        """Bytes on this rank, by the formula of this file's head."""
        size, world = getattr(torch, self.weights).itemsize, self.engine.wire.world_size
        padded = sum(unit.padded for unit in self.engine.units)
        rounded_anew = self.stage == 3 and size < 4 and not self.hold_weights
        found = {
            "weights": 0 if rounded_anew else size * padded // (world if self.stage == 3 else 1),
            "gradients": size * padded // (world if self.stage >= 2 else 1),
            "optimizer_states": 8 * padded // world + 4 * len(self.engine.units),
        }
        return found if size == 4 else {**found, "master_weights": 4 * padded // world}

    def gathered_bytes(self) -> int:
        """Most bytes of gathered weights at once, by formula: the root and two layers, or one without prefetch.

        0 before stage 3, which gathers no more than a rank has.
        """
        if self.stage < 3:
            return 0
        layers = [unit.padded for unit in self.engine.layers]
        pairs = (sum(layers[i : i + 1 + self.prefetch]) for i in range(len(layers)))
        return getattr(torch, self.weights).itemsize * (self.engine.root.padded + max(pairs))

    def predicted_traffic(self) -> int:
        """Bytes that this rank sends in a step, scalars apart, by the formula of this file's head."""
        size, padded = getattr(torch, self.weights).itemsize, sum(unit.padded for unit in self.engine.units)
        kept = self.engine.root.padded
        return round(traffic_per_step(self.stage, padded, self.engine.wire.world_size, size, size, kept))

    def observed(self) -> dict[str, float]:
        """Of the last step: bytes sent by kind, and peaks of gathered weights and of whole gradients, in bytes."""
        engine = self.engine
        sent = {f"{kind}_bytes": float(count) for kind, count in engine.wire.sent.items()}
        peaks = {"gathered_bytes": engine.peak_gathered, "gradients_in_flight_bytes": engine.peak_in_flight}
        return sent | {name: float(count) for name, count in peaks.items()}

    def state_dict(self) -> dict[str, Any]:
        """This rank's masters and moments, and the schedule's place: to go on at the same world size."""
        states = [self._optimizer.state[unit.master] for unit in self.engine.units]
        masters = [unit.master.detach() for unit in self.engine.units]
        return {"masters": masters, "states": states, "schedule": self._schedule.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put this rank's parts back, and everybody's weights with them."""
        for unit, master, saved in zip(self.engine.units, state["masters"], state["states"], strict=True):
            unit.master.copy_(master)
            for name, value in self._optimizer.state[unit.master].items():
                value.copy_(saved[name])
            self.engine.publish(unit)
        self.engine.settle()
        self._schedule.load_state_dict(state["schedule"])
        self._optimizer.param_groups[0]["lr"] = self._schedule.get_last_lr()[0]

    def close(self) -> None:
        """Take the hooks off the model, which gets whole trained weights, in their dtype; all ranks call this.

        While an exception is on its way the other ranks are elsewhere: then nothing is gathered.
        """
        if self._engine is not None:
            self._engine.close(whole=sys.exc_info()[0] is None)
            self._engine = None


@dataclass
class Zero1(Zero):
    """Optimizer states and master weights are sharded."""

    stage: int = 1
    name: str = "zero1"


@dataclass
class Zero2(Zero):
    """Gradients too: each is reduced to its owners as the backward pass produces it, and freed."""

    stage: int = 2
    name: str = "zero2"


@dataclass
class Zero3(Zero):
    """Weights too: each layer's are gathered for its forward, released, and gathered again for its backward."""

    stage: int = 3
    name: str = "zero3"
