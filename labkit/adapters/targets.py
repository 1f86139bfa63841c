"""Which linear layers of a model get an adapter.

Three ways to say it, and each is checked against the model before anything is changed:

    ("q", "v")        the short names that hold for Llama- and OPT-type models alike, or a module's own name ("q_proj"),
                      or the end of its path ("self_attn.q_proj")
    r".*\\.[03]\\..*_proj"  one regular expression that has to match a whole path (Python's `re`)
    "all-linear"      every linear layer but the head, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)

The last two, and names, mean what they mean in peft.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from labkit.errors import LabError

ALL_LINEAR = "all-linear"
MODULES = {
    "llama": {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")},
    "opt": {**{name: f"{name}_proj" for name in ("q", "k", "v")}, "o": "out_proj", "up": "fc1", "down": "fc2"},
}
"""Module names of a block's matrices, by the kind that `labkit.ledger.shapes.Architecture` tells."""
OWN = "labkit_adapter"
"""Attribute that marks a module of this package: what is inside of one is not a target."""

Targets = str | tuple[str, ...]


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Every linear layer by its path: torch's, and those in 4 or 8 bits; an adapter's own matrices apart."""
    own = tuple(f"{name}." for name, module in model.named_modules() if hasattr(module, OWN))
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features") and not name.startswith(own or ("\0",))
    }


def find(model: nn.Module, targets: Targets) -> dict[str, Any]:
    """The linear layers that `targets` names, by path, in the model's order.

    Raises:
        LabError: where a name, or the expression, matches nothing; it lists what would.
    """
    layers = linear_layers(model)
    if targets == ALL_LINEAR:
        head = _head(model)
        return {name: layer for name, layer in layers.items() if layer is not head}
    if isinstance(targets, str):
        found = {name: layer for name, layer in layers.items() if _matches(targets, name)}
        if not found:
            raise _nothing(targets, layers)
        return found
    return _by_names(model, tuple(targets), layers)


def _by_names(model: nn.Module, names: tuple[str, ...], layers: dict[str, Any]) -> dict[str, Any]:
    short = _short_names(model)
    ends = {name: short.get(name, name) for name in names}
    for name, end in ends.items():
        if not any(_ends_with(path, end) for path in layers):
            raise _nothing(name, layers)
    if not ends:
        raise _nothing("", layers)
    return {path: layer for path, layer in layers.items() if any(_ends_with(path, end) for end in ends.values())}


def _short_names(model: nn.Module) -> dict[str, str]:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return MODULES["opt" if kind == "opt" else "llama"]


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        cause = f"{pattern!r} is no regular expression ({error})."
        raise LabError(cause, f'Give a tuple of names, an expression, or "{ALL_LINEAR}".') from error


def _head(model: nn.Module) -> nn.Module | None:
    given = getattr(model, "get_output_embeddings", None)
    return given() if given else None


def _nothing(target: str, layers: dict[str, Any]) -> LabError:
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    cause = f"No linear layer matches {target!r}." if target else "No layer is named that could get an adapter."
    if not known:
        return LabError(cause, "Give a model with linear layers that have no adapter yet.")
    return LabError(cause, f'These would match: {", ".join(known)}; or give "{ALL_LINEAR}".')
