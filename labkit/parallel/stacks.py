"""Where a rank is, read from the stack that faulthandler wrote when it was asked by a signal.

faulthandler answers in the signal handler itself, so a rank tells its place even while it waits in C++ for a
collective that never comes, or holds the interpreter in an endless loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$')
_COLLECTIVES = "distributed_c10d.py"
_WAITING = re.compile("reduce|gather|scatter|broadcast|all_to_all|barrier|send|recv|(init|destroy)_process_group|^new_")


@dataclass(frozen=True)
class Frame:
    """A line of a stack."""

    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """'line 3 of train.py, in step'."""
        inside = "" if self.function == "<module>" else f", in {self.function}"
        file = self.file.strip("<>") if self.file.startswith("<") else Path(self.file).name
        return f"line {self.line} of {file}{inside}"


@dataclass(frozen=True)
class Position:
    """Where a rank is: the innermost frame outside torch and Python's library, the collective that it calls there."""

    frame: Frame | None
    collective: str = ""
    stack: str = ""


def position(text: str, main_thread: int) -> Position:
    """The position told by `text`, faulthandler's dump of all threads.

    Args:
        main_thread: identity of the thread that runs the user's code.
    """
    threads = _threads(text)
    # A backward pass runs hooks, and their collectives, in threads of its own.
    calling = [frames for frames in threads.values() if any(map(_waits, frames))]
    frames = calling[0] if calling else threads.get(main_thread, [])
    own = next((number for number, frame in enumerate(frames) if _is_own(frame)), None)
    if own is None:
        return Position(None, "", text)
    called = [frame.function for frame in frames[:own] if _waits(frame)]
    return Position(frames[own], called[-1] if called else "", _as_traceback(frames))


def tells(text: str, main_thread: int) -> bool:
    """Whether the dump has come to the main thread, the oldest and therefore its last."""
    return main_thread in _threads(text)


def _threads(text: str) -> dict[int, list[Frame]]:
    threads: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            # A rank may have been asked twice: its last answer counts.
            frames = threads[int(head[1], 16)] = []
        elif frame := _FRAME.match(line):
            frames.append(Frame(frame[1], int(frame[2]), frame[3]))
    return threads


def _waits(frame: Frame) -> bool:
    """Whether the frame is of a function that waits for other ranks, and not of one that looks something up."""
    return frame.file.endswith(_COLLECTIVES) and bool(_WAITING.search(frame.function))


def _is_own(frame: Frame) -> bool:
    parts = Path(frame.file).parts
    library = "site-packages" in parts or "torch" in parts or any(re.fullmatch(r"python3\.\d+", part) for part in parts)
    return not library and not frame.file.startswith("<frozen")


def _as_traceback(frames: list[Frame]) -> str:
    """As Python prints it, outermost call first, without what the launcher itself called."""
    inner = frames[: next((n for n, f in enumerate(frames) if Path(f.file).name == "worker.py"), len(frames))]
    lines = [f'  File "{f.file}", line {f.line}, in {f.function}' for f in reversed(inner)]
    return "\n".join(["Stack (most recent call last):", *lines])
