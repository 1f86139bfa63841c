"""What an update does to a row of weights: how much longer it got, and how far it turned (Liu et al. 2024).

A row w of W, the weights of one output, is a length m = ‖w‖ times a unit vector u = w / ‖w‖. Between two states of a
matrix, section 3.2 of arXiv:2402.09353 takes means over all k vectors:

    ΔM = 1/k Σ |m' - m|        ΔD = 1/k Σ (1 - cos(w', w))

and asks, over layers and moments of a training, how the two go together: over the query and value matrices of VL-BART
(figure 2) they correlate by -0.62 in full fine-tuning, by 0.83 in LoRA and by -0.31 in DoRA. The paper, and the seed
after it, store W as [in, out], so that their vectors are columns; ours, as torch's, is [out, in], and they are rows.

1 - cos of nearly equal vectors is a difference of nearly equal numbers: for a turn of 0.02 degrees it is 6e-8, fp32's
own spacing at 1. Here it is ½ ‖u' - u‖² in fp64, which is the same and loses nothing. A row of zeros has a length, 0,
and no direction: it counts in ΔM, and ΔD is a mean over the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labkit.adapters.dense import dense_weight
from labkit.adapters.lora import LoraLinear
from labkit.adapters.targets import Targets, find
from labkit.errors import LabError
from labkit.methods import FirstOrder
from labkit.tasks import Task

MOST_SURE = 1.96
"""Standard errors on each side of an estimate that hold 95 % of a normal distribution."""
MOMENTS = 4
"""Evenly spaced moments of a training at which the paper looks, the end among them."""


@dataclass(frozen=True)
class Change:
    """How the rows of one matrix differ from where training began.

    Attributes:
        layer: path of the matrix; step: how many updates were made.
        lengths: m' - m of each row, with its sign.
        turns: 1 - cos of each row; NaN for a row that is or was zero.
    """

    layer: str
    step: int
    lengths: Float[Tensor, " out"]
    turns: Float[Tensor, " out"]

    @property
    def magnitude(self) -> float:
        """ΔM."""
        return float(self.lengths.abs().mean())

    @property
    def direction(self) -> float:
        """ΔD."""
        return float(self.turns.nanmean())


@torch.no_grad()
def between(before: Float[Tensor, "out in"], after: Float[Tensor, "out in"], layer: str = "", step: int = 0) -> Change:
    """The change from one state of a matrix to another, row by row, computed in fp64.

    Raises:
        LabError: for states of different shapes.
    """
    if before.shape != after.shape or before.dim() != 2:
        cause = f"{tuple(before.shape)} and {tuple(after.shape)} are no two states of one matrix."
        raise LabError(cause, "Give the same layer's weights, before and after.")
    old, new = before.double(), after.double()
    was, is_now = old.norm(dim=1), new.norm(dim=1)
    apart = new / is_now[:, None] - old / was[:, None]  # 0 / 0 is NaN, and stays it
    return Change(layer, step, (is_now - was).cpu(), (0.5 * apart.square().sum(1)).cpu())


def correlation(changes: Iterable[Change]) -> float:
    """Pearson's correlation of ΔM and ΔD over changes of layers and moments.

    Raises:
        LabError: where there are fewer than three, or one of the two is the same in all.
    """
    points = torch.tensor([(change.magnitude, change.direction) for change in changes], dtype=torch.float64)
    if len(points) < 3 or (points.std(0) == 0).any():
        cause = f"{len(points)} changes have no correlation, or one of magnitude and direction never differs."
        raise LabError(cause, "Give at least three layers or moments of a training in which both change.")
    return float(torch.corrcoef(points.t())[0, 1])


def interval(changes: Sequence[Change]) -> tuple[float, float]:
    """The 95 % interval of the correlation: r is tanh z, and z has a standard error of 1 / √(n - 3) (Fisher 1921).

    It holds for points that were drawn one by one from a normal distribution. Matrices of one training are not, so
    that the truth is less sure than this says.

    Raises:
        LabError: for fewer than four changes, or where there is no correlation.
    """
    if len(changes) < 4:
        cause = f"A correlation of {len(changes)} points may have any value."
        raise LabError(cause, "Give at least four layers or moments of a training.")
    # Points on one line have r = 1, or a little more by rounding, and z would be infinite.
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation(changes))))
    error = MOST_SURE / math.sqrt(len(changes) - 3)
    return math.tanh(z - error), math.tanh(z + error)


def without_farthest(changes: Sequence[Change]) -> list[Change]:
    """All but the one with the largest ΔD: does a line still have its slope without it?"""
    farthest = max(changes, key=lambda change: change.direction)
    return [change for change in changes if change is not farthest]


def at_end(changes: Sequence[Change]) -> list[Change]:
    """Those of the last moment.

    Both ΔM and ΔD begin at 0 and grow, so that moments together correlate in any training; layers at one moment need
    not.
    """
    last = max((change.step for change in changes), default=0)
    return [change for change in changes if change.step == last]


def slope(changes: Sequence[Change]) -> float:
    """Of the straight line that fits ΔM against ΔD best, in lengths for each 1 of ΔD."""
    spread = torch.tensor([(c.magnitude, c.direction) for c in changes], dtype=torch.float64).std(0)
    return correlation(changes) * float(spread[0] / spread[1])


def effective_weights(model: nn.Module, targets: Targets = ("q", "v")) -> dict[str, Tensor]:
    """The matrices that a model multiplies by, in fp32, by path: with an adapter's update where it has one.

    Paths are those of the plain model, so that a model before and after adapters were put on can be compared.

    Raises:
        LabError: for targets that match nothing.
    """
    found = {}
    for path, layer in find(model, targets).items():
        if isinstance(layer, LoraLinear) and layer.active and not layer.merged:
            found[path] = layer.merged_weight(layer.active)
        else:
            found[path] = dense_weight(layer.base if isinstance(layer, LoraLinear) else layer).clone()
    return found


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor], step: int = 0) -> list[Change]:
    """The change of every matrix, in order.

    Raises:
        LabError: where the two are not of the same matrices.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise LabError(f"Only one of the two states has {', '.join(odd[:3])}.", "Give two states of one model.")
    return [between(matrix, after[path], path, step) for path, matrix in before.items()]


class Decomposed(FirstOrder):
    """Mixed into a method, it notes what training does to the rows; see `decomposed`.

    Attributes:
        seen: the changes since the start, at `MOMENTS` moments.
    """

    # No fields: the settings that a run records are those of the method.
    watched: Targets
    seen: list[Change]

    def prepare(self, model: nn.Module, task: Task, steps: int) -> None:
        """Keep a copy of the watched matrices as they are now; then what the method does."""
        self._before = effective_weights(model, self.watched)
        self._moments = {round(steps * (k + 1) / MOMENTS) for k in range(MOMENTS)}
        self._step = 0
        self.seen.clear()
        super().prepare(model, task, steps)

    def observed(self) -> dict[str, float]:
        """What the method observes; at the chosen moments the changes are taken besides."""
        self._step += 1
        if self._step in self._moments:
            self.seen += changes(self._before, effective_weights(self._model, self.watched), self._step)
        return super().observed()


def decomposed(method: FirstOrder, watched: Targets = ("q", "v")) -> Decomposed:
    """The same method, with the same settings, noting in `seen` what it does to `watched` matrices.

    What it computes does not change; it holds one more copy of those matrices.
    """
    kind = type(method)
    noting = type(f"Decomposed{kind.__name__}", (Decomposed, kind), {})
    made: Any = object.__new__(noting)
    made.__dict__.update(method.__dict__, watched=watched, seen=[])
    return made
