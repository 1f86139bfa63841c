"""A rank's share of a global batch, and its weight in the global mean."""

from __future__ import annotations

from labkit.tasks import Batch


def share(batch: Batch, rank: int, world_size: int) -> tuple[Batch, float]:
    """The rows that a rank trains on, and the factor of its mean loss.

    n rows go to N ranks as evenly as possible, the first ranks having one more. The mean over ranks of factor × mean
    loss is the mean over all rows, with factor n_r N / n. A rank for which there is no row takes the first one with
    factor 0, since collectives need every rank.
    """
    count = len(batch.labels)
    each, more = divmod(count, world_size)
    begin = rank * each + min(rank, more)
    mine = each + (rank < more)
    rows = slice(begin, begin + mine) if mine else slice(0, 1)
    cut = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])
    return cut, mine * world_size / count
