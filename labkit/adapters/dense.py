"""A linear layer's weight as one floating-point matrix, whatever the layer keeps it in."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_dense(layer: Any) -> bool:
    """Whether the layer's weight is a floating-point matrix, so that an update can be added to it."""
    weight = layer.weight
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2


@torch.no_grad()
def dense_weight(layer: Any, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """The weight in `dtype`: the layer's own tensor where it has that dtype, else a copy, read back from few bits.

    It reads torch's Linear, `labkit.numerics.quantize.Linear4bit`, and bitsandbytes' 4- and 8-bit layers.
    """
    weight = layer.weight
    if is_dense(layer):
        return weight.detach().to(dtype)
    if hasattr(weight, "dequantize") and not isinstance(weight, Tensor):
        return weight.dequantize(dtype)
    import bitsandbytes.functional as bnb

    if getattr(weight, "quant_state", None) is not None:
        return bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    state = layer.state
    values, scales = (weight.CB, weight.SCB) if state.CB is None else (state.CB, state.SCB)
    return bnb.int8_vectorwise_dequant(values, scales).to(dtype)


@torch.no_grad()
def dense_linear(layer: Any, weight: Float[Tensor, "out in"], dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A frozen torch Linear with `weight` and the layer's bias."""
    bias = layer.bias
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=dtype)
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made.requires_grad_(False)
