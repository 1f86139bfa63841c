"""What LoRA costs and saves in arithmetic, by formula and counted on real operations.

A product of [m, k] and [k, n] takes 2 m k n operations. A linear layer of out × in with n tokens, y = W x:

    full            forward   2 n out·in                          y
                    backward  2 n out·in + 2 n out·in             ∂W, ∂x
    LoRA            forward   2 n out·in + 2 n r (out + in)       y, and A x, B h
                    backward  2 n out·in + 4 n r (out + in)       ∂x; ∂B, ∂h, ∂A and A's share of ∂x
    LoRA, W + B A   forward   2 n out·in + 2 r out·in             formed first
    formed          backward  4 n out·in + 4 r out·in             ∂(W + B A), ∂x; ∂B and ∂A from the first

(Hu et al. 2021, arXiv:2106.09685, section 4.2, report 25 % more speed for GPT-3.) So LoRA does one of three large
products less, a third of what a layer's training takes, and a little more for A and B. In the first trained layer
nobody needs ∂x: full fine-tuning then saves one product of three, and LoRA the only large one of its backward pass.

The seed lecture (000) says that LoRA does not save computations, writes h = (W + A B) x, and counts, for two layers
d → p → q and one token in multiplications,

    full, backward   2 (p d + q p) + 2 p d         LoRA, backward   3 (p r + q r) + 2 (p r + d r) + p q

Its own second line has one large product where its first has several: by its own formulas LoRA saves. What holds is
the sentence about W + B A formed, which no one has to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from labkit.adapters.lora import LoraLinear
from labkit.errors import LabError, UnknownNameError

WAYS = ("full", "lora", "lora formed")


@dataclass(frozen=True)
class Flops:
    """Operations of a forward and of a backward pass."""

    forward: int
    backward: int

    @property
    def step(self) -> int:
        """Both."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def linear_flops(way: str, tokens: int, inputs: int, outputs: int, rank: int = 0, first: bool = False) -> Flops:
    """Operations of one linear layer's training step, by formula.

    Args:
        way: one of `WAYS`.
        first: whether the layer's input needs no gradient, since nothing below it trains.

    Raises:
        UnknownNameError: for another way.
        LabError: for a size below 1.
    """
    if way not in WAYS:
        raise UnknownNameError.among("way", way, WAYS)
    if min(tokens, inputs, outputs) < 1 or (way != "full" and rank < 1):
        raise LabError("A layer needs sizes, and LoRA a rank, of at least 1.", "Give positive whole numbers.")
    whole, to_x = 2 * tokens * outputs * inputs, 0 if first else 2 * tokens * outputs * inputs
    if way == "full":
        return Flops(whole, whole + to_x)
    if way == "lora formed":
        product = 2 * rank * outputs * inputs
        return Flops(whole + product, whole + to_x + 2 * product)
    down, up = 2 * tokens * rank * inputs, 2 * tokens * rank * outputs
    return Flops(whole + down + up, to_x + 2 * up + down + (0 if first else down))


def formed(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    scaling: float,
) -> Float[Tensor, "*batch out"]:
    """(W + s B A) x with the sum formed first: the same values as LoRA's, and what not to do in training."""
    return F.linear(x, weight + scaling * (b @ a))


class FormedLinear(LoraLinear):
    """LoRA as one should not compute it: the sum of both matrices is formed in every forward pass."""

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The same values as LoraLinear's, without its dropout."""
        if not self.active or self.merged:
            return super().forward(x)
        y = formed(x, self.base.weight, *self.scaled(self.active))
        return y if self.base.bias is None else y + self.base.bias


def counted(forward: Callable[[], Tensor]) -> Flops:
    """Operations of `forward()` and of its result's backward pass, counted by torch on every product that runs.

    Args:
        forward: makes a tensor that depends on something that trains.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as before:
        result = forward()
    with FlopCounterMode(display=False) as after:
        result.backward(torch.ones_like(result))
    return Flops(before.get_total_flops(), after.get_total_flops())
