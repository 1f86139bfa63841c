"""What ZeRO shards: parameters laid one after the other in flat buffers, cut into one equal part a rank.

A unit is one decoder layer, or the root: all that belongs to no single layer, so that a head tied to the embedding is
there once. Its L values, each parameter's begin a multiple of `GRAIN`, are padded to N parts of S = ⌈L / (N·GRAIN)⌉
GRAIN values; rank r owns [r S, (r+1) S). The cut falls anywhere within parameters, which is what makes parts equal.

Parameters are views of the unit's buffer of weights. In stage 3 that buffer's storage is taken away and given back
(`resize_`, as torch's FSDP does it): views stay what they are, also those that autograd has saved for the backward
pass, and read the gathered values when they are there again.

`GRAIN` keeps AdamW's rounding independent of the cut (`labkit.memory.host_adamw`), and views aligned for a GPU's
wide loads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.memory.buckets import GRAIN
from labkit.memory.checkpointed import decoder_layers
from labkit.parallel.zero_wire import Wire

ROOT = "root"


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies in its unit's flat buffers."""

    name: str
    parameter: nn.Parameter
    begin: int
    end: int


def part_size(numels: Iterable[int], world_size: int) -> int:
    """Values of a rank's part, S above, of parameters with `numels` values."""
    grains = sum(-(-count // GRAIN) for count in numels)
    return -(-grains // world_size) * GRAIN


class Unit:
    """Parameters that are gathered and reduced together.

    Args:
        name: of the layer in the model.
        named: the parameters with their names; turned into views of `weights`.
        wire: of this rank; rank 0's values become everybody's.
        dtype: of weights and gradients; fp32 masters lie beside 16-bit ones.
        sharded: stage 3: weights are here only while they are gathered.
        held: of sharded 16-bit weights: this rank's part stays; else it is rounded from the master for every gather.

    Attributes:
        weights: flat, [N S], in `dtype`; its storage is empty while the unit is released.
        part: this rank's weights, [S]; lies in `weights` unless they are sharded; None where it is not held.
        master: fp32, [S], what the optimizer updates; `part` itself where that is fp32.
        whole_gradient: flat, [N S], from the first gradient to the reduction.
        gradient: this rank's mean over ranks, [S], from the reduction to the update.
    """

    def __init__(
        self,
        name: str,
        named: list[tuple[str, nn.Parameter]],
        wire: Wire,
        dtype: torch.dtype,
        sharded: bool,
        held: bool = True,
    ):
        self.name, self.slots, begin = name, [], 0
        for own, parameter in named:
            self.slots.append(Slot(own, parameter, begin, begin + parameter.numel()))
            begin += -(-parameter.numel() // GRAIN) * GRAIN
        self.size = part_size((p.numel() for _, p in named), wire.world_size)
        self.padded = self.size * wire.world_size
        self.own = slice(wire.rank * self.size, (wire.rank + 1) * self.size)
        self.part: Tensor | None
        self.weights, self.part, self.master = self._laid_out(wire, dtype, sharded)
        if sharded and not held and dtype != torch.float32:
            self.part = None
        for slot in self.slots:
            slot.parameter.data = self.weights[slot.begin : slot.end].view(slot.parameter.shape)
        self.whole_gradient: Tensor | None = None
        self.gradient: Tensor | None = None
        self.ready: Any = None
        self._missing = {slot.name for slot in self.slots}
        if sharded:
            self.release()

    @torch.no_grad()
    def _laid_out(self, wire: Wire, dtype: torch.dtype, sharded: bool) -> tuple[Tensor, Tensor, nn.Parameter]:
        exact = torch.zeros(self.padded, device=wire.device)
        for slot in self.slots:
            exact[slot.begin : slot.end].copy_(slot.parameter.detach().reshape(-1))
        dist.broadcast(exact, 0)
        weights = exact.to(dtype)
        part = weights[self.own].clone() if sharded else weights[self.own]
        return weights, part, nn.Parameter(part if dtype == torch.float32 else exact[self.own].clone())

    @property
    def gathered_bytes(self) -> int:
        """Bytes that the buffer of weights holds at this moment."""
        return self.weights.untyped_storage().nbytes()

    def allocate(self) -> None:
        """Give the buffer of weights its storage back, with nothing in it yet."""
        self.weights.untyped_storage().resize_(self.padded * self.weights.element_size())

    def release(self) -> None:
        """Take the storage away."""
        self.weights.untyped_storage().resize_(0)
        self.ready = None

    def collect(self, slots: Iterable[Slot]) -> bool:
        """Take finished gradients over into the flat buffer; whether all of the unit are there now."""
        if self.whole_gradient is None:
            self.whole_gradient = torch.empty_like(self.weights, memory_format=torch.contiguous_format)
        for slot in slots:
            gradient, slot.parameter.grad = slot.parameter.grad, None
            target = self.whole_gradient[slot.begin : slot.end]
            if gradient is None:
                target.zero_()
            else:
                target.copy_(gradient.reshape(-1))
            self._missing.discard(slot.name)
        return not self._missing

    def complete(self) -> Tensor:
        """The flat gradient with zeros in the padding, ready to be reduced; the next backward pass starts afresh."""
        assert self.whole_gradient is not None
        ends = [slot.end for slot in self.slots]
        begins = [slot.begin for slot in self.slots[1:]] + [self.padded]
        for end, begin in zip(ends, begins, strict=True):
            if end < begin:
                self.whole_gradient[end:begin].zero_()
        self._missing = {slot.name for slot in self.slots}
        return self.whole_gradient

    @property
    def missing(self) -> list[Slot]:
        """Parameters that have no gradient in the flat buffer yet."""
        return [slot for slot in self.slots if slot.name in self._missing]

    @torch.no_grad()
    def refresh(self) -> None:
        """The rounded master becomes this rank's weights."""
        if self.part is not None and self.part.dtype != self.master.dtype:
            self.part.copy_(self.master)

    @torch.no_grad()
    def contribution(self) -> Tensor:
        """What this rank gives when the weights are gathered, [S]: its part, or the rounded master in its place."""
        if self.part is not None:
            return self.part
        place = self.weights[self.own]
        return place.copy_(self.master)


def cut(model: nn.Module) -> tuple[list[nn.Module], list[tuple[str, list[tuple[str, nn.Parameter]]]]]:
    """The decoder layers of a transformers model, and every unit's name with its named parameters; the root first.

    Raises:
        LabError: where parts of the model do not train or have no list of layers.
    """
    _, _, layers = decoder_layers(model)
    if frozen := [name for name, p in model.named_parameters() if not p.requires_grad]:
        raise LabError(f"ZeRO here trains every weight, and {frozen[0]} is frozen.", "Use torch.fsdp2 for adapters.")
    names = {id(module): name for name, module in model.named_modules()}
    blocks: list[nn.Module] = list(layers)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    home: dict[int, str] = {}
    for block in blocks:
        inside = Counter(id(p) for _, p in block.named_parameters(remove_duplicate=False))
        # A weight that is used outside of its layer, too, has to be there when the layer is released.
        home |= {p: names[id(block)] for p, count in inside.items() if count == uses[p]}
    units: dict[str, list] = {ROOT: [], **{names[id(block)]: [] for block in blocks}}
    for name, parameter in model.named_parameters():
        units[home.get(id(parameter), ROOT)].append((name, parameter))
    return blocks, list(units.items())
