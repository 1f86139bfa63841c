"""Does it fit? Said before anything is allocated, and explained where memory runs out all the same."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labkit.errors import LabError
from labkit.ledger.counting import Ledger

GIB = 2**30


class DoesNotFit(LabError):
    """A run whose bytes are more than the device has."""


def available(device: torch.device) -> int | None:
    """Bytes that new tensors may still take on a GPU; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check(ledger: Ledger, room: int | None, held: int) -> None:
    """Refuse a run whose predicted bytes do not fit, before it allocates them.

    Args:
        ledger: with its prediction; activations need not be in it, so that it is a lower bound.
        room: bytes that may still be taken; None where nobody knows.
        held: predicted bytes that are there already, such as weights.

    Raises:
        DoesNotFit: with the predicted ledger.
    """
    needed = sum(ledger.predicted.values()) - held
    if room is not None and needed > room:
        cause = f"This run needs {needed / GIB:.2f} GiB more, without activations, and {room / GIB:.2f} GiB are free: "
        raise DoesNotFit(f"{cause}{_words(ledger.predicted)}.", _remedy(ledger.predicted))


@contextmanager
def explained(ledger: Ledger, device: torch.device) -> Iterator[None]:
    """In which CUDA's out-of-memory error becomes one sentence, and what the failed step held is given back.

    Raises:
        DoesNotFit: with the measured peak beside the predicted bytes.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = str(error).split(". ")[0]
        traceback.clear_frames(error.__traceback__)  # their locals are the step's tensors
    else:
        return
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    known = f"the peak was {peak / GIB:.2f} GiB, of which {_words(ledger.predicted)} were predicted"
    raise DoesNotFit(
        f"The GPU's memory ran out ({asked}): {known}; the rest are activations.", _remedy({"activations": 1})
    )


def _words(predicted: dict[str, int]) -> str:
    parts = [f"{name.replace('_', ' ')} {count / GIB:.2f}" for name, count in predicted.items() if count]
    return ", ".join(parts) + " GiB"


def _remedy(predicted: dict[str, int]) -> str:
    if not predicted.get("activations"):
        # What stays is too much by itself: no batch is small enough.
        return "Train fewer weights, hold fewer bytes for each, shard or offload them; labkit plan says what fits."
    return "Take a smaller batch or shorter sequences, checkpoint, or see what fits with: labkit plan."
