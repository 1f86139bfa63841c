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

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.layerwise.awake import OUTSIDE
from labkit.layerwise.turns import InTurns
from labkit.ledger.shapes import Architecture
from labkit.tasks import Batch

IMPORTANCE = ("uniform", "norm")


def standing_bytes(arch: Architecture, layers: int, outside: bool = True) -> dict[str, int]:
    """Bytes of weights, gradients and moments in fp32 where so many layers of a model are awake: 4 N + 12 (Ψ₀ + γ ψ).

    (And a few more: AdamW counts each tensor's steps in 4 bytes.)
    """
    layer = sum(weight.numel for weight in arch.block)
    awake = layers * layer + (arch.parameters - arch.layers * layer if outside else 0)
    return {"weights": 4 * arch.parameters, "gradients": 4 * awake, "optimizer_states": 8 * awake}


@dataclass
class Lisa(InTurns):
    """AdamW on what lies outside of the layers and on `layers` of them, drawn anew every `period` steps.

    Attributes:
        layers: γ, how many are awake.
        importance: "uniform", or "norm": in proportion to the norm of a layer's weights.
        outside: whether embedding, last norm and head train.

    Raises:
        LabError: from `prepare`, for numbers that do not fit the model.
    """

    learning_rate: float = 5e-4
    layers: int = 2
    importance: str = "uniform"
    outside: bool = True
    name: str = "lisa"

    def check(self) -> None:
        """γ is at most the number of layers."""
        super().check()
        if not 1 <= self.layers <= len(self._layers):
            cause = f"{self.layers} of {len(self._layers)} layers cannot be awake."
            raise LabError(cause, f"Give 1 to {len(self._layers)}.")
        if self.importance not in IMPORTANCE:
            raise UnknownNameError.among("importance", self.importance, IMPORTANCE)

    @torch.no_grad()
    def probabilities(self) -> Float[Tensor, " layers"]:
        """With which each layer is the first of a draw."""
        if self.importance == "uniform":
            return torch.full((len(self._layers),), 1 / len(self._layers))
        squares = [
            torch.stack([p.float().square().sum().cpu() for p in self._blocks[name]]).sum() for name in self._layers
        ]
        sizes = torch.stack(squares).sqrt()
        return sizes / sizes.sum()

    def next_blocks(self, batch: Batch | None) -> list[str]:
        """γ layers, drawn without replacement, and what is always awake."""
        drawn = torch.multinomial(self.probabilities(), self.layers, generator=self._generator)
        names = [self._layers[index] for index in sorted(drawn.tolist())]
        return [*([OUTSIDE] if self.outside else []), *names]
