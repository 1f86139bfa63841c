"""What a submission's code may not do inside the process that marks it.

Tests and answers share a process, because tests hand tensors, modules and groups of ranks to answers and look at what
they did with them. So an answer must not reach the tests: not their frames (with expected values in them), nor all
objects, code objects or memory, nor another process that could.

Python reports such acts to audit hooks (PEP 578), which cannot be removed. `lock` adds one that raises where an
answer is behind the act: it looks at the stack. What an installed package does in passing is its own matter (torch
looks at frames, `import` loads libraries); what an answer does through the standard library (`inspect.stack`) is not.
`seal` asks Linux (seccomp) to refuse new processes and programs for the rest of this one's life.

No list of what harms is complete, so this is the second line: before it stands the list of what answers may use
(`labkit.grading.subset`), and around it the sandbox (`labkit.grading.sandbox`).
"""

# ruff: noqa: SIM905 (a long list of names is easier to read as words)
from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import sys
import sysconfig
import threading
from types import FrameType
from typing import Any

_GUARDS = __file__.removesuffix("jail.py") + "guards.py"
ANSWER = "<answer "  # how the file name of an answer's code begins

_FORBIDDEN = frozenset(
    "gc.get_objects gc.get_referrers gc.get_referents sys.addaudithook sys.settrace sys.setprofile sys._current_frames"
    " sys._current_exceptions sys.monitoring.register_callback code.__new__ function.__new__ os.fork os.forkpty os.exec"
    " os.posix_spawn os.spawn os.system subprocess.Popen pty.spawn cpython.PyInterpreterState_New ctypes.dlopen"
    " ctypes.dlsym ctypes.addressof ctypes.cdata ctypes.cdata/buffer ctypes.call_function ctypes.PyObj_FromPtr"
    " ctypes.string_at ctypes.wstring_at _xxsubinterpreters.create".split()
)
_GUARDED = _FORBIDDEN | {
    "sys._getframe",
    "compile",
    "exec",
    "object.__getattr__",
    "object.__setattr__",
    "open",
    "pickle.find_class",
}
# Attributes through which Python reports that frames and code are read or replaced.
_INNER_READ = frozenset("tb_frame gi_frame cr_frame ag_frame gi_code cr_code ag_code".split())
_INNER_SET = frozenset("__code__ __defaults__ __kwdefaults__".split())
# Modules that make functions from text of their own, and those that look at frames, on the way of ordinary code.
_MAKERS = ("dataclasses", "collections/__init__", "torch/fx/operator_schemas")  # the last: types in torch's own schemas
_LOOKERS = (
    *_MAKERS,
    "grading/guards",
    "typing",
    "enum",
    "abc",
    "contextlib",
    "functools",
    "warnings",
    "logging/__init__",
)
_WHOEVER = frozenset("exec compile pickle.find_class ctypes.dlopen open".split())
_PROCESS_FILE = re.compile(r"/proc/.*(mem|maps|environ|pagemap|auxv|fd/.*|map_files.*)$")
_OF_SOME = {"compile": (*_MAKERS, "typing", "ast"), "exec": _MAKERS, "sys._getframe": _LOOKERS}


class ForbiddenError(RuntimeError):
    """An answer did what the grader does not run; `str()` says what."""


def lock(library: tuple[str, ...]) -> None:
    """Forbid answers the acts above, in all threads, for the rest of this process; `library` is `library_folders()`."""
    looking = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _GUARDED or getattr(looking, "now", False):
            return
        looking.now = True  # the look at the stack reports itself
        try:
            reason = _reason(event, arguments, sys._getframe(1), library)
        finally:
            looking.now = False
        if reason:
            raise ForbiddenError(reason)

    sys.addaudithook(hook)


def library_folders() -> tuple[str, ...]:
    """Where Python, installed packages and labkit lie: code from there is not an answer's."""
    paths = sysconfig.get_paths()
    own = __file__.rsplit("/labkit/", 1)[0] + "/labkit/"
    return (*(paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")), own, sys.base_prefix)


def _reason(event: str, arguments: tuple[Any, ...], frame: FrameType | None, library: tuple[str, ...]) -> str:
    """Why this act is forbidden; '' when it is not."""
    if frame is None:
        return ""
    caller = frame.f_code.co_filename
    if event in ("object.__getattr__", "object.__setattr__"):
        names = _INNER_READ if event.endswith("getattr__") else _INNER_SET
        if arguments[1] not in names or _is_of(caller, library, _MAKERS):
            return ""
    elif event in _OF_SOME and _is_of(caller, library, _OF_SOME[event]):
        return ""
    # Text that is run, and libraries that are opened, are an answer's whoever does it for it.
    if not _behind(frame, library, whoever=event in _WHOEVER) or (
        event == "open" and not _is_process_file(arguments[0])
    ):
        return ""
    return _told(f"{event} ({arguments[1]})" if event.startswith("object.") else event)


def _told(event: str) -> str:
    return f"An answer may not do this in the grader: {event}."


def _is_process_file(path: Any) -> bool:
    try:
        return _PROCESS_FILE.match(os.path.realpath(os.fsdecode(path))) is not None
    except TypeError:  # the number of an open file
        return False


def _is_of(path: str, library: tuple[str, ...], modules: tuple[str, ...]) -> bool:
    return path.startswith(library) and path.removesuffix(".py").endswith(modules)


def _behind(frame: FrameType | None, library: tuple[str, ...], whoever: bool) -> bool:
    """Whether an answer's code did it, itself or through the standard library, and not a package that it uses.

    Args:
        whoever: it is an answer's through a package, too, unless a module is being loaded.
    """
    standard = library[0]
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ANSWER) or not name.startswith(("<", *library)):
            return True
        own = name == _GUARDS or whoever or (name.startswith(standard) and "site-packages" not in name)
        if name.startswith("<frozen importlib") or (not own and name.startswith(library)):
            return False
        frame = frame.f_back
    return False


def answers_in_threads(library: tuple[str, ...]) -> int:
    """How many threads beside the calling one have an answer's code on their stack."""
    own = threading.get_ident()
    return sum(_runs_an_answer(frame, library) for ident, frame in sys._current_frames().items() if ident != own)


def _runs_an_answer(frame: FrameType | None, library: tuple[str, ...]) -> bool:
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ANSWER) or not name.startswith(("<", *library)):
            return True
        frame = frame.f_back
    return False


_SYSCALLS = {  # number by architecture: audit's name for it, clone, clone3 and those to refuse
    "x86_64": (0xC000003E, 56, 435, (57, 58, 59, 322, 101, 310, 311, 319)),
    "aarch64": (0xC00000B7, 220, 435, (221, 281, 117, 270, 271, 279)),
}
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ/JGE/JSET|K, RET|K
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_THREAD = 0x00010000


def seal() -> bool:
    """Refuse new processes (not threads), other programs, ptrace and memfd from now on; whether the system can (Linux).

    What a memfd holds is memory that no limit of the sandbox sees. clone3 is answered with "no such call", after which
    the C library falls back to clone, whose flags a filter sees.
    """
    if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
        return False
    program = _filter(*_SYSCALLS[platform.machine()])
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    lines = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(set_seccomp, by_filter, ctypes.create_string_buffer(head, len(head)), 0, 0) == 0)


def _filter(architecture: int, clone: int, clone3: int, refused: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, operand) of the filter: offsets 0 and 4 are the call and the architecture."""
    x32 = 0x40000000  # the bit of x86-64's other numbering
    head = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, 0)]
    tests = [(_GREATER, x32), *((_EQUAL, number) for number in refused)]
    # Behind the tests: clone3, clone (with the flags in its first argument), allow, refuse.
    tail = [
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ENOSYS),
        (_EQUAL, 0, 2, clone),
        (_LOAD, 0, 0, 16),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
    ]
    end = len(tests) + len(tail) - 1  # refuse
    return head + [(code, end - place - 1, 0, operand) for place, (code, operand) in enumerate(tests)] + tail
