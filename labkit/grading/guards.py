"""What answers meet where they read or write an attribute, import, or ask Python for a name: the true object is seen.

`labkit.grading.subset` reads an answer's code; this looks at what stands behind the names when it runs, so that a
module under another name, a name put together from pieces, or a function of a library's own leads no further.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import sys
import types
import weakref
from collections.abc import Callable, Collection
from typing import Any

from labkit.grading.lent import formatting, open_, wraps
from labkit.grading.subset import (
    MODULES,
    NAME,
    READ,
    REMOVED,
    TYPE,
    WRITE,
    OutsideError,
    is_dunder,
    is_inner,
    may_import,
    may_take,
    name_problem,
)

# What labs switch off while they test: its functions are looked up when they are called.
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
        compared: those of them that compare by their fields, as `dataclass` has written it.
        at_cell: whether an answer's cell runs now, and not an answer that a test has called.
    """

    def __init__(self, extra: Collection[str], is_answers: Callable[[str], bool]) -> None:
        self._is_answers_file = is_answers
        self.extra, self.own, self.at_cell = frozenset(extra), weakref.WeakSet[type](), False
        self._parts: dict[str, types.ModuleType] = {}
        self._guarded: list[tuple[Any, Callable]] = [
            (getattr, self.getattr),
            (hasattr, lambda owner, name: self.getattr(owner, name, _NONE) is not _NONE),
            (setattr, lambda owner, name, value: setattr(self.write(owner, name), name, value)),
            (delattr, lambda owner, name: delattr(self.write(owner, name), name)),
            (open, open_),
        ]
        self._others = [(dataclasses.dataclass, self.dataclass), (functools.wraps, wraps(is_answers))]
        self._guarded += self._others
        self.compared: list[type] = []

    def builtins(self) -> dict[str, Any]:
        """Python's names, for global names that answers use."""
        made = {
            "__import__": self._import,
            "__build_class__": self.build_class,
            "display": print,
            NAME: self.name,
            READ: self.read,
            TYPE: self.type,
            WRITE: self.write,
        }
        return dict(vars(builtins)) | made

    def _import(self, name: str, *more: Any, **named: Any) -> Any:
        """Python's `__import__`: guarded where an answer imports, and not where other code with its names does."""
        by_answer = self._is_answers_file(sys._getframe(1).f_code.co_filename)
        return (self.import_ if by_answer else builtins.__import__)(name, *more, **named)

    def name(self, value: Any) -> Any:
        """What a name stands for: of Python's functions that take an attribute's name, the guarded ones."""
        for plain, own in self._guarded:
            if value is plain:
                return own
        if value is type or any(value is removed for removed in _REMOVED):
            raise OutsideError(f"The grader does not run answers that use {value.__name__}().")
        return value

    def type(self, kind: Any, *values: Any) -> Any:
        """`type(value)`, of which answers do not get classes of classes: these would make classes from text."""
        found = kind(*values)
        if kind is type and issubclass(found, type):
            raise OutsideError("The grader does not run answers that ask for the class of a class.")
        return found

    def read(self, owner: Any, name: str) -> Any:
        """`owner.name`, where an answer may read it."""
        self._name(owner, name)
        kind = type(owner)
        if issubclass(kind, types.ModuleType):
            return self._of_module(owner, name)
        if name in _ASKED and (issubclass(kind, str) or owner is str):
            return formatting(owner, name)
        return self._lent(getattr(owner, name))

    def _lent(self, found: Any) -> Any:
        """What an answer gets: of a module, as much as it may use."""
        for plain, own in self._others:
            if found is plain:
                return own
        if issubclass(type(found), type) and issubclass(found, type):
            raise OutsideError("The grader does not run answers that ask for the class of a class.")
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
        """Python's `__import__`, guarded: what an answer may not use is told when it is used, not when it comes."""
        if isinstance(wanted, list):  # C code of a library's, which Python lets import where its caller stands
            return builtins.__import__(name, None, None, wanted, level)
        if type(name) is not str or level or (wanted and "*" in wanted):
            raise OutsideError(f"The grader does not run answers that import all of {name}: name what you use.")
        if not (may_import(name, self.extra) or self._all_extra(name, wanted)):
            top = name.partition(".")[0]
            return self.import_(top) if not wanted and may_import(top, self.extra) else _Refused(name)
        module = builtins.__import__(name, None, None, wanted, 0)
        if not wanted:
            return self._lent(module)
        given = types.ModuleType(name)
        for item in wanted:
            if hasattr(module, item):
                vars(given)[item] = self._item(module, name, item)
        return given

    def _item(self, module: types.ModuleType, name: str, item: str) -> Any:
        if f"{name}.{item}" in self.extra:
            return getattr(module, item)
        try:
            return self.read(module, item)
        except OutsideError:
            return _Refused(f"{name}.{item}")

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
        if not all(key.isidentifier() for key in vars(cls).get("__annotations__", {})):
            raise OutsideError("The grader does not run data classes whose fields are no names.")
        made = dataclasses.dataclass(cls, **named)
        self.own.add(made)
        self.compared.append(made)
        return made

    def _name(self, owner: Any, name: str) -> None:
        if type(name) is not str:
            raise TypeError("attribute name must be string")
        if name_problem(name) or (is_inner(name) and not self._is_answers(owner, name)):
            raise OutsideError(f"The grader does not run answers that use {name}.")

    def _of_module(self, owner: types.ModuleType, name: str) -> Any:
        module = types.ModuleType.__getattribute__(owner, "__name__")
        if not may_import(module, self.extra):
            raise OutsideError(f"The grader does not run answers that use {module}.")
        if not may_take(module, name):
            raise OutsideError(f"The grader does not run answers that use {module}.{name}.")
        found = self._lent(getattr(owner, name))
        off = any(module == top or module.startswith(f"{top}.") for top in _SWITCHED_OFF)
        if off and (isinstance(found, types.FunctionType) or (self.at_cell and callable(found))):
            return _late(owner, name)
        return found

    def _is_answers(self, owner: Any, name: str) -> bool:
        """Whether an inner name is an answer's: its class has it, or nobody but the answer could have set it."""
        kind = type(owner)
        if kind is super:
            return True
        line = owner.__mro__ if issubclass(kind, type) else kind.__mro__
        if line[0] not in self.own:
            return False
        others = [cls for cls in line if cls not in self.own]
        return any(name in vars(cls) for cls in line if cls in self.own) or all(map(_is_open, others))


class _Refused(types.ModuleType):
    """Stands in for what an answer has imported and may not use."""

    def __getattr__(self, name: str) -> Any:
        if is_dunder(name):
            raise AttributeError(name)
        return _Refused(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise OutsideError(f"The grader does not run answers that use {self.__name__}.")


def _late(owner: types.ModuleType, name: str) -> Callable:
    """A function that is looked up when it is called: kept from before, it is switched off with its module."""

    def call(*values: Any, **named: Any) -> Any:
        return getattr(owner, name)(*values, **named)

    call.__name__ = name
    return call


def _is_open(cls: type) -> bool:
    """Whether a base's inner names lead nowhere: containers, and what torch means to be derived from."""
    return cls.__module__.partition(".")[0] in ("builtins", "collections", "torch", "typing")


def _called(owner: Any) -> str:
    return type.__getattribute__(owner, "__name__") if isinstance(owner, type) else owner.__name__
