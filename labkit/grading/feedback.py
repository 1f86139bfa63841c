"""A page for each student: marks, comments, what went wrong, and nothing of what is hidden.

nbgrader's own feedback is the autograded notebook as HTML, with hidden tests and their tracebacks, and it loads MathJax
from the network. Here the lab's cells are shown as they were released. Of a test the student sees the part of its
message that was kept for students (`CellOutcome.shown`). What cells print is shown until the first hidden test has
run: an answer could note what it was called with, and print it later.

The answers are text that anybody may have written, and the teacher opens these pages, too. What they render to is
cleaned of scripts and of whatever a browser would fetch, and the page forbids both by a policy of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, pass_context
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import DataTypeFilter, Highlight2HTML
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor, Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.converters import GenerateFeedback
from nbgrader.preprocessors import GetGrades

from labkit.errors import LabError
from labkit.grading.book import NOTEBOOK, Book, run
from labkit.grading.feedback_page import TEMPLATE, clean_html
from labkit.grading.lab import Exercise, Lab
from labkit.grading.leaks import leaks, readable
from labkit.grading.outcome import CellOutcome, Outcome
from labkit.grading.record import LABEL
from labkit.grading.store import Store
from labkit.show.page import formulas

_THEIRS = "labkit_theirs"  # marks a cell whose source the student wrote


class HideTests(Preprocessor):
    """Shows the lab's cells as released, with outputs that a student may see, and gathers marks by exercise."""

    lab: Lab
    store: Store

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        found = self.store.outcome(resources["nbgrader"]["student"]) or Outcome("", "", "")
        released = {
            cell.grade_id or f"cell-{cell.index}": raw.source
            for cell, raw in zip(self.lab.cells, self.lab.stub().cells, strict=True)
            if not cell.solution
        }
        hidden = {cell.grade_id for cell in self.lab.cells if cell.has_hidden_tests}
        before_hidden = True
        for cell in nb.cells:
            label = cell.metadata.get(LABEL, "")
            before_hidden = before_hidden and label not in hidden
            cell.metadata[_THEIRS] = label not in released
            cell.source = released.get(label, cell.source)
            if cell.cell_type == "code":
                cell.outputs = seen(found.cells.get(label), printed=before_hidden)
        resources["nbgrader"]["notebook"] = self.lab.path.parent.name
        resources["labkit"] = {"exercises": _exercises(self.lab, nb), "notes": found.notes}
        resources["labkit"]["folder"] = str(self.lab.path.parent)
        return nb, resources


def seen(found: CellOutcome | None, printed: bool) -> list[NotebookNode]:
    """A cell's outputs for its student.

    Args:
        printed: whether what it printed is shown.
    """
    if found is None:
        return []
    out = [new_output("stream", name="stdout", text=found.stdout)] if printed and found.stdout else []
    if found.shown:
        out.append(new_output("error", ename="", evalue="", traceback=found.shown.splitlines()))
    return out


def _exercises(lab: Lab, nb: NotebookNode) -> list[dict[str, Any]]:
    """Title, points, possible points of each exercise and question; points are None where a person has yet to mark."""
    marks = {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader for cell in nb.cells if _graded(cell)}

    def row(item: Exercise) -> dict[str, Any]:
        cells = [marks.get(cell.grade_id, {}) for cell in item.tests]
        waits = any(mark.get("waits") for mark in cells)
        points = None if waits else sum(float(mark.get("score") or 0) for mark in cells)
        return {"title": item.title, "points": points, "most": item.points}

    return [row(item) for item in sorted(lab.exercises + lab.questions, key=lambda item: item.statement.index)]


def _graded(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))


class Marks(GetGrades):
    """nbgrader's marks and comments, and whether a mark is still to be given by a person."""

    def _get_score(self, cell: NotebookNode, resources: Any) -> None:
        super()._get_score(cell, resources)
        place = (self.notebook_id, self.assignment_id, self.student_id)
        grade = self.gradebook.find_grade(cell.metadata["nbgrader"]["grade_id"], *place)
        cell.metadata.nbgrader["waits"] = grade.manual_score is None and grade.auto_score is None


class FeedbackExporter(HTMLExporter):
    """nbconvert's HTML with nbgrader's cells in a page that loads nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(extra_loaders=[DictLoader({"labkit_feedback.html.j2": TEMPLATE})], **options)
        self.template_file = "labkit_feedback.html.j2"
        self.register_filter("formulas", formulas)
        self.register_filter("highlight_code", lambda source, metadata=None: _highlighted(source))
        self.register_filter("filter_data_type", DataTypeFilter(parent=self))

    def from_notebook_node(self, nb: NotebookNode, resources: Any = None, **options: Any) -> tuple[Any, Any]:
        """As a template's exporter does it: HTMLExporter reads every page again, which takes two thirds of its time."""
        return TemplateExporter.from_notebook_node(self, nb, self._init_resources(resources), **options)

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown to clean HTML; files are put in only where the lab asks for them, never for an answer."""
        theirs = bool(context.get("cell", {}).get("metadata", {}).get(_THEIRS, True))
        folder = context.get("resources", {}).get("labkit", {}).get("folder", "")
        return _html(source, None if theirs else folder)


@functools.lru_cache(maxsize=512)  # most cells are the lab's own, the same on every page
def _html(source: str, folder: str | None) -> str:
    return clean_html(source, folder)


@functools.lru_cache(maxsize=512)
def _highlighted(source: str) -> str:
    return Highlight2HTML(pygments_lexer="python3")(source)


class Feedback(GenerateFeedback):
    """nbgrader's GenerateFeedback for some students, without hidden tests and without other files."""

    students: Collection[str] = ()
    assignments: Any

    def init_notebooks(self) -> None:
        super().init_notebooks()
        wanted = {self._format_source(self.coursedir.assignment_id, student) for student in self.students}
        self.assignments = {folder: found for folder, found in self.assignments.items() if folder in wanted}

    def init_assignment(self, assignment_id: str, student_id: str) -> None:
        """Nothing to copy: beside the notebook lie files of the course's source."""


def feedback(book: Book, lab: Lab, store: Store, students: Collection[str]) -> dict[str, Path]:
    """Write `feedback/STUDENT/LAB/lab.html` for students whose marks are recorded; returns their paths.

    Raises:
        LabError: a page cannot be written.
    """
    if not students:
        return {}
    hide = HideTests(enabled=True)
    hide.lab, hide.store = lab, store
    name = lab.path.parent.name
    converter = book.converter(Feedback, name)
    converter.students = set(students)
    converter.exporter_class = FeedbackExporter
    converter.preprocessors = [Marks, hide, CSSHTMLHeaderPreprocessor]
    run(converter)
    paths = {student: book.root / "feedback" / student / name / f"{NOTEBOOK}.html" for student in students}
    written = {student: path for student, path in paths.items() if path.is_file()}
    _keep_secrets(book, lab, written)
    return written


def _keep_secrets(book: Book, lab: Lab, written: dict[str, Path]) -> None:
    """Take each page away that shows a line of a solution or of a hidden test which its student has not written.

    Raises:
        LabError: some did; the others stay.
    """
    found = {}
    for student, page in written.items():
        submitted = book.root / "submitted" / student / lab.path.parent.name / f"{NOTEBOOK}.ipynb"
        theirs = readable(submitted.read_text(encoding="utf-8"))
        if leaked := leaks(lab, page.read_text(encoding="utf-8"), own=theirs):
            page.unlink()
            found[student] = leaked[0]
    if found:
        student, line = next(iter(found.items()))
        more = f" (and {len(found) - 1} more page(s) such lines)" if len(found) > 1 else ""
        cause = f"The feedback page of {student} would show: {line}{more}"
        raise LabError(cause, "Look for it in the messages of the lab's tests, and grade again.")
