"""DoRA: magnitude and direction of every output's weights train apart (Liu et al. 2024, arXiv:2402.09353).

A row w of W (the weights of one output) is its length times a unit vector. DoRA trains the length m of each row by
itself and the direction by LoRA:

    W' = m ⊙ (W + s B A) / ‖W + s B A‖          ‖·‖ of each row, m of [out], starting at ‖W‖

The paper's and the seed's ‖·‖_c is a norm of columns, since they store W as [in, out]. The seed's slide divides by
‖W + B A‖ twice, in both of its forms, so that every row would start with length 1; once is right. Backward takes the
norm for a constant (section 4.3 of the paper), so that it keeps no [out, in] tensor.

peft forms B A and W + s B A in every forward pass to take its norm. It needs neither: with a = A of [r, in],

    ‖w + s b A‖² = ‖w‖² + s (2 W Aᵀ + s B (A Aᵀ)) · b          b the row of B

is exact, costs r / n of the layer's own product for n tokens, and makes nothing larger than [out, r]; ‖w‖² is taken
once. A row of zeros has no direction: where the norm is 0 the scale is 1, so that the output is LoRA's, 0 at the
start, and not 0 / 0.

With dropout the adapter and the scale see x̃, and W x is there as well (the paper's own code, and peft's):

    y = W x + b + (m / ‖·‖ - 1) ⊙ W x̃ + (m / ‖·‖) ⊙ s B A x̃
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from labkit.adapters import dora_kernels as kernels
from labkit.adapters.dense import dense_weight
from labkit.adapters.lora import LoraLinear, LoraSpec, of
from labkit.adapters.product import add_product, cast, draw, like, lora_added, masked, scaled_product
from labkit.adapters.tuning import Lora


def scales_of(m: Float[Tensor, " out"], squared: Float[Tensor, " out"]) -> tuple[Tensor, Tensor]:
    """m / ‖·‖ and 1 / ‖·‖ from ‖·‖²; 1 and 0 where that is 0 (or below, by rounding)."""
    none = squared <= 0
    inverse = squared.rsqrt().masked_fill_(none, 0.0)
    return (m * inverse).masked_fill_(none, 1.0), inverse


def differentiable_scale(m: Float[Tensor, " out"], squared: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
    """The same to autograd, which would find 0 · ∞ as m's gradient in a row of zeros."""
    return torch.where(squared > 0, m * torch.where(squared > 0, squared, 1.0).rsqrt(), 1.0)


class _DoraProduct(torch.autograd.Function):
    """y from x: kept are x, h = s A x̃, the output before the scale, and the mask of dropout."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, a, b, m, scale, inverse, scaling: float, p: float) -> Tensor:
        dtype, flat = x.dtype, x.reshape(-1, x.shape[-1])
        narrow, bias = like(weight, dtype), None if bias is None else like(bias, dtype)
        seen, mask = draw(flat, p)
        u = F.linear(seen, narrow)
        y = torch.empty_like(u) if mask is None else F.linear(flat, narrow, bias).sub_(u)
        h = scaled_product(seen, like(a, dtype).t(), scaling)
        add_product(u, h, like(b, dtype).t())
        # The scale stays fp32: in bf16 it would move by 0.4 %.
        if mask is not None:
            y.addcmul_(u, scale)
        elif bias is not None:
            torch.addcmul(bias, u, scale, out=y)
        else:
            torch.mul(u, scale, out=y)
        ctx.save_for_backward(flat, weight, a, b, scale, inverse, h, u, mask)
        ctx.scaling, ctx.p, ctx.shape = scaling, p, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scale, inverse, h, u, mask = ctx.saved_tensors
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        g, to_scale = _through_scale(flat, u, scale)
        to_h = scaled_product(g, like(b, g.dtype), ctx.scaling)
        seen, due = masked(x, mask, ctx.p)
        to_a, to_b, to_x = scaled_product(to_h.t(), seen, due), g.t() @ h, None
        if ctx.needs_input_grad[0]:
            narrow = like(weight, g.dtype)
            if mask is None:
                to_x = add_product(g @ narrow, to_h, like(a, g.dtype))
            else:
                path = add_product(g.sub_(flat) @ narrow, to_h, like(a, g.dtype)).mul_(due)
                to_x = (flat @ narrow).addcmul_(path, mask)
            to_x = to_x.view(ctx.shape)
        return to_x, None, None, to_a, to_b, to_scale.mul_(inverse), None, None, None, None


def _through_scale(g: Tensor, u: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """g ⊙ scale, and the sum of g ⊙ u over tokens in fp32."""
    if kernels.usable(g):
        return kernels.through_scale(g, u, scale)
    return torch.mul(g, scale, out=torch.empty_like(g)), (g * u).sum(0, dtype=torch.float32)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Outside autocast: entering its context costs as much as an operation, and is left out where that is off."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class DoraLinear(LoraLinear):
    """A linear layer whose rows' lengths train by themselves, and their directions by LoRA.

    Attributes:
        lora_magnitude_vector: m of [out], by adapter (peft's name for it).
    """

    squares: Tensor

    def __init__(self, base: Any):
        super().__init__(base)
        self.lora_magnitude_vector = nn.ParameterDict()
        self.register_buffer("squares", self._squares(), persistent=False)

    def add(self, name: str, spec: LoraSpec, dtype: torch.dtype = torch.float32) -> None:
        """A new adapter; m starts at the rows' lengths, in fp32 whatever the dtype of A and B."""
        super().add(name, spec, dtype)
        self.lora_magnitude_vector[name] = nn.Parameter(self.squares.sqrt())

    @torch.no_grad()
    def _squares(self) -> Float[Tensor, " out"]:
        """‖w‖² of each row, in fp32: in 16 bits it would be off by more than an update."""
        return dense_weight(self.base).square().sum(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DoraLinear:
        # `.to(dtype)` rounds the weight, so that its rows have other lengths, and would round those too.
        before = self.squares
        super()._apply(fn, recurse)
        if self.squares.dtype != before.dtype:
            self.squares = before.to(self.squares.device) if self.merged else self._squares()
        return self

    @torch.no_grad()
    def squared_norm(self, name: str) -> Float[Tensor, " out"]:
        """‖W + s B A‖² of each row, in fp32, without W + s B A; a constant to autograd.

        Only what A and B add is computed in the weight's dtype: its rounding is small against ‖w‖², which is exact.
        """
        a, b, scaling = self.scaled(name)
        weight = self.base.weight if type(self.base) is nn.Linear else dense_weight(self.base)
        a, b = a.detach().to(weight.dtype), b.detach().to(weight.dtype)
        cross = torch.addmm(weight @ a.t(), b, a @ a.t(), beta=2, alpha=scaling)
        return torch.add(self.squares, (cross * b).sum(1, dtype=torch.float32), alpha=scaling)

    @torch.no_grad()
    def scales(self, name: str) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
        """m / ‖W + s B A‖ and 1 / ‖W + s B A‖ of each row, in fp32; constants to autograd."""
        m, weight = of(self.lora_magnitude_vector, name), self.base.weight
        if not kernels.usable(weight):
            return scales_of(m, self.squared_norm(name))
        a, b, scaling = self.scaled(name)
        a, b = like(a, weight.dtype), like(b, weight.dtype)
        return kernels.row_scales(weight @ a.t(), a @ a.t(), b, self.squares, m, scaling)

    def norm(self, name: str) -> Float[Tensor, " out"]:
        """‖W + s B A‖ of each row, in fp32."""
        return self.squared_norm(name).clamp_(min=0).sqrt_()

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The base's output with the active adapter's direction and lengths, if it is not merged."""
        name = self.active
        if not name or self.merged:
            return self.base(x)
        a, b, scaling = self.scaled(name)
        m, base = of(self.lora_magnitude_vector, name), self.base
        dropout = self.specs[name].dropout if self.training else 0.0
        if type(base) is not nn.Linear:
            with _without_autocast(x):
                scale = differentiable_scale(m, self.squared_norm(name))
            return self._on_other(x, a, b, scale, scaling, dropout)
        with _without_autocast(x):
            scale, inverse = self.scales(name)
        given = base.weight, base.bias, a, b, m, scale, inverse, scaling, dropout
        return _DoraProduct.apply(cast(x), *given)

    def _on_other(self, x: Tensor, a: Tensor, b: Tensor, scale: Tensor, scaling: float, dropout: float) -> Tensor:
        """The same over a base that keeps its weight in few bits: its own product, and autograd for the rest."""
        bias = self.base.bias
        seen = F.dropout(x, dropout) if dropout else x
        plain = self.base(seen) if bias is None else self.base(seen) - bias
        scaled = (lora_added(plain, seen, a, b, scaling) * scale).to(plain.dtype)
        if dropout:
            return self.base(x) - plain + scaled
        return scaled if bias is None else scaled + bias.to(scaled.dtype)

    def _scale(self, name: str) -> Float[Tensor, "out 1"]:
        return scales_of(self.lora_magnitude_vector[name].detach(), self.squared_norm(name))[0][:, None]

    @torch.no_grad()
    def merged_weight(self, name: str) -> Float[Tensor, "out in"]:
        """m ⊙ (W + s B A) / ‖W + s B A‖ in fp32."""
        return self._scale(name) * super().merged_weight(name)

    @torch.no_grad()
    def merge(self) -> None:
        """Put direction and lengths of the active adapter into the base's weight."""
        if self.active and not self.merged:
            self._merged_scale = self._scale(self.active)  # once merged, the norm cannot be taken any more
        super().merge()

    @torch.no_grad()
    def unmerged_weight(self) -> Float[Tensor, "out in"]:
        """W in fp32, from the merged weight; a row whose length has become 0 was a row of zeros."""
        directed = dense_weight(self.base) / self._merged_scale
        return torch.where(self._merged_scale != 0, directed - self.update(self.merged), 0.0)


@dataclass
class Dora(Lora):
    """DoRA beside the targets: r (out + in) + out values train in each.

    Half the rank of LoRA costs about half its values, and the paper finds that it still does better.
    """

    name: str = "dora"

    kind = DoraLinear
