"""What all adapters share as `Method`s: the frozen weights' dtype, and the bytes.

Of Ψ frozen values of c bytes and ψ trained ones a step holds

    c Ψ + 4 ψ    weights        4 ψ    gradients        8 ψ    AdamW's moments

where full fine-tuning holds 16 Ψ in fp32. Trained values are fp32 whatever c is, so that they are their own master
weights (lesson 02). What stays is the activations: a frozen layer still passes its input's gradient on, and keeps for
that what its derivative needs (`labkit.ledger.activations`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.errors import UnknownNameError
from labkit.ledger.case import DTYPES
from labkit.methods import FirstOrder
from labkit.tasks import Task


@dataclass
class Adapted(FirstOrder):
    """AdamW on few values beside a frozen model.

    Attributes:
        weights: dtype of the frozen weights; empty: as the model has them. 16-bit weights need no `compute_dtype`.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    weights: str = ""
    name: str = "adapted"

    def adapt(self, model: torch.nn.Module, task: Task) -> None:
        """Add what trains to a model whose weights are frozen. Each adapter's own part."""
        raise NotImplementedError

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Freeze and convert the weights, then add the adapter.

        Raises:
            UnknownNameError: for another dtype.
        """
        if self.weights and self.weights not in DTYPES:
            raise UnknownNameError.among("dtype of weights", self.weights, DTYPES)
        model.requires_grad_(False)
        if self.weights:
            model.to(getattr(torch, self.weights))
        self.adapt(model, task)

    def predicted_bytes(self) -> dict[str, int]:
        """By formula, from how many values are frozen and how many train."""
        trained = sum(p.numel() for p in self._trained)
        frozen = [p for p in self._model.parameters() if not p.requires_grad]
        return {
            "weights": sum(p.numel() * p.element_size() for p in frozen) + 4 * trained,
            "gradients": 4 * trained,
            "optimizer_states": 8 * trained + 4 * len(self._trained),
        }
