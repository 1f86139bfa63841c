"""Block-wise quantization: every block of values is scaled by its largest magnitude and coded by a code book.

For a block x_1 … x_B with a = max |x_i| the code of x_i is the nearest number of the book to x_i / a, and reading back
gives book[code] · a (Dettmers et al. 2022, arXiv:2110.02861). An outlier spoils its own block only. A block costs one
fp32 number more: 4 + 32/64 = 4.5 bits a value for 4 bits and blocks of 64.

**Double quantization** (Dettmers et al. 2023, arXiv:2305.14314) quantizes those scales again: their mean is taken off,
the rest goes through the dynamic 8-bit book in blocks of 256. 4 + 8/64 + 32/(64·256) = 4.127 bits a value.

Where a value lies in the middle between two numbers the lower one is taken. With bitsandbytes, 4-bit codes and values
are equal in all bits on a CPU. Where its kernels round otherwise: its CUDA kernels multiply by an approximate
reciprocal, so that a value within a unit in the last place of a threshold may fall on the other side, code an
all-zero block as its lowest number, times 0, and give the zeros of FP4 the other sign; its CPU kernel for 8 bits
moves x/a to a grid of 65,536 steps before it looks the code up.

On a GPU with Triton one fused kernel reads each value once and writes its code (`kernels`); elsewhere the tensor goes
through in chunks, so that no temporary as large as the tensor ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labkit.numerics.quantize import kernels
from labkit.numerics.quantize.codebooks import CodeBook, QuantizeError, codebook

CHUNK = 2**20
SCALE_BLOCK = 256
# Below this a block counts as zero: its reciprocal would leave fp32's range.
SMALLEST = torch.finfo(torch.float32).tiny
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor.

    Attributes:
        codes: uint8; two codes a byte for a 4-bit book, the first in the high half. An odd last value is padded with
            the code of zero.
        scales: the blocks' largest magnitudes in fp32; with double quantization a Quantized of them, less `offset`.
        offset: mean of the scales, fp32 without dimensions; None without double quantization.
        book, block_size: how it was coded. The last block may be shorter.
        shape, dtype: of the tensor.
    """

    codes: Int[Tensor, " bytes"]
    scales: Tensor | Quantized
    offset: Float[Tensor, ""] | None
    book: CodeBook
    block_size: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def absmax(self) -> Float[Tensor, " blocks"]:
        """Every block's scale in fp32, read back where it was quantized itself."""
        if isinstance(self.scales, Quantized) and self.offset is not None:
            return self.scales.dequantize() + self.offset
        assert isinstance(self.scales, Tensor)
        return self.scales

    @property
    def bytes(self) -> int:
        """All bytes stored: codes, scales and offset. The code book, shared by all tensors, is not counted."""
        scales = self.scales.bytes + 4 if isinstance(self.scales, Quantized) else self.scales.nbytes
        return self.codes.nbytes + scales

    @property
    def bits_per_parameter(self) -> float:
        """Stored bits a value."""
        return 8 * self.bytes / self.numel

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor read back, in its own dtype or another: every value a number of the book times its scale."""
        out = torch.empty(self.numel, dtype=dtype or self.dtype, device=self.codes.device)
        if kernels.usable(self.codes, self.block_size):
            kernels.dequantize(self, out)
            return out.view(self.shape)
        values = self.book.tables(out.device)[0]
        absmax = self.absmax
        for start, codes in self._code_chunks():
            blocks = torch.arange(start, start + len(codes), device=out.device) // self.block_size
            out[start : start + len(codes)] = values[codes.int()] * absmax[blocks]
        return out.view(self.shape)

    def _code_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Unpacked codes in chunks, each with the index of its first value."""
        for start in range(0, self.numel, CHUNK):
            stop = min(start + CHUNK, self.numel)
            if self.book.bits == 8:
                yield start, self.codes[start:stop]
            else:
                yield start, unpack(self.codes[start // 2 : (stop + 1) // 2])[: stop - start]


def pack(codes: Int[Tensor, " n"]) -> Int[Tensor, " half"]:
    """Two 4-bit codes a byte, the first in the high half; an odd count needs its padding before."""
    return codes[::2] << 4 | codes[1::2]


def unpack(packed: Int[Tensor, " half"]) -> Int[Tensor, " n"]:
    """The 4-bit codes of packed bytes, in order."""
    return torch.stack([packed >> 4, packed & 15], 1).flatten()


@torch.no_grad()
def quantize_blockwise(
    x: Float[Tensor, "*shape"], book: CodeBook | str = "nf4", block_size: int = 64, double: bool = False
) -> Quantized:
    """Quantize a tensor in blocks of its values in memory order.

    Args:
        x: fp16, bf16 or fp32, any shape, any device; not empty, every value finite.
        book: a code book or the name of one.
        block_size: values that share a scale; where it does not divide their number, the last block is shorter.
        double: quantize the scales too.

    Raises:
        QuantizeError: for an empty tensor, NaN or infinity, a dtype that is no such float, a block size below 1.
        UnknownNameError: for the name of no code book.
    """
    book = codebook(book) if isinstance(book, str) else book
    _check(x, block_size)
    flat = x.detach().reshape(-1)
    blocks = -(-len(flat) // block_size)
    absmax = torch.empty(blocks, dtype=torch.float32, device=x.device)
    size = len(flat) if book.bits == 8 else (len(flat) + 1) // 2
    codes = torch.empty(size, dtype=torch.uint8, device=x.device)
    if kernels.usable(flat, block_size):
        kernels.quantize(flat, book, block_size, codes, absmax)
    else:
        _quantize_chunks(flat, book, block_size, codes, absmax)
    _refuse_not_finite(absmax, block_size)
    return _finished(Quantized(codes, absmax, None, book, block_size, x.shape, x.dtype), double)


def _finished(plain: Quantized, double: bool) -> Quantized:
    """With its scales quantized as well, where that is asked for."""
    if not double:
        return plain
    offset = plain.absmax.mean()
    scales = quantize_blockwise(plain.absmax - offset, "dynamic8", SCALE_BLOCK)
    return Quantized(plain.codes, scales, offset, plain.book, plain.block_size, plain.shape, plain.dtype)


def _quantize_chunks(flat: Tensor, book: CodeBook, block_size: int, codes: Tensor, absmax: Tensor) -> None:
    """Fill `codes` and `absmax`, some blocks at a time."""
    _, thresholds, order = book.tables(flat.device)
    # An even number of blocks, so that no byte is shared by two chunks.
    rows = max(1, CHUNK // (2 * block_size)) * 2
    for first in range(0, len(absmax), rows):
        start = first * block_size
        values = flat[start : start + rows * block_size].float()
        count = len(values)
        if count % (2 * block_size):
            values = torch.nn.functional.pad(values, (0, -count % (2 * block_size)))
        values = values.view(-1, block_size)
        top = values.abs().amax(1)
        absmax[first : first + rows] = torch.where(top < SMALLEST, 0, top)[: len(absmax) - first]
        scaled = (values * (1 / top.clamp(min=SMALLEST))[:, None]).flatten()
        found = order[torch.bucketize(scaled, thresholds, out_int32=True)]
        if book.bits == 8:
            codes[start : start + count] = found[:count]
        else:
            codes[start // 2 : (start + count + 1) // 2] = pack(found)[: (count + 1) // 2]


def _check(x: Tensor, block_size: int) -> None:
    if x.dtype not in DTYPES:
        raise QuantizeError(f"Cannot quantize a tensor of {x.dtype}.", "Convert it to fp16, bf16 or fp32 first.")
    if x.numel() == 0:
        raise QuantizeError(f"The tensor of shape {tuple(x.shape)} is empty.", "Give at least one value.")
    if not isinstance(block_size, int) or block_size < 1:
        raise QuantizeError(f"A block of {block_size} values is none.", "Give a whole number of at least 1.")


def _refuse_not_finite(absmax: Tensor, block_size: int) -> None:
    """The largest magnitude of a block with NaN or infinity is NaN or infinity itself: no second pass is needed."""
    finite = torch.isfinite(absmax)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise QuantizeError(
            f"{int((~finite).sum())} of {len(absmax)} blocks hold NaN or infinity, the first from value "
            f"{first * block_size} on.",
            "Find where they come from, or clip them, before you quantize.",
        )
