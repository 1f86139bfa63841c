"""ZeRO-Offload: AdamW on the host, while the GPU keeps nothing but weights and a few buckets of gradients.

(Ren et al. 2021, arXiv:2101.06840.) Of the 16 bytes a parameter that fp32 training holds on the GPU, gradients (4),
moments (8) and, in mixed precision, master weights move to host memory; the b bytes of the weight itself stay. The
price is the bus, 2 b bytes a parameter and step, and the host's arithmetic: AdamW reads 16 and writes 12 bytes a
parameter, on memory a tenth as fast as the GPU's. Both are hidden behind the backward pass as far as they fit. Where
the bus is fast and the host slow, 16-bit weights may travel as fp32 (`transfer`): twice the bytes on the bus, and the
host neither widens gradients nor rounds weights.

    compute    | backward: layer 4 | layer 3 | layer 2 | layer 1 |  forward: layer 1 | layer 2 ...
    download            | gradients 4 | 3 | 2 | 1 |
    host                              | AdamW 4 | 3 | 2 | 1 |
    upload                                      | weights 4 | 3 | 2 | 1 |

As soon as autograd has a parameter's gradient it is copied into the open bucket on the GPU and freed. A full bucket
goes to the host on a stream of its own; a host thread updates the master weights and sends the new weights back on
another. The next forward waits for each module's weights where it needs them. The gradient's memory is used on the
compute stream alone, so the allocator may reuse it at once; buckets are reused when an event says that they have left.

Clipping by the global norm needs every gradient before the first update. With `max_grad_norm` the norms are taken on
the GPU as the gradients leave, and the updates start after the backward pass: only the downloads overlap with it. What
remains can hide behind the next forward, so the host then begins with the first layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import storage_bytes
from labkit.memory.buckets import GRAIN, Bucket, Piece, bucket_values
from labkit.memory.host_adamw import HostAdamW
from labkit.memory.lanes import Bus, Ticket
from labkit.memory.offload_hooks import attach, check, refusal, release
from labkit.memory.timeline import WAIT, Timeline


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW whose states live, and whose arithmetic runs, on the host. `loss.backward()` begins the update.

    fp32 weights become what torch.optim.AdamW(fused=True) makes of them on a CPU, to the bit. 16-bit weights are the
    rounded fp32 masters. A step has one backward pass; `p.grad` is None after it.

    Args:
        model: trains where it is; its parameters are fp32 and contiguous on one device. Every module that owns a
            parameter gets a hook that waits for it.
        params: parameters of the model, or groups of them; those that require gradients, unless others are given.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW; a group may have its own.
        max_grad_norm: clip by the global norm; None lets updates start during the backward pass.
        dtype: format that trained weights are turned into on the device, and of gradients; None leaves fp32.
        transfer: format that gradients and weights cross the bus in: float32, or None for `dtype`.
        bucket_mib: MiB of gradients that are sent at once.
        buckets: how many are alive on the device at most. Where the bus is slower than the backward pass, it waits.
        overlap: False does everything in order, on one stream and in one thread, to see what overlapping gains.
        layerwise: False lets `step` return only when all weights are back. True lets each module wait for its own;
            whoever reads weights otherwise calls `synchronize` first.
        synthetic_gb_per_s: a made-up bus for machines without a GPU (`labkit.memory.lanes.Bus`).
        timeline: records what ran when.

    Raises:
        LabError: for parameters that cannot be offloaded, and for settings out of range.
    """

    grad_norm: Tensor | None  # of the last step with clipping, before it; on the device

    def __init__(
        self,
        model: torch.nn.Module,
        params: Iterable | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_grad_norm: float | None = None,
        dtype: torch.dtype | None = None,
        transfer: torch.dtype | None = None,
        bucket_mib: float = 16.0,
        buckets: int = 2,
        overlap: bool = True,
        layerwise: bool = True,
        synthetic_gb_per_s: float | None = None,
        timeline: Timeline | None = None,
    ):
        chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
        super().__init__(chosen, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._params = [p for group in self.param_groups for p in group["params"]]
        self._groups = [number for number, group in enumerate(self.param_groups) for _ in group["params"]]
        check(model, self._params, self.param_groups, bucket_mib, buckets)
        self.max_grad_norm, self.layerwise, self.dtype = max_grad_norm, layerwise and overlap, dtype or torch.float32
        self.bus = Bus(self._params[0].device, overlap, synthetic_gb_per_s, timeline)
        self.transfer = transfer or self.dtype
        self._move_out(bucket_values(sum(p.numel() for p in self._params), self.transfer, bucket_mib), buckets)
        self._factor = torch.ones((), pin_memory=self.bus.on_gpu)
        self._largest, self.grad_norm = 0, None
        self._sent: list[Bucket] = []
        self._waiting: dict[int, list[Bucket]] = {}
        self._late: set[int] = set()
        self._fresh()
        self._release = weakref.finalize(self, release, attach(model, self._params, weakref.ref(self)), self.host)

    def _move_out(self, capacity: int, buckets: int) -> None:
        """Masters and states to the host, the weights into their format, and buckets for what travels."""
        if self.transfer not in (self.dtype, torch.float32):
            raise LabError(f"Weights in {self.dtype} cannot travel as {self.transfer}.", "Use float32, or None.")
        device = self.bus.device
        self._landing = None if self.transfer == self.dtype else torch.zeros(capacity, device=device)
        self.host = HostAdamW(self._params, self.transfer, self.bus, capacity, self._landing)
        for index, parameter in enumerate(self._params):
            parameter.data, parameter.grad = parameter.data.to(self.dtype), None
            self.state[parameter] = self.host.state(index)
        self._slots = [torch.zeros(capacity, dtype=self.transfer, device=device) for _ in range(buckets)]
        self._leaving = [Ticket() for _ in range(buckets)]

    def _fresh(self) -> None:
        """Nothing of a step is there yet."""
        self._open: Bucket | None = None
        self._held: list[Bucket] = []
        self._norms: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self._filled, self._number = 0, 0

    def _begin(self) -> None:
        """First gradient of a step: the staging buffer and the step counts must be the last step's no more."""
        self._late = set(self._waiting)
        self.synchronize()

    @torch.no_grad()
    def _collect(self, index: int, parameter: Tensor) -> None:
        """Autograd has this parameter's gradient: into the bucket with it."""
        if not self._seen:
            self._begin()
        gradient, parameter.grad = parameter.grad, None
        if problem := refusal(gradient, index in self._seen, index in self._late):
            self.close()
            raise problem
        assert gradient is not None
        self._seen.add(index)
        self.host.steps[index] += 1
        self._largest = max(self._largest, storage_bytes([gradient]))
        if self.max_grad_norm is not None:
            self._norms[index] = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        values, begin = gradient.reshape(-1), 0
        while begin < len(values):
            begin += self._put(index, values, begin)

    def _put(self, index: int, values: Tensor, begin: int) -> int:
        """As many of a gradient's values as the open bucket takes, from `begin` on; returns how many."""
        bucket = self._open or self._fetch()
        used, left = bucket.end - bucket.begin, len(values) - begin
        room = len(self._slots[bucket.slot]) - used
        count = left if left <= room else room // GRAIN * GRAIN
        if count:
            self._slots[bucket.slot][used : used + count].copy_(values[begin : begin + count])
            bucket.pieces.append(Piece(index, self._groups[index], begin, begin + count, bucket.end))
            bucket.end += count
        if count < left or count == room:
            self._send(bucket)
        return count

    def _fetch(self) -> Bucket:
        """An empty bucket, once the one that was in its slot has left the device."""
        slot = self._number % len(self._slots)
        with self.bus.span(WAIT, f"bucket {self._number}"):
            self._leaving[slot].gate()
        self._open = Bucket(f"bucket {self._number}", slot, self._filled, self._filled)
        self._number += 1
        return self._open

    def _send(self, bucket: Bucket) -> None:
        """The open bucket is full, or the last: down to the host, and on to the update unless clipping holds it."""
        self._open, self._filled = None, bucket.end
        copies = [(self.host.staging[bucket.begin : bucket.end], self._slots[bucket.slot][: bucket.end - bucket.begin])]
        with self._standing(bucket.name):
            bucket.arrived = self.bus.download(copies, bucket.name, [self.bus.here()])
            self._leaving[bucket.slot] = bucket.arrived
            if self.max_grad_norm is None:
                self._submit([bucket])
            else:
                self._held.append(bucket)

    def _submit(self, buckets: list[Bucket]) -> None:
        """Have buckets updated; the modules whose weights they hold wait for them from now on."""
        settings = [
            {"lr": float(g["lr"]), "beta1": g["betas"][0], "beta2": g["betas"][1]}
            | {name: g[name] for name in ("weight_decay", "eps")}
            for g in self.param_groups
        ]
        for bucket in buckets:
            bucket.settings = settings
            for piece in bucket.pieces:
                self._waiting.setdefault(piece.index, []).append(bucket)
        self._sent += buckets
        self.host.submit(buckets)
        if not self.bus.overlap:
            self.synchronize()

    def _standing(self, name: str) -> AbstractContextManager:
        """In which compute stands still, where nothing overlaps."""
        return nullcontext() if self.bus.overlap else self.bus.span(WAIT, name)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Send the last bucket and, with clipping, begin the update; return the closure's loss, where one was given.

        Raises what went wrong in the host's thread, here or where the weights are next waited for; the optimizer is
        closed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._release.alive:
            raise LabError("This optimizer is closed: its hooks are gone.", "Make a new one.")
        if self._open is not None:
            self._send(self._open)
        if self._held:
            arrived = self._clip()
            for bucket in self._held:
                bucket.factor = (self._factor, arrived)
            self._submit(self._held)
        self._fresh()
        if not self.layerwise:
            self.synchronize()
        for bucket in self._sent:
            if bucket.uploaded.done() and bucket.uploaded.exception():
                self._back(bucket)
        return loss

    def _clip(self) -> Ticket:
        """The factor of torch.nn.utils.clip_grad_norm_, computed on the device, and on its way to the host."""
        self.grad_norm = torch.linalg.vector_norm(torch.stack([self._norms[index] for index in sorted(self._norms)]))
        assert self.max_grad_norm is not None
        self._scale = (self.max_grad_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        return self.bus.download([(self._factor, self._scale)], "norm", [self.bus.here()])

    def _back(self, bucket: Bucket) -> None:
        """What is queued from now on finds the bucket's weights updated."""
        try:
            with self.bus.span(WAIT, bucket.name):
                bucket.uploaded.result().gate()
        except BaseException:
            self.close()
            raise

    def _wait_for(self, indices: list[int]) -> None:
        """A module is called: wait for the weights that it owns, and no others."""
        for index in indices:
            for bucket in self._waiting.pop(index, ()):
                self._back(bucket)

    def synchronize(self) -> None:
        """Wait until every weight is updated and back (on CUDA: for what the current stream does from now on)."""
        for bucket in self._sent:
            self._back(bucket)
        self._sent, self._waiting = [], {}

    def gradient_bytes(self) -> int:
        """Bytes of gradients on the device: the buckets, and the largest that autograd handed over at once.

        Where weights travel wider than they are, one bucket more, in which they land.
        """
        return storage_bytes(self.device_buffers()) + self._largest

    def device_buffers(self) -> list[Tensor]:
        """What the optimizer keeps on the device."""
        return self._slots if self._landing is None else [*self._slots, self._landing]

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.AdamW's, with master weights beside the moments: enough to go on from."""
        self.synchronize()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put moments, step counts and master weights back where they lie, and the weights on the device with them."""
        self.synchronize()
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        shapes = [state_dict["state"][number]["master"].shape for number in saved]
        if shapes != [p.shape for p in self._params]:
            raise LabError("The saved state is of other parameters.", "Load it into the model that it was made from.")
        # Not torch's own loading, which would replace the views of the flat buffers by copies on the GPU.
        for number, parameter in zip(saved, self._params, strict=True):
            for name, value in self.state[parameter].items():
                value.copy_(state_dict["state"][number][name])
            parameter.copy_(self.state[parameter]["master"])
        for group, kept in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in kept.items() if name != "params"})

    def close(self) -> None:
        """Finish what is on its way, end the threads, take the hooks off the model. The weights stay trained."""
        self._release()
        self._slots, self._landing = [], None
