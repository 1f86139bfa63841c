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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, pass_context
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import DataTypeFilter, Highlight2HTML
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor, Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.converters import GenerateFeedback

from labkit.grading.book import NOTEBOOK, Book, run
from labkit.grading.feedback_marks import Marks, exercises
from labkit.grading.feedback_page import TEMPLATE, clean_html
from labkit.grading.lab import Cell, Lab
from labkit.grading.leaks import leaks, readable
from labkit.grading.outcome import CellOutcome, Outcome
from labkit.grading.record import LABEL
from labkit.grading.store import Store
from labkit.show.page import formulas

_THEIRS = "labkit_theirs"  # marks a cell whose source the student wrote
_NOTHING = "labkit_nothing"  # marks an answer that is as it was handed out

_NO_RESPONSE = "No response."  # nbgrader's own comment on such an answer


class HideTests(Preprocessor):
    """Shows the lab's cells as released, with outputs that a student may see, and gathers marks by exercise."""

    lab: Lab
    store: Store

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        found = self.store.outcome(resources["nbgrader"]["student"]) or Outcome("", "", "")
        stubs = {cell.grade_id or f"cell-{cell.index}": raw.source for cell, raw in self._pairs()}
        theirs = {cell.grade_id for cell in self.lab.cells if cell.solution}
        hidden = {cell.grade_id for cell in self.lab.cells if cell.has_hidden_tests}
        nothing = _unanswered(self.lab, stubs, nb, found)
        silent = {cell.grade_id for item in self.lab.exercises if item.id in nothing for cell in item.tests}
        before_hidden = True
        for cell in nb.cells:
            label = cell.metadata.get(LABEL, "")
            before_hidden = before_hidden and label not in hidden
            cell.metadata[_THEIRS] = label in theirs or label not in stubs
            cell.metadata[_NOTHING] = label in nothing
            if label in nothing and cell.metadata.nbgrader.get("comment") == _NO_RESPONSE:
                cell.metadata.nbgrader["comment"] = ""
            if not cell.metadata[_THEIRS]:
                cell.source = stubs[label]
            if cell.cell_type == "code":
                repeats = label in nothing or (label in silent and _for_want_of_it(found.cells.get(label)))
                cell.outputs = [] if repeats else seen(found.cells.get(label), printed=before_hidden)
        resources["nbgrader"]["notebook"] = name = self.lab.path.parent.name
        resources["labkit"] |= {"exercises": exercises(self.lab, nb), "notes": found.notes}
        resources["labkit"] |= {"folder": str(self.lab.path.parent), "lab": name}
        return nb, resources

    def _pairs(self) -> Iterator[tuple[Cell, NotebookNode]]:
        return zip(self.lab.cells, self.lab.stub().cells, strict=True)


def _unanswered(lab: Lab, stubs: dict[str, str], nb: NotebookNode, found: Outcome) -> set[str]:
    """Labels of the answers that are as they were handed out; not those that a cell elsewhere gave."""
    sources = {cell.metadata.get(LABEL, ""): cell.source for cell in nb.cells}
    same = {label for label, source in stubs.items() if sources.get(label, "").strip() == source.strip()}
    coded = {i.id for i in lab.exercises if any(_for_want_of_it(found.cells.get(c.grade_id)) for c in i.tests)}
    return same & (coded | {cell.grade_id for item in lab.questions for cell in item.tests})


def _for_want_of_it(found: CellOutcome | None) -> bool:
    """Whether a test failed because its answer was not there."""
    return found is not None and found.error.startswith(("NameError", "NotImplementedError"))


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


@dataclass(frozen=True)
class Pages:
    """Feedback pages by student: those that were written, and why others are withheld."""

    written: dict[str, Path] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)


def feedback(book: Book, lab: Lab, store: Store, students: Collection[str]) -> Pages:
    """Write `feedback/STUDENT/LAB/lab.html` for students whose marks are recorded.

    A page that shows a line of a solution or of a hidden test which its student has not written is taken away.

    Raises:
        LabError: a page cannot be written.
    """
    if not students:
        return Pages()
    hide = HideTests(enabled=True)
    hide.lab, hide.store = lab, store
    name = lab.path.parent.name
    converter = book.converter(Feedback, name)
    converter.students = set(students)
    converter.exporter_class = FeedbackExporter
    converter.preprocessors = [Marks, hide, CSSHTMLHeaderPreprocessor]
    run(converter)
    pages = Pages()
    for student in students:
        page = book.root / "feedback" / student / name / f"{NOTEBOOK}.html"
        if not page.is_file():
            continue
        if leaked := _leaked(book, lab, student, page):
            page.unlink()
            pages.withheld[student] = leaked[0]
        else:
            pages.written[student] = page
    return pages


def _leaked(book: Book, lab: Lab, student: str, page: Path) -> list[str]:
    submitted = book.root / "submitted" / student / lab.path.parent.name / f"{NOTEBOOK}.ipynb"
    theirs = readable(submitted.read_text(encoding="utf-8"))
    return leaks(lab, page.read_text(encoding="utf-8"), own=theirs)
