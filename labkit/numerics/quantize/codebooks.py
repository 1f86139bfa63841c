"""Code books: the 16 or 256 numbers between -1 and 1 that a quantized value may be.

A code book says where the numbers lie; the block-wise quantizer (`blockwise`) scales every block by its largest
magnitude, so that the book's -1 … 1 is the block's own range.

- **NF4** (Dettmers et al. 2023, arXiv:2305.14314): weights are nearly normal, so the numbers are quantiles of the
  normal distribution: each is used about equally often. Two halves are made apart, seven negative numbers and eight
  positive ones, so that zero is exactly one of them; the two halves share their outermost quantile 1 - δ,
  δ = ½ (1/32 + 1/30), the mean of what 16 and 15 equally likely numbers would leave outside. The table in use since
  the paper took 1 - δ as 0.9677083 and the probabilities in fp32; so does `nf4`, and equals it bit for bit (exact
  quantiles differ by less than 2e-7).
- **FP4**: a sign, two exponent bits, one mantissa bit, counted downwards: exponent field E > 0 means
  2^(4-E) · (1 + M/2), divided by the largest, 12. Field 0 holds zero and 1/16, not the 1 that gradual underflow would
  put there (`numerics.spec` has the standard E2M1).
- **dynamic 8-bit** (Dettmers 2015, arXiv:1511.04561; Dettmers et al. 2022, arXiv:2110.02861): after the sign, the
  number of leading zeros is a decimal exponent, 10^0 … 10^-6; the first 1 ends it; the bits that are left cut 0.1 … 1
  of that decade into equal parts, whose midpoints are the numbers. Seven decades at full steps near 1: made for
  Adam's moments, which span many decades within one tensor. Without a sign (the second moment is never negative) the
  bit goes to the fraction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labkit.errors import LabError, UnknownNameError

NF4_INSIDE = round(1 - (1 / 32 + 1 / 30) / 2, 7)
DECADES = 7


class QuantizeError(LabError):
    """A tensor, a block size or a code that cannot be quantized or read back."""


@dataclass(frozen=True, eq=False)
class CodeBook:
    """The numbers of a quantized format.

    Attributes:
        name: such as "nf4".
        values: code k means values[k]; within [-1, 1].
        bits: a code's width.
    """

    name: str
    values: Float[Tensor, " codes"]
    bits: int
    _tables: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.values.shape != (2**self.bits,):
            cause = f"Code book {self.name!r} has {tuple(self.values.shape)} values for {self.bits} bits."
            raise QuantizeError(cause, "Give 16 values for 4 bits, or 256 for 8.")
        if not bool((self.values.abs() <= 1).all()):
            raise QuantizeError(f"Code book {self.name!r} leaves [-1, 1].", "Divide it by its largest magnitude.")

    def __str__(self) -> str:
        # A record of a run names its settings: two books of one name but other numbers must differ in it.
        numbers = self.values.detach().float().cpu().numpy().tobytes()
        return f"{self.name} ({hashlib.sha256(numbers).hexdigest()[:12]})"

    def tables(
        self, device: torch.device
    ) -> tuple[Float[Tensor, " codes"], Float[Tensor, " codes-1"], Int[Tensor, " codes"]]:
        """On `device`: the values, the thresholds between neighbours, and the codes in the order of their values."""
        if device not in self._tables:
            order = torch.argsort(self.values, stable=True)
            ascending = self.values[order]
            middle = (ascending[:-1] + ascending[1:]) / 2
            self._tables[device] = tuple(t.to(device) for t in (self.values, middle, order.to(torch.uint8)))
        return self._tables[device]


@cache
def nf4() -> CodeBook:
    """NF4: quantiles of the normal distribution in two halves around an exact zero."""
    normal = NormalDist()

    def half(count: int) -> list[float]:
        # Equal steps of probability from 1 - δ down to ½, which is zero itself and left out.
        return [normal.inv_cdf(p) for p in torch.linspace(NF4_INSIDE, 0.5, count + 1)[:-1].tolist()]

    numbers = torch.tensor(sorted([*half(8), 0.0, *(-x for x in half(7))]), dtype=torch.float32)
    return CodeBook("nf4", numbers / numbers.max(), 4)


@cache
def fp4() -> CodeBook:
    """FP4 as bitsandbytes has it: ±{0, 1/16, 2, 3, 4, 6, 8, 12} / 12, in the order of its bits."""
    numbers = [0.0, 2.0**-4]
    numbers += [2.0 ** (4 - exponent) * (1 + mantissa / 2) for exponent in (1, 2, 3) for mantissa in (0, 1)]
    positive = torch.tensor(numbers, dtype=torch.float32) / max(numbers)
    return CodeBook("fp4", torch.cat([positive, -positive]), 4)


@cache
def dynamic8(signed: bool = True) -> CodeBook:
    """The dynamic 8-bit book: seven decades, each with twice the steps of the one below; 0 and 1 beside them."""
    numbers = [0.0, 1.0]
    for decade in range(DECADES):
        steps = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1, steps + 1, dtype=torch.float32)
        middles = 10.0 ** (decade - DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)
        numbers += middles.tolist() + ((-middles).tolist() if signed else [])
    name = "dynamic8" if signed else "dynamic8-unsigned"
    return CodeBook(name, torch.tensor(sorted(numbers), dtype=torch.float32), 8)


@cache
def linear(bits: int = 4) -> CodeBook:
    """Equal steps, as absmax integers have them: -(2^(b-1) - 1) … 2^(b-1) - 1, and the lowest code twice."""
    top = 2 ** (bits - 1) - 1
    steps = torch.arange(-top - 1, top + 1, dtype=torch.float32) / top
    return CodeBook(f"int{bits}", steps.clamp(min=-1), bits)


CODE_BOOKS: dict[str, Callable[[], CodeBook]] = {
    "nf4": nf4,
    "fp4": fp4,
    "dynamic8": dynamic8,
    "dynamic8-unsigned": lambda: dynamic8(signed=False),
    "int4": linear,
    "int8": lambda: linear(8),
}


def codebook(name: str) -> CodeBook:
    """The code book called `name`.

    Raises:
        UnknownNameError: for a name that is none of `CODE_BOOKS`.
    """
    if name not in CODE_BOOKS:
        raise UnknownNameError.among("code book", name, CODE_BOOKS)
    return CODE_BOOKS[name]()
