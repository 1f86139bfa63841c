"""BitFit: the biases train and nothing else (Ben Zaken, Ravfogel & Goldberg 2022, arXiv:2106.10199).

    y = W x + b        W frozen, b of [out]

A bias moves every token's output by the same vector, whatever the input is: out values a layer, 0.1 % of a model with
biases. Its gradient is ∂y summed over the tokens, so a layer keeps no input for it, where a matrix that trains (LoRA's
A as well) keeps x. The paper trains all biases of BERT, those of the norms too, and finds that two kinds (the query's
and the first feed-forward matrix's) do nearly as well: `targets` says which layers, `norms` whether the norms' train.

OPT has biases in all its layers. Models of Llama's kind (SmolLM2 and the tiny model here) have none at all, in norms
neither: there is nothing to fit. So where none of the targets has a bias each gets one of zeros, and the model starts
unchanged. That is no longer the paper's method, which adds no values to a model; `BitFit.added` says how many were
added, and so does the run's trace `biases_added`.

In 16 bits a bias would lose small updates (lesson 02). Its master is fp32 then, and its layer computes with the rounded
copy that torch's parametrization makes of it in each pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from labkit.adapters.dense import is_dense
from labkit.adapters.method import Adapted
from labkit.adapters.targets import ALL_LINEAR, Targets, find, linear_layers
from labkit.errors import LabError
from labkit.tasks import Task

ADDED = "labkit_added_bias"
"""Attribute that marks a layer whose bias was added here."""


class _Rounded(nn.Module):
    """An fp32 master as its layer computes with it."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, master: Tensor) -> Tensor:
        """The bias, rounded."""
        return master.to(self.dtype)


def attach_biases(model: nn.Module, targets: Targets = ALL_LINEAR, norms: bool = True) -> int:
    """Freeze a model, in place, but for the targets' biases; add biases of zeros where no target has one.

    Args:
        targets: linear layers (`labkit.adapters.targets`).
        norms: whether the biases of what is not linear train too, where there are some.

    Returns:
        How many values were added.

    Raises:
        LabError: for targets that match nothing, or a model that has been here before.
    """
    layers = find(model, targets)
    if any(hasattr(module, ADDED) or _is_rounded(module) for module in model.modules()):
        raise LabError("This model's biases have been prepared already.", "Call `detach_biases(model)` first.")
    model.requires_grad_(False)
    biased = [layer for layer in layers.values() if layer.bias is not None]
    added = [] if biased else list(layers.values())
    for layer in added:
        setattr(layer, ADDED, True)
        layer.bias = nn.Parameter(_zeros(layer))
    linear = {id(layer) for layer in linear_layers(model).values()}
    others = [module for module in _biased(model) if id(module) not in linear]
    for module in (*biased, *added, *(others if norms else ())):
        _train(module)
    return sum(layer.out_features for layer in added)


def detach_biases(model: nn.Module) -> nn.Module:
    """Take off the biases that were added, with what they have learned; others stay, in their own dtype, as trained."""
    for module in [module for module in model.modules() if _is_rounded(module)]:
        _settle(module)
    for module in [module for module in model.modules() if hasattr(module, ADDED)]:
        module.register_parameter("bias", None)
        delattr(module, ADDED)
    return model.requires_grad_(False)


def _zeros(layer: Any) -> Tensor:
    """In the weight's dtype; a layer that keeps its weight in few bits casts an fp32 bias itself."""
    dtype = layer.weight.dtype if is_dense(layer) else torch.float32
    device = next(t.device for t in (*layer.parameters(), *layer.buffers()))
    return torch.zeros(layer.out_features, dtype=dtype, device=device)


def _biased(model: nn.Module) -> Iterator[Any]:
    """Every module that owns a bias."""
    return (module for module in model.modules() if isinstance(module._parameters.get("bias"), Tensor))


def _is_rounded(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "bias") and isinstance(module.parametrizations.bias[0], _Rounded)  # type: ignore[index, union-attr]


def _settle(module: Any) -> None:
    """Let the layer keep the rounded bias. (torch's own way to leave it there needs masters of the same dtype.)"""
    rounded = module.bias.detach()
    parametrize.remove_parametrizations(module, "bias", leave_parametrized=False)
    module.bias = nn.Parameter(rounded)


def _train(module: Any) -> None:
    """Let the bias train, in fp32."""
    bias = module.bias
    if bias.dtype != torch.float32:
        dtype, module.bias = bias.dtype, nn.Parameter(bias.detach().float())
        parametrize.register_parametrization(module, "bias", _Rounded(dtype), unsafe=True)  # it changes the dtype
        module.parametrizations.bias.original.requires_grad_(True)
    else:
        bias.requires_grad_(True)


@dataclass
class BitFit(Adapted):
    """Biases train; where no target has one, biases of zeros are added, `out` values a layer.

    Attributes:
        targets: linear layers whose biases train.
        norms: whether the norms' biases train too, as in the paper.
        added: after `prepare`, how many values had to be added; 0 where the model's own biases train.

    Raises:
        LabError: from `prepare`, for targets that match nothing.
    """

    learning_rate: float = 1e-2
    targets: Targets = ALL_LINEAR
    norms: bool = True
    name: str = "bitfit"

    def adapt(self, model: nn.Module, task: Task) -> None:
        """Choose the biases, or add them."""
        self.added = attach_biases(model, self.targets, self.norms)

    def observed(self) -> dict[str, float]:
        """How many values were added to the model: not 0 where it had no biases to fit."""
        return {"biases_added": float(self.added)}
