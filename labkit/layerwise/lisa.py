"""LISA: AdamW on a few layers at a time, drawn anew every K steps (Pan et al. 2024, arXiv:2403.17919).

    for i = 0 … T/K - 1:
        freeze all layers; embedding and head stay awake
        draw γ layers and wake them
        K steps of AdamW

Full fine-tuning's freedom at near LoRA's bytes: with L layers of ψ values each, Ψ₀ outside of them and N in all, a step
holds 4 N + 12 (Ψ₀ + γ ψ) bytes in fp32. The seed lecture calls it block coordinate minimization, which it is, with one
block, what lies outside, in every turn.

The paper found that LoRA moves the embedding and the head far more than the layers between, and derives from it that
layers should be drawn with a probability that follows the norms of their weights; its algorithm draws uniformly. Both
are here (`importance`). Its published code freezes layers of an optimizer that holds all parameters, whose states then
pile up; `states="kept"` shows that.

With the embedding awake the gradient has to come down through all layers, and each keeps what its input's gradient
needs. Where the embedding sleeps (`outside=False`, not LISA any more) nothing below the lowest awake layer is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.layerwise.awake import OUTSIDE, Awake, blocks_of
from labkit.ledger import Ledger
from labkit.methods import FirstOrder
from labkit.tasks import Batch, Task

IMPORTANCE = ("uniform", "norm")


@dataclass
class Lisa(FirstOrder):
    """AdamW on what lies outside of the layers and on `layers` of them, drawn anew every `period` steps.

    Attributes:
        layers: γ, how many are awake.
        period: K, steps between two draws.
        importance: "uniform", or "norm": in proportion to the norm of a layer's weights.
        outside: whether embedding, last norm and head train.
        states: of layers that fall asleep: "freed", "host" or "kept" (`labkit.layerwise.awake`).
        seed: of the draws.

    Raises:
        LabError: from `prepare`, for numbers that do not fit the model.
    """

    learning_rate: float = 5e-4
    layers: int = 2
    period: int = 10
    importance: str = "uniform"
    outside: bool = True
    states: str = "freed"
    seed: int = 0
    name: str = "lisa"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Find the layers; the first draw is made when the optimizer is there."""
        self._blocks = blocks_of(model)
        self._names = [name for name in self._blocks if name != OUTSIDE]
        if not 1 <= self.layers <= len(self._names) or self.period < 1:
            cause = f"{self.layers} of {len(self._names)} layers, drawn every {self.period} steps, cannot be."
            raise LabError(cause, f"Give 1 to {len(self._names)} layers and a period of at least 1.")
        if self.importance not in IMPORTANCE:
            raise UnknownNameError.among("importance", self.importance, IMPORTANCE)
        self._generator, self._done = torch.Generator().manual_seed(self.seed), 0
        model.requires_grad_(True)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over what is awake."""
        optimizer = super().build_optimizer(trained)
        self.awake = Awake(self._blocks, optimizer, self.states)
        self._draw()
        return optimizer

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Draw the first layers, build the optimizer and the learning-rate schedule."""
        super().prepare(model, task, steps)
        self._trained = self.awake.parameters

    @torch.no_grad()
    def probabilities(self) -> Float[Tensor, " layers"]:
        """With which each layer is the first of a draw."""
        if self.importance == "uniform":
            return torch.full((len(self._names),), 1 / len(self._names))
        norms = [sum(p.float().square().sum() for p in self._blocks[name]) for name in self._names]
        sizes = torch.stack([torch.as_tensor(n).cpu() for n in norms]).sqrt()
        return sizes / sizes.sum()

    def _draw(self) -> None:
        drawn = torch.multinomial(self.probabilities(), self.layers, generator=self._generator)
        names = [self._names[index] for index in sorted(drawn.tolist())]
        self.awake.only([*([OUTSIDE] if self.outside else []), *names])

    def _turn(self) -> None:
        """Before a step: other layers, where it is time."""
        if self._done and self._done % self.period == 0:
            self._draw()
            self._trained = self.awake.parameters
        self._done += 1

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """A draw where it is time; then forward, backward, clip, update."""
        self._turn()
        return super().step(batch)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same with the bytes counted."""
        self._turn()
        loss = super().measured_step(batch, ledger)
        if self.states == "host":
            ledger.host = {"states of sleeping layers": self.awake.host_bytes()}
        return loss

    def observed(self) -> dict[str, float]:
        """The lowest awake layer, and how many bytes of states the optimizer holds."""
        states = self._optimizer.state.values()
        held = sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, Tensor))
        lowest = min(int(name) for name in self.awake.names if name != OUTSIDE)
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
        """Put all of it back. States on the host are not kept: sleeping layers wake as if they had been freed."""
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
