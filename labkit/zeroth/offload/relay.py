"""Several forward passes that take turns: each goes as far as the next piece, and waits there for the others.

A piece is on the device for a short time, in which both sides (w + εz and w − εz) have to use it. So one pass runs up
to its first module of the next piece and hands on; when the last one comes there, the piece changes and it goes on (or
the first one, where their order matters). Each pass is the model's own forward method in a thread of its own, so that
no model has to be taken apart; only one thread runs at a time, in an order that is always the same.

    pass +    embedding                  C1 C2       C3 …
    pass −               embedding   C1         C2 C3   …
    pieces    . . . . . . . . . . . |1      |2      |3
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any

import torch

from labkit.errors import LabError

BEGIN, TAIL, END = -1, -2, -3  # places that are no piece: before the first, after the last, and done


class _Abandoned(Exception):
    """Another pass has failed."""


class Crew:
    """The passes' threads, which outlive a run.

    Some of what torch makes once is kept by thread: a fresh one plans cuDNN's attention anew, which takes 50 ms, and
    asks for a workspace of cuBLAS.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def of(self, size: int) -> Executor:
        """At least so many threads: passes wait for each other, so none may wait for a thread."""
        if self._pool is None or self._size < size:
            self.close()
            self._pool, self._size = ThreadPoolExecutor(size, "labkit-pass"), size
        return self._pool

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._size = None, 0


class Relay:
    """One run of several passes.

    Args:
        count: how many.
        change: called with the place that all have come to, before the first goes on there.
        turn: called with a pass's number before it goes on.
        ordered: at each piece, whether the passes use it in their order.
    """

    def __init__(self, count: int, change: Callable[[int], None], turn: Callable[[int], None], ordered: bool):
        self.places, self._here, self._ordered = [BEGIN] * count, BEGIN, ordered
        self._change, self._turn = change, turn
        # Locks, held until a pass may go on: a semaphore of Python's is several of them.
        self._go = [threading.Lock() for _ in range(count)]
        for go in self._go:
            go.acquire()
        self._me = threading.local()
        self._failed: BaseException | None = None

    def run(self, works: Sequence[Callable[[], Any]], device: torch.device, crew: Crew | None = None) -> list[Any]:
        """What each returns; the first runs in this thread, the others in the crew's, or in threads of this run.

        Raises whatever one of them raises.
        """
        results: list[Any] = [None] * len(works)
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

        def one(number: int) -> None:
            self._me.number = number
            try:
                self._wait(number)
                if number and stream is not None:
                    # The current device and stream are each thread's own.
                    torch.cuda.set_device(stream.device)
                    torch.cuda.set_stream(stream)
                with torch.no_grad():
                    results[number] = works[number]()
                self._finish(number)
            except BaseException as error:
                self._fail(error)

        own = Crew()
        others = range(1, len(works))
        running = [(crew or own).of(len(others)).submit(one, number) for number in others]
        try:
            self._turn(0)
        except BaseException as error:
            self._fail(error)
        else:
            self._go[0].release()
        one(0)
        wait(running)
        own.close()
        if self._failed is not None:
            raise self._failed
        return results

    def reach(self, place: int) -> int:
        """A pass needs this place: it goes on when all others have come there too. Its number."""
        me: int = self._me.number
        if self.places[me] != place and not self._hand_on(me, place):
            self._wait(me)
        return me

    def _hand_on(self, me: int, place: int) -> bool:
        # What a pass sees in place of the weights is not for what is done to them in between.
        with torch._C.DisableTorchFunction():
            return self._go_on(me, place)

    def _go_on(self, me: int, place: int) -> bool:
        """Let the next pass go on; whether it is the one that has come."""
        self.places[me] = place
        if not {*self.places} <= {self._here, place}:
            cause = "The passes on both sides do not use the blocks in the same order."
            raise LabError(cause, "Offload a model, and an objective, that take the same way for every batch.")
        count = len(self.places)
        behind = [n for n in (*range(me + 1, count), *range(me)) if self.places[n] != place]
        if not behind:
            self._change(place)
            self._here = place
            if place == END:
                return False
        following = behind[0] if behind else (0 if self._ordered else me)
        self._turn(following)
        if following != me:
            self._go[following].release()
        return following == me

    def _finish(self, me: int) -> None:
        self._hand_on(me, END)

    def _wait(self, me: int) -> None:
        self._go[me].acquire()
        if self._failed is not None:
            raise _Abandoned

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, _Abandoned) and self._failed is None:
            self._failed = error
            for go in self._go:
                if go.locked():
                    go.release()
