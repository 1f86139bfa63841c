"""Quantization: code books, blocks, 8-bit integers with outliers kept apart, 4-bit layers, 8-bit Adam (lesson 09)."""

from labkit.numerics.quantize.adam8bit import Adam8bit, Adam8bitFineTuning
from labkit.numerics.quantize.blockwise import Quantized, pack, quantize_blockwise, unpack
from labkit.numerics.quantize.codebooks import CODE_BOOKS, CodeBook, QuantizeError, codebook, dynamic8, fp4, nf4
from labkit.numerics.quantize.linear import Linear4bit, quantize_linears

__all__ = [
    "CODE_BOOKS", "Adam8bit", "Adam8bitFineTuning", "CodeBook", "Linear4bit", "QuantizeError", "Quantized", "codebook",
    "dynamic8", "fp4", "nf4", "pack", "quantize_blockwise", "quantize_linears", "unpack",
]  # fmt: skip
