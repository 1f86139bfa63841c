"""Blocks of a model that take turns: those that are awake have gradients and optimizer states, the others have nothing.

Of Ψ values of which ψ are awake, AdamW in fp32 holds 4 Ψ + 12 ψ bytes instead of 16 Ψ. That is only so if what falls
asleep really lets go of its states: an optimizer that was built over all parameters makes states for each one that ever
had a gradient and keeps them, so that after some turns nothing is saved. Here a parameter that falls asleep leaves the
optimizer, and its states are freed, or kept on the host until it wakes, or (to see the mistake) left to pile up.

A layer whose weights sleep still passes the gradient of its input on to awake layers below. Where none is awake below,
autograd keeps nothing for it at all: no activation below the lowest awake parameter is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from labkit.errors import UnknownNameError
from labkit.memory.checkpointed import decoder_layers

STATES = ("freed", "host", "kept")
OUTSIDE = "outside"


def blocks_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a decoder-only model by block: "0", "1", … its layers, and "outside" all else, tied ones once.

    Raises:
        LabError: for a model without one list of decoder layers.
    """
    _, _, layers = decoder_layers(model)
    found = {str(index): list(layer.parameters()) for index, layer in enumerate(layers)}
    inside = {id(p) for params in found.values() for p in params}
    found[OUTSIDE] = [p for p in model.parameters() if id(p) not in inside]
    return found


class Awake:
    """Which blocks train, and where the states of the others are.

    Args:
        blocks: parameters by name of block.
        optimizer: with one group that is empty, or holds what is awake now.
        states: of what falls asleep: "freed", "host" (kept there until it wakes), or "kept" in place.

    Attributes:
        names: of the blocks that are awake.

    Raises:
        UnknownNameError: for another way to treat states.
    """

    def __init__(self, blocks: dict[str, list[nn.Parameter]], optimizer: torch.optim.Optimizer, states: str = "freed"):
        if states not in STATES:
            raise UnknownNameError.among("way to treat states", states, STATES)
        self.blocks, self.optimizer, self.states = blocks, optimizer, states
        self.names: tuple[str, ...] = ()
        self._host: dict[nn.Parameter, dict[str, Any]] = {}

    def _all(self) -> Iterable[nn.Parameter]:
        return (p for params in self.blocks.values() for p in params)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is awake."""
        return [p for name in self.names for p in self.blocks[name]]

    def only(self, names: Iterable[str]) -> None:
        """Wake these blocks, and put all others to sleep.

        Raises:
            UnknownNameError: for a block that is not there; nothing has changed then.
        """
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if name not in self.blocks:
                raise UnknownNameError.among("block", name, self.blocks)
        stay = {id(p) for name in wanted for p in self.blocks[name]}
        for parameter in self.parameters:
            if id(parameter) not in stay:
                self._sleep(parameter)
        self.names = wanted
        for parameter in self._all():
            parameter.requires_grad_(id(parameter) in stay)
        for parameter in self.parameters:
            self._wake(parameter)
        [group] = self.optimizer.param_groups
        group["params"] = self.parameters

    def _sleep(self, parameter: nn.Parameter) -> None:
        parameter.requires_grad_(False)
        parameter.grad = None
        if self.states == "kept":
            return
        state = self.optimizer.state.pop(parameter, None)
        if self.states == "host" and state:
            self._host[parameter] = {name: _to(value, "cpu") for name, value in state.items()}

    def _wake(self, parameter: nn.Parameter) -> None:
        if state := self._host.pop(parameter, None):
            self.optimizer.state[parameter] = {name: _to(value, parameter.device) for name, value in state.items()}

    def host_bytes(self) -> int:
        """Bytes of states on the host."""
        values = (v for state in self._host.values() for v in state.values())
        return sum(v.untyped_storage().nbytes() for v in values if isinstance(v, torch.Tensor))


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
