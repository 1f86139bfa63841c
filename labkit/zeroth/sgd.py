"""Gradient descent with estimates in the place of gradients: ZO-SGD (Ghadimi & Lan 2013, arXiv:1309.5549).

    x_{k+1} = x_k - η g(x_k),    g(x) the mean over n directions of (F(x + τz; ξ) - F(x - τz; ξ)) / 2τ · z

The seed lecture writes it with one batch ξ_k for both values, and that matters: with two batches the difference of
their losses, which does not shrink with τ, would be divided by it.

There are no activations to keep, no gradients of weights, no optimizer states. What there is, written like this, is the
direction and a perturbed copy of the weights: N values each, in all 12 bytes a weight in fp32 where inference needs 4.
Lesson 15 takes both away (MeZO draws the direction again from its seed, in place).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.errors import LabError
from labkit.ledger import Ledger, storage_bytes
from labkit.tasks import Batch, Task
from labkit.zeroth.gradient import Counted, LossOfWeights, Objective, estimate


@dataclass
class Descent:
    """Where a descent has ended.

    Attributes:
        values: of f before every step and at the end; looking at them is not among `queries`.
        queries: evaluations that the estimates took.
    """

    x: Tensor
    values: list[float] = field(default_factory=list)
    queries: int = 0

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.values) - 1


def descend(
    f: Objective,
    x: Float[Tensor, " d"],
    steps: int,
    learning_rate: float,
    tau: float = 1e-3,
    kind: str = "central",
    directions: str = "gaussian",
    n: int = 1,
    seed: int = 0,
    until: float | None = None,
) -> Descent:
    """Make up to `steps` steps of ZO-SGD from x, which stays as it is.

    Args:
        tau, kind, directions, n: see `estimate`.
        until: stop at the first value of f that is not above it.

    Raises:
        LabError: where f is no longer a number.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    counted, found = Counted(f), Descent(x.clone())
    found.values.append(float(f(found.x)))
    while found.steps < steps and (until is None or found.values[-1] > until):
        found.x.sub_(estimate(counted, found.x, tau, kind, directions, n, generator).to(x.dtype), alpha=learning_rate)
        found.values.append(float(f(found.x)))
        if found.values[-1] != found.values[-1]:
            raise LabError(f"f is no longer a number after step {found.steps}.", "Lower the learning rate.")
    found.queries = counted.queries
    return found


class _Peak(TorchDispatchMode):
    """Bytes of the living tensors of `least` values or more that are made while it is active, at the most."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.most = least, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        self._alive = {key: pair for key, pair in self._alive.items() if not pair[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.least:
                storage = tensor.untyped_storage()
                if storage._cdata not in given:  # a view, or written in place: it was there before
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


@dataclass
class ZoSgd:
    """Every weight trains, by n-SPSA and plain steps. A `Method`.

    Attributes:
        learning_rate: η, constant; as much smaller than backpropagation's as the variance is larger.
        tau: τ, in units of a weight.
        directions, n: see `estimate`.
        seed: of the directions.

    Raises:
        LabError: from `prepare`, where weights have several dtypes.
    """

    learning_rate: float = 1e-5
    tau: float = 1e-3
    directions: str = "gaussian"
    n: int = 1
    seed: int = 0
    name: str = "zo-sgd"

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Lay all weights into one vector, of which the parameters become views."""
        model.requires_grad_(True)
        self._task, self._device = task, next(model.parameters()).device
        self._f = LossOfWeights(model, self._loss)
        if len(dtypes := {p.dtype for p in self._f.parameters.values()}) > 1:
            kinds = ", ".join(sorted(map(str, dtypes)))
            raise LabError(f"Weights in {kinds} do not fit into one vector.", "Load the model in one dtype.")
        self._x = self._f.vector()
        for name, view in self._f.pieces(self._x).items():
            self._f.parameters[name].data = view
        self._generator = torch.Generator(self._device).manual_seed(self.seed)
        self._slope = 0.0

    def _loss(self, model: Any) -> Tensor:
        return self._task.loss(model, self._batch)

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """2 n values of the loss of one batch, and a step; the loss returned is their mean."""
        self._batch, values = batch, []

        def asked(x: Tensor) -> Tensor:
            values.append(self._f(x))
            return values[-1]

        gradient = estimate(asked, self._x, self.tau, "central", self.directions, self.n, self._generator)
        self._x.sub_(gradient.to(self._x.dtype), alpha=self.learning_rate)
        self._slope = (float(values[0]) - float(values[1])) / (2 * self.tau)
        return torch.stack(values).mean()

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step; `buffers` are the vectors of the size of all weights that lived at once, at the most."""
        with _Peak(self._f.dim) as peak:
            loss = self.step(batch)
        gradients = [p.grad for p in self._f.parameters.values() if p.grad is not None]
        ledger.measured = {
            "weights": storage_bytes(self._f.parameters.values()),
            "gradients": storage_bytes(gradients),
            "buffers": peak.most,
        }
        return loss

    def predicted_bytes(self) -> dict[str, int]:
        """Weights; the direction, the sum of directions where there are several, and the perturbed weights."""
        size, count = self._x.element_size(), self._f.dim
        wide = torch.promote_types(self._x.dtype, torch.float32).itemsize
        # What is not in 32 bits is perturbed there first and rounded then.
        copies = wide * count + (size * count if wide != size else 0)
        return {
            "weights": size * count,
            "gradients": 0,
            "buffers": wide * count * (1 if self.n == 1 else 2) + copies,
        }

    def computing(self) -> AbstractContextManager:
        """Nothing to set up."""
        return nullcontext()

    def observed(self) -> dict[str, float]:
        """The slope along the step's first direction."""
        return {"slope": self._slope}

    def state_dict(self) -> dict[str, Any]:
        """The weights and the generator's state."""
        return {"weights": self._x, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put both back."""
        self._x.copy_(state["weights"])
        self._generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        """Give every parameter a storage of its own again."""
        for parameter in self._f.parameters.values() if hasattr(self, "_f") else ():
            parameter.data = parameter.data.clone()
