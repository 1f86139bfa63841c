"""Fast rounding of fp32 tensors to fp16, bf16 and tf32, on the device where they are, to nearest or with dice.

`labkit.numerics.formats` rounds to any format exactly, in float64 on the host. A training step needs the same for
millions of numbers, so this file does it in 32 bits: torch's casts for fp16 and bf16, integer arithmetic on the bits
for tf32 (add half of the last kept place, less one where the kept part is even, then cut). The tests show that both
agree on every 16-bit code and on every midpoint between two codes.

Stochastic rounding goes up with a probability equal to the fraction that is cut off (Gupta et al. 2015,
arXiv:1502.02551), so that its expectation is the number itself. The lecture (Stanford CS224N, lecture 12, 2024) does
not mention it; it is one way to keep 16-bit weights without a copy in 32 bits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.numerics.spec import FORMATS, Format

FAST = ("fp32", "tf32", "bf16", "fp16")


def _known(fmt: Format | str | torch.dtype) -> Format:
    found = Format.parse(fmt)  # type: ignore[arg-type]
    if found.name not in FAST or found != FORMATS[found.name]:
        raise UnknownNameError.among("format with a fast rounding", found.name, FAST)
    return found


def round_nearest(x: Float[Tensor, "*shape"], fmt: Format | str | torch.dtype) -> Float[Tensor, "*shape"]:
    """fp32 `x` on the numbers of `fmt` (fp32, tf32, bf16 or fp16), ties to even, as fp32 on the same device.

    Beyond the largest value it gives infinity. Raises UnknownNameError for another format.
    """
    found = _known(fmt)
    x = x.float()
    if found.name == "fp32":
        return x
    return _tf32(x) if found.torch_dtype is None else x.to(found.torch_dtype).float()


def _tf32(x: Tensor) -> Tensor:
    """Keep 10 of the 23 mantissa bits; infinity and NaN have nothing to round."""
    bits = x.contiguous().view(torch.int32)
    even = (bits >> 13) & 1
    rounded = ((bits + (0x0FFF + even)) & ~0x1FFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def round_stochastic(
    x: Float[Tensor, "*shape"], fmt: Format | str | torch.dtype, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """fp32 `x` moved to one of its two neighbours in `fmt`, at random and right on average, as fp32.

    What `fmt` holds exactly never moves; infinity and NaN stay; a finite value beyond the largest one becomes infinity.

    Args:
        x: any shape; `generator` must live on its device and is advanced by one draw a value.
        fmt: fp32, tf32, bf16 or fp16.
    """
    found = _known(fmt)
    x = x.float()
    if found.name == "fp32":
        return x
    # The gap at x is 2^(exponent - m), and the smallest subnormal below the normal numbers.
    exponent = (torch.frexp(x).exponent - 1).clamp(min=found.min_exponent)
    quanta = _shifted(x, found.mantissa_bits - exponent)
    down = quanta.floor()
    draws = torch.rand(x.shape, generator=generator, device=x.device)
    # Comparing with the fraction instead of adding noise: an addition would round in its turn (lesson 01).
    moved = _shifted(down + (draws < quanta - down), exponent - found.mantissa_bits)
    moved = torch.where(moved.abs() > found.max, torch.inf, moved)
    return torch.where(x.isfinite(), torch.copysign(moved, x), x)


def _shifted(x: Tensor, places: Tensor) -> Tensor:
    """x · 2^places, exact wherever the result is a number of fp32; |places| up to 250.

    Two factors, since 2^133 is none and 2^-133 is subnormal, which some devices flush to zero. They are made of bits,
    since torch.ldexp asks pow, which a GPU may round.
    """
    half = places >> 1
    first, second = (((k + 127) << 23).view(torch.float32) for k in (half, places - half))
    return x * first * second
