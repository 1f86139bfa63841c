"""Sends functions, arguments and results between processes: by pickle, and what a notebook defines by its source.

Pickle sends a function or a class as the name of its module and its own. A notebook's are in `__main__`, which in a
rank is another module, so their source goes along, with what they refer to, and is run there in a module `__main__`
of its own. Results can then be instances of a notebook's classes, since both sides know them by one name.

Tensors on a GPU travel to the CPU; a view travels without the rest of its storage.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import linecache
import pickle
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from labkit.errors import LabError

Step = tuple[str, str, Any]  # what to do, the name that it defines, and how


class _Pickler(pickle.Pickler):
    """Pickles for another process. `need` is told each function and class of `__main__` that is met."""

    def __init__(self, file: io.BytesIO, need: Callable[[Any], None] | None = None) -> None:
        super().__init__(file, protocol=5)
        self._need = need

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for every object that is not a plain built-in one."""
        if self._need and isinstance(value, type | types.FunctionType) and value.__module__ == "__main__":
            self._need(value)
        torch = sys.modules.get("torch")
        if torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter):
            return _tensor(torch, value).__reduce_ex__(5)
        return NotImplemented


def _tensor(torch: Any, value: Any) -> Any:
    """`value` on the CPU, with a storage of its own size."""
    if value.device.type == "cpu" and value.untyped_storage().nbytes() == value.numel() * value.itemsize:
        return value
    moved = value.detach().cpu().clone()
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(moved, value.requires_grad)
    return moved.requires_grad_(value.requires_grad)


def dumps(value: Any, need: Callable[[Any], None] | None = None) -> bytes:
    """`value` as bytes. Raises whatever pickle raises."""
    file = io.BytesIO()
    _Pickler(file, need).dump(value)
    return file.getvalue()


def pack(function: Callable, args: tuple) -> bytes:
    """A call as bytes, with the source of what it needs from `__main__`.

    Raises:
        LabError: for a function or an argument that cannot be sent, with the reason.
    """
    parcel = _Parcel()
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(function, types.FunctionType) and "<" in name:
        raise LabError(
            f"The function {name.replace('.<locals>', '')} cannot be sent to the ranks: it was defined inside another.",
            "Define it with def at the top of a module or of a notebook cell.",
        )
    parcel.data("", function, f"The function {name}")
    for number, argument in enumerate(args, 1):
        parcel.data("", argument, f"Argument {number} of {name}")
    return pickle.dumps(parcel.steps)


def unpack(packed: bytes) -> tuple[Callable, tuple]:
    """The call that `pack` packed, with a new module `__main__` in place of this process's own."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    call = []
    for kind, name, what in pickle.loads(packed):
        if kind == "module":
            main.__dict__[name] = importlib.import_module(what)
        elif kind == "source":
            run_source(what, f"<{name} in the notebook>", main.__dict__)
        elif name:
            main.__dict__[name] = pickle.loads(what)
        else:
            call.append(pickle.loads(what))
    return call[0], tuple(call[1:])


def run_source(source: str, filename: str, namespace: dict[str, Any]) -> None:
    """Run `source` so that tracebacks show its lines."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)


class _Parcel:
    """Steps that define, each after what it needs, everything of `__main__` that a call refers to."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._known: set[str] = set()

    def data(self, name: str, value: Any, title: str) -> None:
        """Send `value` by pickle; `name` is its global name, empty for a part of the call itself."""
        try:
            self.steps.append(("data", name, dumps(value, self._definition)))
        except LabError:
            raise
        except Exception as problem:  # pickle raises whatever the objects' own methods raise
            raise LabError(
                f"{title} cannot be sent to the ranks: {str(problem).rstrip('.')}.",
                "Send plain data and tensors, and build the rest in the ranks.",
            ) from problem

    def _definition(self, value: Any) -> None:
        name = value.__qualname__.partition(".")[0]
        if name in self._known:
            return
        self._known.add(name)
        source = _source(value, name)
        for used in sorted({n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}):
            self._global(used, name)
        self.steps.append(("source", name, source))

    def _global(self, name: str, user: str) -> None:
        main = sys.modules["__main__"].__dict__
        if name not in main or name in self._known:
            return
        value = main[name]
        if isinstance(value, type | types.FunctionType) and value.__module__ == "__main__" and value.__name__ == name:
            self._definition(value)
            return
        self._known.add(name)
        if isinstance(value, types.ModuleType):
            self.steps.append(("module", name, value.__name__))
        elif not name.startswith("__"):
            self.data(name, value, f"{name}, which {user} refers to,")


def _source(value: Any, name: str) -> str:
    """The source of a function or class of `__main__`, from the latest cell or file that defines it."""
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        pass
    # inspect does not find a notebook's classes, which know no file.
    for cell in _cells():
        try:
            tree = ast.parse(cell)
        except SyntaxError:
            continue
        found = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
        if found:
            return ast.unparse(found[-1])
    raise LabError(
        f"{name} cannot be sent to the ranks: its source is not to be found.", "Define it in a notebook cell or a file."
    )


def _cells() -> Iterator[str]:
    """A notebook's cells as Python, the latest first."""
    main = sys.modules["__main__"].__dict__
    for cell in reversed(main.get("In", [])) if "get_ipython" in main else ():
        with contextlib.suppress(SyntaxError):
            yield main["get_ipython"]().transform_cell(cell)
    # nbval and graders run cells without a history: linecache alone knows them, as sources without a date.
    known = [entry for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    yield from ("".join(entry[2]) for entry in reversed(known))
