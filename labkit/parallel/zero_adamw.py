"""AdamW of which each rank holds, and updates, its parts only: an N-th of master weights and moments.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) is elementwise: parts updated apart are the whole updated. What is
not elementwise is the global norm of clipping: each rank adds the squares of its parts, the sums are added over ranks,
and every rank comes to the same factor, on the device, with no value read by the host.

Units are updated one by one, so that one unit's part of gradients at a time is there in fp32, and each unit's weights
leave for the other ranks while the next is updated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.parallel.zero_engine import ZeroEngine


class ShardedAdamW(torch.optim.Optimizer):
    """AdamW on the fp32 masters of an engine's units, by torch's fused kernel.

    Args:
        engine: after whose `finish` a step is made.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.

    Attributes:
        factor: what gradients are multiplied by, a number on the device; None for 1.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([unit.master for unit in engine.units], settings)
        self.engine = engine
        self.factor: Tensor | None = None
        self._allocate()

    def _allocate(self) -> None:
        """States of zero, before the first step as after it: a step needs no more than was there."""
        for unit in self.engine.units:
            zeros = (torch.zeros_like(unit.master, requires_grad=False) for _ in range(2))
            step = torch.zeros((), device=unit.master.device)
            self.state[unit.master] = dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True)) | {"step": step}

    def squares(self) -> Tensor:
        """Sum of the squares of this rank's gradients, in fp32."""
        gradients = [unit.gradient for unit in self.engine.units if unit.gradient is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return torch.stack(norms).square().sum()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every unit's part, and send it on; the gradients are gone afterwards."""
        group = self.param_groups[0]
        for unit in self.engine.units:
            assert unit.gradient is not None
            gradient = unit.gradient.float()
            if self.factor is not None:
                gradient.mul_(self.factor)
            state = self.state[unit.master]
            state["step"] += 1
            torch._fused_adamw_(
                [unit.master],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            self.engine.free_gradient(unit)
            self.engine.publish(unit)
        self.engine.settle()
