"""Outcomes in nbgrader's gradebook: points as they were, people's marks kept, nothing executed."""

from __future__ import annotations

import nbformat
import pytest

from labkit.errors import LabError
from labkit.grading.book import Book, run
from labkit.grading.outcome import CellOutcome
from labkit.grading.record import record

from .small_course import NAME, handed_in, mark_by_hand, marks, outcome, submission


def test_points_are_the_outcomes_whatever_the_cells_say(course):
    lab = course.lab(NAME)
    partial = CellOutcome(0.5, 2, stdout="half of it", ran=True)
    nothing = CellOutcome(0.0, 2, ran=True)  # a last expression of 0
    cases = {
        "full": (outcome("full"), (1, 2)),
        "partial": (outcome("partial", ex1_mean_hidden=partial), (1, 0.5)),
        "nothing": (outcome("nothing", ex1_mean_hidden=nothing), (1, 0)),
        "failed": (outcome("failed", test=0.0, hidden=0.0), (0, 0)),
        "unran": (outcome("unran", ex1_mean_test=CellOutcome(1.0, 1.0, ran=False)), (0, 2)),
        "missing": (outcome("missing"), (1, 0)),
        # The cell's code would end the process that ran it, and the raised mark is none.
        "hostile": (outcome("hostile", test=0.0, ex1_mean_hidden=CellOutcome(9.0, 2, "KeyError", ran=True)), (0, 0)),
    }
    del cases["missing"][0].cells["ex1-mean-hidden"]
    for student, (found, expected) in cases.items():
        notebook = handed_in(lab, "import os; os._exit(1)", extra=[("code", "import os; os._exit(2)")])
        record(course, submission(student), found, notebook)
        assert found.recorded
        given = marks(course, student)
        assert (given["ex1-mean-test"][0], given["ex1-mean-hidden"][0]) == expected, student
        assert given["q2-means"] == (None, None, True)
    graded = nbformat.read(course.root / "autograded" / "partial" / NAME / "lab.ipynb", as_version=4)
    hidden = next(c for c in graded.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "ex1-mean-hidden")
    assert hidden.outputs[0].text == "half of it" and "BEGIN HIDDEN" in hidden.source, "the formgrader shows all"
    unran = nbformat.read(course.root / "autograded" / "unran" / NAME / "lab.ipynb", as_version=4)
    assert [o.ename for c in unran.cells for o in c.get("outputs", [])] == ["NotRun"]


def test_an_unanswered_question_is_zero_and_needs_nobody(course):
    record(course, submission("ada"), outcome("ada"), course.lab(NAME).stub())
    assert marks(course, "ada")["q2-means"] == (0, None, False)


def test_what_a_person_gave_survives_and_is_asked_for_again_only_where_the_answer_changed(course):
    lab = course.lab(NAME)
    record(course, submission("ada"), outcome("ada", hidden=0.0), handed_in(lab))
    mark_by_hand(course, "ada", "q2-means", 1.5, "well seen")
    mark_by_hand(course, "ada", "ex1-mean-hidden", 1.0)
    record(course, submission("ada"), outcome("ada", hidden=0.0), handed_in(lab))
    assert marks(course, "ada")["q2-means"] == (None, 1.5, False)
    assert marks(course, "ada")["ex1-mean-hidden"] == (0, 1.0, False)
    record(course, submission("ada"), outcome("ada", hidden=2.0), handed_in(lab))
    assert marks(course, "ada")["q2-means"] == (None, 1.5, False)
    assert marks(course, "ada")["ex1-mean-hidden"] == (2, 1.0, True), "tests say something else now: look again"
    record(course, submission("ada"), outcome("ada"), handed_in(lab, text="Never."))
    assert marks(course, "ada")["q2-means"] == (None, 1.5, True), "another answer: look again"
    with course.gradebook() as gradebook:
        assert gradebook.find_comment("q2-means", "lab", NAME, "ada").comment == "well seen"
        assert len(gradebook.assignment_submissions(NAME)) == 1


def test_who_and_when(course):
    lab = course.lab(NAME)
    first = submission("ada", "Augusta Ada  King", "Participant 7", "2026-11-03T12:30:00")
    record(course, first, outcome("ada"), handed_in(lab))
    with course.gradebook() as gradebook:
        student, found = gradebook.find_student("ada"), gradebook.find_submission(NAME, "ada")
        assert (student.first_name, student.last_name, student.lms_user_id) == ("Augusta Ada", "King", "Participant 7")
        assert found.timestamp.isoformat() == "2026-11-03T12:30:00"
    record(course, submission("ada"), outcome("ada"), handed_in(lab))
    with course.gradebook() as gradebook:
        assert gradebook.find_student("ada").last_name == "King", "what the export does not say stays"
        assert gradebook.find_submission(NAME, "ada").timestamp is None


def test_a_setting_of_the_teacher_cannot_bring_execution_back(course):
    with (course.root / "nbgrader_config.py").open("a") as file:
        file.write('c.Autograde.autograde_preprocessors = ["nbgrader.preprocessors.Execute", '
                   '"nbgrader.preprocessors.SaveAutoGrades"]\n')  # fmt: skip
    book = Book(course.root)
    record(book, submission("ada"), outcome("ada"), handed_in(book.lab(NAME), "import os; os._exit(1)"))
    assert marks(book, "ada")["ex1-mean-hidden"][0] == 2


def test_changed_sources_reach_the_gradebook(course):
    path = course.root / "source" / NAME / "lab.ipynb"
    record(course, submission("ada"), outcome("ada"), handed_in(course.lab(NAME)))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[4].source = notebook.cells[4].source.replace("[2, 2, 5]", "[2, 2, 2, 6]")
    notebook.cells[4].metadata.nbgrader.points = 4
    nbformat.write(notebook, path)
    course.refresh(course.lab(NAME))
    found = outcome("ada", ex1_mean_hidden=CellOutcome(4, 4, ran=True))
    record(course, submission("ada"), found, handed_in(course.lab(NAME)))
    assert marks(course, "ada")["ex1-mean-hidden"][0] == 4
    assert "[2, 2, 2, 6]" in (course.root / "autograded" / "ada" / NAME / "lab.ipynb").read_text()
    del notebook.cells[4]
    nbformat.write(notebook, path)
    with pytest.raises(LabError, match="Cells were added to or removed from 01-small"):
        course.refresh(course.lab(NAME))


def test_a_signal_while_nbgrader_works_ends_the_command():
    """It is no failure of one student's, after which the others go on."""
    from types import SimpleNamespace

    def ended(code):
        def start():
            raise SystemExit(code)

        return SimpleNamespace(start=start, log=None)

    with pytest.raises(SystemExit):
        run(ended(128 + 15))
    with pytest.raises(LabError, match="nbgrader failed"):
        run(ended(1))


def test_what_is_no_course_is_told(tmp_path, course):
    with pytest.raises(LabError, match=r"not a course folder.*labkit grade init"):
        Book(tmp_path)
    (course.root / "nbgrader_config.py").write_text("c = get_config(\n")
    with pytest.raises(LabError, match=r"nbgrader_config.py fails"):
        Book(course.root)
