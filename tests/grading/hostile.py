"""Hostile submissions of the small lab, each with what grading it has to give.

Answers are marked in a part of Python in which most of this cannot be written (`test_subset.py`). These run in all of
Python, so that what stands behind is tried: the watch over the libraries, the audit hook, the walls of the sandbox.
Under the grader as it is, none of them earns more.
"""

from __future__ import annotations

from .submissions import RIGHT, WRONG, Case, notebook

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
        notebook("return Same()", before="class Same:\n    def __eq__(self, other): return True"), 0, "__eq__"
    ),
    "equals everything, made late": Case(
        notebook("return type('Same', (float,), {'__eq__': lambda a, b: True})(0)"), 0, "__eq__"
    ),
    "a library's object that equals everything": Case(
        notebook("from unittest.mock import ANY; return ANY"), 0, "__eq__"
    ),
    "hides it in a list": Case(notebook("from unittest.mock import ANY; return [ANY][0]"), 0, "__eq__"),
    "puts it into what it was given": Case(
        notebook("from unittest.mock import ANY; values[:] = [ANY, [ANY]]; return 2"), 0, "__eq__"
    ),
    "forges where its class comes from": Case(
        notebook(
            "return Same()",
            before="import random\nclass Same:\n    def __eq__(self, other): return True\n"
            "Same.__module__ = 'random'; random.Same = Same",
        ),
        0,
        "__eq__",
    ),
    "takes its __eq__ away when it was asked": Case(
        notebook(
            "class Same:\n    def __eq__(self, other):\n        del Same.__eq__\n        return True\nreturn Same()"
        ),
        0,
        "__eq__",
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
    "walks all objects": Case(notebook("import gc; gc.get_objects(); " + RIGHT), 0, "gc"),
    "traces": Case(notebook("import sys; sys.settrace(lambda *a: None); " + RIGHT), 0, "sys.settrace"),
    "writes memory": Case(notebook("import ctypes; ctypes.string_at(0); " + RIGHT), 0, "ctypes"),
    "reads its memory file": Case(notebook("open('/proc/self/mem', 'rb'); " + RIGHT), 0, "open"),
    "adds a hook": Case(notebook("import sys; getattr(sys, 'add' + 'audithook')(print); " + RIGHT), 3),
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
        notebook("import torch; torch.Tensor.__eq__ = lambda *a: True; " + "return values.mean()"), 0, "Tensor."
    ),
    "a tensor that equals everything": Case(
        notebook(
            "return values.sum().as_subclass(Same)",
            before="import torch\nclass Same(torch.Tensor):\n"
            "    def __torch_function__(self, *a, **k): return True\n"
            "    __torch_function__ = classmethod(__torch_function__)",
        ),
        0,
        "__torch_function__",
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
