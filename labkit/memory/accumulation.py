"""Gradient accumulation: a large batch in small pieces, with the large batch's gradient.

The loss of a batch is a mean over N things that count: examples for a classifier, tokens with a label for a language
model. Cut into k micro-batches with n_i of them and mean losses L_i, it is

    L = Σ (n_i / N) L_i,    and so is its gradient.

Each term has its own backward pass, which adds to `.grad` and frees its activations: they need the bytes of one
micro-batch, and the time is that of the whole batch or a little more.

The common mistake is the mean of means, (1 / k) Σ L_i. It is right only where all n_i are equal, and sentences do not
all have the same length. It differs from L by -cov(n, L) / mean(n): long micro-batches count too little. The Trainer of
transformers did so until October 2024 (its pull request 34191, after a report by Unsloth); since then it counts N first
and its models take it as `num_items_in_batch`.

Two things stay different from the large batch: dropout draws other masks, and batch normalization sees fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.ledger import Ledger, measure, saved_for_backward
from labkit.methods import FullFineTuning
from labkit.tasks import Batch

IGNORED = -100
Micro = TypeVar("Micro")
Rows = TypeVar("Rows", Batch, Mapping[str, Tensor])


def counted(labels: Int[Tensor, "batch ..."]) -> int:
    """How many labels a mean loss is the mean of: rows of classes, or tokens of a language model.

    Padding (-100) does not count; neither does the first token of a row, which nothing predicts.
    """
    return int(((labels if labels.ndim == 1 else labels[:, 1:]) != IGNORED).sum())


def micro_batches(batch: Rows, size: int) -> Iterator[Rows]:
    """Cut a batch into pieces of `size` rows, in order; the last may be smaller.

    Args:
        batch: of a task, or the keyword arguments of a model; all tensors with the same number of rows.

    Raises:
        LabError: for a size below 1.
    """
    if size < 1:
        raise LabError(f"A micro-batch of {size} rows holds nothing.", "Choose a size of at least 1.")
    return _cut(batch, size)


def _cut(batch: Rows, size: int) -> Iterator[Rows]:
    named = {f.name: getattr(batch, f.name) for f in fields(batch)} if isinstance(batch, Batch) else dict(batch)
    for start in range(0, len(next(iter(named.values()))), size):
        rows = {name: tensor[start : start + size] for name, tensor in named.items()}
        yield replace(batch, **rows) if isinstance(batch, Batch) else cast(Rows, rows)


def shares(counts: Sequence[int]) -> list[float]:
    """n_i / N, each micro-batch's share of what counts.

    Raises:
        LabError: where a count is negative, or nothing counts at all.
    """
    if min(counts, default=0) < 0 or not sum(counts):
        raise LabError(
            f"Nothing counts in micro-batches of {list(counts)}.",
            "Give a batch with at least one label that is not -100.",
        )
    return [count / sum(counts) for count in counts]


def accumulate(
    mean_loss: Callable[[Micro], Float[Tensor, ""]], micro_batches: Sequence[Micro], counts: Sequence[int]
) -> Float[Tensor, ""]:
    """Add the gradient of the whole batch's mean loss to `.grad`, one micro-batch at a time.

    Returns that loss, detached, in nats.

    Args:
        mean_loss: the mean loss of one micro-batch, with its graph.
        counts: n_i, what each micro-batch's loss is the mean of (see `counted`). Equal counts give the mean of means.

    Raises:
        LabError: where nothing counts, or the numbers of micro-batches and counts differ.
    """
    if len(micro_batches) != len(counts):
        raise LabError(f"{len(micro_batches)} micro-batches have {len(counts)} counts.", "Give one count for each.")
    total: Tensor | None = None
    for micro, share in zip(micro_batches, shares(counts), strict=True):
        if share:  # the mean of nothing is no number, and 0 times that is none either
            part = mean_loss(micro) * share
            part.backward()
            total = part.detach() if total is None else total + part.detach()
    assert total is not None
    return total


@dataclass(frozen=True)
class MeanOfMeans:
    """What the mean of means gives in place of the mean.

    Attributes:
        loss, naive_loss: the mean, and the mean of means, in nats.
        gradient_error: length of the difference of the gradients over the length of the right one.
    """

    loss: float
    naive_loss: float
    gradient_error: float


def mean_of_means(
    model: nn.Module,
    mean_loss: Callable[[Micro], Float[Tensor, ""]],
    micro_batches: Sequence[Micro],
    counts: Sequence[int],
) -> MeanOfMeans:
    """How large the common mistake is, on real micro-batches. The gradients that `model` holds stay as they are.

    Raises:
        LabError: where nothing counts.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in weights]
    try:
        model.zero_grad(set_to_none=True)
        loss = accumulate(mean_loss, micro_batches, counts)
        right = [p.grad for p in weights]
        model.zero_grad(set_to_none=True)
        # Where nothing counts even the mistaken have no mean to average.
        naive = accumulate(mean_loss, micro_batches, [int(count > 0) for count in counts])
        pairs = [(a, p.grad) for a, p in zip(right, weights, strict=True) if a is not None and p.grad is not None]
    finally:
        for parameter, gradient in zip(weights, before, strict=True):
            parameter.grad = gradient
    length = nn.utils.get_total_norm([a for a, _ in pairs])
    error = nn.utils.get_total_norm([a - b for a, b in pairs]) / length
    return MeanOfMeans(loss.item(), naive.item(), error.item())


@dataclass
class Accumulated(FullFineTuning):
    """Full fine-tuning with the activations of one micro-batch at a time: the same step to rounding, without dropout.

    Another method becomes accumulated by inheritance: `class Both(Accumulated, Checkpointed)`.

    Attributes:
        micro_batch_size: rows of a micro-batch; the last of a batch may be smaller.

    Raises:
        LabError: for a size below 1.
    """

    micro_batch_size: int = 4
    name: str = "accumulated"

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise LabError(f"A micro-batch of {self.micro_batch_size} rows holds nothing.", "Choose at least 1.")

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward and backward for each micro-batch, then clip and update once."""
        return self._accumulated(batch, measured=False)[0]

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes counted; activations are those of the largest micro-batch."""
        loss, activations = self._accumulated(batch, measured=True)
        ledger.measured = measure(self._model, self._optimizer, activations)
        return loss

    def _accumulated(self, batch: Batch, measured: bool) -> tuple[Float[Tensor, ""], int]:
        """The batch's loss, detached, and the most bytes that a micro-batch saved for its backward pass."""
        self._optimizer.zero_grad(set_to_none=True)
        parts = [part for part in micro_batches(batch, self.micro_batch_size) if counted(part.labels)]
        total, largest = torch.zeros((), device=batch.labels.device), 0
        for place, (part, share) in enumerate(zip(parts, shares([counted(p.labels) for p in parts]), strict=True)):
            with saved_for_backward(self._model) if measured else nullcontext({"activations": 0}) as saved:
                loss = self._loss(part) * share
            largest = max(largest, saved["activations"])
            if place < len(parts) - 1:
                loss.backward()
            else:
                self._update(loss)  # its backward pass is the last one; then it clips and updates
            total += loss.detach()
        return total, largest
