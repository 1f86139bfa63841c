"""The part of Python in which answers are marked, and the form in which they run.

Tests and answers share a process. What an answer may do there is a list of what answers need, not of what would harm:
a few dozen modules, no inner attributes (`__globals__`, `_C`), no classes that say themselves how they compare. So
nothing has to be known about the thousand ways from an object of Python's to the tests. `problems` reads code and says
what lies outside; `labkit check` tells students so before they hand in. `guarded` then rewrites what is left: each
attribute that is read or written passes a function of `labkit.grading.guards`, which sees the true object, whatever
its name. The idea, and the names' form that no program can write, are those of RestrictedPython
(restrictedpython.readthedocs.io), whose subset is too small for answers here.
"""

# ruff: noqa: SIM905 (a long list of names is easier to read as words)
from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable, Iterator

from labkit.grading.lab import Lab

NAME, READ, TYPE, WRITE = "<name>", "<read>", "<type>", "<write>"  # no identifiers, so no program can bind them

_WHOLE = (
    "__future__ bisect cmath collections collections.abc copy decimal fractions heapq itertools json math numbers"
    " pathlib pprint random re statistics struct textwrap time typing zlib"
    " numpy numpy.fft numpy.linalg numpy.random numpy.typing scipy scipy.special scipy.stats matplotlib"
    " matplotlib.cm matplotlib.colors matplotlib.patches matplotlib.pyplot matplotlib.style matplotlib.ticker"
    " torch torch.amp torch.autograd torch.autograd.forward_ad torch.autograd.function torch.autograd.functional"
    " torch.autograd.graph torch.cuda torch.cuda.amp torch.distributed"
    " torch.distributed.checkpoint torch.distributed.checkpoint.state_dict torch.distributed.device_mesh"
    " torch.distributed.fsdp torch.distributed.tensor torch.distributions torch.fft torch.func torch.functional"
    " torch.linalg torch.nn torch.nn.functional torch.nn.init torch.nn.parameter torch.nn.utils"
    " torch.nn.utils.parametrize torch.nn.utils.rnn torch.optim torch.optim.lr_scheduler torch.random torch.special"
    " torch.types torch.utils torch.utils.checkpoint torch.utils.data"
).split()
# Modules of which an answer may use so much: the rest makes code from text, looks at frames, or sets attributes.
_PARTS = {
    "contextlib": "contextmanager nullcontext suppress ExitStack AbstractContextManager closing",
    "dataclasses": "dataclass field fields replace asdict astuple is_dataclass FrozenInstanceError",
    "functools": "partial reduce lru_cache cache cmp_to_key cached_property wraps",
    "gc": "collect enable disable",
    "inspect": "signature Parameter Signature isfunction isclass",
    "io": "StringIO BytesIO",
    "operator": "add sub mul truediv floordiv mod neg matmul xor and_ or_ lshift rshift eq ne lt le gt ge itemgetter"
    " iadd imul isub not_ pow abs index",
    "os": "cpu_count path",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits punctuation whitespace",
    "sys": "getsizeof float_info maxsize version_info byteorder int_info version stdout stderr",
    "timeit": "default_timer",
    "warnings": "warn catch_warnings simplefilter filterwarnings",
}
_PARTS |= dict.fromkeys(("os.path", "posixpath", "ntpath"), "join basename dirname exists isfile isdir splitext")
_BUT = {  # and all of these but what runs text, opens libraries or any file
    "numpy": frozenset("ctypeslib f2py fromfile genfromtxt loadtxt memmap test".split()),
    "torch": frozenset("compile from_file hub jit load package".split()),
    "torch.cuda": frozenset("CUDAPluggableAllocator change_current_allocator".split()),
    "torch.distributed": frozenset("run launch".split()),
}
MODULES: dict[str, frozenset[str] | None] = dict.fromkeys(_WHOLE) | {k: frozenset(v.split()) for k, v in _PARTS.items()}

# What leads from allowed objects to frames, code, memory or text that is run.
_LEADS_OUT = frozenset(
    "gi_frame gi_code gi_yieldfrom cr_frame cr_code cr_await ag_frame ag_code tb_frame tb_next f_back f_locals"
    " f_globals f_code f_builtins ctypes get_type_hints ForwardRef singledispatch singledispatchmethod get_annotations"
    " load_library make_dataclass NewType no_type_check set_module ParameterDict breakpoint set_trace"
    " switch_backend".split()
)
_READABLE = frozenset(
    "__init__ __name__ __qualname__ __doc__ __class__ __len__ __call__ __enter__ __exit__ __iter__ __next__ __getitem__"
    " __setitem__ __contains__ __post_init__ __version__ __hash__ __repr__ __str__ __main__ __file__ __cause__"
    " __notes__ __slots__".split()
)
# What a class of an answer's may say about itself: nothing by which it compares, counts or computes.
_DEFINABLE = frozenset(
    "__init__ __call__ __len__ __iter__ __next__ __getitem__ __setitem__ __contains__ __enter__ __exit__ __post_init__"
    " __repr__ __str__ __hash__ __slots__ __doc__ __all__ __version__ __author__".split()
)
# Underlined names that libraries mean for everybody.
_PUBLIC = frozenset("_replace _asdict _fields _make _field_defaults".split())
# Names of Python's own that answers do not get, and those of which they get another form.
REMOVED = frozenset("vars globals locals eval exec compile breakpoint help input exit quit".split())
GUARDED = frozenset("getattr hasattr setattr delattr open dataclass wraps".split())
# Classes that a pattern may look into: others would hand out attributes that nobody has asked for.
_MATCHED = frozenset("bool bytes bytearray complex dict float frozenset int list set str tuple".split())
_MAGIC = re.compile(r"^(\s*)([%!?].*|\S+\?+)$", re.MULTILINE)


class OutsideError(RuntimeError):
    """An answer did what lies outside of the part of Python that is marked; `str()` says what."""


def imported(codes: Iterable[str]) -> set[str]:
    """The libraries' modules that a lab's cells import: its answers may import them, too.

    Of the standard library there are none beyond those that every answer may use, and none that is a library's own
    inner part.
    """
    found: set[str] = set()
    for module, names in (pair for code in codes for pair in imports(code)):
        for parts in (name.split(".") for name in [module, *(f"{module}.{name}" for name in names)]):
            found |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return {name for name in found if _may_be_lent(name)}


def imports(code: str) -> Iterator[tuple[str, list[str]]]:
    """Each module that a cell imports, and the names that it takes from it; none where the cell cannot be parsed."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, [alias.name for alias in node.names]


def _may_be_lent(name: str) -> bool:
    parts = name.split(".")
    inner = any(part.startswith("_") for part in parts) or parts[0] in sys.stdlib_module_names
    return not inner and not name.startswith(("labkit.grading", "torch.multiprocessing", "torch.testing"))


def may_import(module: str, extra: Collection[str] = ()) -> bool:
    """Whether an answer may import a module, of which `MODULES` may name a part only."""
    return module in MODULES or module in extra


def may_take(module: str, name: str) -> bool:
    """Whether an answer may use `name` of a module that it may import."""
    part = MODULES.get(module)
    return name in part if part is not None else name not in _BUT.get(module, ())


def name_problem(name: str) -> bool:
    """Whether no answer reads or writes an attribute of this name, whatever has it."""
    return name in _LEADS_OUT or (is_dunder(name) and name not in _READABLE)


def is_inner(name: str) -> bool:
    """Whether an attribute is its owner's own business."""
    return name.startswith("_") and not is_dunder(name) and name not in _PUBLIC and not name.startswith("_foreach_")


def is_dunder(name: str) -> bool:
    """`__name__`"""
    return name.startswith("__") and name.endswith("__") and len(name) > 4


def without_magics(code: str) -> str:
    """The code without lines for IPython (`%matplotlib inline`, `!ls`), which stand in for nothing that is marked."""
    try:
        ast.parse(code)
    except SyntaxError:
        return _MAGIC.sub(r"\1pass  # \2", code)
    except (ValueError, RecursionError, MemoryError):
        pass
    return code


def problems(code: str) -> list[str]:
    """What lies outside of the part of Python that is marked: the names, each once, in the order of the code.

    An import does not: what it brings is looked at when it is used, by `labkit.grading.guards`. Code that cannot be
    parsed has none: it fails by itself.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        found |= dict.fromkeys(_in_node(node, bound))
    return list(found)


def outside(found: list[str]) -> str:
    """The sentence about what `problems` has found."""
    return f"The grader does not run answers with {', '.join(found[:5])}: see the students' guide."


def lent(lab: Lab) -> set[str]:
    """The libraries' modules that answers may import beyond the usual: those that the lab shows that it imports."""
    return imported(cell.visible_source for cell in lab.cells if cell.type == "code" and not cell.solution)


def _in_node(node: ast.AST, bound: set[str]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        if node.level or any(alias.name == "*" for alias in node.names):
            yield f"from {'.' * node.level}{node.module or ''} import {node.names[0].name}"
    elif isinstance(node, ast.Attribute) and name_problem(node.attr):
        yield node.attr
    elif isinstance(node, ast.Name) and node.id in REMOVED - bound:
        yield f"{node.id}()"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and name_problem(node.value):
        if is_dunder(node.value):
            yield node.value
    elif isinstance(node, ast.MatchClass):
        plain = isinstance(node.cls, ast.Name) and node.cls.id in _MATCHED
        if node.kwd_attrs or (node.patterns and not plain):
            yield f"a pattern that looks into {ast.unparse(node.cls)}"
    elif isinstance(node, ast.MatchMapping) and not all(isinstance(key, ast.Constant) for key in node.keys):
        yield "a pattern with dotted keys"
    elif isinstance(node, ast.ClassDef) and any(keyword.arg == "metaclass" for keyword in node.keywords):
        yield "metaclass"
    elif isinstance(node, ast.Call) and _is_type(node.func) and (len(node.args) != 1 or node.keywords):
        yield "type() with three arguments"
    yield from (name for name in _binds(node) if is_dunder(name) and name not in _DEFINABLE)


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "type"


def _binds(node: ast.AST) -> Iterator[str]:
    """Names that a node gives to something, and the one that it reads by name."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in ("__name__", "__file__"):
        return
    for field, value in ast.iter_fields(node):
        if field in ("name", "asname", "id", "rest", "names", "arg"):
            yield from [value] if isinstance(value, str) else [v for v in value or () if isinstance(v, str)]


def guarded(tree: ast.Module) -> ast.Module:
    """The same program, in which each attribute is read and written through `READ` and `WRITE`."""
    return ast.fix_missing_locations(_Guarded().visit(tree))


class _Guarded(ast.NodeTransformer):
    """`a.b` becomes `<read>(a, "b")`, `a.b = 1` becomes `<write>(a, "b").b = 1`, and `eval` becomes `<name>(eval)`."""

    def __init__(self) -> None:
        self._classes: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Knows in which class a name like `__x` stands: Python puts the class's name before it."""
        node.decorator_list = [self.visit(item) for item in node.decorator_list]
        node.bases = [self.visit(item) for item in node.bases]
        node.keywords = [self.visit(item) for item in node.keywords]
        self._classes.append(node.name)
        node.body = [self.visit(item) for item in node.body]
        self._classes.pop()
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        value, name = self.visit(node.value), ast.Constant(self._mangled(node.attr))
        if isinstance(node.ctx, ast.Load):
            return ast.copy_location(_call(READ, value, name), node)
        node.value = ast.copy_location(_call(WRITE, value, name), node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in REMOVED | GUARDED | {"type"} or not isinstance(node.ctx, ast.Load):
            return node
        return ast.copy_location(_call(NAME, node), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _is_type(node.func):
            kind, node.func = node.func, ast.copy_location(ast.Name(TYPE, ast.Load()), node.func)
            node.args = [kind, *(self.visit(item) for item in node.args)]
            return node
        elif isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            node.args = [item if _is_type(item) else self.visit(item) for item in node.args]
            return node
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if node.annotation is not None and not _is_type(node.annotation):
            node.annotation = self.visit(node.annotation)
        return node

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.AST:
        """A pattern's value, class and keys have to stay names; they are only compared."""
        return node

    def visit_MatchClass(self, node: ast.MatchClass) -> ast.AST:
        node.patterns = [self.visit(item) for item in node.patterns]
        node.kwd_patterns = [self.visit(item) for item in node.kwd_patterns]
        return node

    def visit_MatchMapping(self, node: ast.MatchMapping) -> ast.AST:
        node.patterns = [self.visit(item) for item in node.patterns]
        return node

    def _mangled(self, name: str) -> str:
        owner = self._classes[-1].lstrip("_") if self._classes else ""
        return f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
