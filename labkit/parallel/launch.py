"""Runs a function on several processes under torch elastic, from a notebook or a script, and leaves none behind.

    notebook ── supervisor ─┬─ rank 0
                (elastic's  ├─ rank 1
                 agent)     └─ ...

The supervisor is a process of its own: a notebook's may be interrupted, restarted or killed at any line, may hold a
CUDA context, and may have run the multi-threaded backward pass after which forking deadlocks. It notices its parent's
end by a pipe, and takes the ranks with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.parallel import carry, output
from labkit.parallel.folder import PAYLOAD, REPORT, SETTINGS, Folder
from labkit.parallel.system import kill_session

_POLL_S = 0.05
_GRACE_S = 30.0  # after which a supervisor that should have ended is ended


class RankError(LabError):
    """Ranks failed. `rank` is the first that did, or None; `traceback` is where; `others` where the others were."""

    rank: int | None = None
    traceback: str = ""
    others: dict[int, str] = {}


class NeverMetError(RankError):
    """All ranks waited for each other where the process group begins; nothing of the function had run."""


def launch(
    fn: Callable,
    world_size: int,
    *args: Any,
    timeout_s: float = 600.0,
    device: str | None = None,
    show: bool | output.Sink = True,
    stall_s: float = 12.0,
    check: bool = False,
) -> list:
    """Run `fn(*args)` on `world_size` ranks of this machine; what each returned, in the order of ranks.

    In a rank the default process group exists, on NCCL with `cuda:LOCAL_RANK` or on gloo; torch's seed is 0 and
    OMP_NUM_THREADS is this rank's share of the cores. Tensors return on the CPU. However a launch ends, its processes
    end with it.

    Args:
        fn: a function at the top of a module or of a notebook's cell.
        args: for every rank; what pickle takes, and functions and classes of the notebook.
        timeout_s: seconds after which the ranks are ended.
        device: 'cuda', 'cpu', or None for GPUs if there is one for each rank.
        show: whether the ranks' output is shown, or where.
        stall_s: seconds after which ranks are ended if none works and some wait in a collective for others.
        check: let torch compare the shapes of every collective before it runs; slow.

    Raises:
        RankError: for ranks that fail, hang or disagree, with the first one's number and traceback.
        LabError: for a function, arguments or a number of ranks that cannot be.
    """
    if not isinstance(world_size, int) or world_size < 1:
        raise LabError(f"{world_size!r} ranks cannot be started.", "Ask for 1 or more.")
    packed = carry.pack(fn, args)
    settings = {"ranks": world_size, "timeout_s": timeout_s, "stall_s": stall_s, "device": device, "check": check}
    try:
        return _attempt(packed, settings, show)
    except NeverMetError:
        # Seen once in some hundred launches on a busy machine: gloo's ranks connect, and each waits for the other.
        return _attempt(packed, settings, show)


def _attempt(packed: bytes, settings: dict[str, Any], show: bool | output.Sink) -> list:
    folder = Folder(Path(tempfile.mkdtemp(prefix="labkit-ranks-")))
    try:
        folder.write(PAYLOAD, packed)
        folder.write_json(SETTINGS, settings)
        ranks = settings["ranks"]
        return _run(folder, ranks, output.sink(ranks, show), settings["timeout_s"] + _GRACE_S)
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def _run(folder: Folder, ranks: int, sink: output.Sink, limit_s: float) -> list:
    with contextlib.closing(sink):
        with _supervisor(folder) as process:
            _follow(process, folder, ranks, sink, limit_s)
        _raise_failure(folder, sink)
    return [_result(folder, rank) for rank in range(ranks)]


@contextlib.contextmanager
def _supervisor(folder: Folder) -> Iterator[subprocess.Popen]:
    """The running supervisor; at the end, however it comes, it and all below it have ended."""
    # Found where this process found it, with everything else that can be imported here.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    log = (folder.path / "supervisor.log").open("wb")
    begun = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit.parallel.supervisor", str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which then ends the others in order
    )
    log.close()
    try:
        yield process
    finally:
        with _deaf_to_interrupts():
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            kill_session(process.pid, begun)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not cut short the ending of the ranks. Only the main thread receives one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(process: subprocess.Popen, folder: Folder, ranks: int, sink: output.Sink, limit_s: float) -> None:
    """Pass on what the ranks write, until the supervisor ends."""
    places, deadline, ended = [0] * ranks, time.monotonic() + limit_s, False
    while not ended and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
        ended = process.poll() is not None
        for rank in range(ranks):
            places[rank] += _pass_on(folder, rank, places[rank], sink, ended)
        sink.progress(*_progress(folder, ranks))


def _pass_on(folder: Folder, rank: int, place: int, sink: output.Sink, ended: bool) -> int:
    """Show what `rank` has written after `place`; the number of bytes shown, which end with a character."""
    try:
        with folder.of(rank, "log").open("rb") as file:
            file.seek(place)
            data = file.read()
    except OSError:
        return 0
    whole = data if ended else data[: data.rfind(b"\n") + 1 or len(data.decode("utf-8", "ignore").encode())]
    if whole:
        sink.text(rank, whole.decode("utf-8", "replace"))
    return len(whole)


def _progress(folder: Folder, ranks: int) -> tuple[float, float]:
    done = total = 0.0
    for rank in range(ranks):
        steps, of = folder.read_json(folder.of(rank, "progress")) or (0, 1)
        done, total = done + (of if folder.of(rank, "result").exists() else steps), total + of
    return done, total


def _raise_failure(folder: Folder, sink: output.Sink) -> None:
    report = folder.read_json(REPORT)
    if report is None:
        log = folder.read_text("supervisor.log", 4000).strip()
        said = f" The last that it said: {log.splitlines()[-1]}" if log else ""
        error = RankError(f"The process that supervises the ranks was killed.{said}", "Run it again.")
        error.traceback = log
        raise error
    if report["ok"]:
        return
    others = {int(rank): stack for rank, stack in report["others"].items()}
    sink.failed(report["rank"], report["traceback"], others)
    error = (RankError if report["met"] else NeverMetError)(report["cause"], report["remedy"])
    error.rank, error.traceback, error.others = report["rank"], report["traceback"], others
    if isinstance(sink, output.Silent) and report["traceback"]:
        error.add_note(f"On rank {error.rank}:\n{error.traceback}")
    raise error


def _result(folder: Folder, rank: int) -> Any:
    try:
        return pickle.loads(folder.of(rank, "result").read_bytes())
    except Exception as problem:  # whatever the objects' own methods raise
        raise LabError(
            f"Rank {rank} returned what cannot be read here: {str(problem).rstrip('.')}.",
            "Return plain data and tensors, or objects of classes that the notebook knows.",
        ) from problem
