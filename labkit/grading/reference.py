"""Does a lab mark its own solutions right? Asked before it marks anybody: a broken test fails a whole class.

The solutions are handed in as a student would hand them in, and run within the same walls and limits.
"""

from __future__ import annotations

import ast

import nbformat

from labkit.errors import LabError
from labkit.grading import supervise
from labkit.grading.lab import Cell, Lab
from labkit.grading.outcome import Submission
from labkit.grading.rebuild import rebuild
from labkit.grading.sandbox import Limits

NAME = "reference"  # under which the solutions run; nothing of it is stored


def prove(lab: Lab, limits: Limits, only: str = "", trust: bool = False) -> None:
    """Return where the lab's solutions earn all points that its tests give.

    Args:
        only: an exercise's id; tests of others are not looked at.
        trust: run without walls.

    Raises:
        LabError: a cell is not Python, or a test takes points from the lab's own solution; with the cell.
    """
    name = lab.path.parent.name
    tests = [cell for cell in lab.graded_cells if not only or cell in lab.exercise(only).tests]
    for cell in lab.cells:
        if cell.type == "code" and (cell in tests or cell not in lab.graded_cells):
            _parse(name, cell)
    raw = nbformat.writes(lab.notebook).encode("utf-8", "replace")
    found = supervise.run_submission(lab, rebuild(lab, Submission(NAME, raw=raw)), NAME, "", limits, only, trust)
    for cell in tests:
        given = found.cells[cell.grade_id]
        if given.points < cell.points:
            why = given.error or f"it gives {given.points:g} of {cell.points:g} points"
            raise _refused(name, f"{cell.grade_id} takes points from the lab's own solution: {why}")


def _parse(name: str, cell: Cell) -> None:
    try:
        ast.parse(cell.source)
    except (SyntaxError, ValueError) as error:
        label = cell.grade_id or f"cell {cell.index + 1}"
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _refused(name, f"{label}{line}, is not Python ({why})") from error


def _refused(name: str, why: str) -> LabError:
    cause = f"The lab {name} cannot mark as it stands in source/: {why.rstrip('.')}."
    return LabError(cause, "Nobody was graded and all marks are as they were. Mend it, then run the command again.")
