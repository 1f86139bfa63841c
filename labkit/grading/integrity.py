"""What Python and the libraries were before an answer ran, so that it can be put back, and asked whether it still is.

An answer could make every test pass by changing what tests use: `torch.equal`, `Tensor.__eq__`, `isinstance`. A `Guard`
made before an answer's cell notes the functions, classes and modules in all modules, and what hangs on the classes of
torch and labkit; `mend` puts back what changed and says what it was. A `Watch` does so around one call of an answer,
for what tests lean on, because a change could undo itself before the test ends. Both let pass what libraries do to
themselves: a function replaced by one of a library's own that bears its name.

`deceptive` finds classes of an answer that define how they compare, and `lax` finds them, or a library's, in what an
answer returns: equal to everything is equal to nothing.
"""

# ruff: noqa: SIM905 (a long list of names is easier to read as words)
from __future__ import annotations

import builtins
import functools
import itertools
import operator
import signal
import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

from labkit.grading.jail import ANSWER

_WATCHED = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
_LEANED_ON = ("builtins", "math", "operator", "torch", "torch.testing", "torch.nn.functional")  # and all of labkit
_CLASSES_OF = ("torch", "torch.nn.modules", "labkit")  # modules, and those below them, whose classes are noted
_COMPARES = (
    "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __bool__ __float__ __int__ __index__ __complex__ __array__"
    " __array_ufunc__ __array_function__ __torch_function__ __torch_dispatch__ __instancecheck__ __subclasscheck__"
    " __class__ __getattribute__"
).split()
_COPIES = (  # what copies, stores or opens a value calls
    "__reduce__ __reduce_ex__ __copy__ __deepcopy__ __array_interface__ __array_struct__ __dlpack__ __getattr__ __get__"
    " __set__ __setattr__ __set_name__ __init_subclass__ __del__"
).split()
_COMPUTES = frozenset(
    f"__{side}{name}__"
    for side in ("", "r", "i")
    for name in "add sub mul truediv floordiv mod divmod pow and or xor matmul".split()
) | frozenset(f"__{name}__" for name in "abs neg pos round trunc floor ceil".split())
_SPEAKS = (*_COMPARES, *sorted(_COMPUTES), *_COPIES)
_HOOKS = (  # what a class does, against what it only counts or remembers
    *_WATCHED,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.GetSetDescriptorType,
    types.ClassMethodDescriptorType,
    property,
    classmethod,
    staticmethod,
)
_PLAIN = frozenset(  # packages whose classes are equal only to their equals
    "builtins torch numpy labkit transformers collections fractions decimal datetime pathlib enum types functools"
    " __main__".split()
)
_MISSING = object()
_SHADOWS = frozenset(vars(builtins))  # a module's own name goes before Python's


class Guard:
    """The state of Python and the libraries when it was made."""

    def __init__(self, library: tuple[str, ...]) -> None:
        self.library = library
        self.modules = {name: (module, _watched(module)) for name, module in _modules()}
        self.keys = {name: vars(module).keys() & _SHADOWS for name, module in _modules()}
        self.classes = {cls: dict(vars(cls)) for cls in self._noted_classes()}
        self.handlers = _handlers()

    def _noted_classes(self) -> Iterator[type]:
        for name, (module, values) in self.modules.items():
            if name in _CLASSES_OF or name.startswith(tuple(f"{top}." for top in _CLASSES_OF[1:])):
                mine = (v for v in values.values() if isinstance(v, type))
                yield from (v for v in mine if v.__module__.partition(".")[0] == module.__name__.partition(".")[0])

    def mend(self) -> list[str]:
        """Put everything back; returns the names of what had changed."""
        changed = []
        for name, (module, values) in self.modules.items():
            if name in sys.modules and sys.modules[name] is not module and not _is_natural(module, sys.modules[name]):
                sys.modules[name] = module
                changed.append(f"sys.modules[{name!r}]")
            changed += _put_back(module, values, self.keys[name], self.library)
        for cls, values in self.classes.items():
            changed += _put_back(cls, values, values.keys(), self.library)
        for number, handler in self.handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
                changed.append(f"the handler of {signal.Signals(number).name}")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        return changed


class Watch:
    """The same for one call of an answer: over what tests lean on, and in a fraction of a millisecond."""

    def __init__(self, library: tuple[str, ...]) -> None:
        self.library = library
        owners: list[Any] = [m for name, m in _modules() if name in _LEANED_ON or name.startswith("labkit")]
        if "torch" in sys.modules:
            torch = sys.modules["torch"]
            owners += [torch.Tensor, torch.nn.Module]
        owners += [v for m in owners if getattr(m, "__name__", "").startswith("labkit.grading") for v in _classes_in(m)]
        self.owners = [(owner, vars(owner), list(vars(owner))) for owner in owners]

    def values(self) -> list[list[Any]]:
        """What stands there now."""
        return [list(map(now.get, keys)) for _, now, keys in self.owners]

    def mend(self, before: list[list[Any]]) -> list[str]:
        """Put back what has changed since; returns the names."""
        changed = []
        for (owner, now, keys), values in zip(self.owners, before, strict=True):
            if len(now) != len(keys) or not all(map(operator.is_, map(now.get, keys), values)):
                old = {key: value for key, value in zip(keys, values, strict=True) if isinstance(value, _HOOKS)}
                changed += _put_back(owner, old, keys, self.library)
        return changed


def _modules() -> list[tuple[str, types.ModuleType]]:
    found = list(sys.modules.items())
    return [(name, m) for name, m in found if issubclass(type(m), types.ModuleType) and name != "__main__"]


def _watched(module: types.ModuleType) -> dict[str, Any]:
    return {key: value for key, value in list(vars(module).items()) if _is_watched(value)}


def _classes_in(module: types.ModuleType) -> list[type]:
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def _put_back(owner: Any, before: dict[str, Any], keys: Collection[str], library: tuple[str, ...]) -> list[str]:
    """Give a module or a class its functions, classes and hooks back, and take away what now stands before others.

    Args:
        before: what it had, by name.
        keys: all names that it had, or those of them that builtins have.

    Returns:
        the full names of what had changed.
    """
    now, changed = vars(owner), []
    for key in now.keys() - keys if isinstance(owner, type) else (now.keys() & _SHADOWS) - set(keys):
        if isinstance(now[key], _HOOKS) and not _is_librarys(now[key], library):
            delattr(owner, key)
            changed.append(key if key in _SHADOWS else "…")  # a name that an answer has chosen is not repeated
    if not all(map(operator.is_, map(now.get, before), before.values())):
        for key, old in before.items():
            new = now.get(key, _MISSING)
            if new is old or not (isinstance(old, _HOOKS) or isinstance(new, _HOOKS)):
                continue
            if not _is_natural(old, new, library) and _set(owner, key, old):
                changed.append(key)
    return [f"{owner.__name__}.{key}" for key in changed]


def _set(owner: Any, key: str, value: Any) -> bool:
    try:
        setattr(owner, key, value)
    except (AttributeError, TypeError):  # Python's own, which it renews at will
        return False
    return True


def _is_librarys(value: Any, library: tuple[str, ...]) -> bool:
    code = getattr(value, "__code__", None)
    return code is None or code.co_filename.startswith(library)


def _is_natural(old: Any, new: Any, library: tuple[str, ...] = ()) -> bool:
    """Whether a library replaced its own: by something of the same name and module, whose code is a library's."""
    if isinstance(new, types.ModuleType):
        return isinstance(old, types.ModuleType) and new.__name__ == old.__name__
    same = all(getattr(new, key, 0) == getattr(old, key, 1) for key in ("__name__", "__module__"))
    return same and _is_librarys(new, library)


class Classes:
    """All classes that there were before the first answer."""

    def __init__(self, library: tuple[str, ...]) -> None:
        self.library = library
        self.alive = set(_all_classes())

    def knows(self, cls: type) -> bool:
        """Whether a class was there before the first answer."""
        return cls in self.alive

    def deceptive(self) -> list[str]:
        """By what new classes of answers say themselves how they compare or convert: `__eq__`."""
        found = []
        for cls in _all_classes():
            if cls not in self.alive:
                own = type.__getattribute__(cls, "__dict__")
                found += [key for key in _SPEAKS if key in own and self._is_answers(own[key])]
        return found

    def _is_answers(self, value: Any) -> bool:
        inner = getattr(value, "__func__", value)
        inner = inner.fget if isinstance(inner, property) else inner
        if not isinstance(inner, types.FunctionType):  # a library's built-in one, or an object that is called
            if type(inner) is functools.partial:
                return True
            inner = type.__getattribute__(type(inner), "__dict__").get("__call__")
            if not isinstance(inner, types.FunctionType):
                return False
        name = inner.__code__.co_filename
        return name.startswith(ANSWER) or not name.startswith(("<", *self.library))

    def lax(self, value: Any, labs: Collection[Any] = (), depth: int = 5) -> str:
        """By what the first value of its kind compares in a way that is not Python's or a library's; '' for none.

        Of containers, the first thousand elements are looked at. `labs` are the lab's own global objects.
        """
        kind = type(value)
        for key in ("__eq__", "__ne__"):
            definer = next(c for c in kind.__mro__ if key in type.__getattribute__(c, "__dict__"))
            known = definer in self.alive and definer.__module__.partition(".")[0] in _PLAIN
            if not (definer is object or known or any(definer is own for own in labs)):
                return key
        news = [c for c in kind.__mro__[:-1] if c not in self.alive and not any(c is own for own in labs)]
        for key in (key for c in news for key in type.__getattribute__(c, "__dict__")):
            if key in _COMPUTES or (key in _COMPARES and key != "__class__"):
                return key
        if depth and issubclass(kind, dict | list | tuple | set | frozenset):
            inner = [*value.keys(), *value.values()] if issubclass(kind, dict) else value
            some = itertools.islice(inner, 1000)
            return next((told for item in some if (told := self.lax(item, labs, depth - 1))), "")
        return ""


def _is_watched(value: Any) -> bool:
    return issubclass(type(value), _WATCHED)  # isinstance would ask lazy objects for their class


def _all_classes() -> Iterator[type]:
    seen, left = {object}, [object]
    while left:
        for cls in type.__subclasses__(left.pop()):
            if cls not in seen:
                seen.add(cls)
                left.append(cls)
                yield cls


def _handlers() -> dict[int, Any]:
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if handler is not None}


def modes() -> tuple[int, int]:
    """How many of torch's function and dispatch modes are entered: they see every operation."""
    if "torch" not in sys.modules:
        return 0, 0
    core = sys.modules["torch"]._C
    return core._len_torch_function_stack(), core._len_torch_dispatch_stack()


def leave_modes(before: tuple[int, int]) -> list[str]:
    """Leave the modes that were entered since there were as many as `before`; returns their names."""
    left = []
    while modes()[0] > before[0]:
        left.append(type(sys.modules["torch"]._C._pop_torch_function_stack()).__name__)
    while modes()[1] > before[1]:
        left.append(type(sys.modules["torch"]._C._pop_torch_dispatch_stack(None)).__name__)
    return left


def plain_builtins() -> dict[str, Any]:
    """A copy of Python's builtins as they are now."""
    return dict(vars(builtins))
