"""A linear layer whose frozen weight is held in 4 bits, with the gradient to its input (Dettmers et al. 2023,
arXiv:2305.14314).

Forward: y = x Ŵᵀ + b with Ŵ the weight read back in the dtype of the computation, for the time of the product only.
Backward: ∂L/∂x = ∂L/∂y · Ŵ, so Ŵ is read back a second time: autograd keeps the codes, never Ŵ. The weight itself has
no gradient; adapters beside it train (lesson 12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from labkit.numerics.quantize.blockwise import Quantized, quantize_blockwise
from labkit.numerics.quantize.codebooks import CodeBook


class _Product(torch.autograd.Function):
    """x Ŵᵀ + b; only the codes are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Quantized) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [gradient] = gradients
        to_x = gradient @ ctx.weight.dequantize(gradient.dtype) if ctx.needs_input_grad[0] else None
        to_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None


class Linear4bit(torch.nn.Module):
    """y = x Ŵᵀ + b with a frozen weight in 4 bits.

    Args:
        weight: [out, in], fp16, bf16 or fp32, every value finite.
        bias: [out] or None; kept as it is.
        book: "nf4", "fp4" or another 4-bit code book.
        block_size: values that share a scale.
        double: quantize the scales too.

    Raises:
        QuantizeError: for a weight that cannot be quantized.
    """

    codes: Tensor
    scales: Tensor
    scale_codes: Tensor
    offset: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None = None,
        book: CodeBook | str = "nf4",
        block_size: int = 64,
        double: bool = True,
    ):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        quantized = quantize_blockwise(weight, book, block_size, double)
        scales: Any = quantized.scales
        inner = scales if isinstance(scales, Quantized) else None
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", inner.scales if inner else scales)  # type: ignore[arg-type]
        self.register_buffer("scale_codes", inner.codes if inner else None)
        self.register_buffer("offset", quantized.offset)
        self._form = (_without_tensors(quantized), _without_tensors(inner) if inner else None)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().clone(), requires_grad=False)

    @classmethod
    def of(cls, layer: torch.nn.Linear, **options: Any) -> Linear4bit:
        """The same layer, its weight in 4 bits."""
        return cls(layer.weight, layer.bias, **options)

    @property
    def weight(self) -> Quantized:
        """The quantized weight, on the module's device."""
        form, inner = self._form
        scales: Any = self.scales
        if inner:
            scales = Quantized(self.scale_codes, self.scales, None, **inner)
        return Quantized(self.codes, scales, self.offset, **form)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The product, in x's dtype, or autocast's where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with torch.autocast(device, enabled=False):
            return _Product.apply(x, bias, self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        # `.half()` and `.to(dtype)` move the module but must leave codes and fp32 scales as they are.
        kept = {name: (buffer.dtype, buffer) for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, (dtype, before) in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        weight = self.weight
        return f"{self.in_features}, {self.out_features}, {weight.book.name}, {weight.bits_per_parameter:.3f} bits"


def _without_tensors(quantized: Quantized) -> dict[str, Any]:
    """How a tensor was quantized, without its codes and scales."""
    return {name: getattr(quantized, name) for name in ("book", "block_size", "shape", "dtype")}


def quantize_linears(
    model: torch.nn.Module,
    make: Callable[[torch.nn.Linear], torch.nn.Module] = Linear4bit.of,
    skip: Iterable[str] = ("lm_head",),
) -> torch.nn.Module:
    """Replace every `torch.nn.Linear` of a model in place by `make(linear)`; return the model.

    Args:
        model: whose layers are replaced.
        make: builds the new layer from the old one.
        skip: layers whose full name contains one of these stay. The head often shares its weight with the embedding.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    for name, layer in layers:
        if not any(word in name for word in skip):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(layer))
    return model
