"""What the operating system is asked for, so that no process outlives its launch, and none ends in a crash.

Linux kills a process when its parent dies (prctl, PR_SET_PDEATHSIG) and hands orphans to the nearest ancestor that
wants them (PR_SET_CHILD_SUBREAPER), so that even what a rank started and left behind can be found. Elsewhere a
thread in the rank watches its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent() -> None:
    """Let this process be killed as soon as its parent is dead."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    import multiprocessing

    known = multiprocessing.parent_process()
    if known is not None and known.pid not in (None, parent) and sys.platform == "linux":
        os._exit(1)  # it died before it could be asked for


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def leave(code: int) -> NoReturn:
    """End this process, a rank, without the end of the interpreter, as a forked process ends.

    A thread of gloo's may still hold a collective whose tensors Python knows. It drops them when it gets to it, asks
    for the interpreter, and where that has begun to end, the process aborts: "terminate called without an active
    exception" (https://github.com/pytorch/pytorch/pull/179291, seen in one of some 25 torchruns on two busy cores).
    Destroying the group prevents it only where nothing else refers to the group; DDP and DTensors do.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone
            stream.flush()
    os._exit(code)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(patience_s: float = 5.0) -> None:
    """Kill everything that this process started, directly or not, until nothing is left of it."""
    import psutil

    me, deadline = psutil.Process(), time.monotonic() + patience_s
    while time.monotonic() < deadline:
        left = [process for process in me.children(recursive=True) if _runs(process)]
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def kill_session(leader: int, since: float) -> None:
    """Kill what is left of the session of `leader`, a process that is dead: those that began after `since`."""
    import psutil

    if not hasattr(os, "getsid"):
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.create_time() >= since - 1 and _runs(process):
                process.kill()


def _runs(process: object) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE  # type: ignore[attr-defined]
    return False


def signal_main_thread(pid: int, number: int) -> None:
    """Send a signal to the main thread of process `pid`, and to no other; nothing happens where it is gone.

    The kernel gives a process's signal to whichever thread is free. A handler that reads the stacks of all threads has
    to run in the one that moves, since that one then stands still. Where the C library has no tgkill, any may get it.
    """
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None) if sys.platform == "linux" else None
    if tgkill is not None:
        tgkill(pid, pid, number)  # on Linux, a main thread has the number of its process
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def exit_status(pid: int) -> int | None:
    """How the child `pid` ended: its exit code, or minus the signal's number; None while it runs.

    The child stays to be collected. Raises ChildProcessError for one that has been, or was none.
    """
    if not hasattr(os, "waitid"):
        return None
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def seconds_of_work(pid: int) -> float:
    """CPU seconds that process `pid` and its descendants have used so far."""
    import psutil

    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system
    return total
