"""The thread of the supervisor that ends a launch: when its parent is gone, when time is up, when ranks fail or hang.

torch elastic notices that a rank ended, and ends the others. It does not notice a notebook that died, has no limit of
time, and keeps of a failure one exit status. A hang it leaves to the collectives' own timeouts, half an hour later.
Here a group counts as hanging when no rank, nor anything it started, has used the CPU for a while and at least one
waits in a collective that not all are in. Ranks on GPUs spin while they wait: a group hangs, too, when some ranks have
stood still for a while, all others are in a collective, and those that stand still are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from labkit.parallel import diagnose
from labkit.parallel.folder import REPORT, Folder
from labkit.parallel.system import exit_status, kill_descendants, seconds_of_work, signal_main_thread

_POLL_S = 0.03
_GRACE_S = 3.0  # from a first failure until torch elastic must have ended the rest
_ANSWER_S = 2.0  # for ranks to say where they are
_IDLE = 0.02  # of a core, all ranks together, is not work


class Guard(threading.Thread):
    """Watches the ranks of `folder`; started before torch is imported, since the parent may end at any time."""

    def __init__(self, folder: Folder, ranks: int, timeout_s: float, stall_s: float) -> None:
        super().__init__(daemon=True)
        self._folder, self._ranks, self._timeout_s, self._stall_s = folder, ranks, timeout_s, stall_s
        self._deadline = time.monotonic() + timeout_s
        self._pids: dict[int, int] = {}
        self._processes: dict[int | None, BaseProcess] = {}
        self.deaths: dict[int, tuple[float, int]] = {}
        self._give_up: float | None = None
        self._worked: dict[int, float] = {}
        self._since: dict[int, float] = {}  # when each rank was last seen to work
        self._next_look = self._next_question = 0.0
        self._ending = threading.Lock()

    def run(self) -> None:
        """Look, some thirty times a second."""
        while not self._parent_is_gone():
            self._look_for_failures()
            now = time.monotonic()
            if self._give_up is not None and now > self._give_up:
                self.end(self.failure)
            elif now > self._deadline:
                self.end(self._hanging(f"after {self._timeout_s:g} s"))
            elif now > self._next_look:
                self._next_look = now + 1.0
                self._look_for_stall(now)
        kill_descendants()
        shutil.rmtree(self._folder.path, ignore_errors=True)
        os._exit(1)

    def end(self, report: Callable[[], diagnose.Report] | None = None) -> None:
        """Write the report, kill every rank and all that they started, and end this process. Does not return."""
        with self._ending:
            told = report() if report else diagnose.Report()
            kill_descendants()
            self._folder.write_json(REPORT, dataclasses.asdict(told))
            os._exit(0 if told.ok else 1)

    def _parent_is_gone(self) -> bool:
        """Whether the pipe from the parent is closed; waits a moment for it."""
        if sys.platform == "win32":
            time.sleep(_POLL_S)  # select takes only sockets there; the process object of the parent is left to it
            return False
        ready, _, _ = select.select([0], [], [], _POLL_S)
        return bool(ready) and os.read(0, 1) == b""

    def _look_for_failures(self) -> None:
        for rank in range(self._ranks):
            if rank not in self._pids:
                state = self._folder.read_json(self._folder.of(rank, "state"))
                if state is None:
                    continue
                self._pids[rank] = state["pid"]
                self._processes |= {process.pid: process for process in multiprocessing.active_children()}
            if rank not in self.deaths and (status := self._status(self._pids[rank])) is not None:
                self.deaths[rank] = (time.time(), status)
        bad = any(status != 0 for _, status in self.deaths.values())
        if bad and self._give_up is None:
            self._give_up = time.monotonic() + _GRACE_S
            self._ask("SIGUSR2")

    def _status(self, pid: int) -> int | None:
        try:
            return exit_status(pid)
        except ChildProcessError:
            # torch elastic was quicker; what it learned is kept with the process.
            return self._processes[pid].exitcode if pid in self._processes else None

    def failure(self) -> diagnose.Report:
        """Why the group failed, now that it has."""
        self._look_for_failures()
        return diagnose.failed(self._folder, self._ranks, self.deaths)

    def _living(self) -> dict[int, int]:
        return {rank: pid for rank, pid in self._pids.items() if rank not in self.deaths}

    def _ask(self, name: str, send: Callable[[int, int], None] = os.kill) -> None:
        """Send the signal of this name to all ranks that live, where the system has it: Windows does not."""
        if not hasattr(signal, name):
            return
        for pid in self._living().values():
            with contextlib.suppress(ProcessLookupError):
                send(pid, getattr(signal, name))

    def _hanging(self, why: str) -> Callable[[], diagnose.Report]:
        def report() -> diagnose.Report:
            self._ask_where()
            return diagnose.hanging(self._folder, self._ranks, why)

        return report

    def _ask_where(self) -> None:
        for rank in self._living():
            with contextlib.suppress(OSError):
                os.truncate(self._folder.of(rank, "stack"), 0)
            self._folder.of(rank, "trace").unlink(missing_ok=True)
        self._ask("SIGUSR1", signal_main_thread)
        until = time.monotonic() + _ANSWER_S
        self._wait_for(lambda rank: diagnose.told_where(self._folder, rank), until)
        # Only then: the thread that tells the traces would run while the stacks, its own among them, are read.
        self._ask("SIGUSR2")
        self._wait_for(lambda rank: self._folder.of(rank, "trace").exists(), until + _ANSWER_S)

    def _wait_for(self, answered: Callable[[int], bool], until: float) -> None:
        while time.monotonic() < until and not all(map(answered, self._living())):
            time.sleep(_POLL_S)
        time.sleep(_POLL_S)

    def _look_for_stall(self, now: float) -> None:
        living = self._living()
        if len(self._pids) < self._ranks or self._ranks == 1 or self._give_up is not None:
            self._since = dict.fromkeys(living, now)
            return
        for rank, pid in living.items():
            worked = seconds_of_work(pid)
            # Waiting itself takes a little, which adds up.
            if worked - self._worked.get(rank, 0.0) > _IDLE * max(1.0, now - self._since.get(rank, now)) / len(living):
                self._worked[rank], self._since[rank] = worked, now
        still = [rank for rank in living if now - self._since.setdefault(rank, now) > self._stall_s]
        if not still or now < self._next_question:
            return
        self._next_question = now + self._stall_s / 2
        self._ask_where()
        report = diagnose.hanging(self._folder, self._ranks, f"since nothing moved for {self._stall_s:g} s")
        all_still = len(still) == len(living)
        if (all_still and ("wait" in report.cause or "differ" in report.cause)) or (
            not all_still and report.missing and set(report.missing) <= set(still)
        ):
            self.end(lambda: report)
