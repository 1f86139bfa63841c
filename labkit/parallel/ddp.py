"""Data parallelism as methods: all-reduce after the backward pass, in buckets during it, and torch's own.

(Li et al. 2020, arXiv:2006.15704.) Each of N ranks holds everything, 16 bytes a parameter with fp32 and AdamW, and
takes its share of a global batch. `labkit.parallel.reducers` says how gradients are averaged, `labkit.parallel.data`
how a batch is shared so that their mean is the whole batch's gradient, for uneven shares as well. A step by N ranks is
therefore the step of one process on the whole batch, to rounding. Activations alone become fewer: those of a share.

Replicas stay equal because they start equal (rank 0's weights go to all), every rank has the same bits of the averaged
gradients, and clipping and AdamW make of equal numbers equal numbers. Nothing checks it again: a rank that once missed
an average would train a model of its own, and its loss would fall all the same. A sum in the place of the mean is as
well hidden: clipping and AdamW cancel a factor that all gradients share. So the tests look at gradients, not at losses.

Gradients of n bytes make a rank send nearly 2 n bytes a step, however many ranks there are; the lecture's "2 bytes per
parameter" (003) counts one copy.

Run them in ranks: `labkit.parallel.launch.launch` with a function that calls `labkit.training.train`. All ranks give
the same seed, and so draw the same batches; a file to resume from is each rank's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labkit.errors import LabError
from labkit.ledger import Ledger, storage_bytes
from labkit.methods import FirstOrder, FullFineTuning
from labkit.parallel.averaging import Averager, check_group
from labkit.parallel.collectives import Traffic
from labkit.parallel.data import shard_batch
from labkit.parallel.reducers import BucketedReducer, Reducer, broadcast_state
from labkit.tasks import Batch, Task


@dataclass
class DataParallel(FirstOrder):
    """Each rank trains on its share of every batch; put before a method that chooses what trains, as in `DDP`.

    Put before `labkit.memory.accumulation.Accumulated` it accumulates: micro-batches are shared among ranks, and only
    the last one's backward pass sends.

    `step` takes the global batch, the same on all ranks, and returns its loss, the same on all ranks. Dropout draws
    other masks on each rank.

    Attributes:
        collective: "torch" or "ring" (`labkit.parallel.averaging`).
        find_unused: see `labkit.parallel.reducers`.

    Raises:
        LabError: by `prepare`, where there is no process group.
    """

    collective: str = "torch"
    find_unused: bool = False
    name: str = "data-parallel"

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """As the other method's; then every rank has rank 0's weights, and what averages gradients is there."""
        self.close()
        check_group()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        super().prepare(model, task, steps)
        self._sent = Traffic()
        self.join(model)
        torch.manual_seed((torch.initial_seed() + self.rank) % 2**63)

    def join(self, model: torch.nn.Module) -> None:
        """Make equal replicas of the ranks' models, whose gradients will be averaged."""
        averager = Averager(self.collective)
        broadcast_state(model, averager)
        averager.close()
        self.reducer = self.build_reducer(model)
        self.reducer.sync = False  # until the step's last backward pass

    def build_reducer(self, model: torch.nn.Module) -> Reducer:
        """One all-reduce a parameter, after the backward pass."""
        return Reducer(model, self.collective, find_unused=self.find_unused)

    def _loss(self, batch: Batch) -> Tensor:
        share = shard_batch(batch, self.rank, self.world_size)
        return super()._loss(share.batch.to(next(self._model.parameters()).device)) * share.weight

    def _backward(self, loss: Tensor) -> None:
        before = Traffic(self.reducer.traffic.bytes, self.reducer.traffic.messages)
        self.reducer.sync = True
        try:
            loss.backward()
            self.reducer.finish()
        finally:
            self.reducer.sync = False
        self._sent = self.reducer.traffic - before

    def _over_ranks(self, loss: Tensor) -> Tensor:
        """The whole batch's loss. One that is not a number is none on any rank: all stop, and nobody waits."""
        total = loss / self.world_size
        dist.all_reduce(total)
        return total

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward and backward on this rank's share, the average, clip, update."""
        return self._over_ranks(super().step(batch))

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with this rank's bytes counted; buckets are gradients."""
        loss = super().measured_step(batch, ledger)
        ledger.measured["gradients"] = self._gradient_bytes()
        return self._over_ranks(loss)

    def _gradient_bytes(self) -> int:
        return self.reducer.gradient_bytes()

    def observed(self) -> dict[str, float]:
        """Bytes of gradients that this rank sent in the last step, where our ring carried them."""
        return {**super().observed(), **({"sent_bytes": self._sent.bytes} if self.collective == "ring" else {})}

    def close(self) -> None:
        """Take hooks and threads away; the model stays as it was trained."""
        if reducer := getattr(self, "reducer", None):
            reducer.close()
        super().close()


@dataclass
class NaiveDDP(DataParallel, FullFineTuning):
    """Every weight trains; one all-reduce a parameter, when the backward pass is over."""

    name: str = "ddp-naive"


@dataclass
class Bucketed(DataParallel):
    """Gradients leave in buckets while the backward pass goes on; put before another method.

    Attributes:
        bucket_mib, first_bucket_mib: see `labkit.parallel.reducers.BucketedReducer`.
    """

    bucket_mib: float = 25.0
    first_bucket_mib: float = 1.0

    def build_reducer(self, model: torch.nn.Module) -> Reducer:
        """Buckets."""
        return BucketedReducer(
            model,
            self.collective,
            find_unused=self.find_unused,
            bucket_mib=self.bucket_mib,
            first_bucket_mib=self.first_bucket_mib,
        )


@dataclass
class DDP(Bucketed, FullFineTuning):
    """Every weight trains; buckets."""

    name: str = "ddp"


@dataclass
class TorchDDP(DataParallel, FullFineTuning):
    """torch.nn.parallel.DistributedDataParallel in the same place, with gradients as views of its buckets.

    Put before `Accumulated` it averages after every micro-batch: the same gradients, sent more often than need be.

    Raises:
        LabError: for another collective than torch's.
    """

    name: str = "torch.ddp"

    def __post_init__(self) -> None:
        if self.collective != "torch":
            raise LabError(f"torch's DDP does not use {self.collective!r}.", "Leave `collective` at 'torch'.")

    def join(self, model: torch.nn.Module) -> None:
        """Wrap the model: it sends rank 0's weights, and averages within `backward`."""
        self._model: Any = DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=self.find_unused
        )

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _gradient_bytes(self) -> int:
        return storage_bytes(p.grad for p in self._trained if p.grad is not None)

    def close(self) -> None:
        """Drop the wrapper and its hooks."""
        if isinstance(getattr(self, "_model", None), DistributedDataParallel):
            self._model = self._model.module
        super().close()
