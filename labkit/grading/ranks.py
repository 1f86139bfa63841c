"""Ranks as threads with real gloo groups for lab tests: quick to start, impossible to lock up, and with counted bytes.

Processes take seconds to start, and a lab's tests run hundreds of times. `ranks` gives every thread a gloo process
group of its own over one store in memory; tensors go through gloo as between processes, and results have its bits.

Before a tensor moves, both sides say what they are about to do. So a wrong partner, size or type is an error with a
sentence, where gloo itself would end the process, and a lock-up is known the moment when the last rank begins to wait,
without waiting for a time to run out. `send` waits for its `receive`, as a large one does between processes: ranks that
all send first lock up at every size. There is no default group, so that functions of torch.distributed raise.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from labkit.errors import LabError
from labkit.grading.jail import ANSWER
from labkit.grading.meeting import StoppedError, World
from labkit.parallel.collectives import ring_traffic

MOST = 8
_OPERATIONS: dict[str, Any] = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
_GLOO_S = 60.0  # no transfer begins before both sides are there


class RankGroup:
    """One rank's way to the others.

    Attributes:
        rank, world_size: who this is, among how many.
        sent_bytes: payload that this rank has sent; what a collective of gloo's sends counts as a ring's share.
        messages: sends of this rank, collectives apart.
        calls: how often each method was used, by its name.

    Under the grader an answer cannot count for itself: it gets a copy of `calls`, and sets nothing.
    """

    def __init__(self, world: World, rank: int, store: dist.Store) -> None:
        self.rank, self.world_size = rank, world.size
        self.sent_bytes, self.messages, self._calls = 0, 0, Counter[str]()
        self._world, self._joined = world, 0
        # Any: torch's stubs leave the methods out.
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, world.size, timedelta(seconds=_GLOO_S))

    def __setattr__(self, name: str, value: Any) -> None:
        if sys._getframe(1).f_code.co_filename.startswith(ANSWER):
            raise LabError(f"An answer may not set {name} of its group.", "Send, receive, and return the result.")
        super().__setattr__(name, value)

    @property
    def calls(self) -> Counter[str]:
        by_answer = sys._getframe(1).f_code.co_filename.startswith(ANSWER)
        return Counter(self._calls) if by_answer else self._calls

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to rank `to`; returns when that rank has received it."""
        self.calls["send"] += 1
        self._move([(True, tensor, to)])

    def receive(self, tensor: Tensor, source: int) -> None:
        """Put what rank `source` sends into `tensor`, of its size and dtype."""
        self.calls["receive"] += 1
        self._move([(False, tensor, source)])

    def exchange(self, leaving: Tensor, to: int, arriving: Tensor, source: int) -> None:
        """Send and receive at the same time, as every step of a ring needs; a ring of one rank only copies."""
        self.calls["exchange"] += 1
        if to == source == self.rank:
            arriving.detach().copy_(leaving)
            return
        self._move([(True, leaving, to), (False, arriving, source)])

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> None:
        """Put the sum of all ranks' tensors, or with "max" the largest of each value, in the place of each."""
        if op not in _OPERATIONS:
            raise LabError(f"There is no all_reduce with {op!r}.", "Use 'sum' or 'max'.")
        flat = self._joint("all_reduce" if op == "sum" else f"all_reduce ({op})", tensor)
        options = dist.AllreduceOptions()
        options.reduceOp = _OPERATIONS[op]
        self._gloo.allreduce([flat], options).wait()
        self._back(flat, tensor)
        self.sent_bytes += ring_traffic(flat.numel(), flat.element_size(), self.rank, self.world_size).bytes

    def reduce_scatter(self, out: Tensor, whole: Tensor) -> None:
        """Put this rank's part of the sum of all ranks' `whole` into `out`; N parts of one size."""
        self._fits(out, whole, "reduce_scatter")
        flat, part = self._joint("reduce_scatter", whole), out.detach().contiguous().view(-1)
        self._gloo._reduce_scatter_base(part, flat, dist.ReduceScatterOptions()).wait()
        self._back(part, out)
        self.sent_bytes += (self.world_size - 1) * out.numel() * out.element_size()

    def all_gather(self, whole: Tensor, part: Tensor) -> None:
        """Put all ranks' parts, one behind the other, into `whole`."""
        self._fits(part, whole, "all_gather")
        flat, own = whole.detach().contiguous().view(-1), self._joint("all_gather", part)
        self._gloo._allgather_base(flat, own).wait()
        self._back(flat, whole)
        self.sent_bytes += (self.world_size - 1) * part.numel() * part.element_size()

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Put rank `src`'s tensor in the place of every rank's; counted as one copy that `src` sends."""
        self._peer(src)
        flat = self._joint("broadcast", tensor, src)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._gloo.broadcast([flat], options).wait()
        self._back(flat, tensor)
        if self.rank == src and self.world_size > 1:
            self.sent_bytes += flat.numel() * flat.element_size()

    def barrier(self) -> None:
        """Return when all ranks have come here."""
        self._meet("barrier", ())

    def _joint(self, name: str, tensor: Tensor, *more: int) -> Tensor:
        _tensor(tensor, name)
        self._meet(name, (tensor.numel(), tensor.dtype, *more))
        return tensor.detach().contiguous().view(-1)

    def _meet(self, name: str, facts: tuple) -> None:
        """Return when all ranks are at this collective; those that come with other facts raise."""
        self.calls[name.partition(" ")[0]] += 1
        world, turn = self._world, self._joined
        self._joined += 1
        with world.changed:
            if turn == len(world.joint):
                world.joint.append([])
            came = world.joint[turn]
            if came and came[0][1:] != (name, *facts):
                here, there = _said(name, facts), _said(*_split(came[0]))
                cause = f"Rank {self.rank} calls {here} where rank {came[0][0]} calls {there}."
                raise LabError(cause, "All ranks make the same collectives in the same order.")
            came.append((self.rank, name, *facts))
            world.changed.notify_all()
            world.wait(self.rank, f"{name} for {_missing(came, self)}", lambda: len(came) == world.size)

    def _move(self, orders: list[tuple[bool, Tensor, int]]) -> None:
        """Start all sends and receives, wait until their partners have started too, then until they are done."""
        world, works, there, words = self._world, [], [], []
        with world.changed:
            for leaves, tensor, peer in orders:
                word = "send" if leaves else "receive"
                _tensor(tensor, word)
                self._peer(peer)
                if peer == self.rank:
                    raise LabError(f"Rank {peer} is its own partner in a {word}.", "Copy instead.")
                flat = tensor.detach().contiguous().view(-1)
                works.append((self._post(leaves, flat, peer), flat, tensor, leaves))
                way = (self.rank, peer) if leaves else (peer, self.rank)
                mine, theirs = (world.sent, world.received) if leaves else (world.received, world.sent)
                number = len(mine[way])
                there.append(lambda theirs=theirs, way=way, number=number: len(theirs.get(way, ())) >= number)
                words.append(f"{word} {'to' if leaves else 'from'} rank {peer}")
            world.changed.notify_all()
            world.wait(self.rank, " and ".join(words), lambda: all(ready() for ready in there))
        for work, flat, tensor, leaves in works:
            work.wait()
            if leaves:
                self.sent_bytes += flat.numel() * flat.element_size()
                self.messages += 1
            else:
                self._back(flat, tensor)

    def _post(self, leaves: bool, flat: Tensor, peer: int) -> Any:
        """Say what moves, compare it with what the partner has said, and start it."""
        way = (self.rank, peer) if leaves else (peer, self.rank)
        mine, theirs = (self._world.sent, self._world.received) if leaves else (self._world.received, self._world.sent)
        told, others = mine.setdefault(way, []), theirs.get(way, [])
        facts = flat.numel(), flat.dtype
        if len(others) > len(told) and others[len(told)] != facts:
            sent, received = (facts, others[len(told)]) if leaves else (others[len(told)], facts)
            cause = f"Rank {way[0]} sends {_said('', sent)} and rank {way[1]} receives {_said('', received)}."
            raise LabError(cause, "Both tensors of a transfer need one size and dtype.")
        told.append(facts)
        start = self._gloo.send if leaves else self._gloo.recv
        return start([flat], peer, len(told))

    def _peer(self, peer: int) -> None:
        if isinstance(peer, bool) or not isinstance(peer, int) or not 0 <= peer < self.world_size:
            raise LabError(f"There is no rank {peer!r} among {self.world_size}.", f"Use 0 to {self.world_size - 1}.")

    def _fits(self, part: Tensor, whole: Tensor, name: str) -> None:
        _tensor(part, name)
        _tensor(whole, name)
        if whole.numel() != self.world_size * part.numel() or whole.dtype != part.dtype:
            cause = f"{name} on rank {self.rank}: {whole.numel()} values are not {self.world_size} × {part.numel()}"
            raise LabError(f"{cause} of one dtype.", "Pad the whole to a multiple of the number of ranks.")

    @staticmethod
    def _back(flat: Tensor, tensor: Tensor) -> None:
        if flat.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(flat.view(tensor.shape))


def ranks(world_size: int, fn: Callable, *args: Any, seconds: float = 10.0) -> list:
    """Call `fn(group, *args)` on `world_size` threads, each with its `RankGroup`; the results in the order of ranks.

    `args` are the same objects on all ranks. Nothing is left running.

    Raises:
        LabError: for a lock-up, a transfer or collective whose sides differ, or when `seconds` have passed.
        Exception: whatever the first rank that failed has raised, with a note that says which.
    """
    if not 1 <= world_size <= MOST:
        raise LabError(f"{world_size} ranks cannot be tested here.", f"Ask for 1 to {MOST}.")
    if dist.is_initialized():
        raise LabError("This process is a rank already.", "Call destroy_process_group() first.")
    world, store, results = World(world_size), dist.HashStore(), [None] * world_size
    threads = [
        threading.Thread(target=_run, args=(world, r, store, fn, args, results), name=f"rank {r}", daemon=True)
        for r in range(world_size)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        _end(world, threads, seconds)
    if world.errors:
        rank, error = world.errors[0]
        if rank is not None:
            error.add_note(f"(raised on rank {rank} of {world_size})")
        raise error
    return results


def _run(world: World, rank: int, store: dist.Store, fn: Callable, args: tuple, results: list) -> None:
    """One thread: the group, the function, and what came of it."""
    error: BaseException | None = None
    try:
        group = RankGroup(world, rank, store)
        with world.changed:  # nobody begins, or fails, while others still connect
            if not world.joint:
                world.joint.append([])
            world.joint[0].append((rank, "start"))
            world.changed.notify_all()
            world.wait(rank, "the start", lambda: len(world.joint[0]) == world.size)
        group._joined = 1
        results[rank] = fn(group, *args)
    except StoppedError:
        pass
    except BaseException as raised:  # a learner's SystemExit too
        error = raised
    with world.changed:
        if error is not None:
            world.fail(rank, error)
        world.ended.add(rank)
        world.look()
        world.changed.notify_all()
        while len(world.ended) < world.size and not world.errors:  # others may still send to this rank's group
            world.changed.wait()


def _end(world: World, threads: list[threading.Thread], seconds: float) -> None:
    """Time is over: say who is doing what, and end every thread, a loop in Python included."""
    with world.changed:
        if not world.errors:
            busy = set(range(world.size)) - set(world.waits) - world.ended
            told = [f"rank {rank} waits in {what}" for rank, (what, _) in sorted(world.waits.items())]
            told += [f"rank {rank} computes" for rank in sorted(busy)]
            world.fail(None, LabError(f"After {seconds:g} s {'; '.join(told)}.", "Look for a loop without an end."))
    for thread in threads:
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(StoppedError))
    for thread in threads:
        thread.join(2.0)


def _tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise LabError(f"{name} got {type(value).__name__}.", "Give it a tensor.")


def _said(name: str, facts: tuple) -> str:
    size = f"{facts[0]} values of {facts[1]}" if facts else "nothing"
    return f"{name} with {size}" if name else size


def _split(came: tuple) -> tuple[str, tuple]:
    return came[1], came[2:]


def _missing(came: list[tuple], group: RankGroup) -> str:
    absent = sorted(set(range(group.world_size)) - {entry[0] for entry in came})
    return "ranks " + ", ".join(map(str, absent)) if len(absent) != 1 else f"rank {absent[0]}"
