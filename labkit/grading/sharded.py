"""Ranks as threads for labs that shard with torch: `fully_shard`, DTensors and torch.distributed as in true processes.

`labkit.grading.ranks` has gloo's own arithmetic but no default group, which torch's library asks for. Here every thread
has one: torch's in-process group, with which torch tests FSDP2 itself. It copies between threads what processes would
send, so that values and shards are those of the same number of processes; starting takes milliseconds. It works on the
CPU, on a machine with GPUs too: give `fully_shard` the mesh.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist

from labkit.errors import LabError

MOST = 8
_POLL_S, _STILL_S = 0.02, 0.5  # all waiting for so long: nobody is about to wake
_PG = "multi_threaded_pg.py"


class _Ranks:
    """Threads, what they return and the first error."""

    def __init__(self, world_size: int, fn: Callable, args: tuple) -> None:
        self.size, self.fn, self.args, self.store = world_size, fn, args, dist.HashStore()
        self.results: list[Any] = [None] * world_size
        self.errors: list[tuple[int | None, BaseException]] = []
        self.waiting: dict[int, str] = {}  # by a thread's number
        self.join: Any = None  # torch's
        self.threads = [
            threading.Thread(target=self.run, args=(r,), name=f"rank {r}", daemon=True) for r in range(world_size)
        ]

    def run(self, rank: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.testing._internal.distributed.multi_threaded_pg import ProcessLocalGroup

        try:
            dist.init_process_group("threaded", rank=rank, world_size=self.size, store=self.store)
            self.results[rank] = self.fn(init_device_mesh("cpu", (self.size,)), *self.args)
        except SystemExit:  # how the group ends those that wait for one that failed
            if not self.errors:
                self.errors.append((rank, LabError(f"Rank {rank} leaves the program.", "Return instead.")))
        except BaseException as error:
            self.errors.append((rank, _mismatch(rank, error) or error))
            ProcessLocalGroup.exception_handle(error)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def meet(self, collective: Any, rank: int, data: Any) -> Any:
        """Stands in for the `join` of torch's group, where a thread waits for the others; notes what it waits in.

        A thread tells that itself: another one's frames cannot be read while it runs.
        """
        frame: FrameType | None = sys._getframe(2)  # behind the function that stands in
        name = ""
        while frame is not None and frame.f_code.co_filename.endswith(_PG):
            name, frame = frame.f_code.co_name, frame.f_back
        waits, own = self.waiting, threading.get_ident()
        waits[own] = name
        try:
            return self.join(collective, rank, data)
        finally:
            waits.pop(own, None)

    def waits(self, rank: int) -> str:
        """The collective that a living rank waits in; empty where it computes."""
        return self.waiting.get(self.threads[rank].ident or 0, "")

    def watch(self, seconds: float) -> None:
        """Return when all have ended; a lock-up, or the end of the time, is the error."""
        until, still = time.monotonic() + seconds, 0.0
        while living := [r for r, thread in enumerate(self.threads) if thread.is_alive()]:
            self.threads[living[0]].join(_POLL_S)
            waits = {r: self.waits(r) for r in living}
            stuck = all(waits.values())
            still = still + _POLL_S if stuck else 0.0
            if time.monotonic() < until and (self.errors or still < _STILL_S):
                continue
            if not self.errors:
                self.errors.append((None, self.stuck(waits) if stuck else self.late(seconds, waits)))
            return

    def stuck(self, waits: dict[int, str]) -> LabError:
        told = [f"rank {r} waits in {name}" for r, name in waits.items()]
        told += [f"rank {r} has returned" for r in range(self.size) if r not in waits]
        cause = f"The ranks wait for each other and none can go on: {'; '.join(told)}."
        return LabError(cause, "Let every rank make the same collectives, forward and backward passes among them.")

    def late(self, seconds: float, waits: dict[int, str]) -> LabError:
        told = [f"rank {r} {f'waits in {name}' if name else 'computes'}" for r, name in waits.items()]
        return LabError(f"After {seconds:g} s {'; '.join(told)}.", "Look for a loop without an end.")

    def end(self) -> None:
        """Leave no thread, whatever became of the others."""
        from torch.testing._internal.distributed.multi_threaded_pg import ProcessLocalGroup

        if any(thread.is_alive() for thread in self.threads):
            ProcessLocalGroup.exception_handle(None)
        for thread in self.threads:
            thread.join(0.2)
            if thread.is_alive() and thread.ident is not None:  # a loop in Python
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            thread.join(2.0)


def _mismatch(rank: int, error: BaseException) -> LabError | None:
    """A sentence for what torch's group stumbles over when ranks bring different collectives to one meeting."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or not frame.tb_frame.f_code.co_filename.endswith(_PG):
        return None
    cause = f"Rank {rank} meets others in {frame.tb_frame.f_code.co_name} that bring something else: {error}."
    found = LabError(cause, "Let every rank make the same collectives in the same order, on tensors of one shape.")
    found.__cause__ = error
    return found


def sharded_ranks(world_size: int, fn: Callable, *args: Any, seconds: float = 60.0) -> list:
    """Call `fn(mesh, *args)` on `world_size` threads with a default process group each; results in the order of ranks.

    `mesh` is a device mesh of all ranks on the CPU. `args` are the same objects on all ranks. Random numbers come from
    one generator for all threads: draw before, and hand over what was drawn.

    Raises:
        LabError: for a lock-up, or when `seconds` have passed.
        Exception: whatever the first rank that failed has raised, with a note that says which.
    """
    from torch.testing._internal.distributed import multi_threaded_pg as threaded

    if not 1 <= world_size <= MOST:
        raise LabError(f"{world_size} ranks cannot be tested here.", f"Ask for 1 to {MOST}.")
    if dist.is_initialized():
        raise LabError("This process is a rank already.", "Call destroy_process_group() first.")
    isolation: Any = torch._C._distributed_c10d._set_thread_isolation_mode  # type: ignore[attr-defined]
    ranks, collective = _Ranks(world_size, fn, args), cast(Any, threaded.Collective)
    joined = collective.join
    isolation(True)
    threaded._install_threaded_pg()
    ranks.join, collective.join = joined, lambda *args: ranks.meet(*args)
    try:
        for thread in ranks.threads:
            thread.start()
        ranks.watch(seconds)
    finally:
        ranks.end()
        collective.join = joined
        threaded.ProcessLocalGroup.reset()
        threaded._uninstall_threaded_pg()
        isolation(False)
    if ranks.errors:
        rank, error = ranks.errors[0]
        if rank is not None:
            error.add_note(f"(raised on rank {rank} of {world_size})")
        raise error
    return ranks.results
