"""What ranks tell each other in distributed MeZO: a few numbers a step, whatever the size of the model.

    directions   each rank has seeds of its own; all go the way of all, averaged
    batch        all have the same seeds and each its share of the batch; losses are averaged over the examples

Either way a rank tells (seed, ℓ₊, ℓ₋, examples), 32 bytes a direction, where DDP moves 2 (N − 1)/N times the gradients.
Every rank then makes the same update from the same numbers, in the order of ranks, so that the weights stay bitwise
equal without ever being sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.errors import LabError
from labkit.tasks import Batch

MODES = ("directions", "batch")


@dataclass(frozen=True)
class Told:
    """What a rank found in one direction.

    Attributes:
        seed: of the direction.
        plus, minus: the objective on both sides.
        weight: examples that it was found on.
    """

    seed: int
    plus: float
    minus: float
    weight: float = 1.0


class Alone:
    """One process."""

    rank, world_size, traffic = 0, 1, 0

    def __init__(self, mode: str = "directions"):
        self.mode = mode

    def share(self, batch: Batch) -> Batch:
        """All of the batch."""
        return batch

    def tell(self, mine: list[Told]) -> list[Told]:
        """There is nobody to tell."""
        return mine


class Ranks(Alone):
    """The default process group.

    Attributes:
        traffic: bytes that this rank has sent, and received of each other rank.
    """

    def __init__(self, mode: str, device: torch.device):
        super().__init__(mode)
        self.rank, self.world_size, self._device = dist.get_rank(), dist.get_world_size(), device

    def share(self, batch: Batch) -> Batch:
        """Every world_size-th row of the batch, where ranks share it.

        Raises:
            LabError: where a rank would have none.
        """
        if self.mode != "batch":
            return batch
        if len(batch.labels) < self.world_size:
            cause = f"A batch of {len(batch.labels)} has no row for each of {self.world_size} ranks."
            raise LabError(cause, 'Use larger batches, or ranks="directions".')
        own = slice(self.rank, None, self.world_size)
        return Batch(batch.input_ids[own], batch.attention_mask[own], batch.labels[own])

    def tell(self, mine: list[Told]) -> list[Told]:
        """All directions: of all ranks in their order, or those of all with the mean over the batch's examples."""
        numbers = torch.tensor([(t.plus, t.minus, t.weight) for t in mine], dtype=torch.float64)
        seeds = torch.tensor([t.seed - 2**63 for t in mine], dtype=torch.int64)
        packed = torch.cat([seeds[:, None], numbers.view(torch.int64)], dim=1).to(self._device)
        every = [torch.empty_like(packed) for _ in range(self.world_size)]
        dist.all_gather(every, packed)
        self.traffic += packed.numel() * packed.element_size()
        ranks = [_unpacked(each.cpu()) for each in every]
        return [told for rank in ranks for told in rank] if self.mode == "directions" else _mean(ranks)


def _unpacked(packed: Tensor) -> list[Told]:
    numbers = packed[:, 1:].contiguous().view(torch.float64).tolist()
    return [Told(seed + 2**63, *found) for seed, found in zip(packed[:, 0].tolist(), numbers, strict=True)]


def _mean(ranks: list[list[Told]]) -> list[Told]:
    if any([t.seed for t in rank] != [t.seed for t in ranks[0]] for rank in ranks):
        cause = "Ranks that share a batch have drawn different directions."
        raise LabError(cause, "Give all ranks the same settings, and the same steps.")
    means = []
    for same in zip(*ranks, strict=True):
        total = sum(t.weight for t in same)
        plus, minus = (sum(getattr(t, side) * t.weight for t in same) / total for side in ("plus", "minus"))
        means.append(replace(same[0], plus=plus, minus=minus, weight=total))
    return means


def meeting(mode: str, device: torch.device) -> Alone:
    """The ranks of the default process group, or one process alone."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return Ranks(mode, device) if several else Alone(mode)
