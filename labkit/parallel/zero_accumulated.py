"""ZeRO with gradient accumulation: what each stage has to send for every micro-batch.

(Rajbhandari et al. 2020, arXiv:1910.02054; `labkit.memory.accumulation` has the arithmetic of micro-batches.) Stage 1
has whole gradients anyhow: autograd adds them up on each rank, and only the last backward pass sends. Stages 2 and 3
keep an N-th of a gradient, which cannot be added to what has not been reduced; so they reduce every micro-batch and add
the parts, in the gradients' format. Stage 3 gathers the weights for every micro-batch's forward and backward too.
`zero_formula.traffic_per_step` has the bytes.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.memory.accumulation import counted, micro_batches, shares
from labkit.parallel.zero import Zero
from labkit.parallel.zero_formula import traffic_per_step
from labkit.tasks import Batch


@dataclass
class AccumulatedZero(Zero):
    """A stage of ZeRO that adds up micro-batches of the global batch before its update: the same step to rounding.

    Attributes:
        micro_batch_size: rows of a micro-batch over all ranks; the last of a batch may be smaller.

    Raises:
        LabError: for a size below 1.
    """

    micro_batch_size: int = 4
    name: str = "zero-accumulated"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch_size < 1:
            raise LabError(f"A micro-batch of {self.micro_batch_size} rows holds nothing.", "Choose at least 1.")

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward, backward and what the stage has to reduce for each micro-batch, then one update; the global loss."""
        return self._updated(self._accumulated(batch, measured=False)[0])

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with this rank's bytes counted; activations are those of the largest micro-batch."""
        total, activations = self._accumulated(batch, measured=True)
        gradients = self.measured_gradients()
        mean = self._updated(total)
        ledger.measured = {**self.measured_standing(), "gradients": gradients, "activations": activations}
        return mean

    def _updated(self, total: Tensor) -> Float[Tensor, ""]:
        mean = self._scalars(total)
        self._optimizer.step()
        self._schedule.step()
        return mean

    def _accumulated(self, batch: Batch, measured: bool) -> tuple[Tensor, int]:
        """This rank's share of the loss, and the most bytes that a micro-batch saved for its backward pass."""
        parts = [part for part in micro_batches(batch, self.micro_batch_size) if counted(part.labels)]
        self._parts, largest, engine = len(parts), 0, self.engine
        sent, total, kept = Counter[str](), torch.zeros((), device=self._device), None
        for place, (part, share) in enumerate(zip(parts, shares([counted(p.labels) for p in parts]), strict=True)):
            with self._saved() if measured else nullcontext({"activations": 0}) as saved:
                loss = self._share_loss(part) * share
            largest, last = max(largest, saved["activations"]), place == len(parts) - 1
            engine.paused = self.stage == 1 and not last
            if engine.paused:
                with self.computing():
                    loss.backward()
            else:
                self._backward(loss)
                kept = self._added(kept, last)
            total += loss.detach()
            sent.update(engine.wire.sent)
        engine.wire.sent = dict(sent)
        return total, largest

    @torch.no_grad()
    def _added(self, kept: list[Tensor] | None, last: bool) -> list[Tensor]:
        """The parts of this micro-batch's gradients and of those before it; the update finds the last ones."""
        found = []
        for number, unit in enumerate(self.engine.units):
            assert unit.gradient is not None
            if kept is not None:
                unit.gradient.add_(kept[number])
            found.append(unit.gradient)
            if not last:
                unit.gradient = None
        return found

    def predicted_traffic(self) -> int:
        """Bytes that this rank sends in a step of as many micro-batches as the last one had, scalars apart."""
        size, padded = getattr(torch, self.weights).itemsize, sum(unit.padded for unit in self.engine.units)
        given = self.stage, padded, self.engine.wire.world_size, size, size, self.engine.root.padded
        return round(traffic_per_step(*given, micro_batches=self._parts))
