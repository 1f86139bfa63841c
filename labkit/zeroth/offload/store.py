"""All pieces of a model in host memory, and what its modules hold in their place.

A module's parameter is a view of the piece's memory while it does not compute, so that whoever saves or counts the
model finds it whole. Coded pieces have no such view: there the parameter has the right shape and dtype, and no values.
A model's pieces are moved one after the other, and what they were moved from is given back at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.memory.lanes import Ticket
from labkit.zeroth.offload.formats import Coded, Plain, named, views
from labkit.zeroth.offload.memory import FileMemory, HostMemory
from labkit.zeroth.pieces import Piece, cut

FILE = "blocks.safetensors"
_stores: weakref.WeakKeyDictionary[nn.Module, Store] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Lodging:
    """Where and how pieces are kept.

    Attributes:
        parts: of a block, see `labkit.zeroth.pieces`.
        transfer: the format, see `labkit.zeroth.offload.formats`.
        folder: of the file that pieces are kept in; "" for host memory.
        device: that the model computes on.
        both: whether the host keeps coded pieces as they are too, so that they can be coded anew.
    """

    parts: int = 1
    transfer: str = ""
    folder: str = ""
    device: str = "cpu"
    both: bool = False


class Store:
    """The pieces of one model.

    Args:
        model: whose pieces they are.
        lodging: where they are to be kept.
        fill: gives a piece's values, in the order of its entries; called from threads.

    Attributes:
        payloads: each piece's bytes on the host, in the format that it travels in.
        wholes: the same piece as it is, where the lodging has both.
        parameters: what the modules hold while a piece is not on the device.
        versions: how many of the run's moves (`labkit.zeroth.offload.moves`) each piece has made.
        written: the last download of each.
        borrowed: whether the model was whole before, and is to be whole again.
        engine: what uses the pieces now, if anything does.

    Raises:
        LabError: where there is no room; the model is then as it was, but for pieces that were moved already.
    """

    def __init__(
        self, model: nn.Module, lodging: Lodging, fill: Callable[[Piece], list[Tensor]], borrowed: bool = False
    ):
        self.lodging, self.borrowed = lodging, borrowed
        self.engine: Any = None
        self.format: Plain | Coded = named(lodging.transfer)
        self.pieces = cut(model, lodging.parts)
        on_gpu = torch.device(lodging.device).type == "cuda"
        self.memory = FileMemory(Path(lodging.folder) / FILE) if lodging.folder else HostMemory(on_gpu)
        self.parameters: list[list[nn.Parameter]] = [[] for _ in self.pieces]
        if (both := lodging.both and self.format.coded) and lodging.folder:
            cause = "Blocks that are kept both coded and as they are do not lie in a file."
            raise LabError(cause, "Leave out the folder, or do not have them coded anew.")
        self.hollow = self.format.coded and not both
        coded = [self.format.nbytes(piece) for piece in self.pieces]
        sizes = [size + both * piece.nbytes for size, piece in zip(coded, self.pieces, strict=True)]
        self.largest = max(coded), max(piece.nbytes for piece in self.pieces)

        @torch.no_grad()
        def settle(number: int, flat: Tensor) -> None:
            piece, values = self.pieces[number], fill(self.pieces[number])
            codes, whole = flat[: coded[number]], flat[coded[number] :]
            self.format.encode(piece, values, codes)
            if both:
                Plain().encode(piece, values, whole)
            self._exchange(piece, whole if both else codes)

        flats = self.memory.allocate(sizes, settle)
        self.payloads = [flat[:size] for flat, size in zip(flats, coded, strict=True)]
        self.wholes = [flat[size:] for flat, size in zip(flats, coded, strict=True)] if both else []
        self.versions = [0] * len(self.pieces)
        self.written = [Ticket() for _ in self.pieces]
        _stores[model] = self

    @classmethod
    def of(cls, model: nn.Module) -> Store | None:
        """The store of a model that has one."""
        return _stores.get(model)

    @classmethod
    def taking(cls, model: nn.Module, lodging: Lodging) -> Store:
        """The pieces of a model that is whole, moved to where they are to be kept.

        Raises:
            LabError: where there is no room for them.
        """
        return cls(model, lodging, lambda piece: [e.parameter.detach() for e in piece.entries], borrowed=True)

    def _exchange(self, piece: Piece, flat: Tensor) -> None:
        """The modules' parameters for what they hold from now on."""
        kept = views(piece, flat) if not self.hollow else [_hollow(e.shape, e.dtype) for e in piece.entries]
        for entry, value in zip(piece.entries, kept, strict=True):
            trains = entry.parameter.requires_grad
            self.parameters[piece.index].append(nn.Parameter(value, requires_grad=trains))
        self.bind(piece)

    def bind(self, piece: Piece, parameters: list[nn.Parameter] | None = None) -> None:
        """Give the modules these parameters, or those that they hold while the piece is not on the device."""
        piece.bind(parameters or self.parameters[piece.index])

    def host(self, index: int, whole: bool) -> Tensor:
        """A piece's bytes on the host: as it is where it lies both ways and that is asked for, else as it travels."""
        return (self.wholes if whole else self.payloads)[index]

    def wait(self) -> None:
        """Until what was written back is here."""
        for ticket in self.written:
            ticket.wait()

    def leave(self, model: nn.Module, device: torch.device, read: Callable[[Piece], list[Tensor]]) -> None:
        """Make a borrowed model's pieces parameters of their own again on `device`, one after the other.

        Args:
            read: gives a piece's values.

        Raises:
            LabError: for a model that was made here: it may be larger than any memory.
        """
        if not self.borrowed:
            raise LabError("This model was made in pieces, and may not fit as a whole.", "Save it block by block.")
        _stores.pop(model, None)
        if device.type == "cpu" and isinstance(self.memory, HostMemory) and not self.hollow:
            return  # the parameters lie there
        for piece in self.pieces:
            pairs = zip(read(piece), self.parameters[piece.index], strict=True)
            self.bind(piece, [nn.Parameter(value.to(device, copy=True), p.requires_grad) for value, p in pairs])
        if isinstance(self.memory, FileMemory):
            self.memory.path.unlink(missing_ok=True)


def _hollow(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape that has memory for one value."""
    return torch.zeros(1, dtype=dtype).expand(shape)
