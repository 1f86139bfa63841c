"""Activations in host memory: what autograd saves leaves the GPU during forward and comes back during backward.

Torch calls a pack hook for every tensor that an operation saves for its backward pass, and an unpack hook when the
backward pass needs it (torch.autograd.graph.saved_tensors_hooks). Here packing starts a copy of the tensor's storage
to the host on a stream of its own; when the copy has left, the GPU's memory is free. Unpacking comes in nearly the
reverse order of packing, so each one also starts the copies back of the next few. (vDNN, Rhu et al. 2016,
arXiv:1602.08124; torch's own `save_on_cpu(pin_memory=True)` does the same on the compute stream, in order: nothing
overlaps, views are copied again and again, and every step allocates pinned memory anew.)

What bounds the GPU's peak: `in_flight` storages on their way out, beyond which compute waits for the oldest, and
`prefetch` on their way in. The last ones to leave are the first to be needed, and are used from where they still lie.

A copy of n bytes takes n / B on a bus of B bytes a second. It hides behind compute where the operations that follow
take longer: a linear layer makes 4 T d² operations in its backward pass for T tokens of width d and saves T d values.

Values are equal to the bit. What a program may not do, here as without hooks, is modify a saved tensor in place.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from labkit.errors import LabError
from labkit.memory.lanes import Bus, Ticket, host_buffer, pinned_bytes
from labkit.memory.timeline import WAIT, Timeline

SMALL = 2**20
IN_FLIGHT, PREFETCH = 2, 2  # storages on their way out, and in


class HostPool:
    """Slots of host memory to be used again, each a power of two of bytes, which is what torch would pin anyway.

    Attributes:
        allocations: how many slots were ever made; no more once every step finds what the one before it left.
        nbytes: bytes of them all.
    """

    def __init__(self, pinned: bool):
        self._pinned = pinned
        self._free: dict[int, list[tuple[Tensor, Ticket]]] = {}
        self.allocations = self.nbytes = 0

    def take(self, nbytes: int) -> tuple[Tensor, Ticket]:
        """A slot of at least `nbytes`, uint8, and the last copy from or to it, to be waited for."""
        size = pinned_bytes(nbytes)
        try:
            return self._free.setdefault(size, []).pop()
        except IndexError:
            self.allocations, self.nbytes = self.allocations + 1, self.nbytes + size
            return host_buffer(size, torch.uint8, self._pinned), Ticket()

    def give(self, slot: Tensor, last: Ticket) -> None:
        """Put a slot back."""
        self._free[len(slot)].append((slot, last))


class _Moved:
    """A storage that went to the host. Alive as long as the graph may ask for it."""

    def __init__(self, mover: OffloadedActivations, tensor: Tensor, order: list[weakref.ref[_Moved]]):
        self.mover, self.bus, self.order, self.place = mover, mover.bus, order, len(order)
        self.source: Tensor | None = _bytes_of(tensor)
        # Kept for its version counter, which tells whether somebody wrote to it while it was on its way.
        self.watched: Tensor | None = tensor.detach()
        self.version, self.nbytes, self.device = tensor._version, self.source.nbytes, tensor.device
        self.handles = 0
        self.back: Tensor | None = None
        self.slot, last = mover.pool.take(self.nbytes)
        copies = [(self.slot[: self.nbytes], self.source)]
        self.last = self.bus.download(copies, f"storage {self.place}", [last, self.bus.here()])
        self.down, self.gated = self.last, True

    def leave(self) -> None:
        """Give the device's memory free, after the copy."""
        if self.source is None or self.watched is None:
            return
        if not self.down.done():
            with self.bus.span(WAIT, f"storage {self.place}"):
                self.down.gate()
        if self.watched._version != self.version:
            cause = f"A tensor of shape {list(self.watched.shape)} was modified in place after it had been saved."
            raise LabError(cause, "Write to another tensor: the backward pass needs the old values.")
        self.source = self.watched = None
        self.mover._count(-self.nbytes)

    def fetch(self) -> None:
        """Start the copy back, if it is needed; the memory is the compute stream's, which the copy waits for."""
        if self.source is not None or self.back is not None:
            return
        self.back, self.gated = torch.empty(self.nbytes, dtype=torch.uint8, device=self.device), False
        self.mover._count(self.nbytes)
        copies = [(self.back, self.slot[: self.nbytes])]
        self.last = self.bus.upload(copies, f"storage {self.place}", [self.down, self.bus.here()])

    def use(self) -> Tensor:
        """The bytes on the device, ready for what is queued from now on. The last one to ask takes them along."""
        self.handles -= 1
        if self.source is not None:
            return self.source
        self.fetch()
        assert self.back is not None
        found = self.back
        if not self.gated:
            with self.bus.span(WAIT, f"storage {self.place}"):
                self.last.gate()
            self.gated = True
        if self.handles <= 0:
            self._drop()
        return found

    def _drop(self) -> None:
        if self.back is not None:
            self.back = None
            self.mover._count(-self.nbytes)

    def __del__(self) -> None:
        # A graph that is thrown away unused: its memory may not be given back under a copy.
        if self.source is not None or not self.gated:
            self.last.before_free()
        if self.source is not None:
            self.mover._count(-self.nbytes)
        self._drop()
        self.mover.pool.give(self.slot, self.last)


class _Handle:
    """What the graph holds in place of a tensor: a view of a storage that moved."""

    def __init__(self, moved: _Moved, tensor: Tensor):
        self.moved = moved
        moved.handles += 1
        self.dtype, self.view = tensor.dtype, (tensor.size(), tensor.stride(), tensor.storage_offset())

    def tensor(self) -> Tensor:
        """The same view of the same bytes."""
        found = torch.empty(0, dtype=self.dtype, device=self.moved.device)
        return found.set_(self.moved.use().untyped_storage(), self.view[2], self.view[0], self.view[1])


class OffloadedActivations:
    """A context in which what autograd saves goes to the host. To be entered around each forward pass.

        offload = OffloadedActivations(model)
        with offload:
            loss = model(x).sum()
        loss.backward()

    Args:
        model: whose weights and buffers stay; it also says on which device is worked.
        min_bytes: storages below this many bytes stay.
        in_flight: storages that may be on their way out at once.
        prefetch: storages that are fetched ahead of the one that is needed.
        overlap, synthetic_gb_per_s, timeline: see `labkit.memory.lanes.Bus`.

    Attributes:
        moved_bytes, kept_bytes: of distinct storages in the last forward pass, without weights.
        peak_bytes: of moved storages that lay on the device at the same time since the last forward pass began.
        pool: the host's slots.

    Raises:
        LabError: for settings out of range; in the forward pass where a saved tensor is modified in place.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        min_bytes: int = SMALL,
        in_flight: int = IN_FLIGHT,
        prefetch: int = PREFETCH,
        overlap: bool = True,
        synthetic_gb_per_s: float | None = None,
        timeline: Timeline | None = None,
    ):
        if min_bytes < 1 or in_flight < 1 or prefetch < 0:
            cause = f"There is no way to offload from {min_bytes} bytes on, {in_flight} in flight, {prefetch} ahead."
            raise LabError(cause, "Give at least 1 byte, 1 in flight and 0 ahead.")
        self.device = next(model.parameters()).device
        self.bus = Bus(self.device, overlap, synthetic_gb_per_s, timeline)
        self.pool = HostPool(self.bus.on_gpu)
        self.min_bytes, self.in_flight, self.prefetch = min_bytes, in_flight, prefetch
        self._model = model
        self.moved_bytes = self.kept_bytes = self.peak_bytes = self._alive = 0
        self._known: dict[tuple[StorageWeakRef, int], weakref.ref[_Moved]] = {}
        self._kept: set[StorageWeakRef] = set()
        self._order: list[weakref.ref[_Moved]] = []
        self._leaving: deque[weakref.ref[_Moved]] = deque()
        self._contexts: list[Any] = []

    def __enter__(self) -> OffloadedActivations:
        self._known, self._kept, self._order = {}, set(), []
        self.moved_bytes = self.kept_bytes = 0
        self.peak_bytes = self._alive
        self._weights = {StorageWeakRef(t.untyped_storage()) for t in _tensors(self._model)}
        self._contexts.append(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        self._contexts[-1].__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._contexts.pop().__exit__(*failure)
        self._known, self._kept = {}, set()

    def _count(self, nbytes: int) -> None:
        self._alive += nbytes
        self.peak_bytes = max(self.peak_bytes, self._alive)

    def _pack(self, tensor: Tensor) -> Tensor | _Handle:
        if tensor.layout != torch.strided or type(tensor) not in (Tensor, torch.nn.Parameter):
            return tensor
        storage = StorageWeakRef(tensor.untyped_storage())
        if tensor.device != self.device or storage in self._weights:
            return tensor
        if tensor.untyped_storage().nbytes() < self.min_bytes:
            self._keep(storage, tensor.untyped_storage().nbytes())
            return tensor
        # A weak reference names a storage as an address cannot: what was offloaded gives its address to the next.
        # With the version, which the views of a storage share: after an in-place change it is another content.
        key = (storage, tensor._version)
        moved = self._known[key]() if key in self._known else None
        if moved is None:
            moved = self._move(tensor)
            self._known[key] = weakref.ref(moved)
        return _Handle(moved, tensor)

    def _keep(self, storage: StorageWeakRef, nbytes: int) -> None:
        if storage not in self._kept:
            self._kept.add(storage)
            self.kept_bytes += nbytes

    def _move(self, tensor: Tensor) -> _Moved:
        """Send the tensor's storage away; wait for the oldest on its way where too many are."""
        moved = _Moved(self, tensor, self._order)
        self._count(moved.nbytes)
        self.moved_bytes += moved.nbytes
        self._order.append(weakref.ref(moved))
        self._leaving.append(weakref.ref(moved))
        while len(self._leaving) > self.in_flight:
            if (oldest := self._leaving.popleft()()) is not None:
                oldest.leave()
        return moved

    def _unpack(self, packed: Tensor | _Handle) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        found, moved = packed.tensor(), packed.moved
        for place in range(moved.place - 1, max(-1, moved.place - 1 - self.prefetch), -1):
            ahead = moved.order[place]()
            if ahead is not None and ahead.handles > 0:
                ahead.fetch()
        return found

    def close(self) -> None:
        """End the lanes' threads."""
        self.bus.close()


def _tensors(model: torch.nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _bytes_of(tensor: Tensor) -> Tensor:
    """The whole storage behind a tensor, as uint8."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage())
