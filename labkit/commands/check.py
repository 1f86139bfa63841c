"""`labkit check`: a student runs the visible tests of their own lab."""

from __future__ import annotations

from pathlib import Path

import nbformat
from rich.markup import escape

from labkit.commands.terminal import FAILED, console
from labkit.errors import LabError
from labkit.grading.lab import Cell, Exercise, Lab
from labkit.lessons import find
from labkit.paths import MY_LABS


def check(name: str, seconds: float) -> int:
    """Run the notebook at `name`, or the learner's copy of a lesson's lab; returns 1 when a visible test fails."""
    from labkit.grading.score import grade_all

    lab = _read(name)
    terminal = console()
    if not lab.exercises:
        raise LabError(f"{name} has no exercises: it is no lab.", "Name a lab's notebook, or a lesson such as 06.")
    with terminal.status("Running your notebook from its first cell"):
        score = grade_all(lab, {"": {}}, seconds, only_needed=True)[""]
    failed = hidden = 0.0
    for exercise in lab.exercises:
        visible = [cell for cell in exercise.tests if cell.is_visible_test]
        hidden += sum(cell.points for cell in exercise.tests if _hides(cell))
        errors = [score.cells[cell.grade_id].error for cell in visible if score.cells[cell.grade_id].lost]
        failed += len(errors)
        refused = score.errors.get(exercise.id, "").partition("OutsideError: ")[2]
        _say(terminal, exercise, [refused] if refused else errors)
    terminal.print(_end(int(failed), hidden), soft_wrap=True)
    return FAILED if failed else 0


def _read(name: str) -> Lab:
    path = Path(name)
    if path.suffix != ".ipynb" and not path.is_file():
        slug = find(name).slug
        path = MY_LABS / slug / "lab.ipynb"
        if not path.is_file():
            raise LabError(f"You have not begun the lab of {slug}.", f"Open it with: labkit lab {slug[:2]} --lab")
    try:
        lab = Lab.read(path)
    except FileNotFoundError:
        raise LabError(f"There is no file {path}.", "Name your notebook, or a lesson such as 06.") from None
    except Exception as error:  # nbformat has no common base error
        raise LabError(f"{path} is not a notebook ({error}).", "Save it in JupyterLab and check again.") from error
    # Hidden tests that a copy may hold are not a student's to run.
    shown = lab.notebook
    for cell, raw in zip(lab.cells, shown.cells, strict=True):
        if cell.grade and not cell.solution:
            raw.source = cell.visible_source
    return Lab.from_notebook(nbformat.from_dict(shown), path)


def _hides(cell: Cell) -> bool:
    """Whether a test's points are decided by what the student does not see: the release keeps a comment there."""
    return not cell.is_visible_test or cell.has_hidden_tests


def _say(terminal, exercise: Exercise, errors: list[str]) -> None:
    name = escape(exercise.title)
    if not errors:
        terminal.print(f"[green]✓[/] {name}: the visible tests pass", soft_wrap=True)
    for error in errors:
        terminal.print(f"[red]✗[/] {name}: {escape(error)}", soft_wrap=True)


def _end(failed: int, hidden: float) -> str:
    told = f"{failed} visible test{'s' if failed > 1 else ''} failed." if failed else "All visible tests pass."
    return f"{told} Hidden tests remain: they decide {hidden:g} points, and run when your lab is graded."
