"""Does a lab keep the course's format? `check_format` lists every way in which it does not."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from labkit.grading.lab import (
    BEGIN_HIDDEN,
    BEGIN_SOLUTION,
    END_HIDDEN,
    END_SOLUTION,
    Cell,
    Exercise,
    Lab,
    region,
    replace_regions,
)

SCHEMA_VERSION = 3
_GRADE_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")
_MAGIC = re.compile(r"^\s*[%!]", re.MULTILINE)


def check_format(lab: Lab) -> list[str]:
    """Every violation of the format in `labkit.grading.lab`, one sentence each; [] when there is none."""
    found = [*_metadata(lab), *_regions(lab), *_code(lab)]
    if not lab.exercises:
        found.append("the lab has no exercise (a heading '## Exercise 1: …' above a solution cell)")
    if not lab.questions:
        found.append("the lab has no question that a person marks (a heading '## Question 5: …')")
    for item in lab.exercises + lab.questions:
        found += [f"{item.id}: {problem}" for problem in _statement(item)]
    for item in lab.exercises:
        found += [f"{item.id}: {problem}" for problem in _exercise(lab, item)]
    for item in lab.questions:
        found += [f"{item.id}: {problem}" for problem in _question(lab, item)]
    return found + _strays(lab)


def _metadata(lab: Lab) -> Iterator[str]:
    for cell, raw in zip(lab.cells, lab.notebook.cells, strict=True):
        meta = raw.metadata.get("nbgrader")
        if meta is None:
            continue
        name = cell.grade_id or f"cell {cell.index}"
        if meta.get("schema_version") != SCHEMA_VERSION:
            yield f"{name}: schema_version is {meta.get('schema_version')}, it must be {SCHEMA_VERSION}"
        if missing := [key for key in ("grade", "solution", "locked") if not isinstance(meta.get(key), bool)]:
            yield f"{name}: the metadata lacks {', '.join(missing)} (true or false)"
        if not _GRADE_ID.match(cell.grade_id):
            yield f"{name}: the grade_id must be lower-case words joined by hyphens"
        if cell.grade and not cell.points > 0:
            yield f"{name}: a graded cell needs points above 0, it has {cell.points:g}"
    counts = Counter(cell.grade_id for cell in lab.cells if cell.grade_id)
    yield from (f"{name}: the grade_id occurs {n} times" for name, n in counts.items() if n > 1)


def _regions(lab: Lab) -> Iterator[str]:
    for cell in lab.cells:
        name = cell.grade_id or f"cell {cell.index}"
        for begin, end, kind, allowed in (
            (BEGIN_SOLUTION, END_SOLUTION, "solution", cell.solution),
            (BEGIN_HIDDEN, END_HIDDEN, "hidden test", cell.grade and not cell.solution),
        ):
            opened, closed = cell.source.count(begin), cell.source.count(end)
            if opened != closed or (opened and cell.source.rfind(end) < cell.source.rfind(begin)):
                yield f"{name}: a {kind} region is not closed ('{begin}' … '{end}')"
            if opened and not allowed:
                yield f"{name}: a {kind} region in a cell that is not marked for it would reach students"


def _code(lab: Lab) -> Iterator[str]:
    for cell in lab.cells:
        name = cell.grade_id or f"cell {cell.index}"
        if cell.type == "code" and _MAGIC.search(cell.source):
            yield f"{name}: magics and shell lines do not run under the grader; write Python"
        elif cell.type == "code" and (error := _syntax_error(cell.source)):
            yield f"{name}: {error}"


def _syntax_error(source: str) -> str:
    try:
        ast.parse(source)
    except SyntaxError as error:
        return f"line {error.lineno} is not Python ({error.msg})"
    return ""


def _statement(item: Exercise) -> Iterator[str]:
    if item.difficulty not in (1, 2, 3) or item.minutes <= 0:
        yield "no line '●○○ · 15 minutes · 4 points' (difficulty, time, points) under the heading"
    if item.stated_points != item.points:
        yield f"the heading states {item.stated_points} points, its cells give {item.points:g}"


def _exercise(lab: Lab, item: Exercise) -> Iterator[str]:
    if not item.hint:
        yield "no hint (<details><summary>Hint</summary> … </details>)"
    assert item.solution is not None
    code = item.solution.source
    if code.count(BEGIN_SOLUTION) != 1:
        yield f"the solution cell needs one region, it has {code.count(BEGIN_SOLUTION)}"
    elif not region(code).strip():
        yield "the solution region is empty"
    elif not _inside_function(code):
        yield "the solution region stands outside a function: its stub would leave the tests without a name"
    below = lab.cells[item.solution.index + 1] if item.solution.index + 1 < len(lab.cells) else None
    if below is None or not (below.grade and not below.solution and below.is_visible_test):
        yield "no visible test cell directly under the solution cell"
    if not item.hidden_tests:
        yield "no hidden tests"
    for cell in item.tests:
        yield from _test_cell(item, cell)


def _test_cell(item: Exercise, cell: Cell) -> Iterator[str]:
    if not cell.locked:
        yield f"the test cell {cell.grade_id} is not locked"
    if not cell.grade_id.startswith(f"{item.id}-"):
        yield f"the grade_id {cell.grade_id} of its test must begin with '{item.id}-'"
    if _syntax_error(cell.visible_source):
        yield f"{cell.grade_id}: without its hidden region the cell is not Python"
        return
    for node in ast.walk(ast.parse(cell.visible_source)):
        if isinstance(node, ast.Assert) and node.msg is None:
            yield f"{cell.grade_id}: the assert on line {node.lineno} has no message for the student"


def _question(lab: Lab, item: Exercise) -> Iterator[str]:
    if not any(c.solution and c.type == "markdown" for c in item.tests):
        yield "no Markdown answer cell with grade and solution true"


def _strays(lab: Lab) -> list[str]:
    """Solution and test cells that belong to no exercise, or a second solution in one."""
    known = {c.index for item in lab.exercises + lab.questions for c in item.tests}
    known |= {item.solution.index for item in lab.exercises if item.solution}
    return [
        f"{c.grade_id or f'cell {c.index}'}: outside every exercise, or a second solution in one"
        for c in lab.cells
        if (c.grade or c.solution) and c.index not in known
    ]


def _inside_function(code: str) -> bool:
    """Whether the solution region is in the body of a function: seen on the stub, where it is one `raise`."""
    try:
        tree = ast.parse(replace_regions(code, BEGIN_SOLUTION, END_SOLUTION, "raise NotImplementedError()"))
    except SyntaxError:
        return False
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(isinstance(inner, ast.Raise) for outer in functions for inner in ast.walk(outer))
