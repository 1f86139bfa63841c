"""Answers run in a part of Python that is large enough for them and leads nowhere else."""

from __future__ import annotations

import ast
import sys
import types
from unittest import mock

import pytest
import torch

from labkit.grading.guards import Guards
from labkit.grading.lab import Lab
from labkit.grading.subset import OutsideError, guarded, imported, may_import, problems, without_magics
from labkit.numerics import formats
from labkit.paths import LESSONS

LABS = sorted(LESSONS.glob("*/lab.ipynb"))

WELCOME = {
    "arithmetic": "x = 2 ** 3\nassert x == 8",
    "imports": "import math, numpy as np\nfrom collections import Counter\nimport torch.nn.functional as F\nx = F.relu",
    "a module's part": "import sys, os, gc\nx = sys.getsizeof(1) + os.cpu_count()\ngc.collect()",
    "a path": "from os import path\nimport os.path as p\nassert p.join('a', 'b') == path.join('a', 'b') == 'a/b'",
    "a module": "import torch\nclass M(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
    "        self._own = 3\n    def forward(self, x): return super().forward(x) + self._own\n"
    "assert M()(torch.ones(2)).shape == (2,)\nassert M()._own == 3 and len(list(M().modules())) == 1",
    "private names of a class": "class A:\n    def __init__(self): self.__x = 1\n    def x(self): return self.__x\n"
    "assert A().x() == 1",
    "an autograd function": "import torch\nclass Twice(torch.autograd.Function):\n    @staticmethod\n"
    "    def forward(ctx, x):\n        ctx.factor = 2\n        ctx.save_for_backward(x)\n        return x * 2\n"
    "    @staticmethod\n    def backward(ctx, g):\n        assert len(ctx.saved_tensors) == 1\n"
    "        return g * ctx.factor\nx = torch.ones(1, requires_grad=True)\nTwice.apply(x).backward()\n"
    "assert x.grad.item() == 2\nx.grad = None",
    "a data class": "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass P:\n    x: int = 1\n"
    "    rows: list = field(default_factory=list)\nassert P() == P(1) and 'x=1' in repr(P())",
    "a named tuple": "from collections import namedtuple\nP = namedtuple('P', 'x y')\nassert P(1, 2).y == 2",
    "a typed dict": "from typing import TypedDict\nclass C(TypedDict):\n    x: 'int'\nassert C(x=1)['x'] == 1",
    "a named tuple's way": "from collections import namedtuple\nassert namedtuple('P', 'x')(1)._replace(x=3).x == 3",
    "wraps": "import functools\ndef d(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a)\n    return g\n"
    "@d\ndef named(x): return x\nassert named(2) == 2 and named.__name__ == 'named'",
    "standard streams": "import sys\nprint('x', file=sys.stderr)\nsys.stdout.flush()",
    "paths": "from pathlib import Path\nassert Path('a', 'b').name == 'b'",
    "plots": "import matplotlib.pyplot as plt\nplt.style.use('ggplot')\nplt.plot([1, 2], color=plt.cm.viridis(0.5))\n"
    "plt.close('all')",
    "distributions": "import torch\ntorch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.5))",
    "bytes": "import struct\nassert [*struct.iter_unpack('<h', memoryview(bytes(4)))] == [(0,), (0,)]",
    "many tensors at once": "import torch\ntorch._foreach_mul_([torch.ones(1)], 2.0)",
    "generators": "def f():\n    yield from range(3)\nassert sum(f()) == 3\nassert [*map(str, f())] == ['0', '1', '2']",
    "a context manager": "class W:\n    def __enter__(self): return self\n    def __exit__(self, *_): pass\n"
    "with W() as w: w.x = 1\nassert w.x == 1",
    "assignments": "class A: pass\na = A()\na.x = a.y = 1\na.x += 2\n(a.x, a.y), a.z = (a.x + 1, 2), 3\ndel a.y\n"
    "assert (a.x, a.z) == (4, 3) and not hasattr(a, 'y')\nfor a.i in range(3): pass\nassert a.i == 2\n"
    "A.kept = 1\nassert a.kept == 1",
    "attributes by name": "class A: x = 1\nassert getattr(A, 'x') == 1 and getattr(A(), 'y', 2) == 2\n"
    "setattr(A, 'y', 3)\nassert A.y == 3\ndelattr(A, 'y')\nassert not hasattr(A, 'y')",
    "patterns": "import torch\nmatch torch.float16:\n    case torch.float16: x = 1\n"
    "match [1, {'a': 2}, torch.ones(1)]:\n    case [int(n), {'a': y}, torch.Tensor() as t]: pass\n"
    "assert (x, y, n, t) == (1, 2, 1, 1)",
    "formats": "assert '{0:.2f} {x[0]} {0.real}'.format(1.5, x=[3]) == '1.50 3 1.5'\nassert f'{2.5:>6}' == '   2.5'",
    "types": "def f(x: type, y): return isinstance(x, type) and issubclass(type(y), (int, float))\n"
    "assert f(int, 1) and type(1.0) is float and type(1)(2) == 2\ntype = 3\nassert type == 3",
    "a variable with a builtin's name": "vars = [1]\ndef f(input, help=2): return input + help\nassert f(vars[0]) == 3",
    "annotations": "import torch\ndef f(x: torch.Tensor, n: int = 2) -> 'torch.Tensor': return x * n\nf(torch.ones(1))",
    "decorators": "import torch, functools\n@torch.no_grad()\ndef f(x): return x * 2\n@functools.cache\n"
    "def g(n): return n\nassert not f(torch.ones(1, requires_grad=True)).requires_grad and g(2) == 2",
    "C code that imports": "import torch\nx = torch.zeros((), dtype=torch.float16) + torch.ones(2)\nx.numpy()",
    "an import that nobody uses": "import pickle, unittest.mock\nfrom logging import getLogger\nx = 1",
    "a data class that is compared": "from dataclasses import dataclass\n@dataclass(init=False)\n"
    "class P:\n    x: int = 1\nassert P() == P()",
    "magics": "%matplotlib inline\n!ls\nx = 5 % 3\nif x:\n    %time y = 1\nassert x == 2",
    "display": "display(3)",
}

UNREADABLE = {  # refused before anything runs
    "globals of a function": "(lambda: 0).__globals__",
    "subclasses": "().__class__.__base__.__subclasses__()",
    "builtins": "__builtins__",
    "everything": "from os import *",
    "relative": "from . import x",
    "eval": "eval('1')",
    "a class that equals": "class A:\n    def __eq__(self, o): return True",
    "a class that equals by another name": "class A:\n    from operator import eq as __eq__",
    "a class that equals in a loop": "class A:\n    for __eq__ in [print]: pass",
    "a class that equals by a pattern": "class A:\n    match print:\n        case __eq__: pass",
    "a class that equals by an error": "class A:\n    try: 1 / 0\n    except ZeroDivisionError as __eq__: pass",
    "a number that computes": "class F(float):\n    def __sub__(self, o): return 0.0",
    "deleted": "class A:\n    def __del__(self): pass",
    "a metaclass": "class A(metaclass=type): pass",
    "type with three": "type('A', (float,), {})",
    "type by a module": "import torch\nx = torch.Tensor.__torch_function__",
    "a frame": "def g(): yield\ng().gi_frame",
    "attributes by a pattern": "match print:\n    case object(shape=s): pass",
    "attributes by a pattern's place": "class A:\n    pass\nmatch print:\n    case A(s): pass",
    "keys that are read": "import torch\nmatch {}:\n    case {torch.sys: x}: pass",
    "annotations that are run": "__annotations__['x'] = 'evil()'",
    "type hints": "import typing\ntyping.get_type_hints(print)",
}

LEADS_OUT = {  # seen when it runs
    "sys.modules": "from sys import modules\nmodules['torch']",
    "inspect": "from inspect import stack\nstack()",
    "unittest": "from unittest import mock\nmock.ANY",
    "labkit": "from labkit.numerics.formats import decode\ndecode(1)",
    "labkit, whole": "import labkit.grading.worker\nlabkit.grading",
    "ctypes": "import ctypes\nctypes.string_at(0)",
    "pickles": "import pickle\npickle.loads(b'')",
    "torch's core": "from torch import _C\n_C.Tag",
    "torch.library": "import torch.library\ntorch.library.define",
    "modes": "from torch.overrides import TorchFunctionMode\nclass M(TorchFunctionMode): pass",
    "classes from text": "import enum\nenum.Enum('E', {})",
    "what reads any memory": "from types import SimpleNamespace\nSimpleNamespace(x=1)",
    "a module under another name": "import torch.library as l\nl.define",
    "a function of the core under another name": "import torch._C as c\nc.Tag",
    "a name from pieces": "getattr(print, '__se' + 'lf__')",
    "a name that lies": "class S(str):\n    pass\ngetattr(print, S('__self__'))",
    "a module in a module": "import torch\nx = torch\nx.os.system",
    "torch's inner": "import torch\ngetattr(torch, '_C')",
    "torch's library": "import torch\ntorch.library",
    "a module's alias": "import random\nrandom._os",
    "the part that is left": "import os\nos.system",
    "lib": "import numpy\nnumpy.lib",
    "a private name of a library's object": "import torch\ntorch.nn.Linear(1, 1)._parameters",
    "sets a module": "import torch\nt = torch\nt.equal = print",
    "sets a class": "import torch\nT = torch.Tensor\nT.item = print",
    "sets by name": "import torch\nsetattr(torch.Tensor, 'item', print)",
    "sets by a type": "import torch\ntype(torch.ones(1)).item = print",
    "deletes": "import torch\ndel torch.equal",
    "adds to a class": "import torch\ntorch.Tensor.new += 1",
    "loops into a class": "import torch\nfor torch.equal in [print]: pass",
    "makes a library's class a data class": "import torch\nfrom dataclasses import dataclass\nd = dataclass\n"
    "import dataclasses\ndataclasses.dataclass(torch.nn.Module)",
    "formats its way": "'{0.__class__}'.format(1)",
    "formats its way, deeper": "'{0:{1._x}}'.format(1, 2)",
    "formats by the class": "str.format('{0.__class__}', 1)",
    "formats a frame": "def g(): yield\n'{0.gi_frame}'.format(g())",
    "eval under another name": "f = [eval][0]\nf('1')",
    "a library's function around getattr": "import torch\ntorch.no_grad()(getattr)(print, '__se' + 'lf__')",
    "a library's function around setattr": "from contextlib import ExitStack\nimport torch\nwith ExitStack() as s:\n"
    "    s.callback(setattr, torch.Tensor, 'item', print)",
    "the class of a class": "type(int)('A', (float,), {'__e' + 'q__': print})",
    "the class of a class, read": "int.__class__",
    "type as a value": "t = type\nt(int)('A', (), {})",
    "wraps what is no function": "import functools, torch\nfunctools.wraps(print)(torch)",
    "a debugger": "import torch.distributed as dist\ndist.breakpoint()",
    "a backend from a file": "import matplotlib.pyplot as plt\nplt.switch_backend('module://evil')",
    "vars where vars is a name elsewhere": "def f(vars): return vars\ndef g(x): return vars(x)\ng(print)",
    "opens a process": "open('/proc/self/mem', 'rb')",
    "opens by number": "open(3)",
    "opens what it is linked to": "open('/tmp/../proc/self/maps')",
    "imports late": "f = __import__\nf('labkit').train",
}


def run(code, extra=(), at_cell=False):
    guards = Guards(extra, "<answer x>".__eq__)
    guards.at_cell = at_cell
    space = {"__name__": "__main__", "__builtins__": guards.builtins()}
    module = types.ModuleType("__main__")
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        exec(compile(guarded(ast.parse(without_magics(code))), "<answer x>", "exec"), space)
    finally:
        sys.modules["__main__"] = before
    return space


@pytest.mark.parametrize("name", WELCOME)
def test_what_answers_need_is_there(name):
    assert problems(without_magics(WELCOME[name])) == []
    run(WELCOME[name])


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_leads_out_is_refused_before_it_runs(name):
    assert problems(UNREADABLE[name])


@pytest.mark.parametrize("name", LEADS_OUT)
def test_what_leads_out_is_refused_when_it_runs(name):
    equal, item = torch.equal, torch.Tensor.item
    with pytest.raises((OutsideError, TypeError)):
        run(LEADS_OUT[name])
    assert torch.equal is equal and torch.Tensor.item is item


@pytest.mark.parametrize("path", LABS, ids=[path.parent.name for path in LABS])
def test_every_solution_stays_inside(path):
    lab = Lab.read(path)
    assert {item.id: problems(item.solution.source) for item in lab.exercises if item.solution} == {
        item.id: [] for item in lab.exercises
    }


def test_a_lab_lends_the_libraries_that_it_imports_and_nothing_of_python_s():
    found = imported(
        [
            "import labkit, gc\nfrom unittest import mock\nfrom labkit.numerics import formats\nimport peft",
            "from torch.utils._python_dispatch import TorchDispatchMode\nfrom labkit.grading.ranks import ranks",
        ]
    )
    assert found == {"labkit", "labkit.numerics", "labkit.numerics.formats", "peft", "torch", "torch.utils"}
    assert may_import("labkit.numerics.formats", found) and not may_import("labkit.numerics.rounding", found)


def test_what_a_lab_switches_off_cannot_be_kept_from_before():
    """However it is taken, and whenever: it is looked up when it is called."""
    extra = ["labkit", "labkit.numerics", "labkit.numerics.formats"]
    ways = (
        "from labkit.numerics.formats import decode",
        "import labkit.numerics.formats as f\ndecode = f.decode",
        "from labkit.numerics import formats\ndecode = getattr(formats, 'decode')",
        "from labkit.numerics import formats\nclass A:\n    decode = staticmethod(formats.decode)\ndecode = A.decode",
    )
    for way in ways:
        for at_cell in (True, False):
            kept = run(way, extra, at_cell)["decode"]
            assert kept(60, formats.fp16) == formats.decode(60, formats.fp16)
            with mock.patch.object(formats, "decode", return_value="off"):
                assert kept(60, formats.fp16) == "off"
    data = (
        "from labkit.numerics import formats\ndef f(x, fmt=formats.fp16, kind: formats.Format = None): return fmt\nf(1)"
    )
    assert run(data, extra, at_cell=True)["f"](1) is formats.fp16


def test_other_code_with_the_same_names_is_not_held_up():
    guards = Guards((), "<answer x>".__eq__)
    space = {"__name__": "__main__", "__builtins__": guards.builtins()}
    lab = "import inspect\ndef f():\n    globals()['kept'] = eval('1')\n    return getattr(f, '__glo' + 'bals__')"
    answer = "x = f()\ndef g():\n    return [i.real for i in [1]], (lambda y: y.imag)(1)\ny = g()"
    exec(compile(lab, "lab", "exec"), space)
    exec(compile(guarded(ast.parse(answer)), "<answer x>", "exec"), space)
    assert space["x"] is space and space["kept"] == 1 and space["y"] == ([1], 0)


def test_a_magic_keeps_the_lines_where_they_are():
    code = without_magics("%matplotlib inline\nx = 1\n  \n!pip list\ny = (1\n% 2)")
    assert code.splitlines()[1] == "x = 1" and code.splitlines()[3].startswith("pass")
    assert without_magics("y = (5\n% 3)") == "y = (5\n% 3)"
    with pytest.raises(SyntaxError):
        compile(without_magics("x = ("), "x", "exec")


def test_an_error_still_names_the_line():
    with pytest.raises(AttributeError, match="nothing") as error:
        run("import torch\n\nx = torch.nothing")
    lines = [entry.lineno + 1 for entry in error.traceback if str(entry.path) == "<answer x>"]
    assert lines == [3]
