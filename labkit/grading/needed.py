"""Which cells the points of a lab depend on: the rest need not run to try a hundred wrong answers."""

from __future__ import annotations

import symtable

from labkit.grading.lab import Lab


def needed_cells(lab: Lab) -> list[str]:
    """Labels of the graded and solution cells, and of the cells that bind a name that one of these reads.

    A backward slice over names: a cell that only acts on an object made elsewhere (`model.eval()`) binds none
    and is left out, so a lab must make its objects ready in the cell that makes them.
    """
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


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell binds, and those that it reads, in its functions too."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except SyntaxError:  # an answer that is not Python: it runs, and fails, where it stands
        return set(), set()
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    read = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        inner += table.get_children()
        read |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return bound, read
