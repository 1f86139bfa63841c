"""Which cells the points of a lab depend on, and which a changed answer reaches.

The rest need not run to try a hundred wrong answers. Both are slices over names: a cell that only acts on an object
made elsewhere (`model.eval()`) binds no name and is left out, so a lab must make its objects ready in the cell that
makes them.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Mapping

from labkit.grading.lab import Lab

_UNPARSED = (SyntaxError, ValueError, RecursionError, MemoryError)  # the last two for code that is nested too deep


def needed_cells(lab: Lab) -> list[str]:
    """Labels of the graded and solution cells, and of the cells that bind a name that one of these reads."""
    marked = {cell.index for cell in lab.cells if cell.type == "code" and (cell.grade or cell.solution)}
    code = [cell for cell in lab.cells if cell.type == "code"]
    reads: set[str] = set()
    kept: list[str] = []
    for cell, (label, source) in zip(reversed(code), reversed(lab.sources()), strict=True):
        bound, read = names(source)
        if cell.index in marked or bound & reads:
            kept.append(label)
            reads |= read
    return kept[::-1]


def affected_cells(cells: Iterable[tuple[str, str]], changed: Mapping[str, str]) -> set[str]:
    """Labels of the cells that can end otherwise when some cells hold `changed` code, and of those that these need.

    Forward, whatever the order of the cells, because a function may call one that is defined below it: the changed
    cells, and each that reads a name which such a cell binds. Then backward: what binds the names that these read.
    """
    sources = dict(cells)
    bound = {label: names(code)[0] | names(changed.get(label, ""))[0] for label, code in sources.items()}
    reads = {label: outer_reads(code) | outer_reads(changed.get(label, "")) for label, code in sources.items()}
    kept = _reached(set(changed), via=bound, into=reads)
    return _reached(kept, via=reads, into=bound)


def _reached(start: set[str], via: dict[str, set[str]], into: dict[str, set[str]]) -> set[str]:
    """`start`, and again and again the cells whose names in `into` meet the names in `via` of a cell found so far."""
    found, new = set(start), set(start)
    while new:
        meeting = set().union(*(via[label] for label in new))
        new = {label for label, named in into.items() if named & meeting} - found
        found |= new
    return found


def outer_reads(source: str) -> set[str]:
    """The global names that a cell may read before it has bound them itself: a loop's own variables are not among
    them, unless the loop may not have run.
    """
    try:
        return _outer_reads(ast.parse(source).body, set())
    except _UNPARSED:
        return set()


def _outer_reads(body: list[ast.stmt], bound: set[str]) -> set[str]:
    """What statements in a row read beyond `bound`, to which is added what they surely bind."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.With):
            for item in statement.items:
                found |= _reads(item.context_expr) - bound
                bound |= _targets(item.optional_vars)
            found |= _outer_reads(statement.body, bound)
        elif isinstance(statement, ast.For):
            found |= _reads(statement.iter) - bound
            found |= _outer_reads(statement.body, bound | _targets(statement.target))
            found |= _outer_reads(statement.orelse, set(bound))
        else:
            binds, reads = names(ast.unparse(statement))
            if isinstance(statement, ast.AugAssign):  # symtable counts its target as bound only
                reads |= _targets(statement.target)
            functions = (ast.FunctionDef, ast.ClassDef)
            found |= reads - bound - (binds if isinstance(statement, functions) else set())
            bound |= binds if isinstance(statement, (*functions, ast.Assign, ast.Import, ast.ImportFrom)) else set()
    return found


def _reads(expression: ast.expr) -> set[str]:
    return names(ast.unparse(expression))[1]


def _targets(target: ast.expr | None) -> set[str]:
    if target is None:
        return set()
    return {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell binds, and those that it reads, in its functions too."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # an answer that is not Python: it runs, and fails, where it stands
        return set(), set()
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    read = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        inner += table.get_children()
        read |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        bound |= {s.get_name() for s in table.get_symbols() if s.is_declared_global() and s.is_assigned()}
    return bound, read
