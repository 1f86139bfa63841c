"""Pipeline parallelism: every rank holds some layers, and micro-batches follow each other through the ranks.

(Huang et al. 2018, GPipe, arXiv:1811.06965; Narayanan et al. 2021, arXiv:2104.04473.) The orders in which the stages
work, their bubble and their memory are in `labkit.parallel.pipeline_schedule`; here they run on real processes.

What crosses between two stages for a micro-batch of b rows and s tokens is one activation down and its gradient up,
2·b·s·h values, whatever is in the stages: 2·m·(p - 1) messages a step. Tensor parallelism all-reduces b·s·h values
four times in every layer, which is why it stays within a machine and pipelines go between machines.

The gradient is the whole batch's. Each micro-batch's loss is its sum over the tokens that count, divided by their
number in the whole batch: dividing means by m instead is wrong as soon as labels are masked unevenly
(`labkit.memory.accumulation`).

Sends return at once, and each direction has a communicator of its own. On a shared one NCCL runs everything in order:
a stage that sends down while its neighbour sends up would wait for ever.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.accumulation import IGNORED, counted
from labkit.parallel.pipeline_record import Recorder, SavedBytes
from labkit.parallel.pipeline_schedule import BACKWARD, FORWARD, Action, Orders, Ran, check, schedule
from labkit.parallel.pipeline_stage import Stage


@dataclass
class Step:
    """What a rank knows of one step.

    Attributes:
        loss: the whole batch's mean loss in nats, on every rank.
        live: the most micro-batches whose activations this rank held at once.
        live_bytes: the most bytes that it held for backward passes at once; None without `count`.
        ran: this rank's actions in milliseconds on a clock that the ranks share; empty without `time`.
    """

    loss: Float[Tensor, ""]
    live: int = 0
    live_bytes: int | None = None
    ran: list[Ran] = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    """The micro-batches, and how many labels count in all of them."""

    ids: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    total: int


class Pipeline:
    """Runs a stage in step with the other ranks' stages. Every rank of the group makes one, and calls it alike.

    Args:
        stage: this rank's, on its device; stage s is on rank s of the group.
        micro_batches: how many a batch is cut into.
        name: of the schedule, "gpipe" or "1f1b".
        group: of the ranks that hold the stages; all, unless given. Other groups make theirs at the same time.
        orders: a schedule of your own, checked like the others.

    Raises:
        LabError: where stages and ranks do not match, or the schedule would not finish.
    """

    def __init__(
        self,
        stage: Stage,
        micro_batches: int,
        name: str = "1f1b",
        group: dist.ProcessGroup | None = None,
        orders: Orders | None = None,
    ):
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        if len(ranks) != stage.stages or dist.get_rank(group) != stage.index:
            raise LabError(
                f"Stage {stage.index} of {stage.stages} is on rank {dist.get_rank(group)} of {len(ranks)}.",
                "Cut the model into as many stages as there are ranks, and give each rank its own.",
            )
        self.stage, self.micro_batches, self.group = stage, micro_batches, group
        self.orders = schedule(name, stage.stages, micro_batches) if orders is None else orders
        check(self.orders, micro_batches)
        self.device, self._ranks = next(stage.parameters()).device, ranks
        self._down, self._up = (dist.new_group(ranks, use_local_synchronization=True) for _ in range(2))
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._live: dict[int, tuple[Tensor | None, Tensor]] = {}  # what came in and went out, until the backward pass

    def step(
        self,
        input_ids: Int[Tensor, "batch seq"],
        labels: Int[Tensor, "batch seq"],
        attention_mask: Int[Tensor, "batch seq"] | None = None,
        *,
        time: bool = False,
        count: bool = False,
    ) -> Step:
        """Add the gradient of the whole batch's mean loss to the stage's `.grad`.

        Args:
            input_ids, labels, attention_mask: the whole batch, on every rank. Of the ids, stages after the first read
                only the shape; the labels are not shifted, and -100 does not count.
            time: record what ran when.
            count: count the bytes that are saved for backward passes, which slows the forward passes down.
            Both are the same on every rank.

        Raises:
            LabError: where the micro-batches do not divide the batch, or no label counts.
        """
        self._batch = self._cut(input_ids, labels, attention_mask)
        self._record(time, count)
        weight = self.stage.tied_weight
        earlier = None if weight is None else weight.grad
        if weight is not None:
            weight.grad = None  # what an earlier step has left there is summed already
        result = self._run()
        self._add_tied(weight, earlier)
        for work, _ in self._sent:
            work.wait()
        self._sent = []
        dist.broadcast(result.loss, self._ranks[-1], group=self.group)
        if self._recorder is not None:
            result.ran = self._recorder.ran() if time else []
            result.live_bytes = None if self._recorder.saved is None else self._recorder.saved.peak
        return result

    def _run(self) -> Step:
        """All actions of this stage, in their order."""
        result = Step(torch.zeros((), device=self.device))
        for action in self.orders[self.stage.index]:
            if action.kind == FORWARD:
                result.loss += self._forward(action.micro_batch)
                result.live = max(result.live, len(self._live))
            else:
                self._backward(action.micro_batch)
        return result

    def _record(self, time: bool, count: bool) -> None:
        inputs = [t[0] for t in (self._batch.ids, self._batch.labels, self._batch.masks) if t[0] is not None]
        saved = SavedBytes(self.stage, inputs) if count else None
        self._recorder = Recorder(self.stage.index, self.device, saved, self.group) if time or count else None

    def _cut(self, ids: Tensor, labels: Tensor, mask: Tensor | None) -> _Batch:
        m = self.micro_batches
        if len(ids) % m:
            raise LabError(
                f"A batch of {len(ids)} rows cannot be cut into {m} equal micro-batches.",
                "Choose a batch that is a multiple of the number of micro-batches.",
            )
        if not (total := counted(labels)):
            raise LabError("No label of this batch counts.", "Give one that is not -100.")
        ids, labels = ids.to(self.device), labels.to(self.device)
        masks = (None,) * m if mask is None else mask.to(self.device).chunk(m)
        return _Batch(ids.chunk(m), labels.chunk(m), masks, total)

    def _running(self, kind: str, k: int) -> AbstractContextManager:
        return nullcontext() if self._recorder is None else self._recorder.running(Action(kind, k))

    def _forward(self, k: int) -> Tensor | float:
        """Run it, keep what its backward pass needs, send it on; on the last stage, return the loss."""
        received = None if self.stage.first else self._receive(k, -1, self._down).requires_grad_()
        with self._running(FORWARD, k):
            output = self.stage(self._batch.ids[k] if received is None else received, self._batch.masks[k])
            if self.stage.last:
                output = self._loss(output, k)
        self._live[k] = received, output
        if self.stage.last:
            return output.detach()
        self._send(output.detach(), 1, self._down)
        return 0.0

    def _backward(self, k: int) -> None:
        gradient = None if self.stage.last else self._receive(k, 1, self._up)
        received, output = self._live.pop(k)
        with self._running(BACKWARD, k):
            torch.autograd.backward(output, gradient)
        if received is not None:
            assert received.grad is not None
            self._send(received.grad, -1, self._up)

    def _loss(self, logits: Float[Tensor, "rows seq vocab"], k: int) -> Float[Tensor, ""]:
        """The micro-batch's share of the batch's loss."""
        targets = F.pad(self._batch.labels[k], (0, 1), value=IGNORED)[:, 1:].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
        return losses / self._batch.total

    def _receive(self, k: int, step: int, channel: dist.ProcessGroup) -> Tensor:
        shape = (*self._batch.ids[k].shape, self.stage.config.hidden_size)
        arrived = torch.empty(shape, dtype=self.stage.dtype, device=self.device)
        dist.recv(arrived, self._ranks[self.stage.index + step], group=channel)
        return arrived

    def _send(self, tensor: Tensor, step: int, channel: dist.ProcessGroup) -> None:
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self._ranks[self.stage.index + step], group=channel)
        assert work is not None
        # A tensor must not be freed on its way, and no later either.
        self._sent = [(w, t) for w, t in self._sent if not w.is_completed()] + [(work, tensor)]

    def _add_tied(self, weight: Tensor | None, earlier: Tensor | None) -> None:
        """Both copies of a tied weight get the sum of both gradients, in the same bits."""
        if weight is None or weight.grad is None:
            return
        first, last = self._ranks[0], self._ranks[-1]
        if self.stage.last:
            dist.send(weight.grad, first, group=self._up)
            dist.recv(weight.grad, first, group=self._down)
        else:
            other = torch.empty_like(weight.grad)
            dist.recv(other, last, group=self._up)
            weight.grad += other
            dist.send(weight.grad, last, group=self._down)
        if earlier is not None:
            weight.grad += earlier
