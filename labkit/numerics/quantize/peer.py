"""bitsandbytes' layers, made from torch's as ours are: what lesson 09 compares with, and QLoRA's base on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from labkit.ledger import storage_bytes


def stored_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, and of the constants that bitsandbytes keeps beside a parameter.

    Code books are left out: 16 or 256 numbers that all layers share.
    """
    beside = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for holder in (state, getattr(state, "state2", None)):
            beside += [t for t in (getattr(holder, "absmax", None), getattr(holder, "offset", None)) if t is not None]
        row_constants = getattr(parameter, "SCB", None)
        beside += [] if row_constants is None else [row_constants]
    for state in (getattr(module, "state", None) for module in model.modules()):
        # where bitsandbytes keeps an 8-bit layer's constants once it has computed
        beside += [t for t in (getattr(state, "CB", None), getattr(state, "SCB", None)) if t is not None]
    return storage_bytes([*model.parameters(), *model.buffers(), *beside])


def library_recipes() -> dict[str, Callable]:
    """bitsandbytes' layers under our names; none where it is not installed."""
    import importlib.util
    import logging

    if importlib.util.find_spec("bitsandbytes") is None:
        return {}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before the import, which already warns
    import bitsandbytes

    four = partial(_library_4bit, bitsandbytes.nn)
    return {
        "bitsandbytes.int8": partial(_library_8bit, bitsandbytes.nn),
        "bitsandbytes.fp4": partial(four, quant_type="fp4", compress_statistics=False),
        "bitsandbytes.nf4": partial(four, quant_type="nf4", compress_statistics=False),
        "bitsandbytes.nf4+dq": partial(four, quant_type="nf4", compress_statistics=True),
    }


def _library_8bit(nn: Any, layer: torch.nn.Linear) -> torch.nn.Module:
    bias = layer.bias is not None
    new = nn.Linear8bitLt(layer.in_features, layer.out_features, bias, has_fp16_weights=False, threshold=6.0)
    new.weight = nn.Int8Params(layer.weight.data.cpu(), has_fp16_weights=False, requires_grad=False)
    return _placed(new, layer)


def _library_4bit(nn: Any, layer: torch.nn.Linear, **options: Any) -> torch.nn.Module:
    bias, dtype = layer.bias is not None, layer.weight.dtype
    new = nn.Linear4bit(layer.in_features, layer.out_features, bias, compute_dtype=dtype, **options)
    new.weight = nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, **options)
    return _placed(new, layer)


def _placed(new: torch.nn.Module, layer: torch.nn.Linear) -> torch.nn.Module:
    """On the old layer's device: bitsandbytes quantizes on the way there."""
    if layer.bias is not None:
        new.bias = layer.bias
    return new.to(layer.weight.device).eval()
