"""Adapters on disk in peft's own format: peft reads ours, and this reads peft's.

A folder with `adapter_config.json` and `adapter_model.safetensors`, whose tensors are named

    base_model.model.{path of the layer}.lora_A.weight        [r, in]
    base_model.model.{path of the layer}.lora_B.weight        [out, r]
    base_model.model.{path of the layer}.lora_magnitude_vector        [out], DoRA's

The model itself is not in it: 1.2 MB of adapter for a model of 270 MB, say. So loading checks every tensor against the
model before the first layer is changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.adapters.attach import DEFAULT, attach, lora_layers
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.targets import ALL_LINEAR, find
from labkit.errors import LabError, UnknownNameError
from labkit.files import write_bytes, write_text

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
# Fields of peft that change what an adapter computes, and the values in which it is what LoraLinear computes.
PLAIN: dict[str, tuple] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False,),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "lora_bias": (False,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}


def save_adapter(model: nn.Module, folder: Path | str, name: str = "", base: str = "") -> Path:
    """Write one adapter of a model.

    Args:
        name: of the adapter; empty: the active one.
        base: name of the model it belongs to, for the record and for peft's `AutoPeftModel`.

    Raises:
        LabError: where the model has no such adapter.
    """
    from safetensors.torch import save

    folder = Path(folder)
    layers = list(lora_layers(model))
    name = name or next((layer.active for _, layer in layers if layer.active), DEFAULT)
    mine = {path: layer for path, layer in layers if name in layer.specs}
    if not mine:
        raise UnknownNameError.among("adapter", name, sorted({known for _, layer in layers for known in layer.specs}))
    tensors = {
        f"{PREFIX}{path}.{part}{'' if part == PARTS[2] else '.weight'}": getattr(layer, part)[name].detach().cpu()
        for path, layer in mine.items()
        for part in PARTS
        if hasattr(layer, part)
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TENSORS, save({key: value.contiguous() for key, value in tensors.items()}))
    write_text(folder / CONFIG, json.dumps(_config(mine, name, base), indent=2, sort_keys=True) + "\n")
    return folder


def _config(layers: dict[str, LoraLinear], name: str, base: str) -> dict[str, Any]:
    layer = next(iter(layers.values()))
    spec = layer.specs[name]
    # A name's end may match more layers than the model had when it was adapted, so the paths themselves are written.
    whole = spec.targets == ALL_LINEAR or (isinstance(spec.targets, str))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "use_dora": isinstance(layer, DoraLinear),
        "target_modules": spec.targets if whole else sorted(layers),
        "bias": "none",
    }


def load_adapter(model: nn.Module, folder: Path | str, name: str = DEFAULT) -> nn.Module:
    """Put an adapter that this module or peft has written on a model, make it active, and return the model.

    Raises:
        LabError: for a folder or a file that is missing or cut off, an adapter of another kind, or one whose layers
            this model does not have in these shapes. The model is then as it was.
    """
    config, tensors = _read(Path(folder))
    spec, kind = _spec(config), DoraLinear if config.get("use_dora") else LoraLinear
    parts = _by_layer(tensors)
    layers = find(model, spec.targets) if isinstance(spec.targets, str) else {}
    spec = replace(spec, targets=tuple(parts))
    _check(model, parts, spec, kind, set(layers))
    dtype = next(iter(tensors.values())).dtype
    attach(model, spec, name, dtype, kind)
    with torch.no_grad():
        for path, found in parts.items():
            layer = model.get_submodule(path)
            for part, value in found.items():
                getattr(layer, part)[name].copy_(value)
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config, load_file(folder / TENSORS)
    except FileNotFoundError as error:
        cause = f"There is no adapter in {folder}: {Path(error.filename or TENSORS).name} is missing."
        raise LabError(cause, f"Give a folder with {CONFIG} and {TENSORS}.") from error
    except (SafetensorError, ValueError, OSError) as error:
        cause = f"The adapter in {folder} is damaged ({str(error)[:120]})."
        raise LabError(cause, "Save it again, or copy it again from where it came.") from error


def _spec(config: dict[str, Any]) -> LoraSpec:
    if config.get("peft_type") != "LORA":
        cause = f"This adapter is of type {config.get('peft_type')!r}."
        raise LabError(cause, "Load it with peft; labkit reads LoRA and DoRA.")
    odd = [name for name, plain in PLAIN.items() if config.get(name, plain[0]) not in plain]
    if odd:
        raise LabError(f"This adapter uses peft's {', '.join(odd)}.", "Load it with peft.")
    targets = config["target_modules"]
    return LoraSpec(
        config["r"],
        config["lora_alpha"],
        config.get("lora_dropout", 0.0),
        bool(config.get("use_rslora")),
        targets if isinstance(targets, str) else tuple(targets),
    )


def _by_layer(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        path, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part not in PARTS or not key.startswith(PREFIX):
            raise LabError(f"The adapter has a tensor {key!r} that LoRA does not have.", "Load it with peft.")
        found.setdefault(path, {})[part] = value
    return found


def _check(model: nn.Module, parts: dict, spec: LoraSpec, kind: type, named: set[str]) -> None:
    """Raise LabError where the adapter is not one for this model."""
    known = dict(model.named_modules())
    remedy = "Load the model that the adapter was trained on."
    wanted = PARTS if kind is DoraLinear else PARTS[:2]
    for path, found in parts.items():
        layer: Any = known.get(path)
        if not hasattr(layer, "in_features"):
            raise LabError(f"The adapter belongs to another model: this one has no linear layer {path}.", remedy)
        if set(found) != set(wanted):
            raise LabError(f"The adapter of {path} lacks {set(wanted) - set(found)}.", "Save it again.")
        shapes = {
            "lora_A": (spec.rank, layer.in_features),
            "lora_B": (layer.out_features, spec.rank),
            "lora_magnitude_vector": (layer.out_features,),
        }
        for part, value in found.items():
            if tuple(value.shape) != shapes[part]:
                sizes = f"{part} of {path} is {tuple(value.shape)}, and this model needs {shapes[part]}"
                raise LabError(f"The adapter belongs to another model: {sizes}.", remedy)
    if not parts or (named and named != set(parts)):
        raise LabError("The adapter's file lacks layers that its configuration names.", "Save it again.")
