"""Modules that hold their weights at w + Σ scale · z while they are called, a part of a block at a time.

`labkit.zeroth.restore.Perturbed` is asked of every torch function, and makes one tensor at a time. That takes the host
as long as the functions themselves, and a small model's step waits for nothing else. Where all weights of a part of a
block (`labkit.zeroth.pieces`) fit the slot together, they are made there in one launch when the part's first module is
called, its modules hold them until another part's turn, and meanwhile nothing is asked. The values are the same bits.

The room is given back after the last block: what comes then, logits most of all, needs it more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.zeroth.fused_all import Book
from labkit.zeroth.groups import Group, bytes_of, copies_of
from labkit.zeroth.perturb import Terms, Weight
from labkit.zeroth.pieces import Piece, blocks, cut


class _Part:
    """One piece, and what its modules hold instead of what they have."""

    def __init__(self, piece: Piece, weights: Sequence[Weight], book: Book, room: Tensor):
        self.piece, self.own = piece, [entry.parameter for entry in piece.entries]
        self.made = Group(weights, book, copies_of(weights, room))
        self.held = self.made.held(self.own)


class Held:
    """The blocks of a model, of which those parts are held that fit.

    Args:
        model: a decoder.
        weights: what trains.
        book: of the run.
        most: bytes of the room for one part.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Weight], book: Book, most: int):
        known = {alias: weight for weight in weights for alias in weight.aliases}
        self.pieces = _pieces(model)
        fitting = []
        for piece in self.pieces:
            own = [known.get(id(entry.parameter)) for entry in piece.entries]
            found = [weight for weight in own if weight is not None]
            if len(found) == len(own) and bytes_of(found) <= most:
                fitting.append((piece, found))
        size = max((bytes_of(found) for _, found in fitting), default=0)
        device = weights[0].tensor.device if weights else torch.device("cpu")
        self._room = torch.empty(size, dtype=torch.uint8, device=device)
        self._parts = {piece.index: _Part(piece, found, book, self._room) for piece, found in fitting}
        self._last = blocks(model)[-1] if self._parts else None
        self._here: _Part | None = None
        self._give_back()

    def __bool__(self) -> bool:
        """Whether any part is held."""
        return bool(self._parts)

    @contextmanager
    def at(self, sight: Any, terms: Terms) -> Iterator[None]:
        """In which the blocks hold w + Σ scale · z, and `sight`, which is on, rests while they do."""
        assert self._last is not None

        def enter(index: int) -> None:
            part = self._parts.get(index)
            if part is self._here and part is not None:
                return
            self._leave()
            if part is not None:
                with torch._C.DisableTorchFunction():
                    self._take()
                    part.made.write([(terms, 1.0)])
                part.piece.bind(part.held)
                self._here = part
            sight.pause(part is not None)

        def end() -> None:
            self._leave()
            sight.pause(False)
            self._give_back()

        with ExitStack() as hooks:
            for piece in self.pieces:
                for door in piece.doors:
                    hook = door.register_forward_pre_hook(lambda *_, index=piece.index: enter(index))
                    hooks.callback(hook.remove)
            hooks.callback(self._last.register_forward_hook(lambda *_: end()).remove)
            try:
                yield
            finally:
                end()

    def _leave(self) -> None:
        if self._here is not None:
            self._here.piece.bind(self._here.own)
            self._here = None

    def _take(self) -> None:
        """The room's memory, which may be elsewhere than the last time: a group knows where it writes."""
        storage = self._room.untyped_storage()
        if not storage.nbytes():
            storage.resize_(self._room.nbytes)

    def _give_back(self) -> None:
        self._room.untyped_storage().resize_(0)


def _pieces(model: nn.Module) -> list[Piece]:
    """In thirds; none where the model's blocks cannot be taken apart."""
    try:
        return cut(model, 3)
    except LabError:
        return []
