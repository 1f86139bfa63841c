"""Encode, decode and round arrays in any binary floating-point format, exactly.

`encode` computes in float64. Every fp32, tf32, fp16, bf16, fp8 and fp4 value is a float64, so reading the
input loses nothing. Multiplying by a power of two loses nothing either. One operation rounds: the one
that makes an integer number of quanta. So no value is rounded twice ("double rounding", which may give a
wrong neighbour when a first rounding lands on a midpoint, cannot happen). A decimal such as 0.1 typed in
Python is the float64 nearest to 0.1: that one step came before us.

With q = 2^(exponent of x - m) the gap between neighbours at x (Goldberg 1991: the ulp), |x|/q lies in
[2^m, 2^(m+1)) for normals and in [0, 2^m) for subnormals, and the code of n quanta is (E - 1)·2^m + n in
both cases: rounding up past 2^(m+1) carries into the exponent by itself.

Rounding: "nearest" breaks ties to the even code (IEEE 754-2019, 4.3.1), "toward_zero" cuts,
"stochastic" goes up with a probability equal to the fraction that is cut, so that its expectation is x
(Gupta et al. 2015, arXiv:1502.02551).

Overflow: a value that rounds beyond the largest finite one becomes inf in an "ieee" format, NaN in an
"fn" format (which has no infinity) and the largest value in a "finite" one; with saturate=True always
the largest value. torch casts to float8_e5m2 with inf; to float8_e4m3fn with NaN up to torch 2.11 and
saturated from torch 2.12 on (pytorch/pytorch pull request 178817).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.numerics.spec import (
    FORMATS,
    Format,
    FormatError,
    bf16,
    fp4_e2m1,
    fp8_e4m3,
    fp8_e5m2,
    fp16,
    fp32,
    tf32,
)

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor | float

__all__ = [
    "FORMATS", "Fields", "Format", "FormatError", "bf16", "decode", "describe", "encode", "fields",
    "fp4_e2m1", "fp8_e4m3", "fp8_e5m2", "fp16", "fp32", "round_to", "spacing", "tf32", "values",
]  # fmt: skip

ROUNDING = ("nearest", "toward_zero", "stochastic")


def encode(x: Array, fmt: Format | str, rounding: str = "nearest", saturate: bool = False, seed: Any = None) -> Array:
    """Codes of `x` in `fmt`: int64, same shape; a torch tensor gives a torch tensor on its device.

    `seed` (an int or a numpy Generator) drives "stochastic" and is required by it, so that a run can be
    repeated. -0.0 keeps its sign, NaN becomes the format's NaN with its sign, payloads are dropped.
    Raises FormatError for an unknown rounding, a missing seed, NaN in a format without NaN, and integers
    that float64 cannot hold.
    """
    fmt = Format.parse(fmt)
    value = _float64(x)
    magnitude = np.abs(value)
    finite = np.isfinite(value)
    exponent = np.frexp(np.where(finite, magnitude, 1.0))[1] - 1
    # zero has no exponent, and below the smallest normal the exponent stops: gradual underflow
    exponent = np.maximum(np.where(magnitude == 0, fmt.min_exponent, exponent), fmt.min_exponent)
    quanta = np.ldexp(np.where(finite, magnitude, 0.0), fmt.mantissa_bits - exponent)
    field = np.minimum(exponent + fmt.bias - 1, 2**fmt.exponent_bits).astype(np.int64)
    code = (field << fmt.mantissa_bits) + _to_integer(quanta, rounding, seed)
    code = _overflow(code, fmt, rounding, saturate)
    code = np.where(np.isinf(value), _infinity(fmt, saturate), code)
    code = np.where(np.isnan(value), _nan(fmt, value), code)
    code += np.signbit(value).astype(np.int64) << (fmt.bits - 1)
    return _like(code, x)


def decode(codes: Array, fmt: Format | str, dtype: Any = np.float64) -> Array:
    """Values of integer `codes` in `fmt`, as float64 (exact for every format) or another numpy dtype.

    Codes run from 0 to 2^bits - 1. Raises FormatError for codes outside, or not integers.
    """
    fmt = Format.parse(fmt)
    code = _codes(codes, fmt)
    sign, exponent, mantissa = _split(code, fmt)
    hidden = np.where(exponent > 0, 2**fmt.mantissa_bits, 0)
    scale = np.maximum(exponent, 1) - fmt.bias - fmt.mantissa_bits
    value = np.ldexp((hidden + mantissa).astype(np.float64), scale)
    positive = code & (2 ** (fmt.bits - 1) - 1)
    value = np.where(positive > fmt.max_code, np.nan, value)
    if fmt.inf_code is not None:
        value = np.where(positive == fmt.inf_code, np.inf, value)
    # NaN has a sign bit too; copysign keeps it, and keeps -0.0
    return _like(np.copysign(value, np.where(sign == 1, -1.0, 1.0)).astype(dtype), codes)


def round_to(x: Array, fmt: Format | str, rounding: str = "nearest", saturate: bool = False, seed: Any = None) -> Array:
    """`x` as `fmt` would store it: same shape and kind, float64 for float64 input, else float32.

    A format finer than fp32 (more than 8 exponent or 23 mantissa bits) gives float64 always.
    """
    fmt = Format.parse(fmt)
    wide = fmt.exponent_bits > 8 or fmt.mantissa_bits > 23 or str(getattr(x, "dtype", "float64"))[-2:] == "64"
    return decode(encode(x, fmt, rounding, saturate, seed), fmt, np.float64 if wide else np.float32)


def spacing(x: Array, fmt: Format | str) -> Array:
    """The gap (ulp) between the neighbours of `fmt` at magnitude |x|, float64; NaN beyond the range.

    2^(exponent of x - mantissa_bits) for normals, the smallest subnormal below them.
    """
    fmt = Format.parse(fmt)
    magnitude = np.abs(_float64(x))
    inside = magnitude <= fmt.max
    exponent = np.frexp(np.where(inside, magnitude, 1.0))[1] - 1
    exponent = np.maximum(np.where(magnitude == 0, fmt.min_exponent, exponent), fmt.min_exponent)
    gap = np.ldexp(1.0, exponent - fmt.mantissa_bits)
    return _like(np.where(inside, gap, np.nan), x)


def values(fmt: Format | str) -> np.ndarray:
    """Every finite value of a format of at most 16 bits, ascending, zero once: float64 [finite_values]."""
    fmt = Format.parse(fmt)
    if fmt.bits > 16:
        raise FormatError(
            f"{fmt} has {fmt.finite_values:,} finite values, too many to list.",
            "List a format of 16 bits or fewer.",
        )
    positive = np.asarray(decode(np.arange(fmt.max_code + 1), fmt))
    return np.concatenate([-positive[:0:-1], positive])


@dataclass(frozen=True)
class Fields:
    """One code taken apart: the three bit fields, what kind of number it is, and its value."""

    fmt: Format
    code: int
    sign: int
    exponent: int
    mantissa: int
    kind: str  # "normal", "subnormal", "zero", "infinity" or "NaN"
    value: float

    @property
    def bits(self) -> str:
        """The code as "s eeeee mmmmmmmmmm"."""
        text = f"{self.code:0{self.fmt.bits}b}"
        cut = 1 + self.fmt.exponent_bits
        return " ".join(part for part in (text[0], text[1:cut], text[cut:]) if part)


def fields(code: int, fmt: Format | str) -> Fields:
    """Take one code apart. Raises FormatError for a code that the format does not have."""
    fmt = Format.parse(fmt)
    sign, exponent, mantissa = (int(part) for part in _split(_codes(code, fmt), fmt))
    value = float(decode(code, fmt))
    if np.isnan(value):
        kind = "NaN"
    elif np.isinf(value):
        kind = "infinity"
    else:
        kind = "normal" if exponent else "subnormal" if mantissa else "zero"
    return Fields(fmt, int(code), sign, exponent, mantissa, kind, value)


def describe(code: int, fmt: Format | str) -> str:
    """The formula that turns one code into its value, with its numbers filled in."""
    f = fields(code, fmt)
    sign = "-" if f.sign else "+"
    if f.kind in ("infinity", "NaN"):
        return f"{f.bits} = {sign}{f.kind}"
    size = 2**f.fmt.mantissa_bits
    lead, power = (1, f"{f.exponent} - {f.fmt.bias}") if f.exponent else (0, f"1 - {f.fmt.bias}")
    return f"{f.bits} = {sign}2^({power}) · ({lead} + {f.mantissa}/{size}) = {f.value!r} ({f.kind})"


def _to_integer(quanta: np.ndarray, rounding: str, seed: Any) -> np.ndarray:
    if rounding == "nearest":
        return np.rint(quanta).astype(np.int64)
    down = np.floor(quanta)
    if rounding == "toward_zero":
        return down.astype(np.int64)
    if rounding != "stochastic":
        raise FormatError(f"Unknown rounding {rounding!r}.", f"Choose one of {', '.join(ROUNDING)}.")
    if seed is None:
        raise FormatError("Stochastic rounding needs a seed.", "Pass seed=0 or a numpy Generator.")
    # compare with the fraction instead of adding noise: quanta + u could round up to the next integer
    # in float64 and move a value that is already exact
    return (down + (np.random.default_rng(seed).random(quanta.shape) < quanta - down)).astype(np.int64)


def _overflow(code: np.ndarray, fmt: Format, rounding: str, saturate: bool) -> np.ndarray:
    """IEEE 754, 7.4: nearest overflows to infinity, toward zero to the largest finite value."""
    beyond = fmt.max_code if rounding == "toward_zero" else _infinity(fmt, saturate)
    return np.where(code > fmt.max_code, beyond, code)


def _infinity(fmt: Format, saturate: bool) -> int:
    if saturate or fmt.specials == "finite":
        return fmt.max_code
    return fmt.inf_code if fmt.inf_code is not None else fmt.max_code + 1


def _nan(fmt: Format, value: np.ndarray) -> int:
    if fmt.nan_code is None and np.isnan(value).any():
        raise FormatError(f"{fmt} has no code for NaN.", "Remove the NaNs, or choose a format with NaN.")
    return fmt.nan_code or 0


def _split(code: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    exponent = (code >> fmt.mantissa_bits) & (2**fmt.exponent_bits - 1)
    return code >> (fmt.bits - 1), exponent, code & (2**fmt.mantissa_bits - 1)


def _codes(codes: Array, fmt: Format) -> np.ndarray:
    array = np.asarray(codes.detach().cpu().numpy() if hasattr(codes, "detach") else codes)
    if array.dtype.kind not in "iu":
        raise FormatError(f"Codes are integers, not {array.dtype}.", "Turn numbers into codes with encode().")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**fmt.bits):
        bad = int(array.min()) if int(array.min()) < 0 else int(array.max())
        last = 2**fmt.bits - 1
        raise FormatError(f"Code {bad} does not fit the {fmt.bits} bits of {fmt}.", f"Codes run from 0 to {last}.")
    return array.astype(np.int64)


def _float64(x: Array) -> np.ndarray:
    array = np.asarray(x.detach().cpu().double().numpy() if hasattr(x, "detach") else x)
    if array.dtype.kind in "iu" and array.size and max(-int(array.min()), int(array.max())) > 2**53:
        raise FormatError("An integer beyond 2^53 is not exact in float64.", "Convert it to floats first.")
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise FormatError(f"Cannot encode numbers of type {array.dtype}.", "Pass real numbers up to float64.")
    with np.errstate(invalid="ignore"):  # a signalling NaN warns here; it stays a NaN
        return array.astype(np.float64)


def _like(result: np.ndarray, x: Array) -> Array:
    """`result` as a torch tensor on x's device where x is one, as a numpy array (or scalar) otherwise."""
    if not hasattr(x, "detach"):
        return result[()]
    import torch

    tensor = torch.from_numpy(np.array(result))
    on_mps = x.device.type == "mps" and tensor.dtype == torch.float64  # type: ignore[union-attr]
    return tensor if on_mps else tensor.to(x.device)  # type: ignore[union-attr]  # MPS has no float64
