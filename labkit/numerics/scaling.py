"""Loss scaling: static and dynamic, every decision there to be seen.

The gradient is linear in the loss. Multiply the loss by S, and every gradient on the way back is multiplied by S;
divide the gradients of the weights by S in fp32, and nothing has changed but what fp16 rounded to zero in between
(Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). S must not push the largest gradient beyond 65504.

A static scale is chosen by hand. A dynamic one is found by trying: start high; after a step whose gradients hold an
infinity or a NaN, throw the step away and multiply S by `backoff_factor`; after `growth_interval` good steps in a row,
multiply it by `growth_factor`. These are the rules and the defaults of `torch.amp.GradScaler` (2^16, 2, 1/2, 2000), and
the tests hold both to the same decisions at every step. Powers of two change no mantissa bit; others round.

The lecture (Stanford CS224N, lecture 12, 2024) gives the recipe with "a large value" and shows GradScaler's calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError


def nonfinite(gradients: Sequence[Tensor]) -> bool:
    """Whether any value of any gradient is an infinity or a NaN. The device is asked once, for all of them."""
    # The largest magnitude of a tensor is finite if all of its values are, and takes no memory of the tensor's size.
    largest = [torch.linalg.vector_norm(g.detach(), math.inf) for g in gradients if g.numel()]
    if not largest:
        return False
    wide = functools.reduce(torch.promote_types, {size.dtype for size in largest})
    return not bool(torch.stack([size.to(wide) for size in largest]).isfinite().all())


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


@dataclass
class StaticScaler:
    """A loss scale that stays. A step with overflowed gradients is skipped all the same.

    Attributes:
        scale: the factor S, positive and finite in fp32, which holds it.
        found_inf: whether the last gradients that were unscaled held an infinity or a NaN.
        unscaled: whether this step's gradients have been divided by S and wait to be used.
        skipped: how many steps were thrown away.
        made: how many were not.
    """

    scale: float = 1024.0
    found_inf: bool = field(default=False, init=False)
    unscaled: bool = field(default=False, init=False)
    skipped: int = field(default=0, init=False)
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        held = _fp32(self.scale)
        if not (0 < held < math.inf):
            raise LabError(f"A loss cannot be scaled by {self.scale}.", "Choose a scale that fp32 holds above zero.")
        self.scale = held

    def scale_loss(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss times S, to call backward on. A 16-bit loss becomes fp32 first, where S times it has room."""
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * self.scale

    def unscale_(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the parameters' gradients by S in place; return whether they had overflowed.

        Call it once a step, before gradients are clipped. In fp16 the quotient is rounded to fp16 again, and what
        scaling saved is lost: hand over fp32 gradients. GradScaler refuses fp16 gradients for that reason. It also
        refuses a step in which no parameter has a gradient; here nothing is found, and the step counts as good.

        Raises:
            LabError: on a second call in one step, as GradScaler: the gradients would be divided twice.
        """
        if self.unscaled:
            cause = "The gradients of this step have been unscaled already; again, they would be S times too small."
            raise LabError(cause, "Call unscale_ once a step, with all parameters, and step after it.")
        gradients = _gradients(parameters)
        self.found_inf = nonfinite(gradients)
        # Below 2^-128 the reciprocal is infinite in fp32: a scale that fell so far ruins weights, as GradScaler's does.
        inverse = _fp32(1.0 / self.scale) if self.scale else math.inf
        if gradients:
            # As a tensor: a Python number would be rounded to the gradients' format first, in fp16 1/2^25 to zero.
            torch._foreach_mul_(gradients, torch.tensor(inverse, dtype=torch.float32))
        self.unscaled = True
        return self.found_inf

    def step(self, update: Callable[[], Any]) -> bool:
        """Call `update` (an optimizer's step) unless the gradients had overflowed; return whether it was called.

        Raises:
            LabError: before `unscale_`, and a second time in one step. GradScaler, which knows the optimizer's
                parameters, would unscale them by itself in the first case, and refuses the second.
        """
        if not self.unscaled:
            cause = "The gradients of this step have not been unscaled: they are S times too large."
            raise LabError(cause, "Call unscale_ with the parameters that are updated, once before each step.")
        self.unscaled = False
        if self.found_inf:
            self.skipped += 1
            return False
        update()
        self.made += 1
        return True

    def update(self) -> None:
        """Choose the next scale: the same. The step is over, whether or not it was made."""
        self.unscaled = False

    def observed(self) -> dict[str, float]:
        """The scale of the step, whether it overflowed, and how many steps were skipped so far."""
        return {"loss_scale": self.scale, "found_inf": float(self.found_inf), "skipped": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Scale and counts."""
        return {"scale": self.scale, "skipped": self.skipped, "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.scale = float(state["scale"])
        self.skipped, self.made = int(state.get("skipped", 0)), int(state.get("made", 0))


@dataclass
class DynamicScaler(StaticScaler):
    """A loss scale that falls at every overflow and rises after `growth_interval` good steps in a row.

    Attributes:
        growth_tracker: good steps since the scale last changed.
    """

    scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    growth_tracker: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.growth_factor > 1 and 0 < self.backoff_factor < 1 and self.growth_interval >= 1):
            factors = f"growth {self.growth_factor}, back-off {self.backoff_factor}, every {self.growth_interval} steps"
            raise LabError(
                f"A dynamic loss scale cannot follow these rules: {factors}.",
                "Growth is more than 1, back-off lies between 0 and 1, and the interval is at least one step.",
            )

    def update(self) -> None:
        """Choose the next scale: lower after an overflow, higher after enough good steps, else the same."""
        super().update()  # the step is over
        if self.found_inf:
            self.scale = _fp32(self.scale * self.backoff_factor)
            self.growth_tracker = 0
            return
        self.growth_tracker += 1
        if self.growth_tracker == self.growth_interval:
            grown = _fp32(self.scale * self.growth_factor)
            # As GradScaler: an infinite scale would never come back, since half of it is infinite too.
            self.scale = grown if math.isfinite(grown) else self.scale
            self.growth_tracker = 0

    def observed(self) -> dict[str, float]:
        """As the static scaler, and how many good steps the tracker has counted."""
        return {**super().observed(), "growth_tracker": float(self.growth_tracker)}

    def state_dict(self) -> dict[str, Any]:
        """Under the names that torch.amp.GradScaler uses, and the counts."""
        return {
            **super().state_dict(),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.growth_tracker,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, ours or one of torch.amp.GradScaler's."""
        super().load_state_dict(state)
        self.growth_factor, self.backoff_factor = float(state["growth_factor"]), float(state["backoff_factor"])
        self.growth_interval, self.growth_tracker = int(state["growth_interval"]), int(state["_growth_tracker"])


def _fp32(value: float) -> float:
    """`value` as fp32 holds it: GradScaler keeps its scale in fp32."""
    return torch.tensor(value, dtype=torch.float64).float().item()


def trace(scaler: StaticScaler, overflows: Iterable[bool]) -> list[dict[str, float]]:
    """What a scaler decides on a sequence of good and overflowed gradients, one row a step.

    Each row holds `scale` (used in the step), `found_inf`, `stepped` (whether the weights moved), `skipped` (so far)
    and `next_scale`.
    """
    rows = []
    for overflow in overflows:
        weight = torch.zeros(2, requires_grad=True)
        weight.grad = torch.tensor([1.0, math.inf if overflow else 1.0])
        before = scaler.scale
        scaler.unscale_([weight])
        stepped = scaler.step(lambda: None)
        scaler.update()
        rows.append(
            {
                "scale": before,
                "found_inf": float(scaler.found_inf),
                "stepped": float(stepped),
                "skipped": float(scaler.skipped),
                "next_scale": scaler.scale,
            }
        )
    return rows


def library_trace(overflows: Iterable[bool], **options: Any) -> list[dict[str, float]]:
    """The same by torch.amp.GradScaler with an optimizer of its own, for comparison.

    Args:
        overflows: which steps' gradients hold an infinity.
        options: GradScaler's: `init_scale`, `growth_factor`, `backoff_factor`, `growth_interval`.
    """
    scaler = torch.amp.GradScaler("cpu", **options)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    made: list[int] = []  # a weight may be too large for a step of 1/S to show
    optimizer.register_step_post_hook(lambda *_: made.append(1))
    rows: list[dict[str, float]] = []
    for overflow in overflows:
        before, stepped = scaler.get_scale(), len(made)
        scaler.scale(torch.zeros(()))  # creates its tensors on the first call
        weight.grad = torch.tensor([1.0, math.inf if overflow else 1.0])
        scaler.unscale_(optimizer)
        found = scaler._found_inf_per_device(optimizer).values()
        scaler.step(optimizer)
        scaler.update()
        rows.append(
            {
                "scale": before,
                "found_inf": float(any(bool(f) for f in found)),
                "stepped": float(len(made) - stepped),
                "skipped": float(len(rows) + 1 - len(made)),
                "next_scale": scaler.get_scale(),
            }
        )
    return rows
