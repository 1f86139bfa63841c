"""Averages over ranks that run while something else does: by torch's all-reduce, or by our ring.

torch starts its all-reduce on a stream of NCCL's, or in gloo's threads, and gives a handle to wait on. Our ring is a
loop of sends, receives and additions that somebody has to go through. On CUDA that only queues work, on a stream of its
own; elsewhere one thread goes through the rings in the order in which they were started, the same on every rank.

A sum of N gradients in fp16 overflows where their mean would not. torch's gradients are therefore divided before they
are added (by NCCL itself, with ReduceOp.AVG), ours by the rank that finishes a chunk. Both are exact for N = 2, 4, 8 …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.parallel import collectives
from labkit.parallel.collectives import Group, Traffic

COLLECTIVES = ("torch", "ring")


def check_group(group: Group = None) -> None:
    """Raise LabError where this process has no others to talk to."""
    if not (dist.is_available() and dist.is_initialized()):
        raise LabError("There is no process group.", "Run this in ranks, by `labkit.parallel.launch.launch`.")
    if dist.get_rank(group) < 0:
        raise LabError("This rank is not in the group.", "Give a group that this rank belongs to.")


class Averager:
    """Averages flat tensors over the ranks of a group, in the background, and sends rank 0's tensors to all.

    Every rank has to start the same averages in the same order. While some are on their way in a ring, no other sends
    or receives may be made between the same ranks; torch's collectives may.

    Args:
        collective: "torch", or "ring" for `labkit.parallel.collectives`.
        group: of whose ranks; None for all.
        device: of the tensors.

    Attributes:
        traffic: what this rank has sent for averages; stays empty with "torch", which does not tell.

    Raises:
        LabError: where there is no process group.
        UnknownNameError: for a collective that is not there.
    """

    def __init__(self, collective: str = "torch", group: Group = None, device: torch.device | None = None):
        if collective not in COLLECTIVES:
            raise UnknownNameError.among("collective", collective, COLLECTIVES)
        check_group(group)
        self.collective, self.group, self.traffic = collective, group, Traffic()
        self.world_size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        ring, on_gpu = collective == "ring", device is not None and device.type == "cuda"
        self._native_mean = dist.get_backend(group) == "nccl"
        self._stream = torch.cuda.Stream(device) if ring and on_gpu else None
        self._thread = ThreadPoolExecutor(1, "labkit-ring") if ring and not on_gpu else None

    def start(self, flat: Tensor) -> Callable[[], object]:
        """Begin to put the ranks' mean in the place of `flat`; return what waits for it.

        On CUDA only the current stream waits. Until then `flat` belongs to the collective.
        """
        if self._stream is not None:
            return self._queue(flat, self._stream)
        if self._thread is not None:
            return self._thread.submit(collectives.all_reduce, flat, "mean", self.group, self.traffic).result
        if not self._native_mean:
            flat.mul_(1 / self.world_size)
        op = dist.ReduceOp.AVG if self._native_mean else dist.ReduceOp.SUM
        return dist.all_reduce(flat, op, self.group, async_op=True).wait

    def _queue(self, flat: Tensor, stream: torch.cuda.Stream) -> Callable[[], object]:
        """The whole ring on a stream that begins when what was queued before is done."""
        stream.wait_stream(torch.cuda.current_stream(flat.device))
        with torch.cuda.stream(stream):
            collectives.all_reduce(flat, "mean", self.group, self.traffic)
            done = stream.record_event()
        return lambda: torch.cuda.current_stream(flat.device).wait_event(done)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Put rank 0's values into every rank's tensors."""
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        for tensor in tensors:
            if self.collective == "ring":
                collectives.broadcast(tensor, 0, self.group)
                continue
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, source, self.group)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(sent)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
