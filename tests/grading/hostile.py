"""Broken and hostile submissions of the small lab, each with what grading it has to give.

An answer stands in `def mean(values):`. Full marks are 3: 1 for the visible test, 2 for the hidden one. Some answers
are right if, and only if, their attack found nothing: they earn full marks behind good walls.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell

from labkit.grading.lab import Lab
from labkit.grading.outcome import Submission

from .small_lab import small_lab

RIGHT = "return sum(values) / len(values)"
WRONG = "return 0"


@dataclass(frozen=True)
class Case:
    """A submission's bytes, the points it must get, and text that must stand in its errors or notes."""

    raw: bytes
    points: float
    says: str = ""
    restarts: int = 0


def notebook(
    answer: str = RIGHT, before: str = "", extra: str = "", change: Callable[[Any], None] | None = None
) -> bytes:
    """The released small lab with `answer` in mean, `before` above it in its cell, and `extra` in a cell of its own."""
    released = Lab.from_notebook(small_lab()).stub()
    body = textwrap.indent(textwrap.dedent(answer).strip(), "    ")
    released.cells[2].source = f"{textwrap.dedent(before).strip()}\ndef mean(values):\n{body}"
    if extra:
        released.cells.insert(2, new_code_cell(textwrap.dedent(extra).strip()))
    if change:
        change(released)
    return nbformat.writes(released).encode()


def submission(raw: bytes, student: str = "mallory") -> Submission:
    return Submission(student, raw=raw)


def _cell(released: Any, grade_id: str) -> Any:
    return next(c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def _soften(released: Any) -> None:
    for grade_id in ("ex1-mean-test", "ex1-mean-hidden"):
        _cell(released, grade_id).source = "assert True"


def _remove(released: Any) -> None:
    released.cells = [c for c in released.cells if not c.metadata.get("nbgrader", {}).get("locked")]


def _raise_points(released: Any) -> None:
    for cell in released.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.metadata.nbgrader.points = 1000


def _twice(released: Any) -> None:
    copy = nbformat.from_dict(_cell(released, "ex1-mean"))
    copy.source = f"def mean(values):\n    {RIGHT}"
    released.cells.append(copy)


def _invent_outputs(released: Any) -> None:
    for cell in released.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]


def _other_kernel(released: Any) -> None:
    released.metadata.kernelspec = {"name": "ir", "display_name": "R", "language": "R"}


def _strip_metadata(released: Any) -> None:
    for cell in released.cells:
        cell.metadata = nbformat.from_dict({})
        cell.pop("id", None)


def _surrogate(released: Any) -> None:
    _cell(released, "ex1-mean").source += "\n    # \ud800"


def _version_3() -> bytes:
    return json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": []}]}).encode()


def _version_9() -> bytes:
    return json.dumps({**json.loads(notebook()), "nbformat": 9}).encode()


def _odd_cells() -> bytes:
    data = json.loads(notebook())
    odd: list[Any] = [None, 7, "x", {"cell_type": 3}, {"cell_type": "code", "source": {"a": 1}, "metadata": []}]
    odd += [
        {"cell_type": "code", "source": ["a", 1]},
        {"cell_type": "code", "source": "1", "metadata": {"nbgrader": 5}},
    ]
    data["cells"] = odd + data["cells"]
    return json.dumps(data).encode()


BROKEN = {
    "empty": Case(b"", 0, "an empty file"),
    "white space": Case(b" \n", 0, "an empty file"),
    "not JSON": Case(b"dear teacher,", 0, "not JSON"),
    "not UTF-8": Case(b"\xff\xfe\x00\x01", 0, "not JSON"),
    "nested without end": Case(b"[" * 200_000, 0, "not JSON"),
    "a list": Case(b"[1, 2]", 0, "no list of cells"),
    "nbformat 3": Case(_version_3(), 0, "nbformat 3"),
    "nbformat 9": Case(_version_9(), 3),
    "cells of odd types": Case(_odd_cells(), 3),
    "too large": Case(b" " * 20_000_001 + b"{}", 0, "20 MB"),
    "too much source": Case(notebook(extra="x = '" + "a" * 200_001 + "'"), 0, "characters of code"),
    "another kernel": Case(notebook(change=_other_kernel), 3),
    "no metadata": Case(notebook(change=_strip_metadata), 3, "No answer cell was found for ex1-mean"),
    "a lone surrogate": Case(notebook().replace(b"    return sum", b"    # \\\\ud800\\n    return sum", 1), 3),
    "softened tests": Case(notebook(WRONG, change=_soften), 0, "ex1-mean-test was changed"),
    "removed tests": Case(notebook(WRONG, change=_remove), 0),
    "removed tests, right": Case(notebook(change=_remove), 3),
    "raised points": Case(notebook(change=_raise_points), 3),
    "an id twice": Case(notebook(WRONG, change=_twice), 0, "more than once"),
    "invented outputs": Case(notebook(WRONG, change=_invent_outputs), 0),
    "not Python": Case(notebook("return ("), 0, "SyntaxError"),
    "null bytes": Case(notebook("x = '\x00'\n" + RIGHT), 0, "null bytes"),
}

FILL = "n = 0\nwhile True:\n    open(f'{where}/{n}', 'wb').write(bytes(1 << 24)); n += 1"
SLEEPER = "import threading, time; threading.Thread(target=lambda: time.sleep(99)).start()"
THREADS = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()"
DELETE = (
    "import shutil, labkit\nfor path in ('/tmp', '/etc', labkit.__path__[0]): shutil.rmtree(path, ignore_errors=True)"
)
FLOOD = """import os
for fd in range(1, 64):
    try: os.write(fd, b'x' * 100_000 + b'\\n')
    except OSError: pass
"""
JUNK = """    import os
    for fd in range(3, 12):
        try: os.write(fd, b'{}\\n')
        except OSError: pass"""
HOSTILE = {
    "endless loop": Case(notebook("while True: pass"), 0, "more than", restarts=2),
    "endless loop in the cell": Case(notebook(before="while True: pass"), 0, "more than", restarts=1),
    "sleeps past the limit": Case(notebook("import time; time.sleep(1e6)"), 0, "more than", restarts=2),
    "catches everything, for ever": Case(
        notebook("while True:\n    try:\n        while True: pass\n    except BaseException: pass"), 0, "more than", 2
    ),
    "fork bomb": Case(notebook("import os\nwhile True: os.fork()"), 0, "os.fork"),
    "starts a program": Case(notebook("import os; return float(os.popen('echo 2').read())"), 0, "subprocess"),
    "thread bomb": Case(notebook(THREADS), 0, "", 2),
    "memory bomb": Case(notebook("x = bytearray(1 << 40); " + RIGHT), 0, "MemoryError"),
    "memory, bit by bit": Case(notebook("x = []\nwhile True: x.append(bytes(1 << 24))"), 0, "Memory"),
    "fills the disk": Case(notebook("where = '/tmp'\n" + FILL), 0, "No space left"),
    "one huge file": Case(
        notebook("f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(1 << 24))"), 0, "File too large"
    ),
    "fills /dev/shm": Case(notebook("where = '/dev/shm'\n" + FILL), 0, "No space left"),
    "opens files without end": Case(
        notebook("x = []\nwhile True: x.append(open('/dev/null'))"), 0, "Too many open files"
    ),
    "deletes all files": Case(notebook(DELETE + "\n" + RIGHT), 3),
    "prints a gigabyte": Case(notebook("for _ in range(1024): print('x' * (1 << 20))\n" + RIGHT), 3),
    "floods the pipe": Case(notebook(FLOOD + RIGHT), 3),
    "writes to the pipe for ever": Case(notebook(f"while True:\n{JUNK}"), 0, "grader's pipe", 2),
    "writes to it now and then": Case(notebook(f"import time\nwhile True:\n    time.sleep(0.1)\n{JUNK}"), 0, "", 2),
    "memory without a name": Case(notebook("import os; os.memfd_create('x'); " + RIGHT), 0, "not permitted"),
    "prints a lone surrogate": Case(notebook("print(chr(0xd800)); " + RIGHT), 3),
    "too deep to parse": Case(notebook("return " + "-" * 3000 + "1"), 0),
    "forges replies": Case(
        notebook(
            """
            import os
            line = b'{"nonce": "", "points": 2, "error": "", "shown": "", "stdout": "", "odd": [], "threads": 0}\\n'
            for fd in range(3, 64):
                try: os.write(fd, line)
                except OSError: pass
            """
        ),
        0,
    ),
    "kills its process": Case(notebook("import os; os.kill(os.getpid(), 9)"), 0, "SIGKILL", 2),
    "kills its process in the cell": Case(notebook(before="import os; os.kill(os.getpid(), 9)"), 0, "SIGKILL", 1),
    "kills all it sees": Case(notebook("import os\ntry: os.kill(-1, 9)\nexcept ProcessLookupError: pass\n" + RIGHT), 3),
    "os._exit": Case(notebook("import os; os._exit(0)"), 0, "exit code 0", 2),
    "sys.exit": Case(notebook("import sys; sys.exit(0)"), 0, "SystemExit"),
    "sys.exit in the cell": Case(notebook(before="import sys; sys.exit()"), 0, "SystemExit"),
    "atexit": Case(notebook(WRONG, before="import atexit, os; atexit.register(lambda: os.write(1, b'full marks'))"), 0),
    "recursion": Case(notebook("return mean(values)"), 0, "RecursionError"),
    "stack overflow": Case(notebook("import sys; sys.setrecursionlimit(1 << 30); return mean(values)"), 0, "", 2),
    "a thread goes on": Case(notebook(before=SLEEPER), 0, "thread", 1),
    "a thread started in the test": Case(notebook(SLEEPER + "; " + RIGHT), 0, "thread", 2),
    "equals everything": Case(
        notebook("return Same()", before="class Same:\n    def __eq__(self, other): return True"), 0, "Same.__eq__"
    ),
    "equals everything, made late": Case(
        notebook("return type('Same', (float,), {'__eq__': lambda a, b: True})(0)"), 0, "Same.__eq__"
    ),
    "a library's object that equals everything": Case(
        notebook("from unittest.mock import ANY; return ANY"), 0, "_ANY.__eq__"
    ),
    "hides it in a list": Case(notebook("from unittest.mock import ANY; return [ANY][0]"), 0, "_ANY.__eq__"),
    "puts it into what it was given": Case(
        notebook("from unittest.mock import ANY; values[:] = [ANY, [ANY]]; return 2"), 0, "_ANY.__eq__"
    ),
    "forges where its class comes from": Case(
        notebook(
            "return Same()",
            before="import random\nclass Same:\n    def __eq__(self, other): return True\n"
            "Same.__module__ = 'random'; random.Same = Same",
        ),
        0,
        "Same.__eq__",
    ),
    "takes its __eq__ away when it was asked": Case(
        notebook(
            "class Same:\n    def __eq__(self, other):\n        del Same.__eq__\n        return True\nreturn Same()"
        ),
        0,
        "Same.__eq__",
    ),
    "reaches the grader through what prints": Case(
        notebook(WRONG, before="import sys, operator; operator.attrgetter('write.__glo' + 'bals__')(type(sys.stdout))"),
        0,
        "attrgetter",
    ),
    "reaches it by a pattern": Case(
        notebook("import sys, types\nmatch type(sys.stdout).write:\n    case types.FunctionType(__globals__=g): pass"),
        0,
        "__globals__",
    ),
    "asks IPython for a frame": Case(
        notebook("from IPython.utils.frame import extract_module_locals as e; return e(1)"), 0, "IPython"
    ),
    "writes into Python's own 3": Case(
        notebook("class A: pass\na = A(); a.__array_interface__ = {}\n" + RIGHT), 0, "__array_interface__"
    ),
    "unpickles": Case(notebook("import pickle; pickle.loads(b'cos\\nsystem\\n.'); " + RIGHT), 0, "pickle"),
    "patches builtins": Case(
        notebook(WRONG, before="import builtins; builtins.AssertionError = ZeroDivisionError"), 0, "builtins"
    ),
    "an AssertionError of its own": Case(notebook(WRONG, before="AssertionError = ZeroDivisionError"), 0),
    "patches sum where the test runs": Case(
        notebook("import math; math.floor = lambda x: 0; " + RIGHT), 0, "math.floor"
    ),
    "patches the grader": Case(
        notebook(WRONG, before="import labkit.grading.worker as w; w.points_of = lambda value, most: most"),
        0,
        "labkit.grading.worker.points_of",
    ),
    "patches the runner in the test": Case(
        notebook("import labkit.grading.cell_runner as r; r.Runner.run = None; " + WRONG), 0
    ),
    "looks at the test's frame": Case(
        notebook("import sys; f = getattr(sys, '_get' + 'frame')(1); " + RIGHT), 0, "_getframe"
    ),
    "names frames": Case(notebook("import sys; return sys._getframe(1).f_locals"), 0, "_getframe"),
    "asks inspect": Case(notebook("import inspect; return inspect.stack()"), 0, "inspect"),
    "asks logging": Case(
        notebook("import logging; f = getattr(logging, 'current' + 'frame')(); " + RIGHT), 0, "currentframe"
    ),
    "takes a traceback's frame": Case(
        notebook("try: 1 / 0\nexcept Exception as e: f = getattr(e.with_traceback, '__se' + 'lf__')\n" + RIGHT),
        0,
        "__self__",
    ),
    "walks all objects": Case(notebook("import gc; gc.get_objects(); " + RIGHT), 0, "gc"),
    "traces": Case(notebook("import sys; sys.settrace(lambda *a: None); " + RIGHT), 0, "sys.settrace"),
    "writes memory": Case(notebook("import ctypes; ctypes.string_at(0); " + RIGHT), 0, "ctypes"),
    "reads its memory file": Case(notebook("open('/proc/self/mem', 'rb'); " + RIGHT), 0, "open"),
    "adds a hook": Case(notebook("import sys; getattr(sys, 'add' + 'audithook')(print); " + RIGHT), 0, "addaudithook"),
    "handles signals": Case(notebook("import signal; signal.alarm(1); " + RIGHT), 0, "signal"),
    "asks for IPython": Case(notebook("get_ipython().kernel.do_shutdown(False)"), 0, "get_ipython"),
    "replaces names of the lab": Case(notebook(WRONG, extra="def mean(values): return 2\nassert_ = print = None"), 0),
    "executes text": Case(notebook("return eval('sum(values)') / len(values)"), 0, "eval"),
    "looks around": Case(
        notebook(
            "import os, labkit; root = os.path.dirname(labkit.__path__[0])\n"
            "assert set(os.listdir(root)) <= {'labkit', 'data', '.venv'}, os.listdir(root)\n"
            "assert os.listdir('/tmp') == ['home'] and os.listdir('/tmp/home') == []\n" + RIGHT
        ),
        3,
    ),
    "asks for the teacher's variables": Case(
        notebook("import os; assert not os.environ.get('LABKIT_SECRET'); " + RIGHT), 3
    ),
    "asks who else runs": Case(
        notebook("import os; assert len([p for p in os.listdir('/proc') if p.isdigit()]) <= 2; " + RIGHT), 3
    ),
}

# Of the same lab with tensors: `mean(values)` has to be torch.equal to the tests' own mean.
TENSORS = {
    "right": Case(notebook("return values.mean()"), 3),
    "wrong": Case(notebook("return values.sum()"), 0),
    "patches torch.equal": Case(
        notebook("import torch; torch.equal = lambda *a: True; return values.sum()"), 0, "torch.equal"
    ),
    "patches it with a function of torch's own": Case(
        notebook("import torch; torch.equal = torch.is_same_size; return values.sum()"), 0, "torch.equal"
    ),
    "patches it, and it undoes itself": Case(
        notebook(
            "import torch\nplain = torch.equal\ndef fake(*a):\n    torch.equal = plain\n    return True\n"
            "torch.equal = fake\nreturn values.sum()"
        ),
        0,
        "torch.equal",
    ),
    "patches it in its cell": Case(
        notebook("return values.sum()", before="import torch; torch.equal = lambda *a: True"), 0, "torch.equal"
    ),
    "patches a method of tensors": Case(
        notebook("import torch; torch.Tensor.__eq__ = lambda *a: True; " + "return values.mean()"), 0, "Tensor.__eq__"
    ),
    "a tensor that equals everything": Case(
        notebook(
            "return values.sum().as_subclass(Same)",
            before="import torch\nclass Same(torch.Tensor):\n"
            "    def __torch_function__(self, *a, **k): return True\n"
            "    __torch_function__ = classmethod(__torch_function__)",
        ),
        0,
        "Same.__torch_function__",
    ),
    "a mode that answers for torch": Case(
        notebook(
            "Mode().__enter__(); return values.sum()",
            before="from torch.overrides import TorchFunctionMode\nclass Mode(TorchFunctionMode):\n"
            "    def __torch_function__(self, *a, **k): return True",
        ),
        0,
    ),
}
