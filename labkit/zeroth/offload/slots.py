"""A few places on the device, through which all pieces go round and round.

    upload      U1 U2 U3 U4 U5 …           compute    C1 C2 C3 …           download   O1 O2 …

As soon as the compute stream is done with a place (an event), and its piece is written back where that is due (another
event), the next piece's upload is queued into it. The host only queues; it waits for nothing. The order is a circle:
after the last piece come the first ones of the next step, whose upload needs to know nothing of this step's outcome,
and so goes on under the head, the loss and the embedding.

The poster's algorithm 1 uploads block i + 1 and offloads block i − 1 while block i computes: three places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.lanes import Ticket
from labkit.memory.timeline import WAIT
from labkit.zeroth.offload.store import Store


@dataclass(frozen=True)
class Loaded:
    """A piece on its way up, or there.

    Attributes:
        place: which one it has.
        arrived: its upload.
        version: how many moves it had made on the host.
        whole: whether it comes as it is, where coded ones do not.
    """

    place: int
    arrived: Ticket
    version: int
    whole: bool


class Slots:
    """The places.

    Args:
        store: whose pieces go through.
        bus: that they take.
        count: of places; with one alone nothing overlaps.

    Attributes:
        places: uint8 tensors on the device, each as large as the largest piece.
        uploads, downloads: bytes so far.
        comes_whole: asked for each upload whether that of a piece, by number, is of its whole, where the host has it.

    Raises:
        LabError: for no place.
    """

    def __init__(self, store: Store, bus: Any, count: int):
        if not isinstance(count, int) or count < 1:
            raise LabError(f"Blocks cannot go through {count!r} slots.", "Give a whole number of at least 1.")
        self.store, self.bus, self._lanes = store, bus, store.memory.bus(bus)
        size = max(store.largest) if store.wholes else store.largest[0]
        self.places = [torch.empty(size, dtype=torch.uint8, device=bus.device) for _ in range(count)]
        self.uploads = self.downloads = 0
        self.comes_whole: Callable[[int], bool] = lambda _: False
        here = bus.here()  # the memory may have been another tensor's, whose last use is queued
        self._free: deque[tuple[int, Ticket]] = deque((place, here) for place in range(count))
        self._loaded: dict[int, Loaded] = {}
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all places."""
        return sum(place.nbytes for place in self.places)

    @property
    def expected(self) -> int:
        """The piece that was uploaded first, or will be next."""
        return next(iter(self._loaded), self._next)

    def take(self, index: int) -> Loaded:
        """A piece, there for what is queued from now on; the next ones are on their way."""
        if index not in self._loaded:
            self._begin_at(index)
        found = self._loaded[index]
        with self.bus.span(WAIT, self.store.pieces[index].name):
            found.arrived.gate()
        return found

    def afresh(self) -> None:
        """What was fetched ahead is fetched again, as it should come now."""
        if self._loaded:
            self._begin_at(self.expected)

    def _begin_at(self, index: int) -> None:
        """Another order than the circle's: what was fetched ahead is dropped."""
        for loaded in self._loaded.values():
            self._free.append((loaded.place, loaded.arrived))
        self._loaded.clear()
        self._next = index
        self._fill()

    def give(
        self, index: int, version: int | None = None, early: Ticket | None = None, codes: Tensor | None = None
    ) -> None:
        """A piece has been used by what is queued so far; its place is free for another.

        Args:
            version: that the piece has there now, if it is to be written back.
            early: when its place was free, if that was before now.
            codes: of a whole that is written back, to be written beside it.
        """
        loaded = self._loaded.pop(index)
        place, last = loaded.place, early or self.bus.here()
        if version is not None:
            host, name = self.store.host(index, loaded.whole), self.store.pieces[index].name
            copies = [(host, self.places[place][: len(host)])]
            if codes is not None:
                copies.append((self.store.payloads[index], codes))
            last = self._lanes.download(copies, name, [last])
            self.store.written[index], self.store.versions[index] = last, version
            self.downloads += sum(len(target) for target, _ in copies)
        self._free.append((place, last))
        self._fill()

    def _fill(self) -> None:
        while self._free and self._next not in self._loaded:
            place, free = self._free.popleft()
            index = self._next
            whole = bool(self.store.wholes) and self.comes_whole(index)
            host = self.store.host(index, whole)
            copies = [(self.places[place][: len(host)], host)]
            after = [free, self.store.written[index]]
            ticket = self._lanes.upload(copies, self.store.pieces[index].name, after)
            self._loaded[index] = Loaded(place, ticket, self.store.versions[index], whole)
            self._next = (index + 1) % len(self.store.pieces)
            self.uploads += len(host)

    def close(self) -> None:
        """Wait for all copies; the places are given back."""
        for loaded in self._loaded.values():
            loaded.arrived.wait()
        self.store.wait()
        if self._lanes is not self.bus:
            self._lanes.close()
        self.bus.close()
        self._loaded.clear()
        self.places = []


def phases(sizes: Sequence[int], count: int) -> list[int]:
    """For each piece the one of `count` steps in which it is written back, so that all write about as many bytes."""
    sums, found = [0] * max(1, count), []
    for size in sizes:
        found.append(sums.index(min(sums)))
        sums[found[-1]] += size
    return found
