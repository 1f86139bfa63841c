"""A course with the small lab, and submissions and outcomes made by hand, for the tests of the gradebook."""

from __future__ import annotations

import copy
from datetime import datetime

import nbformat

from labkit.grading.book import Book
from labkit.grading.lab import Lab
from labkit.grading.outcome import CellOutcome, Outcome, Submission

NAME = "01-small"
SETTINGS = """c = get_config()
c.CourseDirectory.course_id = "course"
c.CourseDirectory.db_url = "sqlite:///gradebook.db"
c.AssignLatePenalties.plugin_class = "labkit.grading.late.DailyPenalty"
c.DailyPenalty.percent_per_day = 25
"""


def make_course(root, notebook) -> Book:
    """A course with one lab, in nbgrader's gradebook."""
    folder = root / "source" / NAME
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / "lab.ipynb")
    (root / "nbgrader_config.py").write_text(SETTINGS)
    book = Book(root)
    book.refresh(book.lab(NAME))
    return book


def handed_in(lab: Lab, answer="return sum(values) / len(values)", text="When sizes differ.", extra=()):
    """The notebook of a submission in the lab's form, as `rebuild` gives it."""
    notebook = copy.deepcopy(lab.stub())
    answers = {"ex1-mean": f"def mean(values):\n    {answer}", "q2-means": text}
    for cell in notebook.cells:
        cell.source = answers.get(cell.metadata.get("nbgrader", {}).get("grade_id"), cell.source)
    new = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    for number, (kind, source) in enumerate(extra, 1):
        notebook.cells.insert(3, new[kind](source, id=f"added-3-{number}"))
    return notebook


def submission(student, name="", lms_id="", received=None, raw=b"{}", problem=""):
    when = datetime.fromisoformat(received) if received else None
    return Submission(student, name, lms_id, raw, problem, when, f"{student}.ipynb")


def outcome(student, test=1.0, hidden=2.0, notes=(), **cells: CellOutcome) -> Outcome:
    """What grading the small lab found: a failed test where the points are 0, `cells` in place of some."""
    found = {
        "ex1-mean-test": CellOutcome(test, 1, "" if test else "AssertionError: the mean of 1 and 3 is 2", ran=True),
        "ex1-mean-hidden": CellOutcome(hidden, 2, "" if hidden else "AssertionError: secret [2, 2, 5]", ran=True),
    }
    found["ex1-mean-test"].shown = found["ex1-mean-test"].error
    found["ex1-mean-hidden"].shown = "" if hidden else "the count is not always 2"
    found |= {label.replace("_", "-"): cell for label, cell in cells.items()}
    return Outcome(student, NAME, f"digest of {student}", found, list(notes))


def marks(book: Book, student) -> dict:
    """The gradebook's marks of a student: (tests', person's, waits for a person) by cell."""
    with book.gradebook() as gradebook:
        grades = gradebook.find_submission_notebook("lab", NAME, student).grades
        return {g.name: (g.auto_score, g.manual_score, g.needs_manual_grade) for g in grades}


def mark_by_hand(book: Book, student, cell, points, comment="") -> None:
    """What the formgrader stores when a person gives a mark and goes on."""
    with book.gradebook() as gradebook:
        grade = gradebook.find_grade(cell, "lab", NAME, student)
        grade.manual_score, grade.needs_manual_grade = points, False
        if comment:
            gradebook.find_comment(cell, "lab", NAME, student).manual_comment = comment
        gradebook.db.commit()
