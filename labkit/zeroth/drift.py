"""How far a weight drifts when it only goes out and comes back: the walk's loss in 16 bits, without any update.

    three moves     w + ε z,  − 2ε z,  + ε z          as MeZO's algorithm is written: three roundings a step
    walk            back and out to the next direction as one move: two roundings a step
    exact           w + ε z is made beside w: w is not written

Each rounding is an error of up to half the spacing of numbers at w, with a sign of its own. Over k steps independent
errors add up to about √k times one step's. What is measured is ‖w_k − w_0‖ / ‖w_0‖. The ways are those of
`labkit.zeroth.restore`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.zeroth import perturb
from labkit.zeroth.perturb import Weight
from labkit.zeroth.restore import Exact, Walk

WAYS = ("three moves", "walk", "exact")


@torch.no_grad()
def drift(tensor: Tensor, eps: float, marks: Sequence[int], way: str) -> list[float]:
    """‖w_k − w_0‖ / ‖w_0‖ after k steps, for each k of `marks`; step k goes along the direction of seed k.

    Args:
        tensor: w_0, contiguous; it stays as it is.
        eps: ε.
        marks: numbers of steps, rising.
        way: one of WAYS. A walk is brought home at the marks, which is one more rounding there.

    Raises:
        UnknownNameError: for another way.
        LabError: where `marks` do not rise from 1 or more.
    """
    if way not in WAYS:
        raise UnknownNameError.among("way to come back", way, WAYS)
    if list(marks) != sorted(set(marks)) or not marks or marks[0] < 1:
        raise LabError(f"{list(marks)} are no rising numbers of steps.", "Give whole numbers from 1 on, as (1, 10).")
    start, here = tensor.detach().double(), tensor.detach().clone()
    weight = Weight("w", here, True, frozenset())
    restore, found = Exact([weight]) if way == "exact" else Walk([weight]), []
    for step in range(1, marks[-1] + 1):
        if way == "three moves":
            for scale in (eps, -2 * eps, eps):
                perturb.add_(here, "w", [(step, scale)])
        for side in (eps, -eps) if way != "three moves" else ():
            with restore.at([(step, side)]):
                pass
        if step in marks:
            restore.settle()
            found.append(float((here.double() - start).norm() / start.norm()))
    return found
