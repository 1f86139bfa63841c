"""ZeRO's schedule: when weights are gathered and released, and gradients reduced and freed.

(Rajbhandari et al. 2020, arXiv:1910.02054; the order of prefetches is that of FSDP, Zhao et al. 2023,
arXiv:2304.11277.) Stage 3, where every line is a stream of its own on a GPU:

    compute   | forward 1 | forward 2 | forward 3 | loss | backward 3 | backward 2 | backward 1 |
    gather  | 1 | 2       | 3         |           | 3    | 2          | 1          |
    reduce                                                            | 3          | 2          | 1 | root

A layer's weights are released after its forward, and again when the last of its gradients is there. While a layer
computes, the next one is gathered, so that two are there at a time and no more: an all-gather is queued behind the end
of the layer before, whose memory it may take. The root (embedding, last norm, head) is gathered once a step.

Each gradient goes into its unit's flat buffer as autograd hands it over, and is freed. A complete buffer is reduced
beside the backward pass of the next layer; its memory is free before the one after that begins to reduce. Stage 1 keeps
the buffers to the update, in which each rank's part holds the mean. The root's gradients are put together at the end,
so that the last norm's, which comes first, does not bring the whole root's buffer with it.

Stages 1 and 2 gather each unit's weights as soon as its part is updated, beside the next unit's update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from labkit.errors import LabError
from labkit.ledger import storage_bytes
from labkit.parallel.zero_units import Slot, Unit, cut
from labkit.parallel.zero_wire import Wire


def _in_backward() -> bool:
    """Whether autograd runs: a layer that computes now is a checkpointed one that computes again."""
    return torch._C._current_graph_task_id() != -1


class ZeroEngine:
    """Shards a model among the ranks of the default process group, and keeps it sharded through steps.

    A step is: forward, `loss.backward()`, `finish()`, an update of every unit's master, and `publish` of each.

    Args:
        model: a transformers decoder of which every weight trains; the same on all ranks, or rank 0's counts.
        stage: 1, 2 or 3.
        dtype: of weights and gradients, float32 or bfloat16.
        device: where the shards live; the model may still be elsewhere.

    Attributes:
        units: root and layers.
        wire: the collectives, with the bytes sent.
        peak_gathered: most bytes of weights that were gathered at once since `begin` (stage 3).
        peak_in_flight: most bytes of whole gradients that were there at once since `begin`.
    """

    def __init__(
        self, model: nn.Module, stage: int, dtype: torch.dtype, device: torch.device, hold_weights: bool = True
    ):
        if stage not in (1, 2, 3):
            raise LabError(f"ZeRO has no stage {stage!r} that shards.", "Give 1, 2 or 3.")
        self.model, self.stage, self.dtype, self.wire = model, stage, dtype, Wire(device)
        self._blocks, named = cut(model)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
        self.units = [Unit(name, parameters, self.wire, dtype, stage == 3, hold_weights) for name, parameters in named]
        self.root, self.layers = self.units[0], self.units[1:]
        self._held: tuple[Any, Tensor] | None = None
        self._gathered = 0
        self._hooks: list[Any] = []
        self._attach()
        self.begin()

    def begin(self) -> None:
        """A step starts: count from zero."""
        self.wire.reset()
        self.peak_gathered = self.peak_in_flight = 0

    # Hooks

    def _attach(self) -> None:
        for unit in self.layers:
            for slot in unit.slots:
                hook = self._arrived(unit, slot)
                self._hooks.append(slot.parameter.register_post_accumulate_grad_hook(hook))
        if self.stage < 3:
            return
        self._hooks.append(self.model.register_forward_pre_hook(lambda *_: self._ready(self.root)))
        self._hooks.append(self.model.register_forward_hook(lambda _, __, output: self._through(output)))
        for number, block in enumerate(self._blocks):
            self._hooks.append(block.register_forward_pre_hook(self._enters(number)))
            self._hooks.append(block.register_forward_hook(self._leaves(number)))

    def _arrived(self, unit: Unit, slot: Slot) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if unit.collect([slot]):
                self._reduce(unit)

        return hook

    def _enters(self, number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._ready(self.layers[number])
            if not _in_backward() and number + 1 < len(self.layers):
                self._fetch(self.layers[number + 1])

        return hook

    def _leaves(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._before_backward(output, number)
            if not _in_backward():
                self._release(self.layers[number])

        return hook

    def _through(self, output: Any) -> None:
        """The whole model has computed: the backward pass will begin at the last layer."""
        if torch.is_grad_enabled():
            self._before_backward(output, len(self.layers))
        else:
            self._release(self.root)

    def _before_backward(self, output: Any, number: int) -> None:
        """Once a gradient of these outputs is known, layer `number` is needed now, and the one before it next."""

        def hook(_: Tensor) -> None:
            if number < len(self.layers):
                self._ready(self.layers[number])
            if number:
                self._fetch(self.layers[number - 1])

        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(hook)

    # Weights

    @torch.no_grad()
    def _fetch(self, unit: Unit) -> None:
        """Begin to gather a unit's weights."""
        if unit.gathered_bytes:
            return
        with self.wire.gathering():
            unit.allocate()
            unit.ready = self.wire.all_gather(unit.weights, unit.contribution())
        self._gathered += unit.gathered_bytes
        self.peak_gathered = max(self.peak_gathered, self._gathered)

    def _release(self, unit: Unit) -> None:
        """Nothing that is queued from now on reads a unit's weights."""
        self._gathered -= unit.gathered_bytes
        unit.release()

    def _ready(self, unit: Unit) -> None:
        """What computes from now on finds a unit's weights."""
        self._fetch(unit)
        self.wire.wait(unit.ready)

    @torch.no_grad()
    def publish(self, unit: Unit) -> None:
        """A unit's master is updated: its weights follow, on every rank (stage 3: when they are next gathered)."""
        unit.refresh()
        if self.stage < 3:
            with self.wire.gathering():
                unit.ready = self.wire.all_gather(unit.weights, unit.contribution())

    def settle(self) -> None:
        """What is queued from now on finds every weight that was published."""
        for unit in self.units:
            self.wire.wait(unit.ready)

    # Gradients

    def in_flight_bytes(self) -> int:
        """Bytes of whole gradients at this moment: the root's, buffers that fill, and the one that is being reduced."""
        alone = [slot.parameter.grad for slot in self.root.slots if slot.parameter.grad is not None]
        whole = [u.whole_gradient for u in self.units if u.whole_gradient is not None]
        held = [self._held[1]] if self._held else []
        return storage_bytes([*alone, *whole, *held])

    def _note_gradients(self) -> None:
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight_bytes())

    @torch.no_grad()
    def _reduce(self, unit: Unit) -> None:
        """All gradients of a unit are in its flat buffer: the mean over ranks to its owners, and the buffer away."""
        whole = unit.complete()
        self._note_gradients()
        unit.gradient = whole[unit.own] if self.stage == 1 else torch.empty_like(whole[unit.own])
        event = self.wire.reduce_scatter(unit.gradient, whole)
        if self._held:
            self.wire.wait(self._held[0])
        self._held = event, whole
        if self.stage > 1:
            unit.whole_gradient = None
        if self.stage == 3 and unit is not self.root:
            self._release(unit)

    def finish(self) -> None:
        """After the backward pass: reduce what is left, with zeros for parameters that had no part in the loss.

        Which parameters take part has to be the same on all ranks: else they would wait for different collectives.
        """
        for unit in reversed(self.units):
            if unit.gradient is None:
                if unit is self.root:
                    self._note_gradients()
                unit.collect(unit.missing)
                self._reduce(unit)
        if self._held:
            self.wire.wait(self._held[0])
            self._held = None
        if self.stage == 3:
            for unit in self.units:
                self._release(unit)

    def free_gradient(self, unit: Unit) -> None:
        """The update has read a unit's gradient."""
        unit.gradient = unit.whole_gradient = None

    def close(self, whole: bool = True) -> None:
        """Take the hooks off. With `whole` the model gets all of its weights, for which all ranks have to call this."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if whole and self.stage == 3:
            for unit in self.units:
                self._ready(unit)
