"""The description of a binary floating-point format, and the formats that deep learning uses.

A format with e exponent bits, m mantissa bits and bias b writes the sign bit s, the exponent field E
and the mantissa field M side by side. The bits mean

    E > 0:   (-1)^s · 2^(E - b)  · (1 + M / 2^m)      normal: a hidden 1 leads the mantissa
    E = 0:   (-1)^s · 2^(1 - b)  · (0 + M / 2^m)      subnormal, and zero at M = 0

and the policy `specials` says what the last codes are kept for:

    "ieee"    E all ones is infinity (M = 0) or NaN (M > 0)        IEEE 754-2019; fp8 E5M2
    "fn"      only E and M all ones is NaN, there is no infinity   fp8 E4M3 of Micikevicius et al. 2022,
                                                                   arXiv:2209.05433
    "finite"  every code is a number                               fp4 E2M1 of OCP Microscaling (MX) 1.0

The lecture (Stanford CS224N, lecture 12, 2024) shows fp32, fp16 and bf16. It gives fp16's range as
"2e-14 to 2e15", which reads as 2·10^-14 to 2·10^15; what is meant is 2^-14 (the smallest normal) to
2^15 (the largest power of two); the largest value is 65504, just under 2^16. It also says that bfloat16
has "no INF / NaNs": it has both, with fp32's exponent field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.errors import LabError, UnknownNameError

if TYPE_CHECKING:
    import torch

SPECIALS = ("ieee", "fn", "finite")
MAX_BITS = 32  # codes stay positive int64, and every value and every midpoint is an exact float64


class FormatError(LabError):
    """A bit width, a bias, a code or a rounding that the format does not have."""


@dataclass(frozen=True)
class Format:
    """One binary format: 1 sign bit, `exponent_bits`, `mantissa_bits`, `bias` and the `specials` policy.

    `bias` defaults to 2^(exponent_bits - 1) - 1. `storage_bits` is what one number takes in memory where
    that is more than its bits (tf32: 19 bits inside 32). Raises FormatError for widths that leave no
    number to represent or that exceed 10 exponent bits or 32 bits in all.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = None  # type: ignore[assignment]  # filled in below
    specials: str = "ieee"
    storage_bits: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        if self.specials not in SPECIALS:
            raise FormatError(
                f"Format {self.name!r} has the unknown special values policy {self.specials!r}.",
                f"Choose one of {', '.join(SPECIALS)}.",
            )
        least_e, least_m = {"ieee": (2, 1), "fn": (1, 1), "finite": (1, 0)}[self.specials]
        if not (least_e <= e <= 10 and least_m <= m and 1 + e + m <= MAX_BITS):
            raise FormatError(
                f"Format {self.name!r} asks for {e} exponent and {m} mantissa bits.",
                f"A {self.specials!r} format takes {least_e} to 10 exponent bits, at least {least_m} "
                f"mantissa bits, and at most {MAX_BITS} bits with the sign.",
            )
        bias = 2 ** (e - 1) - 1 if self.bias is None else self.bias
        object.__setattr__(self, "bias", bias)
        if 1 - bias - m < -1022 or 2**e - bias > 1023:
            raise FormatError(
                f"Format {self.name!r} with bias {bias} reaches beyond float64, which computes it here.",
                f"Choose a bias nearer to {2 ** (e - 1) - 1}.",
            )
        if self.storage_bits is None:
            object.__setattr__(self, "storage_bits", self.bits)

    @property
    def bits(self) -> int:
        """Bits of one code: sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def max_code(self) -> int:
        """Code of the largest finite value (sign bit clear)."""
        all_ones = 2 ** (self.bits - 1) - 1
        return all_ones - {"ieee": 2**self.mantissa_bits, "fn": 1, "finite": 0}[self.specials]

    @property
    def inf_code(self) -> int | None:
        """Code of +inf, or None in a format without infinity."""
        return self.max_code + 1 if self.specials == "ieee" else None

    @property
    def nan_code(self) -> int | None:
        """Code of the NaN that `encode` writes (quiet, as IEEE 754 names it), or None without NaN."""
        if self.specials == "finite":
            return None
        return self.max_code + 1 + (2 ** (self.mantissa_bits - 1) if self.specials == "ieee" else 0)

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite value: 15 in fp16, 127 in fp32."""
        return max(self.max_code >> self.mantissa_bits, 1) - self.bias

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value, and of all subnormals: -14 in fp16."""
        return 1 - self.bias

    @property
    def max(self) -> float:
        """Largest finite value."""
        exponent, mantissa = divmod(self.max_code, 2**self.mantissa_bits)
        hidden = 2**self.mantissa_bits if exponent else 0
        return float(hidden + mantissa) * 2.0 ** (self.max_exponent - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value with the hidden 1."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value at all."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger value, 2^-mantissa_bits."""
        return 2.0**-self.mantissa_bits

    @property
    def finite_values(self) -> int:
        """How many different finite numbers there are; +0 and -0 count as one."""
        return 2 * self.max_code + 1

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """torch's dtype with the same values, or None (torch has no tf32 or unpacked fp4 dtype)."""
        import torch

        known = self.name in _TORCH and FORMATS[self.name] == self
        return getattr(torch, _TORCH[self.name]) if known else None

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, text: str | Format | torch.dtype) -> Format:
        """The format called `text`: a name ("fp16", "bfloat16"), a torch dtype, or a pattern "e3m4".

        A pattern is e, exponent bits, m, mantissa bits, then optionally `b` and a bias, then optionally
        a policy: "e3m4" follows IEEE 754, "e4m3fn" keeps one NaN and no infinity, "e2m3finite" keeps
        neither. Raises UnknownNameError with the nearest known name.
        """
        if isinstance(text, Format):
            return text
        name = str(text).removeprefix("torch.").strip().lower().replace("-", "_")
        name = _ALIASES.get(name, name)
        if name in FORMATS:
            return FORMATS[name]
        pattern = re.fullmatch(r"e(\d+)m(\d+)(?:b(-?\d+))?(ieee|fn|finite)?", name)
        if pattern:
            exponent, mantissa, bias, policy = pattern.groups()
            chosen = int(bias) if bias else None
            return cls(name, int(exponent), int(mantissa), chosen, policy or "ieee")  # type: ignore[arg-type]
        raise UnknownNameError.among("number format", str(text), [*FORMATS, *_TORCH.values(), "e3m4"])


fp32 = Format("fp32", 8, 23)
tf32 = Format("tf32", 8, 10, storage_bits=32)
bf16 = Format("bf16", 8, 7)
fp16 = Format("fp16", 5, 10)
fp8_e5m2 = Format("fp8_e5m2", 5, 2)
fp8_e4m3 = Format("fp8_e4m3", 4, 3, specials="fn")
fp4_e2m1 = Format("fp4_e2m1", 2, 1, specials="finite")

FORMATS: dict[str, Format] = {f.name: f for f in (fp32, tf32, bf16, fp16, fp8_e5m2, fp8_e4m3, fp4_e2m1)}
_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"} | {
    "fp8_e5m2": "float8_e5m2",
    "fp8_e4m3": "float8_e4m3fn",
}
_ALIASES = {dtype: name for name, dtype in _TORCH.items()} | {
    "float": "fp32",
    "single": "fp32",
    "tensorfloat32": "tf32",
    "half": "fp16",
    "brain": "bf16",
    "e4m3fn": "fp8_e4m3",
    "fp8_e4m3fn": "fp8_e4m3",
    "e5m2": "fp8_e5m2",
    "fp4": "fp4_e2m1",
    "e2m1": "fp4_e2m1",
}
