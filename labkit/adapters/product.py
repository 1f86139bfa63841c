"""y = W x + b + s B A x as one operation, and what its backward pass has to keep.

With x of n tokens, W of [out, in] frozen, A of [r, in] and B of [out, r]:

    forward    h = A x            y = W x + b + s B h
    backward   ∂B = s ∂y hᵀ       ∂h = Bᵀ ∂y
               ∂A = s ∂h xᵀ       ∂x = Wᵀ ∂y + s Aᵀ ∂h

So x and h are kept, r values a token more than nothing; neither B A, of [out, in], nor the adapter's own output, of
[n, out], is ever there, and W has no gradient: of a linear layer's three products two remain (Hu et al. 2021,
arXiv:2106.09685, section 4.2). Sums go into the product before them (BLAS's beta = 1), so that a step launches fewer
kernels than the same formulas in single operations. The seed lecture writes ∂A with the order of factors for A B
instead of B A, and counts W + A B as formed; forming it would bring the third product back (`labkit.adapters.cost`).

With dropout (Srivastava et al. 2014) on the adapter's input alone, x̃ = mask x / (1 - p) stands in h and ∂A. One byte a
value is kept for the mask; x̃ is made again. Autograd on single operations keeps x̃ as well.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def dropped(x: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """x where the mask is set, scaled by 1 / (1 - p); x itself without a mask."""
    return x if mask is None else (x * mask).mul_(1 / (1 - p))


def draw(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """x after dropout, and the mask; torch's own operation, so that a seed gives torch's mask."""
    if not p:
        return x, None
    return torch.native_dropout(x, p, True)


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, p: float
    ) -> Tensor:
        dtype = x.dtype
        y = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
        seen, mask = draw(x, p)
        h = F.linear(seen, a.to(dtype))
        add_product(y.view(-1, y.shape[-1]), h.view(-1, h.shape[-1]), b.to(dtype).t(), scaling)
        ctx.save_for_backward(x, weight, a, b, h, mask)
        ctx.scaling, ctx.p = scaling, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h, mask = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        narrow = a.to(g.dtype)
        to_h = g @ b.to(g.dtype)
        to_a = to_b = to_x = None
        if ctx.needs_input_grad[3]:
            to_a = scaled_product(to_h.t(), dropped(x, mask, ctx.p).reshape(-1, x.shape[-1]), ctx.scaling, a.dtype)
        if ctx.needs_input_grad[4]:
            to_b = scaled_product(g.t(), h.reshape(-1, h.shape[-1]), ctx.scaling, b.dtype)
        if ctx.needs_input_grad[0]:
            to_x = g @ weight.to(g.dtype)
            if mask is None:
                add_product(to_x, to_h, narrow, ctx.scaling)
            else:
                path = scaled_product(to_h, narrow, ctx.scaling / (1 - ctx.p), g.dtype)
                to_x.addcmul_(path, mask.view_as(path))
            to_x = to_x.view(x.shape)
        return to_x, None, None, to_a, to_b, None, None


class _LoraAdded(torch.autograd.Function):
    """y + s B A x, where y comes from a layer of another kind (in 4 bits, say)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, p: float) -> Tensor:
        seen, mask = draw(x, p)
        h = F.linear(seen, a.to(x.dtype))
        # Not in y's place: it may be a view, and belongs to who made it.
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.view(-1, h.shape[-1]), b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, a, b, h, mask)
        ctx.scaling, ctx.p = scaling, p
        return flat.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, h, mask = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_h = g @ b.to(g.dtype)
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = dropped(scaled_product(to_h, a.to(g.dtype), ctx.scaling, g.dtype).view(x.shape), mask, ctx.p)
        seen = dropped(x, mask, ctx.p).reshape(-1, x.shape[-1])
        to_a = scaled_product(to_h.t(), seen, ctx.scaling, a.dtype)
        to_b = scaled_product(g.t(), h.reshape(-1, h.shape[-1]), ctx.scaling, b.dtype)
        return gradients[0], to_x, to_a, to_b, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """total + scale · left @ right in total's place: one kernel, and one that torch's counter of operations knows."""
    return torch.addmm(total, left, right, alpha=scale, out=total)


def scaled_product(left: Tensor, right: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """left @ right, scaled before the result is rounded, in `dtype`: one kernel where dtypes are equal."""
    unused = left.new_empty(())  # beta = 0: it is not read
    return torch.addmm(unused, left, right, beta=0, alpha=scale).to(dtype)


def lora_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch out"]:
    """W x + b + s B A x, in x's dtype, or in autocast's where it is on; gradients to x, A and B only.

    Args:
        weight, bias: frozen, in any dtype; a copy in x's dtype lives only during a product.
        a, b: in any dtype, which their gradients have too.
        dropout: probability with which a value of the adapter's input is set to zero.
    """
    return _LoraProduct.apply(cast(x), weight, bias, a, b, scaling, dropout)


def lora_added(
    y: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch out"]:
    """y + s B A x, in y's dtype; gradients to y, x, A and B."""
    return _LoraAdded.apply(y, x.to(y.dtype), a, b, scaling, dropout)


def cast(x: Tensor) -> Tensor:
    """x in autocast's dtype where that is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
