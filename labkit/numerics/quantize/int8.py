"""Eight-bit integers: absmax quantization, and LLM.int8(), the matrix product that survives outliers.

**Absmax** (Dettmers et al. 2022, arXiv:2208.07339, section 2.1): a group of numbers shares one constant, its largest
magnitude a. Each number x becomes the integer round(127 · x / a) and comes back as a/127 times that integer: equal
steps of a/127, an error of at most half a step, a/254. A group is the whole tensor, a row, or a block.

**LLM.int8()** (the same paper, section 3): in Y = X Wᵀ each row of X and each row of W has its own constant, the
product of the integers is exact in int32, and the outer product of the constants scales it back. A large number in a
row of X still ruins that row, and in large models such numbers come in the same few columns. So the columns of X that
hold a magnitude of at least the threshold 6.0 are multiplied in 16 bits, the others in 8, and the two products added.

The lecture (a guide to efficient tuning, 2023) says that models load in int8 "without performance degradation"; the
paper shows that for the decomposition only, and that without it models beyond 6.7 B parameters fail.

Against bitsandbytes: the same codes, constants and outlier columns, and so the same values up to float rounding. It
casts its input to fp16 first, which this module does not; its CPU code scales by 6.200124e-05 where 1/127² is
6.2000124e-05, a slip of 0.0018 %. As in bitsandbytes, the weights of the outlier columns are read back from their 8
bits (the paper keeps them in 16), and an outlier's own column still counts for the row constants of quiet rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import UnknownNameError
from labkit.numerics.quantize.codebooks import QuantizeError

GROUPS = ("tensor", "row", "block")
TOP = 127
THRESHOLD = 6.0
# 127 divided by less would leave float32: such a group is taken for zero.
_SMALLEST = 1e-36
# Every sum of so many products of 8-bit integers is below 2^24, and so exact in float32 in any order.
_EXACT_TERMS = 2**24 // (TOP + 1) ** 2


@dataclass(frozen=True, eq=False)
class Int8:
    """A tensor as 8-bit integers.

    Attributes:
        codes: int8 in -127 … 127, in the tensor's shape.
        absmax: the largest magnitude of each group, float32: one number, one a row (the last dimension), or one a
            block of the flattened tensor.
        per: "tensor", "row" or "block".
        block_size: values a block; the last one may be shorter.
        dtype: of the tensor that was quantized.
    """

    codes: Int[Tensor, "*shape"]
    absmax: Float[Tensor, "*groups"]
    per: str
    block_size: int
    dtype: torch.dtype

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
        """The values that the codes mean, in `dtype` (default: the original one)."""
        step = self.absmax / TOP
        if self.per == "block":
            step = step.repeat_interleave(self.block_size)[: self.codes.numel()].view(self.codes.shape)
        elif self.per == "row":
            step = step.unsqueeze(-1)
        return (self.codes * step).to(dtype or self.dtype)

    @property
    def numel(self) -> int:
        """How many values the tensor has."""
        return self.codes.numel()

    @property
    def bytes(self) -> int:
        """Stored bytes: one a code, four a constant."""
        return self.numel + 4 * self.absmax.numel()

    @property
    def bits_per_parameter(self) -> float:
        """Stored bits a value, constants included."""
        return 8 * self.bytes / self.numel


def quantize_absmax(x: Float[Tensor, "*shape"], per: str = "tensor", block_size: int = 64) -> Int8:
    """Quantize `x` to 8-bit integers, with one constant a tensor, a row or a block.

    Args:
        x: a floating-point tensor; computed in float32.
        per: "tensor", "row" (the last dimension) or "block" (of the flattened tensor).
        block_size: values a block. Where it does not divide the length, the last block is shorter.

    Raises:
        QuantizeError: for an empty tensor, NaN, infinity, a tensor that is not floating-point, a block size below 1.
        UnknownNameError: for another way to group.
    """
    if per not in GROUPS:
        raise UnknownNameError.among("way to group", per, GROUPS)
    if block_size < 1:
        raise QuantizeError(f"A block cannot have {block_size} values.", "Give a block size of 1 or more, such as 64.")
    check(x)
    grouped = _grouped(x.detach().float(), per, block_size)
    absmax = _constants(grouped.abs().amax(-1))
    codes = _codes(grouped, absmax).view(-1)[: x.numel()].view(x.shape)
    return Int8(codes, absmax.view(x.shape[:-1]) if per == "row" else absmax, per, block_size, x.dtype)


def check(x: Tensor) -> None:
    """Raise QuantizeError where `x` has no numbers, or numbers that have no code."""
    if not x.is_floating_point():
        raise QuantizeError(f"Only floating-point tensors are quantized, not {x.dtype}.", "Pass a float tensor.")
    if x.numel() == 0:
        raise QuantizeError(f"A tensor of shape {tuple(x.shape)} holds nothing to quantize.", "Check how it was cut.")
    if not bool(torch.isfinite(x).all()):
        bad = "NaN" if bool(x.isnan().any()) else "infinity"
        cause = f"The tensor holds {bad}, for which an integer has no code."
        raise QuantizeError(cause, "Find where it comes from; torch.isfinite shows the places.")


def _grouped(x: Float[Tensor, "*shape"], per: str, block_size: int) -> Float[Tensor, "groups size"]:
    if per == "tensor":
        return x.reshape(1, -1)
    if per == "row":
        return x.reshape(-1, x.shape[-1] if x.dim() else 1)
    flat = x.reshape(-1)
    # Zeros fill the last block: they do not change its largest magnitude.
    return F.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)


def _constants(absmax: Tensor) -> Tensor:
    return torch.where(absmax < _SMALLEST, 0.0, absmax)


def _codes(x: Float[Tensor, "groups size"], absmax: Float[Tensor, " groups"]) -> Int[Tensor, "groups size"]:
    per_unit = torch.where(absmax > 0, TOP / absmax, 0.0)
    return torch.round(x * per_unit.unsqueeze(-1)).to(torch.int8)


def int8_matmul(a: Int[Tensor, "m k"], b: Int[Tensor, "n k"]) -> Int[Tensor, "m n"]:
    """a bᵀ of 8-bit integers, exact, as int32.

    A GPU's integer units do it where the shapes suit them (k and n multiples of 8). Elsewhere float32 products of at
    most 1,024 terms do, which are exact too, and are added as integers.

    Raises:
        QuantizeError: for other dtypes, or shapes that do not fit.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8 or a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        told = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise QuantizeError(f"The integer product has no meaning for {told}.", "Pass int8 tensors [m, k] and [n, k].")
    if a.is_cuda and a.shape[1] % 8 == 0 and b.shape[0] % 8 == 0:
        rows = len(a)
        padded = F.pad(a, (0, 0, 0, max(0, 17 - rows)))  # cuBLAS refuses 16 rows and fewer
        return torch._int_mm(padded, b.t())[:rows]
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for left, right in zip(a.split(_EXACT_TERMS, 1), b.split(_EXACT_TERMS, 1), strict=True):
        total += (left.float() @ right.float().t()).to(torch.int32)
    return total


def outlier_columns(x: Float[Tensor, "*rows k"], threshold: float = THRESHOLD) -> Int[Tensor, " outliers"]:
    """Indices of the columns of `x` that hold a magnitude of at least `threshold`, ascending."""
    return (x.abs() >= threshold).flatten(0, -2).any(0).nonzero().squeeze(1)


def scaled_matmul(
    x: Float[Tensor, "m k"],
    weight: Int8,
    bias: Float[Tensor, " n"] | None = None,
    threshold: float | None = THRESHOLD,
) -> Float[Tensor, "m n"]:
    """x Wᵀ + bias with 8-bit integers, in x's dtype; `weight` [n, k] is quantized per row or per tensor.

    `x` is quantized as the weight is. Columns of `x` with a magnitude of at least `threshold` are multiplied in x's
    dtype; None multiplies all of them in 8 bits.

    Raises:
        QuantizeError: for an empty `x`, NaN or infinity in it, a weight in blocks, or shapes that do not fit.
    """
    if weight.per == "block":
        raise QuantizeError("Blocks of a weight cross the sums of a product.", "Quantize the weight per row.")
    if x.shape[-1] != weight.codes.shape[-1]:
        told = f"Inputs have {x.shape[-1]} features, the weight takes {weight.codes.shape[-1]}."
        raise QuantizeError(told, "Pass the input of this layer.")
    check(x)
    columns = x.new_empty(0, dtype=torch.long)
    quiet = x.float()
    if threshold is not None:
        columns = outlier_columns(x, threshold)
        quiet = quiet.masked_fill(quiet.abs() >= threshold, 0.0)
    absmax = _constants(quiet.abs().amax(-1) if weight.per == "row" else quiet.abs().amax().view(1))
    codes = _codes(quiet, absmax.expand(len(x)))
    codes[:, columns] = 0
    scale = absmax.view(-1, 1) * weight.absmax.view(1, -1)
    out = int8_matmul(codes, weight.codes) * scale * (1 / TOP**2)
    out = (out if bias is None else out + bias).to(x.dtype)
    if not len(columns):
        return out
    return out.addmm(x[:, columns], _columns_of(weight, columns, x.dtype).t())


def _columns_of(weight: Int8, columns: Tensor, dtype: torch.dtype) -> Tensor:
    return Int8(weight.codes[:, columns], weight.absmax, weight.per, 0, dtype).dequantize()


class _Int8Linear(torch.autograd.Function):
    """Forward in integers; backward to the input by the dequantized weight, which is not kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Int8, threshold: float | None) -> Tensor:
        ctx.weight = weight
        out = scaled_matmul(x.reshape(-1, x.shape[-1]), weight, bias, threshold)
        return out.view(*x.shape[:-1], len(weight.codes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        [gradient] = gradients
        to_x = gradient @ ctx.weight.dequantize(gradient.dtype) if ctx.needs_input_grad[0] else None
        to_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None, None


class Linear8bit(torch.nn.Module):
    """A linear layer whose weight is kept in 8 bits and multiplied in 8 bits (LLM.int8()).

    The weight is frozen. The gradient to the input is that of the dequantized weight: rounding the input counts as
    the identity, as in bitsandbytes' Linear8bitLt.

    Args:
        weight: [out, in], floating-point.
        bias: [out], kept as it is.
        threshold: columns of the input with such a magnitude are multiplied in its own dtype; None: no column.
        per: "row" (one constant a row of the weight and of the input) or "tensor".

    Raises:
        QuantizeError: as `quantize_absmax`, and for a weight that is no matrix or a threshold that is not positive.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None = None,
        threshold: float | None = THRESHOLD,
        per: str = "row",
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or per == "block":
            told = f"A weight of shape {tuple(weight.shape)}, quantized per {per}, cannot be multiplied in integers."
            raise QuantizeError(told, "Pass a matrix, quantized per row or per tensor.")
        if threshold is not None and not threshold > 0:
            raise QuantizeError(f"The threshold {threshold} takes every column.", "Give a positive one, or None.")
        stored = quantize_absmax(weight, per)
        self.out_features, self.in_features = weight.shape
        self.per, self.threshold = per, threshold
        self.codes: Tensor
        self.absmax: Tensor
        self.register_buffer("codes", stored.codes)
        self.register_buffer("absmax", stored.absmax)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().clone(), requires_grad=False)

    @classmethod
    def of(cls, layer: torch.nn.Linear, **options: Any) -> Linear8bit:
        """The same layer, its weight in 8 bits."""
        return cls(layer.weight, layer.bias, **options)

    @property
    def weight(self) -> Int8:
        """The quantized weight, on the module's device."""
        return Int8(self.codes, self.absmax, self.per, 0, torch.float32)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """x Wᵀ + bias, in x's dtype, or autocast's where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        # Autocast inside would run the exact float32 products in 16 bits.
        with torch.autocast(device, enabled=False):
            return _Int8Linear.apply(x, self.bias, self.weight, self.threshold)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bit:
        # `.half()` and `.to(dtype)` move the module but must leave its fp32 constants as they are.
        before = self.absmax
        super()._apply(fn, recurse)
        if self.absmax.dtype != before.dtype:
            self.absmax = before.to(self.absmax.device)
        return self

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        n, k = self.codes.shape
        return f"{k}, {n}, int8 per {self.per}, threshold {self.threshold}"
