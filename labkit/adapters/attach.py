"""Adapters of a whole model: put on, switched, merged, taken off; always in place, never half.

Everything is checked on all layers before the first is changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from labkit.adapters.dense import dense_linear, is_dense
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.targets import find
from labkit.errors import LabError, UnknownNameError

DEFAULT = "default"


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every layer with adapters, with its path.

    Raises:
        LabError: where the model has none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    if not found:
        raise LabError("This model has no adapters.", "Call `attach(model, LoraSpec(…))` first.")
    return iter(found)


def attach(
    model: nn.Module,
    spec: LoraSpec,
    name: str = DEFAULT,
    dtype: torch.dtype = torch.float32,
    kind: type[LoraLinear] = LoraLinear,
) -> nn.Module:
    """Freeze a model, in place, and put an adapter beside each target; return the model.

    Args:
        name: of the adapter; a model that has some gets another, over the same weights.
        dtype: of A and B.
        kind: `LoraLinear`, or `labkit.adapters.dora.DoraLinear`.

    Raises:
        LabError: for targets that match nothing, a rank that does not fit, or a name that is taken.
    """
    if not name or "." in name:
        raise LabError(f"{name!r} is no name for an adapter.", "Give a word without dots.")
    layers = find(model, spec.targets)
    for path, layer in layers.items():
        spec.fits(path, layer)
        if isinstance(layer, LoraLinear) and (name in layer.specs or type(layer) is not kind):
            cause = f"{path} has an adapter {name!r}, or adapters of another kind, already."
            raise LabError(cause, "Give another name, or `detach` them first.")
    model.requires_grad_(False)
    for path, layer in layers.items():
        if not isinstance(layer, LoraLinear):
            parent, _, child = path.rpartition(".")
            layer = kind(layer)
            setattr(model.get_submodule(parent), child, layer)
        layer.add(name, spec, dtype)
    return use(model, name)


def use(model: nn.Module, name: str) -> nn.Module:
    """Make one adapter active, and the one that trains; "" for the model without any.

    Raises:
        LabError: where the model has no adapter of that name, or one is merged.
    """
    layers = list(lora_layers(model))
    known = {known for _, layer in layers for known in layer.specs}
    if name and name not in known:
        raise UnknownNameError.among("adapter", name, tuple(sorted(known)))
    if any(layer.merged for _, layer in layers):
        raise LabError("An adapter is merged into the weights.", "Call `unmerge(model)` before you switch.")
    for _, layer in layers:
        layer.active = name if name in layer.specs else ""
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        for own, values in layer.named_parameters():
            if name and not own.startswith("base.") and own.rpartition(".")[2] == name:
                values.requires_grad_(True)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Put the active adapter into the weights of all layers: the model computes as fast as without."""
    for _, layer in lora_layers(model):
        layer.merge()
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Take a merged adapter out of the weights again."""
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model


def detach(model: nn.Module, merged: bool = False) -> nn.Module:
    """Take all adapters off: the base layers stand where they stood, with the weights that they have now.

    Args:
        merged: with the active adapter in the weights; a layer in 4 bits becomes a dense one, in the adapter's dtype.
    """
    for path, layer in list(lora_layers(model)):
        if merged and layer.active and is_dense(layer.base):
            layer.merge()
        elif merged and layer.active:
            layer.base = dense_linear(layer.base, layer.merged_weight(layer.active))
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model
