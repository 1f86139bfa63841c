"""How many directions does fine-tuning need? Training in a random subspace of d dimensions.

    w = w₀ + P z          P of [Ψ, d] fixed and random, z of [d] trains, from zero

The smallest d that reaches nine tenths of full training's result is a task's *intrinsic dimension* (Li et al. 2018,
arXiv:1804.08838); for pretrained language models it is hundreds to thousands where Ψ is hundreds of millions
(Aghajanyan et al. 2020, arXiv:2012.13255). The seed lecture (003) cites that for a low *rank* of updates; few
dimensions and low rank are not the same: one random direction in all weights has full rank in each matrix.

A dense P has Ψ d values. Here each weight listens to one value of z, with a sign:

    w_i = w₀_i + s σ(i) z[π(i) mod d]        s = √(d / Ψ),  σ(i) = ±1

π is a permutation of 0 … Ψ - 1, so that every z moves Ψ / d weights, up to one, and the columns of P are orthonormal
where d divides Ψ: a sparse random projection (Weinberger et al. 2009, arXiv:0902.2206), the columns' scale being that
of Li et al. π and σ follow from a seed and i, so that a training's whole result is the seed and z; while it trains,
they are held as one int32 a weight. With d = Ψ it is full fine-tuning under other names: AdamW's steps do not depend
on order and sign.

Gradients of the weights exist one tensor at a time: each becomes its share of Pᵀ g as it arrives and is let go. What
this saves is no reason to train so; it is an instrument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import Ledger, storage_bytes
from labkit.methods import FirstOrder
from labkit.tasks import Batch, Task

NAME = "intrinsic_z"
GOLDEN, MIX = -7046029254386353131, -4658895280553007687  # of SplitMix64 (Steele et al. 2014), as signed numbers


@dataclass(frozen=True)
class Projection:
    """P, as a rule: column and sign of each of `total` weights for `dimensions` values of z.

    Raises:
        LabError: for dimensions that are not between 1 and the number of weights.
    """

    total: int
    dimensions: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.dimensions, int) or not 1 <= self.dimensions <= self.total:
            cause = f"A subspace of {self.dimensions!r} dimensions is none of {self.total} weights."
            raise LabError(cause, f"Give a whole number from 1 to {self.total}.")

    @property
    def scale(self) -> float:
        """s: it makes every column of P one long."""
        return math.sqrt(self.dimensions / self.total)

    def columns(self, start: int, count: int, device: Any = None) -> Int[Tensor, " n"]:
        """For `count` weights from weight `start` on: twice the column, and one more where the sign is negative."""
        step, shift = self._permutation()
        spot = (torch.arange(start, start + count) * step + shift) % self.total
        mixed = (spot + self.seed + 1) * GOLDEN
        mixed = (mixed ^ (mixed >> 30)) * MIX
        return (2 * (spot % self.dimensions) + ((mixed >> 37) & 1)).to(device, torch.int32)

    def _permutation(self) -> tuple[int, int]:
        """i ↦ (step i + shift) mod Ψ: one to one, since step and Ψ share no divisor."""
        generator = torch.Generator().manual_seed(self.seed)
        most = max(2, min(self.total, 2**62 // self.total))  # a product has to fit into 64 bits
        step, shift = (int(torch.randint(1, most, (), generator=generator)) for _ in range(2))
        while math.gcd(step, self.total) > 1:
            step += 1
        return step, shift

    def spread(self, z: Float[Tensor, " d"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The rows of P z that belong to `columns`."""
        both = torch.stack([z, -z], 1).flatten() * self.scale
        return both.index_select(0, columns)

    def gather(self, gradient: Float[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " d"]:
        """The share in Pᵀ g of the weights that belong to `columns`."""
        both = torch.zeros(2 * self.dimensions, device=gradient.device)
        plus, minus = both.index_add_(0, columns, gradient.float()).view(-1, 2).unbind(1)
        return (plus - minus) * self.scale


@dataclass
class Intrinsic(FirstOrder):
    """AdamW on z; the weights move by P times its change.

    Attributes:
        dimensions: d.
        projection_seed: of P.
        learning_rate: of z at d = Ψ. It is multiplied by √(Ψ / d), so that a step moves the weights as far for every d.

    Raises:
        LabError: from `prepare`, for dimensions that are not between 1 and the number of weights.
    """

    dimensions: int = 1000
    projection_seed: int = 0
    weight_decay: float = 0.0
    name: str = "intrinsic"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """z as the one parameter that trains; a hook on each weight for its gradient's share."""
        weights = list(model.parameters())
        self.projection = Projection(sum(p.numel() for p in weights), self.dimensions, self.projection_seed)
        self.z = torch.nn.Parameter(torch.zeros(self.dimensions, device=weights[0].device))
        self._weights, self._hooks, start = [], [], 0
        for weight in weights:
            columns = self.projection.columns(start, weight.numel(), weight.device)
            weight.requires_grad_(True)  # a hook is refused without
            self._hooks.append(weight.register_post_accumulate_grad_hook(self._taken(columns)))
            weight.requires_grad_(False)
            self._weights.append((weight, columns))
            start += weight.numel()
        self._buffers = storage_bytes(model.buffers()) + storage_bytes(columns for _, columns in self._weights)
        model.register_parameter(NAME, self.z)

    def _taken(self, columns: Tensor) -> Any:
        def take(weight: Tensor) -> None:
            assert weight.grad is not None and self.z.grad is not None
            self.z.grad += self.projection.gather(weight.grad.reshape(-1), columns)
            weight.grad = None

        return take

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW on z, at the rate of its dimension."""
        rate = self.learning_rate / self.projection.scale
        return torch.optim.AdamW(trained, lr=rate, weight_decay=self.weight_decay, fused=True)

    def _loss(self, batch: Batch) -> Tensor:
        for weight, _ in self._weights:
            weight.requires_grad_(True)
        return super()._loss(batch)

    def _backward(self, loss: Tensor) -> None:
        self.z.grad = torch.zeros_like(self.z)
        loss.backward()
        for weight, _ in self._weights:
            weight.requires_grad_(False)

    def _update(self, loss: Tensor) -> None:
        before = self.z.detach().clone()
        super()._update(loss)
        self._move(self.z.detach() - before)

    @torch.no_grad()
    def _move(self, change: Float[Tensor, " d"]) -> None:
        """w += P (change of z)."""
        for weight, columns in self._weights:
            weight.add_(self.projection.spread(change, columns).view_as(weight).to(weight.dtype))

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes counted."""
        loss = super().measured_step(batch, ledger)
        ledger.measured["buffers"] += storage_bytes(columns for _, columns in self._weights)
        return loss

    def predicted_bytes(self) -> dict[str, int]:
        """Weights as they are, four bytes more a weight for its column, and sixteen for each of d numbers."""
        frozen = sum(w.numel() * w.element_size() for w, _ in self._weights)
        return {
            "weights": frozen + 4 * self.dimensions,
            "gradients": 4 * self.dimensions,
            "optimizer_states": 8 * self.dimensions + 4,
            "buffers": self._buffers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """z, its moments, and the weights that follow from z."""
        before = self.z.detach().clone()
        super().load_state_dict(state)
        self._move(self.z.detach() - before)

    def close(self) -> None:
        """Hooks and z off the model; the weights stay where training left them."""
        for hook in getattr(self, "_hooks", ()):
            hook.remove()
        if NAME in getattr(getattr(self, "_model", None), "_parameters", {}):
            del self._model._parameters[NAME]
