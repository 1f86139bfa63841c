"""One process behind the sandbox's walls, asked to run one cell after the other, and watched while it does.

However a `Walled` ends, no process of it is left: bubblewrap's own end takes its whole namespace along.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

from labkit.errors import LabError
from labkit.grading.sandbox import HOME, Limits, command, environment

_START_S = 120.0
_END_S = 10.0
_POLL_S = 0.2
_MOST_FOREIGN = 256  # lines that an answer may write where replies are expected
_LINE = 1 << 20  # the longest reply that is read


class Ended(Exception):
    """The process ended, or was ended, while it ran the cell `label` ('' before the first); `str()` says why."""

    def __init__(self, label: str, why: str) -> None:
        super().__init__(why)
        self.label, self.why = label, why

    def error(self) -> LabError:
        """The error for a process that did not even start."""
        return LabError(
            f"The process for submissions does not start: {self.why}",
            "Run labkit doctor; with --trust, no sandbox is used.",
        )


class Walled:
    """A context manager: the process runs inside, and is gone outside.

    Args:
        modules: "preload", to import before the first cell, and "extra", which answers may import.

    Attributes:
        peak_mib: the largest memory of its processes together so far, in MiB.
    """

    def __init__(
        self, limits: Limits, modules: dict[str, list[str]], trust: bool, stop: threading.Event | None
    ) -> None:
        self.limits, self.stop, self.peak_mib = limits, stop, 0.0
        self._replies: queue.Queue[str] = queue.Queue(_MOST_FOREIGN)  # a full one holds the writer up
        self._home = Path(tempfile.mkdtemp(prefix="labkit-submission-")) if trust else None
        home = str(self._home) if self._home else HOME
        self.process = subprocess.Popen(
            command(["-m", "labkit.grading.cell_runner"], limits, trust),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(home),
            cwd=self._home or "/",
            start_new_session=True,
        )
        # A thread, because a pipe has no time-out on Windows.
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        self._head = {
            **modules,
            "memory_mib": int(limits.memory_gib * 1024),
            "file_mib": limits.file_mib,
            "open_files": limits.open_files,
            "walled": not trust,
        }

    def __enter__(self) -> Walled:
        try:
            self._send(self._head)
            self._reply("ready", "", _START_S)
        except Ended as ended:
            self.end()
            raise ended.error() from None
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run one cell; returns the process's reply.

        Raises:
            Ended: it took longer than `seconds`, too much memory or too many threads, or ended by itself.
            KeyboardInterrupt: the whole run is to stop.
        """
        nonce = secrets.token_hex(16)
        try:
            self._send({"nonce": nonce, **job})
        except OSError:
            raise Ended(job["label"], f"The process ended ({self._exit()}).") from None
        return self._reply(nonce, job["label"], seconds)

    def end(self) -> None:
        """End the process and all that it started, and wait until they are gone."""
        family = self._family()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        until = time.monotonic() + _END_S
        while any(map(_lives, family)) and time.monotonic() < until:
            time.sleep(0.01)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def _reply(self, nonce: str, label: str, seconds: float) -> dict[str, Any]:
        until, looked, foreign = time.monotonic() + seconds, 0.0, 0
        while True:
            if self.stop is not None and self.stop.is_set():
                raise KeyboardInterrupt
            # On every turn, not only when nothing comes: an answer could keep this loop busy with lines of its own.
            if time.monotonic() > until:
                raise Ended(label, f"It took more than {seconds:.0f} s.")
            if time.monotonic() > looked + _POLL_S:
                self._watch(label)
                looked = time.monotonic()
            try:
                line = self._replies.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if not line:
                raise Ended(label, f"The process ended ({self._exit()}).")
            if (reply := _parsed(line)).get("nonce") == nonce:
                self._watch(label)
                return reply
            foreign += 1
            if foreign > _MOST_FOREIGN:
                raise Ended(label, "It wrote to the grader's pipe.")

    def _watch(self, label: str) -> None:
        memory = threads = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                threads += process.num_threads()
        self.peak_mib = max(self.peak_mib, memory / 2**20)
        if memory > self.limits.memory_gib * 2**30:
            raise Ended(label, f"It took more than {self.limits.memory_gib:g} GiB of memory.")
        if threads > self.limits.threads:
            raise Ended(label, f"It ran more than {self.limits.threads} threads.")

    def _family(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.Error:
            return []

    def _exit(self) -> str:
        code = self.process.wait()
        # bwrap gives 128 + N where its child was ended by signal N.
        number = -code if code < 0 else code - 128
        with contextlib.suppress(ValueError):
            return signal.Signals(number).name
        return f"exit code {code}"

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError, queue.Full):
            while line := stream.readline(_LINE):
                self._replies.put(line.decode("utf-8", "replace"), timeout=_START_S)
        with contextlib.suppress(queue.Full):
            self._replies.put("", timeout=_START_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        # A lone surrogate passes through JSON, and no file would take it.
        found = json.loads(json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "replace"))
        if isinstance(found, dict):
            return found
    return {}
