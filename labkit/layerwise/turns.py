"""What methods share whose blocks take turns: AdamW on those that are awake, others every `period` steps.

A `Method` of this kind says which blocks are next; who they are, the generator and the place in the turn are part of
its state, so that a run that was cut off goes on with the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, Awake, blocks_of
from labkit.ledger import Ledger
from labkit.methods import FirstOrder
from labkit.tasks import Batch, Task


@dataclass
class InTurns(FirstOrder):
    """AdamW on the blocks that are awake, which change every `period` steps.

    Attributes:
        period: steps between two choices.
        states: of blocks that fall asleep: "freed", "host" or "kept" (`labkit.layerwise.awake`).
        seed: of the choices.
    """

    period: int = 10
    states: str = "freed"
    seed: int = 0
    name: str = "in turns"

    def check(self) -> None:
        """Raise LabError for settings that do not fit the model, whose blocks are known now."""
        if self.period < 1:
            raise LabError(f"Blocks cannot change every {self.period} steps.", "Give a period of at least 1.")

    def next_blocks(self, batch: Batch | None) -> list[str]:
        """Names of the blocks that train next. Each method's own part.

        Args:
            batch: that the next step will train on; None before the first.
        """
        raise NotImplementedError

    def rehearsed(self, layers: int, steps: int) -> list[tuple[str, ...]]:
        """Who would be awake in each step on a model of so many layers, without the model; forgets a model it had.

        Raises:
            LabError: for settings that do not fit so many layers.
        """
        self._layers = [str(index) for index in range(layers)]
        self._blocks: dict[str, list[torch.nn.Parameter]] = {name: [] for name in (*self._layers, OUTSIDE)}
        self._generator, self._done = torch.Generator().manual_seed(self.seed), 0
        self.check()
        found: list[tuple[str, ...]] = []
        for self._done in range(steps):
            found.append(found[-1] if self._done % self.period else tuple(self.next_blocks(None)))
        return found

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Find the blocks; the first choice is made when the optimizer is there."""
        self._blocks = blocks_of(model)
        self._layers = [name for name in self._blocks if name != OUTSIDE]
        self._generator, self._done = torch.Generator().manual_seed(self.seed), 0
        self.check()
        model.requires_grad_(True)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over what is awake."""
        optimizer = super().build_optimizer(trained)
        self.awake = Awake(self._blocks, optimizer, self.states)
        self.awake.only(self.next_blocks(None))
        return optimizer

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Choose the first blocks, build the optimizer and the learning-rate schedule."""
        super().prepare(model, task, steps)
        self._trained = self.awake.parameters

    def _turn(self, batch: Batch) -> None:
        """Before a step: other blocks, where it is time."""
        if self._done and self._done % self.period == 0:
            self.awake.only(self.next_blocks(batch))
            self._trained = self.awake.parameters
        self._done += 1

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """A choice where it is time; then forward, backward, clip, update."""
        self._turn(batch)
        return super().step(batch)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same with the bytes counted."""
        self._turn(batch)
        loss = super().measured_step(batch, ledger)
        if self.states == "host":
            ledger.host = {"states of sleeping blocks": self.awake.host_bytes()}
        return loss

    def observed(self) -> dict[str, float]:
        """The lowest awake layer (-1 for what lies outside), and how many bytes of states the optimizer holds."""
        states = self._optimizer.state.values()
        held = sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, Tensor))
        lowest = min((int(name) for name in self.awake.names if name != OUTSIDE), default=-1)
        return {"lowest_awake": float(lowest), "state_bytes": float(held)}

    def state_dict(self) -> dict[str, Any]:
        """All weights, since each of them may have been trained, who is awake, and the generator's place."""
        return {
            "weights": [p.detach() for params in self._blocks.values() for p in params],
            "awake": list(self.awake.names),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "done": self._done,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back. States on the host are not kept: sleeping blocks wake as if they had been freed."""
        self.awake.only(state["awake"])
        self._trained = self.awake.parameters
        with torch.no_grad():
            own = [p for params in self._blocks.values() for p in params]
            for parameter, saved in zip(own, state["weights"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._done = state["done"]
        self._generator.set_state(state["generator"])
