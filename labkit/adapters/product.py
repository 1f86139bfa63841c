"""y = W x + b + s B A x as one operation, and what its backward pass has to keep.

With x of n tokens, W of [out, in] frozen, A of [r, in] and B of [out, r]:

    forward    h = s A x          y = W x + b + B h
    backward   ∂B = ∂y hᵀ         ∂h = s Bᵀ ∂y
               ∂A = ∂h xᵀ         ∂x = Wᵀ ∂y + Aᵀ ∂h

∂h stands for the gradient of A x. So x and h are kept, r values a token more than nothing; neither B A, of [out, in],
nor the adapter's own output, of [n, out], is ever there, and W has no gradient: of a linear layer's three products two
remain (Hu et al. 2021, arXiv:2106.09685, section 4.2). Sums and s go into the products (BLAS's beta = 1, and alpha), so
that a step launches fewer kernels than the same formulas in single operations. The seed lecture writes ∂A with the
order of factors for A B instead of B A, and counts W + A B as formed; forming it would bring the third product back
(`labkit.adapters.cost`).

With dropout (Srivastava et al. 2014) on the adapter's input alone, x̃ = mask x / (1 - p) stands in h and ∂A. One byte a
value is kept for the mask; x̃ is made again. Autograd on single operations keeps x̃ as well.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in this dtype; `to` takes some twenty times as long where there is nothing to do, and a step asks thousands."""
    return t if t.dtype is dtype else t.to(dtype)


def masked(x: Tensor, mask: Tensor | None, p: float) -> tuple[Tensor, float]:
    """x where the mask is set, and the factor 1 / (1 - p) that is still due; x itself without a mask."""
    return (x, 1.0) if mask is None else (x * mask, 1.0 / (1.0 - p))


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
        dtype, flat = x.dtype, x.reshape(-1, x.shape[-1])
        y = F.linear(flat, like(weight, dtype), None if bias is None else like(bias, dtype))
        seen, mask = draw(flat, p)
        h = scaled_product(seen, like(a, dtype).t(), scaling)
        add_product(y, h, like(b, dtype).t())
        ctx.save_for_backward(flat, weight, a, b, h, mask)
        ctx.scaling, ctx.p, ctx.shape = scaling, p, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h, mask = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_h = scaled_product(g, like(b, g.dtype), ctx.scaling)
        to_a = to_b = to_x = None
        if ctx.needs_input_grad[3]:
            seen, due = masked(x, mask, ctx.p)
            to_a = scaled_product(to_h.t(), seen, due)
        if ctx.needs_input_grad[4]:
            to_b = g.t() @ h
        if ctx.needs_input_grad[0]:
            to_x = g @ like(weight, g.dtype)
            if mask is None:
                add_product(to_x, to_h, like(a, g.dtype))
            else:
                to_x.addcmul_(scaled_product(to_h, like(a, g.dtype), 1.0 / (1.0 - ctx.p)), mask)
            to_x = to_x.view(ctx.shape)
        return to_x, None, None, to_a, to_b, None, None


class _LoraAdded(torch.autograd.Function):
    """y + s B A x, where y comes from a layer of another kind (in 4 bits, say)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, p: float) -> Tensor:
        dtype, flat = x.dtype, x.reshape(-1, x.shape[-1])
        seen, mask = draw(flat, p)
        h = scaled_product(seen, like(a, dtype).t(), scaling)
        ctx.save_for_backward(flat, a, b, h, mask)
        ctx.scaling, ctx.p, ctx.shape = scaling, p, x.shape
        # Not in y's place: it may be a view, and belongs to who made it.
        return torch.addmm(y.reshape(-1, y.shape[-1]), h, like(b, dtype).t()).view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, h, mask = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_h = scaled_product(g, like(b, g.dtype), ctx.scaling)
        seen, due = masked(x, mask, ctx.p)
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = masked(scaled_product(to_h, like(a, g.dtype), due), mask, ctx.p)[0].view(ctx.shape)
        return gradients[0], to_x, scaled_product(to_h.t(), seen, due), g.t() @ h, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right in total's place: one kernel, and one that torch's counter of operations knows."""
    return torch.addmm(total, left, right, out=total)


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """left @ right, scaled before the result is rounded: one kernel."""
    return torch.addmm(_unread(left.device, left.dtype), left, right, beta=0, alpha=scale)


@cache
def _unread(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What addmm is given to add with beta = 0, and does not read; kept, since making it anew costs a call."""
    return torch.zeros((), device=device, dtype=dtype)


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
