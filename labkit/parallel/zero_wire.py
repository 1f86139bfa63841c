"""The collectives of ZeRO with the bytes that they send counted, each kind on a CUDA stream of its own.

On a GPU a collective is queued behind what the compute stream has been given so far, and the compute stream goes on
beside it; whoever needs the result waits for its event, on the GPU. The host waits for nothing. On a CPU everything
happens where it is called.

Gloo has no reduce-scatter: torch's call makes an all-reduce of it there, and sends twice as much (counted by the
kernel, /proc/self/io: 2 (N-1)/N of the bytes instead of (N-1)/N). So on gloo each rank sends every owner its part by an
all-to-all, and owners add what they received in the order of ranks, in fp32, rounding once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The same collectives; torch 2.13 warns of the names that 2.11 has.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Wire:
    """One rank's end of the collectives.

    Args:
        device: where the tensors are; on CUDA the backend of the default group has to be NCCL.

    Attributes:
        rank, world_size: of the default group.
        sent: bytes that this rank has sent since `reset`, by kind: "all_gather", "reduce_scatter", "scalars".
    """

    def __init__(self, device: torch.device):
        self.device, self.on_gpu = device, device.type == "cuda"
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.native = dist.get_backend() == "nccl"
        self._gathers = torch.cuda.Stream(device, priority=-1) if self.on_gpu else None
        self._reduces = torch.cuda.Stream(device, priority=-1) if self.on_gpu else None
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.sent = {"all_gather": 0, "reduce_scatter": 0, "scalars": 0}

    @contextmanager
    def _beside(self, stream: Any) -> Iterator[None]:
        """On another stream, behind what the compute stream has so far."""
        if stream is None:
            yield
            return
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield

    def gathering(self) -> Any:
        """In which memory is allocated, and collectives queued, on the stream of all-gathers."""
        return self._beside(self._gathers)

    def all_gather(self, whole: Tensor, part: Tensor) -> Any:
        """Fill `whole` with every rank's `part`, which may lie in `whole`; inside `gathering`. Returns an event."""
        all_gather_single(whole, part)
        self.sent["all_gather"] += (self.world_size - 1) * part.numel() * part.element_size()
        return self._event()

    @torch.no_grad()
    def reduce_scatter(self, part: Tensor, whole: Tensor) -> Any:
        """The mean over ranks of their `whole`, of which this rank gets its `part`. Returns an event.

        `whole` is left as it was or overwritten, and has to live until the event; `part` may lie in it.
        """
        with self._beside(self._reduces):
            if self.native:
                reduce_scatter_single(part, whole, op=dist.ReduceOp.AVG)
            else:
                self._reduce_by_all_to_all(part, whole)
            self.sent["reduce_scatter"] += (self.world_size - 1) * part.numel() * part.element_size()
            return self._event()

    def _reduce_by_all_to_all(self, part: Tensor, whole: Tensor) -> None:
        received = torch.empty_like(whole)
        dist.all_to_all_single(received, whole)
        total = received.view(self.world_size, -1).sum(0, dtype=torch.float32)
        part.copy_(total.div_(self.world_size))

    def sum_scalars(self, values: Tensor) -> Tensor:
        """Add a small vector over all ranks, in place, on the compute stream; counted as a ring would send it."""
        dist.all_reduce(values)
        self.sent["scalars"] += 2 * (self.world_size - 1) * values.numel() * values.element_size() // self.world_size
        return values

    def _event(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event() if self.on_gpu else None

    def wait(self, event: Any) -> None:
        """What the compute stream is given from now on begins after the event."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
