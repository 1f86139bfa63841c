"""Inside a rank: run the function that was sent, and leave word of how it went.

Whatever happens is written before the process group ends, because its end is what the other ranks fail of: the
earliest error is then the cause, and the others' are consequences.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.parallel import carry, progress, traces
from labkit.parallel.folder import PAYLOAD, SETTINGS, Folder
from labkit.parallel.system import end_with_parent

# In a rank, a wait of this many seconds more than the launch has is never the first to end.
_LONGER_S = 60.0


def run(path: str) -> None:
    """The rank's life. torch elastic calls it, with the environment of a rank."""
    folder, rank = Folder(Path(path)), int(os.environ["RANK"])
    _set_up(folder, rank)
    phase = "load"
    try:
        with contextlib.ExitStack() as group:
            function, args = carry.unpack((folder.path / PAYLOAD).read_bytes())
            phase = "join"
            group.enter_context(_group(folder.read_json(SETTINGS)))
            phase = "run"
            value = function(*args)
            phase = "return"
            folder.write(folder.of(rank, "result"), carry.dumps(value))
            phase = "end"
            folder.write_json(folder.of(rank, "trace"), traces.record())
    except BaseException as problem:  # sys.exit in a rank is an end without a result, too
        folder.write_json(folder.of(rank, "error"), _last_words(problem, phase))
        folder.write_json(folder.of(rank, "trace"), traces.record())
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by the usual way out: what it calls may wait for the other ranks.
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform != "linux":  # where a rank is spawned and not forked, it would end as `system.leave` says
        atexit.register(os._exit, 0)


def _group(settings: dict[str, Any]) -> contextlib.AbstractContextManager:
    # Imported here, so that what comes before can fail without it.
    from labkit.parallel.group import process_group

    return process_group(settings["device"], settings["timeout_s"] + _LONGER_S)


def _set_up(folder: Folder, rank: int) -> None:
    """Make this process a rank: its own log, quick to die, ready to tell where it is."""
    end_with_parent()
    log = os.open(folder.of(rank, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ[progress.VARIABLE] = str(folder.of(rank, "progress"))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # A forked rank has its parent's handlers, and Python's run only when C++ returns.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable(all_threads=False)
    if hasattr(faulthandler, "register"):
        stack = folder.of(rank, "stack").open("a")  # it may be emptied, to be written anew
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        _STACKS.append(stack)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        threading.Thread(target=_tell_collectives, args=(folder, rank), daemon=True).start()
    state = {"pid": os.getpid(), "thread": threading.main_thread().ident, "time": time.time()}
    folder.write_json(folder.of(rank, "state"), state)


_STACKS: list[Any] = []  # faulthandler keeps a file's number, not the file


def _tell_collectives(folder: Folder, rank: int) -> None:
    """Answer each SIGUSR2 with the flight recorder's contents, also while the main thread waits."""
    while True:
        signal.sigwait([signal.SIGUSR2])
        folder.write_json(folder.of(rank, "trace"), traces.record())


def _last_words(problem: BaseException, phase: str) -> dict[str, Any]:
    frames = problem.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).name in ("worker.py", "carry.py"):
        frames = frames.tb_next
    if frames is None:
        frames = problem.__traceback__
    return {
        "time": time.time(),
        "phase": phase,
        "type": type(problem).__name__,
        "message": str(problem),
        "lab": isinstance(problem, LabError),
        "traceback": "".join(traceback.format_exception(type(problem), problem, frames)),
    }
