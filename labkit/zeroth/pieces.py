"""What of a transformer travels: its blocks, each whole or in three parts, and what stays on the device.

    part      OPT                                     Llama
    1         first norm, queries, keys, values, out  the same
    2         second norm, first matrix               second norm, gate and up
    3         second matrix                           down

Of a block of width d OPT's parts have 4 d² values each, a third: slots of a third are enough then, for the price of
three times as many copies and turns. The order in which a block uses its modules is in no list of its own, so it stands
here by class; a block of another class travels whole. Embeddings, the last norm and the head stay on the device.

Where all weights train, all of a block travels. Where most are frozen (adapters), what trains stays on the device: it
is small, and what travels then never has to go back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from labkit.errors import LabError
from labkit.zeroth.groups import ALIGNED

Parts = tuple[tuple[str, ...], ...]
_LLAMA: Parts = (
    ("input_layernorm", "self_attn"),
    ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_OPT: Parts = (("self_attn_layer_norm", "self_attn"), ("final_layer_norm", "fc1"), ("fc2",))
_OPT_LATE: Parts = (("self_attn", "self_attn_layer_norm"), ("fc1",), ("fc2", "final_layer_norm"))
PARTS = (1, 3)


@dataclass(frozen=True)
class Entry:
    """A parameter that travels.

    Attributes:
        module, attribute: whose parameter it is.
        shape, dtype: of it.
        offset: bytes from the beginning of its piece.
    """

    module: nn.Module
    attribute: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int

    @property
    def parameter(self) -> nn.Parameter:
        """What the module has now."""
        found: Any = self.module._parameters[self.attribute]
        return found

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """What travels at once.

    Attributes:
        index, name: its place in the order of use, and what to call it.
        entries: its parameters.
        nbytes: of its flat form, each parameter aligned.
        doors: modules that must not be called before it is there.
    """

    index: int
    name: str
    entries: tuple[Entry, ...]
    nbytes: int
    doors: tuple[nn.Module, ...]

    def bind(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give its modules these."""
        for entry, p in zip(self.entries, parameters, strict=True):
            entry.module._parameters[entry.attribute] = p


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGNED."""
    return -(-nbytes // ALIGNED) * ALIGNED


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers.

    Raises:
        LabError: where the model has none.
    """
    transformer: Any = model
    decoder = transformer.get_decoder() if hasattr(transformer, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        cause = f"{type(model).__name__} has no list of decoder layers."
        raise LabError(cause, "Offload a causal language model such as OPT or Llama.")
    return layers


def cut(model: nn.Module, parts: int = 1) -> list[Piece]:
    """All pieces in the order of use.

    Args:
        parts: 1 for whole blocks, 3 for thirds.

    Raises:
        LabError: for another number, for a block with buffers or shared weights, or where nothing travels.
    """
    if parts not in PARTS:
        raise LabError(f"A block cannot be cut into {parts} parts.", "Give 1 or 3.")
    shared = _shared(model)
    pieces: list[Piece] = []
    for number, block in enumerate(blocks(model)):
        _check(block, shared, number)
        wanted = _travels(block)
        groups = _groups(block, parts)
        for part, names in enumerate(groups):
            inside = [block.get_submodule(name) for name in names]
            entries, nbytes = _entries(inside, wanted)
            if entries:
                name = f"block {number}" + (f".{part}" if len(groups) > 1 else "")
                pieces.append(Piece(len(pieces), name, tuple(entries), nbytes, tuple(inside)))
    if not pieces:
        raise LabError("Nothing of this model can leave the device: its blocks have no weights.", "Offload another.")
    return pieces


def _groups(block: nn.Module, parts: int) -> Parts:
    kind = type(block).__name__
    if parts == 3 and kind == "LlamaDecoderLayer":
        return _LLAMA
    if parts == 3 and kind == "OPTDecoderLayer":
        return _OPT if getattr(block, "do_layer_norm_before", True) else _OPT_LATE
    return (("",),)


def _travels(block: nn.Module) -> set[int]:
    """`id` of what travels: everything, or where some are frozen those alone."""
    every = list(block.parameters())
    frozen = [p for p in every if not p.requires_grad]
    return {id(p) for p in frozen or every}


def _entries(modules: Sequence[nn.Module], wanted: set[int]) -> tuple[list[Entry], int]:
    found: list[Entry] = []
    offset = 0
    for module in (inner for outer in modules for inner in outer.modules()):
        for attribute, p in module._parameters.items():
            if p is not None and id(p) in wanted and p.numel():
                found.append(Entry(module, attribute, p.shape, p.dtype, offset))
                offset += aligned(found[-1].nbytes)
    return found, offset


def _shared(model: nn.Module) -> set[int]:
    """`id` of parameters that stand at more than one place."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, p in model.named_parameters(remove_duplicate=False):
        (twice if id(p) in seen else seen).add(id(p))
    return twice


def _check(block: nn.Module, shared: set[int], number: int) -> None:
    if any(id(p) in shared for p in block.parameters()):
        raise LabError(f"Block {number} shares weights with another module.", "Offload a model without such blocks.")
    if next(block.buffers(), None) is not None:
        cause = f"Block {number} has buffers beside its weights, which would be left on the host."
        raise LabError(cause, "Offload a causal language model such as OPT or Llama.")


def resident(model: nn.Module, pieces: Sequence[Piece]) -> dict[int, nn.Parameter]:
    """What stays on the device, by `id`."""
    away = {id(e.parameter) for piece in pieces for e in piece.entries}
    return {id(p): p for p in model.parameters() if id(p) not in away}
