"""How a piece lies in host memory and crosses the bus: as it is, or block-wise in 8 or 4 bits.

    format      bytes for n 16-bit values       error of a value
    as it is    2 n                             none
    int8        n + 4 n / 256                   a / 254, a the largest magnitude of its 256
    nf4         n / 2 + 4 n / 64                up to 0.152 a, a of its 64; of most far less

Matrices are coded (`labkit.numerics.quantize.blockwise`), biases and norms travel as they are. On the device a coded
piece is read back into the weights' dtype and is used there; its codes are never written again. Where coded weights
train, all updates since the beginning are seeds, and are made again at every upload (`labkit.zeroth.offload.moves`):
ŵ_t = ŵ_0 + the updates, each rounded to the weights' dtype as MeZO on ŵ_0 rounds them. Bytes on the bus fall to a half
or a quarter, and every step taken adds the noise of one direction to every upload. It pays for short runs, and at no
cost in time where what travels is frozen.

Where the host has room for a piece both ways (`Lodging.both`), every k-th upload is of the piece as it is: it makes its
moves, is written back and coded anew. So at most k moves are made again, of n 16-bit values about n + n / k bytes come
up a step and 3 n / k go down, and the weights that are trained are exact: what a step looks at are its codes, an error
of at most a / 254 a value that is not carried on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.numerics.quantize import kernels
from labkit.numerics.quantize.blockwise import DTYPES, Quantized, quantize_blockwise
from labkit.numerics.quantize.codebooks import codebook
from labkit.zeroth.pieces import Entry, Piece, aligned

BLOCKS = {"int8": 256, "nf4": 64, "fp4": 64}


class Format(Protocol):
    """A way to lay out a piece in bytes."""

    coded: bool

    def nbytes(self, piece: Piece) -> int:
        """Bytes of the piece on the host and on the bus."""

    def encode(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> None:
        """Write a piece's values into its bytes, uint8 of `nbytes`."""

    def decode(self, piece: Piece, payload: Tensor, out: Sequence[Tensor]) -> None:
        """Read them back."""

    def reader(self, piece: Piece, payload: Tensor, out: Sequence[Tensor]) -> Callable[[], None]:
        """`decode`, to be called again and again for other values in the same places."""

    def writer(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> Callable[[], None]:
        """`encode`, likewise. On a GPU nothing waits: what has no code is not refused, and reads back as no number."""


def views(piece: Piece, flat: Tensor) -> list[Tensor]:
    """The piece's parameters within uint8 of `piece.nbytes`."""
    return [flat[e.offset : e.offset + e.nbytes].view(e.dtype).view(e.shape) for e in piece.entries]


class Plain:
    """As it is."""

    coded = False

    def nbytes(self, piece: Piece) -> int:
        """All values, aligned."""
        return piece.nbytes

    def encode(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> None:
        """A copy."""
        self.decode(piece, payload, values, back=True)

    def decode(self, piece: Piece, payload: Tensor, out: Sequence[Tensor], back: bool = False) -> None:
        """A copy."""
        for there, here in zip(views(piece, payload), out, strict=True):
            (there if back else here).copy_(here if back else there)

    def reader(self, piece: Piece, payload: Tensor, out: Sequence[Tensor]) -> Callable[[], None]:
        """A copy."""
        return lambda: self.decode(piece, payload, out)

    def writer(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> Callable[[], None]:
        """A copy."""
        return lambda: self.encode(piece, values, payload)


class Coded:
    """Matrices block-wise in a code book's numbers.

    Args:
        name: of BLOCKS.
    """

    coded = True

    def __init__(self, name: str):
        self.book, self.block = codebook(name), BLOCKS[name]

    def _sizes(self, entry: Entry) -> tuple[int, int]:
        """Bytes of codes, or of the values that are not coded, and of scales."""
        if len(entry.shape) < 2 or entry.dtype not in DTYPES:
            return entry.nbytes, 0
        count = math.prod(entry.shape)
        return count if self.book.bits == 8 else (count + 1) // 2, 4 * -(-count // self.block)

    def nbytes(self, piece: Piece) -> int:
        """Codes and scales."""
        return sum(aligned(size) for entry in piece.entries for size in self._sizes(entry))

    def _walk(self, piece: Piece, payload: Tensor) -> list[tuple[Entry, Tensor, Tensor]]:
        found, offset = [], 0
        for entry in piece.entries:
            codes, scales = self._sizes(entry)
            first, second = offset, offset + aligned(codes)
            found.append((entry, payload[first : first + codes], payload[second : second + scales]))
            offset = second + aligned(scales)
        return found

    def encode(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> None:
        """Quantize, where the values are."""
        for (entry, codes, scales), value in zip(self._walk(piece, payload), values, strict=True):
            if len(scales):
                found = quantize_blockwise(value.to(entry.dtype), self.book, self.block)
                codes.copy_(found.codes)
                scales.view(torch.float32).copy_(found.absmax)
            else:
                codes.view(entry.dtype).view(entry.shape).copy_(value)

    def decode(self, piece: Piece, payload: Tensor, out: Sequence[Tensor]) -> None:
        """The book's numbers times the scales, rounded to the weights' dtype."""
        self.reader(piece, payload, out)()

    def reader(self, piece: Piece, payload: Tensor, out: Sequence[Tensor]) -> Callable[[], None]:
        """`decode` from one place to another, again and again."""
        there, here, coded = self._matched(piece, payload, out)
        fused = self._fused(coded)

        def read() -> None:
            if here:  # biases and norms, in one launch
                torch._foreach_copy_(here, there)
            for found, target in coded:
                if fused:
                    kernels.dequantize(found, target.view(-1))
                else:
                    target.copy_(found.dequantize())

        return read

    def writer(self, piece: Piece, values: Sequence[Tensor], payload: Tensor) -> Callable[[], None]:
        """`encode` from one place to another, again and again."""
        there, here, coded = self._matched(piece, payload, values)
        if not self._fused(coded):
            return lambda: self.encode(piece, values, payload)

        def write() -> None:
            if here:
                torch._foreach_copy_(there, here)
            for found, value in coded:
                kernels.quantize(value.view(-1), self.book, self.block, found.codes, found.absmax)

        return write

    def _matched(
        self, piece: Piece, payload: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[Quantized, Tensor]]]:
        """What is as it is, in the payload and among the piece's tensors; and pairs of what is coded."""
        there, here, coded = [], [], []
        for (entry, codes, scales), tensor in zip(self._walk(piece, payload), tensors, strict=True):
            if len(scales):
                absmax = scales.view(torch.float32)
                coded.append((Quantized(codes, absmax, None, self.book, self.block, entry.shape, entry.dtype), tensor))
            else:
                there.append(codes.view(entry.dtype).view(entry.shape))
                here.append(tensor)
        return there, here, coded

    def _fused(self, coded: Sequence[tuple[Quantized, Tensor]]) -> bool:
        """Whether a kernel serves them."""
        return bool(coded) and kernels.usable(coded[0][0].codes, self.block)


def named(transfer: str) -> Plain | Coded:
    """The format of this name, "" for values as they are.

    Raises:
        UnknownNameError: for another name.
    """
    if not transfer:
        return Plain()
    if transfer not in BLOCKS:
        raise UnknownNameError.among("format to travel in", transfer, ["", *BLOCKS])
    return Coded(transfer)
