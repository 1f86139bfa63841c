"""What answers meet where they read or write an attribute, import, or ask Python for a name: the true object is seen.

`labkit.grading.subset` reads an answer's code; this looks at what stands behind the names when it runs, so that a
module under another name, a name put together from pieces, or a function of a library's own leads no further.
"""

from __future__ import annotations

import builtins
import dataclasses
import os
import re
import string
import sys
import types
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from labkit.grading.subset import (
    MODULES,
    NAME,
    READ,
    REMOVED,
    WRITE,
    OutsideError,
    is_dunder,
    may_import,
    may_take,
    name_problem,
)

# What labs switch off while they test: it may be used where the answer runs, and not be kept from before.
_SWITCHED_OFF = ("labkit", "peft", "bitsandbytes", "torch.utils.checkpoint", "torch.autograd.graph")
_ASKED = frozenset(("format", "format_map"))
_NONE = object()
_REMOVED = tuple(vars(builtins)[name] for name in sorted(REMOVED) if hasattr(builtins, name))


class Guards:
    """The guards of one process.

    Args:
        extra: modules that answers may import beyond the usual.
        is_answers: whether a code's file name is an answer's; other code that shares its names is not held up.

    Attributes:
        own: the classes that answers have made.
        at_cell: whether an answer's cell runs now, and not an answer that a test has called.
    """

    def __init__(self, extra: Collection[str], is_answers: Callable[[str], bool]) -> None:
        self._is_answers_file = is_answers
        self.extra, self.own, self.at_cell = frozenset(extra), weakref.WeakSet[type](), False
        self._parts: dict[str, types.ModuleType] = {}

    def builtins(self) -> dict[str, Any]:
        """Python's names, for global names that answers use."""
        own: dict[str, Callable] = {
            "__import__": self.import_,
            "getattr": self.getattr,
            "hasattr": lambda owner, name: self.getattr(owner, name, _NONE) is not _NONE,
            "setattr": lambda owner, name, value: setattr(self.write(owner, name), name, value),
            "delattr": lambda owner, name: delattr(self.write(owner, name), name),
            "open": _open,
        }
        plain = dict(vars(builtins))
        named = {name: self._for_answers(call, plain[name]) for name, call in own.items()}
        made = {"__build_class__": self.build_class, NAME: _name, READ: self.read, WRITE: self.write, "display": print}
        return plain | named | made

    def _for_answers(self, own: Callable, plain: Callable) -> Callable:
        """`own` where an answer calls, and Python's function where other code does."""

        def call(*arguments: Any, **named: Any) -> Any:
            by_answer = self._is_answers_file(sys._getframe(1).f_code.co_filename)
            return (own if by_answer else plain)(*arguments, **named)

        return call

    def read(self, owner: Any, name: str) -> Any:
        """`owner.name`, where an answer may read it."""
        self._name(owner, name)
        kind = type(owner)
        if issubclass(kind, types.ModuleType):
            self._of_module(types.ModuleType.__getattribute__(owner, "__name__"), name)
        elif name in _ASKED and (issubclass(kind, str) or owner is str):
            return _formatting(owner, name)
        return self._lent(getattr(owner, name))

    def _lent(self, found: Any) -> Any:
        """What an answer gets: of a module, as much as it may use."""
        if found is dataclasses.dataclass:
            return self.dataclass
        if not issubclass(type(found), types.ModuleType):
            return found
        name = types.ModuleType.__getattribute__(found, "__name__")
        if not may_import(name, self.extra):
            raise OutsideError(f"The grader does not run answers that use the module {name}.")
        if (part := MODULES.get(name)) is None:
            return found
        if name not in self._parts:
            self._parts[name] = types.ModuleType(name)
            vars(self._parts[name]).update(
                {key: self._lent(getattr(found, key)) for key in part if hasattr(found, key)}
            )
        return self._parts[name]

    def getattr(self, owner: Any, name: str, *default: Any) -> Any:
        """Python's `getattr`, guarded."""
        try:
            return self.read(owner, name)
        except AttributeError:
            if default:
                return default[0]
            raise

    def write(self, owner: Any, name: str) -> Any:
        """`owner`, where an answer may set or delete its attribute `name`."""
        self._name(owner, name)
        if is_dunder(name):
            raise OutsideError(f"The grader does not run answers that set {name}.")
        if issubclass(type(owner), types.ModuleType) or (issubclass(type(owner), type) and owner not in self.own):
            raise OutsideError(f"The grader does not run answers that change {_called(owner)}.{name}.")
        return owner

    def import_(self, name: str, space: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        """Python's `__import__`, guarded."""
        if isinstance(wanted, list):  # C code of a library's, which Python lets import where its caller stands
            return builtins.__import__(name, None, None, wanted, level)
        if type(name) is not str or level or not (may_import(name, self.extra) or self._all_extra(name, wanted)):
            raise OutsideError(f"The grader does not run answers that import {name}.")
        if wanted and "*" in wanted:
            raise OutsideError(f"The grader does not run answers that import all of {name}: name what you use.")
        module = builtins.__import__(name, None, None, wanted, 0)
        for item in wanted or ():
            if f"{name}.{item}" not in self.extra:
                self.read(module, item)
        return self._lent(module)

    def _all_extra(self, module: str, wanted: Any) -> bool:
        return bool(wanted) and all(f"{module}.{item}" in self.extra for item in wanted)

    def build_class(self, *arguments: Any, **named: Any) -> Any:
        """Python's `__build_class__`, which keeps in mind whose the class is."""
        made = builtins.__build_class__(*arguments, **named)
        self.own.add(made)
        return made

    def dataclass(self, cls: Any = None, **named: Any) -> Any:
        """Python's `dataclass`, for an answer's own classes: it sets what its class compares by."""
        if cls is None:
            return lambda cls: self.dataclass(cls, **named)
        if cls not in self.own:
            raise OutsideError(f"The grader does not run answers that change {_called(cls)}.")
        made = dataclasses.dataclass(cls, **named)
        self.own.add(made)
        return made

    def _name(self, owner: Any, name: str) -> None:
        if type(name) is not str:
            raise TypeError("attribute name must be string")
        inner = name.startswith("_") and not is_dunder(name) and not self._is_answers(owner)
        if inner or name_problem(name):
            raise OutsideError(f"The grader does not run answers that use {name}.")

    def _of_module(self, module: str, name: str) -> None:
        if not may_import(module, self.extra):
            raise OutsideError(f"The grader does not run answers that use the module {module}.")
        if not may_take(module, name):
            raise OutsideError(f"The grader does not run answers that use {module}.{name}.")
        off = any(module == top or module.startswith(f"{top}.") for top in _SWITCHED_OFF)
        if self.at_cell and off:
            raise OutsideError(f"Use {module}.{name} inside your function, not while the cell runs.")

    def _is_answers(self, owner: Any) -> bool:
        kind = type(owner)
        return kind is super or (owner if issubclass(kind, type) else kind) in self.own


def _called(owner: Any) -> str:
    return type.__getattribute__(owner, "__name__") if isinstance(owner, type) else owner.__name__


def _name(value: Any) -> Any:
    """What a name stands for, where that is not one of Python's functions that run text or show all names."""
    if any(value is removed for removed in _REMOVED):
        raise OutsideError(f"The grader does not run answers that use {value.__name__}().")
    return value


def _formatting(text: Any, name: str) -> Callable:
    """`str.format`, which reads attributes by itself, without those that answers do not read."""
    if isinstance(text, type):
        raise OutsideError(f"Write text.{name}(…) instead of str.{name}(text, …).")

    def call(*values: Any, **named: Any) -> str:
        plain = str.__str__(text)
        fields = [field for _, field, form, _ in string.Formatter().parse(plain) for field in (field, form)]
        parts = [part for field in fields if field for part in re.split(r"[.{}]", field)[1:]]
        if any(part.startswith("_") or name_problem(part) for part in parts):
            raise OutsideError("The grader does not run answers that format inner attributes.")
        return getattr(plain, name)(*values, **named)

    return call


def _open(file: Any, *more: Any, **named: Any) -> Any:
    """Python's `open`, for files in the home and the folder for temporary ones."""
    if isinstance(file, int) or not _is_own(file):
        raise OutsideError("The grader's answers open files of their own only, in their folder.")
    return Path(os.fsdecode(file)).open(*more, **named)


def _is_own(file: Any) -> bool:
    place = Path(os.path.realpath(os.fsdecode(file)))
    return any(place.is_relative_to(os.path.realpath(top)) for top in (Path.cwd(), "/tmp"))
