"""Whether ε moves the weights at all: w + ε z is w again where ε |z| is less than half the spacing of numbers at w.

At |w| = 2⁻⁶ the spacing is 2⁻¹⁶ in fp16 and 2⁻¹³ in bf16. With ε = 10⁻³ nearly every weight moves in both; with 10⁻⁵
fewer than half do in fp16, and none in bf16. What does not move has no part in ℓ₊ − ℓ₋, and the update is noise to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from labkit.errors import LabError
from labkit.zeroth import perturb
from labkit.zeroth.perturb import Weight

SAMPLED = 1024
WARNED, REFUSED = 0.25, 0.95


@torch.no_grad()
def unmoved(weights: Sequence[Weight], eps: float, seed: int = 0) -> float:
    """Share of all values that round(w + ε z) leaves as they are, from up to 1,024 in the middle of each tensor."""
    still = total = 0.0
    for w in weights:
        flat = w.tensor.view(-1)
        start = max(0, (len(flat) - SAMPLED) // 2)
        values = flat[start : start + SAMPLED]
        moved = torch.empty_like(values)
        perturb.write(values, moved, w.name, [(seed, eps)], start=start)
        still += len(flat) * (moved == values).float().mean().item()
        total += len(flat)
    return still / total


def check_scale(weights: Sequence[Weight], eps: float, seed: int = 0) -> None:
    """Warn where more than a quarter of the weights stay, raise LabError where nearly all do."""
    share = unmoved(weights, eps, seed)
    if share < WARNED:
        return
    dtypes = ", ".join(sorted({str(w.tensor.dtype).removeprefix("torch.") for w in weights}))
    cause = f"With perturbation_scale {eps:g} {100 * share:.0f} % of the weights in {dtypes} stay what they are."
    remedy = "Give a larger perturbation_scale, or weights in a wider dtype."
    if share > REFUSED:
        raise LabError(cause, remedy)
    warnings.warn(f"{cause} {remedy}", stacklevel=2)
