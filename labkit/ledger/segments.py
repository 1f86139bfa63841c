"""Where checkpointing cuts a stack of layers: in the ledger's formulas and in the code that runs."""

from __future__ import annotations

from itertools import pairwise

from labkit.errors import LabError


def runs(layers: int, segments: int) -> list[slice]:
    """Cut `layers` layers into `segments` runs whose lengths differ by at most one, the longer ones first.

    The last segment is computed again while all other inputs are still kept, so it is one of the shorter ones. (torch
    puts what is left over into the last one: 12 layers in 5 runs are 2, 2, 2, 2 and 4 there, and 3, 3, 2, 2, 2 here.)

    Raises:
        LabError: for fewer than one segment, or more than there are layers.
    """
    if not 1 <= segments <= layers:
        raise LabError(
            f"There are {layers} layers; they cannot be cut into {segments} segments.",
            f"Choose a number from 1 to {layers}." if layers else "Give at least one layer.",
        )
    length, longer = divmod(layers, segments)
    ends = [length * k + min(k, longer) for k in range(segments + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]
