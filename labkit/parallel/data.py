"""A global batch in shares: one for each rank, with the weight that its mean loss has in the whole batch's.

The loss of a batch is a mean over n things that count (`labkit.memory.accumulation.counted`). With n_r of them on rank
r and N ranks, the mean over ranks of

    (N n_r / n) L_r

is the mean over the whole batch, and so is its gradient: averaging over ranks, as data parallelism does, gives the
large batch's gradient. The weight is 1 where all shares are equal. Without it, uneven shares give the mean of means.

Every rank knows the whole batch, since all draw the same order of examples, and so knows n without asking. A rank that
gets no rows of a small last batch has to take part in the step all the same, or the others would wait for it: it
computes one row that counts, with weight 0. So all ranks make the same number of steps, and nobody needs what torch
calls Join (its ranks have their own data, and the first to run out keeps answering the others' collectives).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from labkit.errors import LabError
from labkit.memory.accumulation import counted
from labkit.tasks import Batch


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch.

    Attributes:
        batch: its rows, at least one.
        weight: N n_r / n, by which the rank's mean loss is multiplied.
    """

    batch: Batch
    weight: float


def shard_batch(batch: Batch, rank: int, world_size: int) -> Share:
    """The rows of `rank`: as many as the other ranks have or one more, in order, padded as in the whole batch.

    Raises:
        LabError: where nothing in the batch counts, or the rank is not one of `world_size`.
    """
    if not 0 <= rank < world_size:
        raise LabError(f"Rank {rank} is not one of {world_size}.", f"Choose one from 0 to {world_size - 1}.")
    total = counted(batch.labels)
    if not total:
        raise LabError("Nothing counts in this batch.", "Give a batch with at least one label that is not -100.")
    begin, end = (len(batch.labels) * r // world_size for r in (rank, rank + 1))
    here = counted(batch.labels[begin:end])
    if not here:
        begin = next(row for row in range(len(batch.labels)) if counted(batch.labels[row : row + 1]))
        end = begin + 1
    rows = {f.name: getattr(batch, f.name)[begin:end] for f in fields(batch)}
    return Share(replace(batch, **rows), here * world_size / total)
