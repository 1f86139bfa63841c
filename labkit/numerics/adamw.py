"""AdamW that computes in fp32 and stores in the formats it is told, to see what each of them loses.

    m ← β1 m + (1-β1) g        v ← β2 v + (1-β2) g²
    w ← (1 - η λ) w - η m̂ / (√v̂ + ε)      m̂ = m / (1-β1^t),  v̂ = v / (1-β2^t)

(Loshchilov & Hutter 2019, arXiv:1711.05101.) `torch.optim.AdamW` keeps m and v in the weights' own format: hand it fp16
weights and the moments are fp16 too. The second moment then is the first victim. It holds squares, and (1-β2) g² with
β2 = 0.999 is below 2^-25, so zero in fp16, for every gradient below 0.0055. Its root is the divisor of the update. Here
the format of the moments is chosen apart from the weights', and weights may be rounded with dice.

The lecture (Stanford CS224N, lecture 12, 2024) lists two troubles of pure fp16, gradients that underflow and imprecise
updates, and does not mention this third one. It also writes the divisor as √(v̂ + ε); Kingma & Ba 2015
(arXiv:1412.6980) and torch have √v̂ + ε, which differs by orders of magnitude where v̂ is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.numerics.rounding import round_stochastic

ROUNDING = ("nearest", "stochastic")


class StoredAdamW(torch.optim.Optimizer):
    """AdamW in fp32 arithmetic, with weights in their own format and both moments in `states`.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        states: the moments' dtype.
        rounding: of the new weights: "nearest", or "stochastic" with `seed`.

    Raises:
        UnknownNameError: for an unknown rounding.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        states: torch.dtype = torch.float32,
        rounding: str = "nearest",
        seed: int = 0,
    ):
        if rounding not in ROUNDING:
            raise UnknownNameError.among("rounding", rounding, ROUNDING)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.states, self.rounding, self.seed = states, rounding, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, where one was given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                index += 1
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group, index)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict, index: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=self.states)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        count, lr = int(state["step"]), group["lr"]
        m = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
        v = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # The update is made from the moments before they are rounded, as in torch's fused kernel.
        divisor = (v.sqrt() / (1 - beta2**count) ** 0.5).add_(group["eps"])
        new = (parameter.float() * (1 - lr * group["weight_decay"])).addcdiv_(
            m, divisor, value=-lr / (1 - beta1**count)
        )
        state["exp_avg"].copy_(m)
        state["exp_avg_sq"].copy_(v)
        parameter.copy_(self._rounded(new, parameter, count, index))

    def _rounded(self, new: Tensor, parameter: Tensor, count: int, index: int) -> Tensor:
        """The new weights, moved by dice to a number of the weights' format where that was asked for."""
        if self.rounding == "nearest" or parameter.dtype == torch.float32:
            return new
        # Seeded anew for each tensor and step: a run that resumes draws the same numbers.
        draws = torch.Generator(parameter.device).manual_seed(hash((self.seed, count, index)) % 2**63)
        return round_stochastic(new, parameter.dtype, draws)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the moments stay in `states`, whatever the parameters' format."""
        super().load_state_dict(state_dict)
        # torch casts moments to the parameter's dtype on loading.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for number, parameter in zip(saved, own, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if number in state_dict["state"]:
                    value = state_dict["state"][number][name]
                    self.state[parameter][name] = value.to(parameter.device, self.states, copy=True)
