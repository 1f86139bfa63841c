"""Puts what grading found into nbgrader's gradebook.

nbgrader's Autograde converter repairs a submission from the source, executes it, reads the marks off the outputs and
saves them, with penalties for lateness. Here the outputs of a run that is over already (an `Outcome`) are put into the
cells in place of executing anything; all else is nbgrader's, so that its formgrader shows what it always shows.
"""

from __future__ import annotations

import re
from typing import Any

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor, Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.api import MissingEntry
from nbgrader.converters import Autograde
from traitlets.utils.importstring import import_item

from labkit.files import write_text
from labkit.grading.book import NOTEBOOK, Book, run
from labkit.grading.outcome import CellOutcome, Outcome, Submission

LABEL = "labkit"  # the cell's metadata that holds its label in an Outcome
_ERROR_NAME = re.compile(r"^([A-Za-z_][\w.]*): (.*)", re.DOTALL)


class RecordedResults(Preprocessor):
    """Gives each code cell the outputs that it had in the sandbox."""

    outcome: Outcome

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        if cell.cell_type == "code":
            marks = cell.metadata.get("nbgrader", {})
            tested = bool(marks.get("grade")) and not marks.get("solution")
            found = self.outcome.cells.get(cell.metadata.get(LABEL, ""))
            if tested and (found is None or not found.ran):
                found = CellOutcome(error=(found.error if found else "") or "NotRun: this test was not reached")
            cell.outputs = outputs(found, float(marks.get("points") or 0) if tested else 0.0)
        return cell, resources


def outputs(found: CellOutcome | None, points: float) -> list[NotebookNode]:
    """A cell's outputs, from which nbgrader reads the `points` that it earned of those that it could."""
    if found is None:
        return []
    out = [new_output("stream", name="stdout", text=found.stdout)] if found.stdout else []
    if found.error:
        named = _ERROR_NAME.match(found.error)
        name, value = named.groups() if named else ("Error", found.error)
        out.append(new_output("error", ename=name, evalue=value, traceback=found.error.splitlines()))
    elif found.points < min(points, found.max_points):
        number = repr(max(float(found.points), 0.0))
        out.append(new_output("execute_result", {"text/plain": number}, execution_count=None))
    return out


class RecordedAutograde(Autograde):
    """nbgrader's Autograde with recorded results in place of every preprocessor that would execute."""

    autograde_preprocessors: Any
    sanitize_preprocessors: Any

    def record(self, outcome: Outcome) -> None:
        """Record an outcome in the gradebook."""
        results = RecordedResults(enabled=True)
        results.outcome = outcome
        steps = [step for step in self.autograde_preprocessors if not _executes(step)]
        self.autograde_preprocessors = [results, *steps]
        self.sanitize_preprocessors = [step for step in self.sanitize_preprocessors if not _executes(step)]
        run(self)


def _executes(step: Any) -> bool:
    kind = import_item(step) if isinstance(step, str) else step
    return isinstance(kind, ExecutePreprocessor) or (isinstance(kind, type) and issubclass(kind, ExecutePreprocessor))


def record(book: Book, submission: Submission, outcome: Outcome, notebook: NotebookNode) -> None:
    """Store a submission in nbgrader's layout and its marks in the gradebook; again, with the same end.

    Marks and comments that a person gave stay, and so does the note that they are done, where the answer and what
    tests gave are the same as then. Sets `outcome.recorded`.

    Args:
        notebook: as rebuilt, in the lab's released form.

    Raises:
        LabError: nbgrader fails, or the disk is full.
    """
    lab, student = outcome.lab, submission.student
    with book.gradebook() as gradebook:
        gradebook.update_or_create_student(student, **_person(submission))
        if submission.received is None:  # nbgrader keeps an earlier one else
            gradebook.update_or_create_submission(lab, student, timestamp=None)
    before = _reviewed(book, lab, student)
    _store(book, submission, lab, notebook)
    converter = book.converter(RecordedAutograde, lab, student)
    converter.record(outcome)
    if before:
        _stay_reviewed(book, lab, student, before)
    outcome.recorded = True


def _person(submission: Submission) -> dict[str, str]:
    """What the gradebook keeps of a student, without what the export does not say: a teacher may have typed it in."""
    first, _, last = " ".join(submission.name.split()).rpartition(" ")
    known = {"first_name": first, "last_name": last, "lms_user_id": submission.lms_id}
    return {key: value for key, value in known.items() if value}


def labels(notebook: NotebookNode) -> list[str]:
    """Each cell's label in an Outcome: its grade_id, "cell-N" for the lab's N-th, and "added-…" for a student's own."""
    out, place = [], 0
    for cell in notebook.cells:
        added = str(cell.get("id", "")).startswith("added-")
        out.append(cell.id if added else cell.metadata.get("nbgrader", {}).get("grade_id") or f"cell-{place}")
        place += not added
    return out


def _store(book: Book, submission: Submission, lab: str, notebook: NotebookNode) -> None:
    folder = book.root / "submitted" / submission.student / lab
    for cell, label in zip(notebook.cells, labels(notebook), strict=True):
        cell.metadata[LABEL] = label
    write_text(folder / f"{NOTEBOOK}.ipynb", nbformat.writes(notebook) + "\n")
    stamp = folder / "timestamp.txt"
    if submission.received is None:
        stamp.unlink(missing_ok=True)
    else:
        write_text(stamp, f"{submission.received:%Y-%m-%d %H:%M:%S.%f} UTC\n")


def _reviewed(book: Book, lab: str, student: str) -> dict[str, tuple[float | None, str]]:
    """Cells with a mark that a person gave and is done with: what tests gave, and the source that was marked."""
    with book.gradebook() as gradebook:
        try:
            grades = gradebook.find_submission_notebook(NOTEBOOK, lab, student).grades
        except MissingEntry:
            return {}
        done = {g.name: g.auto_score for g in grades if g.manual_score is not None and not g.needs_manual_grade}
    sources = _sources(book, lab, student) if done else {}
    return {name: (score, sources.get(name, "")) for name, score in done.items()}


def _stay_reviewed(book: Book, lab: str, student: str, before: dict[str, tuple[float | None, str]]) -> None:
    sources = _sources(book, lab, student)
    with book.gradebook() as gradebook:
        for grade in gradebook.find_submission_notebook(NOTEBOOK, lab, student).grades:
            if before.get(grade.name) == (grade.auto_score, sources.get(grade.name)):
                grade.needs_manual_grade = False
        gradebook.db.commit()


def _sources(book: Book, lab: str, student: str) -> dict[str, str]:
    """Sources of the student's answers as they were recorded; of a test, those of all answers, which it judges."""
    path = book.root / "autograded" / student / lab / f"{NOTEBOOK}.ipynb"
    if not path.is_file():
        return {}
    cells = nbformat.read(path, as_version=4).cells
    marked = [(cell.metadata.get("nbgrader", {}), cell) for cell in cells]
    answers = "\n".join(cell.source for marks, cell in marked if marks.get("solution"))
    return {
        marks["grade_id"]: cell.source if marks.get("solution") else answers
        for marks, cell in marked
        if marks.get("grade") and "grade_id" in marks
    }
