"""GaLore: Adam's moments of a gradient's projection to few directions (Zhao et al. 2024, arXiv:2403.03507).

Let G be the gradient of a weight of m × n, m ≤ n, and P the first r left singular vectors that it had at the last
refresh, every T steps. With R = Pᵀ G, of r × n, GaLore steps

    M = β₁ M + (1 - β₁) R        V = β₂ V + (1 - β₂) R²        W = W - η α P M̂ / (√V̂ + ε)

and symmetrically from the right where m > n. Moments and P of a matrix take 4 (2 r max(m, n) + r min(m, n)) bytes in
fp32 in the place of 8 m n. The weight stays whole and its update has full rank over several refreshes, which sets it
apart from LoRA; the moments are carried over a refresh unturned, though they belong to the old directions.

A gradient is as large as ever. But a tensor's gradient that nobody else needs can be used and freed where it is made,
in a hook during the backward pass, so that there is never more than one (the paper's per-layer weight update). Clipping
by the global norm needs all of them first: with `max_grad_norm` they stay until the step. A tied embedding is an
exception that no hook helps: autograd keeps the head's part of its gradient until the lookup's part is there.

Three choices are those of the published package (galore-torch 1.0), to whose weights these here are equal: ε is added
before the moments' bias is corrected, and so counts for more in the first steps than in the paper; weight decay comes
after the update, without α; a square matrix is projected from the right, where the paper's m ≤ n says left. Its
projector is a slice of all singular vectors, and a slice keeps its whole alive: min(m, n)² values in the place of
r min(m, n). Here it is a copy.

The lecture has GaLore in a table of results only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, blocks_of
from labkit.ledger import Ledger, storage_bytes
from labkit.methods import FirstOrder
from labkit.tasks import Batch, Task


def from_the_right(gradient: Float[Tensor, "m n"]) -> bool:
    """Whether the columns are projected: the shorter side is, and of a square matrix the columns."""
    return gradient.shape[0] >= gradient.shape[1]


@torch.no_grad()
def directions(gradient: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "rows columns"]:
    """The first singular vectors of the shorter side: [rank, n] in rows where m ≥ n, else [m, rank] in columns.

    Of a gradient that is not finite there are none; it gets the first unit vectors, and what is not a number passes
    through them into the weights, as through AdamW.
    """
    right, rank = from_the_right(gradient), min(rank, *gradient.shape)
    wide = gradient.float()
    if not torch.isfinite(wide).all():
        unit = torch.eye(min(gradient.shape), device=gradient.device, dtype=gradient.dtype)
        return (unit[:rank] if right else unit[:, :rank]).clone()
    u, _, vh = torch.linalg.svd(wide, full_matrices=False)
    # A slice would keep all singular vectors alive.
    return (vh[:rank] if right else u[:, :rank]).to(gradient.dtype).clone(memory_format=torch.contiguous_format)


def projected(gradient: Float[Tensor, "m n"], basis: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The gradient's coordinates: [m, rank] where m ≥ n, else [rank, n]."""
    return gradient @ basis.T if from_the_right(gradient) else basis.T @ gradient


class ProjectedAdamW(torch.optim.Optimizer):
    """AdamW, in few directions for groups that have a `rank`; each tensor can be updated alone.

    Args:
        params: groups; one with a `rank` (None, or absent: plain AdamW) holds matrices only.
        period: steps between two singular value decompositions of a matrix.
        scale: α, of the update of projected matrices.

    Raises:
        LabError: for a group with a rank that holds something else than matrices, and settings out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        period: int = 200,
        scale: float = 0.25,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rank": None, "period": period, "scale": scale})
        for group in self.param_groups:
            _check(group)
        self._group = {p: number for number, group in enumerate(self.param_groups) for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter)
        return loss

    @torch.no_grad()
    def update(self, parameter: Tensor) -> None:
        """Update one tensor by its gradient, if it has one; the gradient is still there afterwards."""
        if parameter.grad is None:
            return
        group, state, gradient = self.param_groups[self._group[parameter]], self.state[parameter], parameter.grad
        done = state.get("step", 0)
        if group["rank"] is not None:
            if done % group["period"] == 0:
                state["basis"] = directions(gradient, group["rank"])
            gradient = projected(gradient, state["basis"])
        if not done:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] = done + 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        length = group["lr"] * math.sqrt(1 - beta2 ** (done + 1)) / (1 - beta1 ** (done + 1))
        self._move(parameter, state, length, group)

    def _move(self, parameter: Tensor, state: dict[str, Any], length: float, group: dict[str, Any]) -> None:
        root = state["exp_avg_sq"].sqrt().add_(group["eps"])
        if group["rank"] is None:
            parameter.addcdiv_(state["exp_avg"], root, value=-length)
        else:
            # The product is added where it is made: an update of the weight's size is never there.
            basis, direction = state["basis"], state["exp_avg"] / root
            pair = (direction, basis) if from_the_right(parameter) else (basis, direction)
            parameter.addmm_(*pair, alpha=-length * group["scale"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _check(group: dict[str, Any]) -> None:
    if group["rank"] is None:
        return
    if group["rank"] < 1 or group["period"] < 1:
        cause = f"A rank of {group['rank']} and a new projection every {group['period']} steps cannot be."
        raise LabError(cause, "Both are at least 1.")
    for parameter in group["params"]:
        if parameter.dim() != 2:
            shape = tuple(parameter.shape)
            raise LabError(f"A gradient of shape {shape} has no singular vectors.", "Give its group no rank.")


def state_bytes(shape: Iterable[int], rank: int) -> int:
    """Bytes of moments and basis of an fp32 matrix: 4 (2 r max(m, n) + r min(m, n)), r being at most min(m, n)."""
    short, long = sorted(shape)
    rank = min(rank, short)
    return 4 * (2 * rank * long + rank * short)


@dataclass
class GaLore(FirstOrder):
    """AdamW in `rank` directions for the matrices of all decoder layers, and plain AdamW for the rest.

    Attributes:
        rank: r, of each projection; a matrix with a shorter side than that keeps all of its directions.
        period: T, steps between two refreshes.
        scale: α; a projected matrix moves at `scale` times the learning rate.
        max_grad_norm: 0: no clipping, and each tensor is updated in the backward pass, its gradient freed at once.

    Raises:
        LabError: from `prepare`, for a rank or a period below 1.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    rank: int = 8
    period: int = 50
    scale: float = 0.25
    name: str = "galore"

    def choose(self, model: nn.Module, task: Task) -> None:
        """Everything trains."""
        self._hooks: list[RemovableHandle] = []
        self._most_gradients: int | None = None  # bytes seen at once, where they are being counted
        model.requires_grad_(True)
        blocks = blocks_of(model)
        self._matrices = [p for name, own in blocks.items() if name != OUTSIDE for p in own if p.dim() == 2]

    def build_optimizer(self, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Two groups: matrices of the layers, and all else."""
        inside = {id(p) for p in self._matrices}
        rest = [p for p in trained if id(p) not in inside]
        groups = [{"params": self._matrices, "rank": self.rank}, {"params": rest}]
        made = ProjectedAdamW(
            groups, self.learning_rate, weight_decay=self.weight_decay, period=self.period, scale=self.scale
        )
        if not self.max_grad_norm:
            for parameter in trained:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._at_once))
        self._projected_adamw = made
        return made

    def _at_once(self, parameter: Tensor) -> None:
        """Update a tensor as soon as its gradient is there, and free that."""
        if self._most_gradients is not None:
            alive = storage_bytes(p.grad for p in self._trained if p.grad is not None)
            self._most_gradients = max(self._most_gradients, alive)
        self._projected_adamw.update(parameter)
        parameter.grad = None

    def _update(self, loss: Tensor) -> None:
        if self.max_grad_norm:
            super()._update(loss)
            return
        self._backward(loss)
        self._optimizer.step()  # finds no gradient; the schedule wants to have seen it
        self._schedule.step()

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes counted; of gradients, the most that were there at once."""
        self._most_gradients = 0
        loss = super().measured_step(batch, ledger)
        if not self.max_grad_norm:
            ledger.measured["gradients"] = self._most_gradients
        self._most_gradients = None
        return loss

    def predicted_bytes(self) -> dict[str, int]:
        """By formula: 4 bytes a weight, the largest gradient (all of them with clipping), moments and directions."""
        inside = {id(p) for p in self._matrices}
        sizes = [4 * p.numel() for p in self._trained]
        states = [state_bytes(p.shape, self.rank) if id(p) in inside else 8 * p.numel() for p in self._trained]
        gradients = sum(sizes) if self.max_grad_norm else max(sizes)
        return {"weights": sum(sizes), "gradients": gradients, "optimizer_states": sum(states)}

    def observed(self) -> dict[str, float]:
        """How many bytes of states the optimizer holds."""
        values = (v for state in self._optimizer.state.values() for v in state.values())
        return {"state_bytes": float(storage_bytes(v for v in values if isinstance(v, Tensor)))}

    def close(self) -> None:
        """Take the hooks off."""
        for hook in getattr(self, "_hooks", ()):  # there is none where `prepare` did not get so far
            hook.remove()
