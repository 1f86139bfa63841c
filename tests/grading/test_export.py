"""Marks as tables: what people read, and what Moodle's and Canvas' importers ask for."""

from __future__ import annotations

import csv

import pytest

from labkit.grading import export
from labkit.grading.late import set_due
from labkit.grading.record import record
from labkit.grading.store import Store

from .small_course import NAME, handed_in, mark_by_hand, outcome, submission
from .test_late import DUE

HEAD = [
    "student",
    "name",
    "lms_id",
    "ex1-mean",
    "q2-means",
    "manual",
    "late_penalty",
    "so_far",
    "total",
    "max",
    "notes",
]


@pytest.fixture
def handed(course):
    """Records a submission as the command does; returns the course, its lab and its store."""
    lab = course.lab(NAME)
    store = Store(course.root, lab)

    def hand_in(who, found=None, text="When sizes differ."):
        store.keep(who)
        if found is not None:
            found.digest = store.digest(who)
            store.save(found)
            record(course, who, found, handed_in(lab, text=text))
            store.save(found)

    return course, lab, store, hand_in


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_marks_for_people(handed, tmp_path):
    book, lab, store, hand_in = handed
    set_due(book, NAME, DUE)
    hand_in(submission("ada", "Ada King"), outcome("ada", test=0.0, notes=["Odd, it is.", "=HYPERLINK(1)"]))
    hand_in(submission("bob", "=cmd|' /C calc'!A0", "-7"), outcome("bob", hidden=0.125, notes=["=1+1"]))
    hand_in(submission("cyd", received="2026-12-02T12:00:00"), outcome("cyd"))
    hand_in(submission("dan"))  # received, and the run did not come to it
    hand_in(submission("eli"), outcome("eli"))
    store.fail("eli", "ZeroDivisionError: a fault", "Traceback")
    mark_by_hand(book, "ada", "q2-means", 1.5)
    paths = export.write(tmp_path, lab, export.rows(book, lab, store))
    assert [path.name for path in paths] == ["grades.csv"]
    head, *lines = read(paths[0])
    assert head == HEAD
    assert lines[0] == ["ada", "Ada King", "", "2", "1.5", "1.5", "0", "3.5", "3.5", "5", "Odd, it is. =HYPERLINK(1)"]
    waits = "A person has still to mark it."
    assert lines[1] == ["bob", "'=cmd|' /C calc'!A0", "'-7", "1.125", "", "", "0", "1.125", "", "5", f"'=1+1 {waits}"]
    assert lines[2] == ["cyd", "", "", "3", "", "", "0.75", "2.25", "", "5", waits]
    assert lines[3] == ["dan", *[""] * 8, "5", "Not graded: the run has not come to it."]
    assert lines[4] == ["eli", *[""] * 8, "5", "Not graded: ZeroDivisionError: a fault"]


def test_an_older_hand_ins_mark_is_not_the_newers(handed):
    book, lab, store, hand_in = handed
    hand_in(submission("ada"), outcome("ada"))
    assert export.rows(book, lab, store)[0].total == 3
    store.keep(submission("ada", raw=b"another"))
    assert export.rows(book, lab, store)[0].total is None
    assert len(list((store.received / "ada").glob("*.ipynb"))) == 2, "the older bytes are kept"


def test_each_platform_gets_its_own_students_with_marks(handed, tmp_path):
    book, lab, store, hand_in = handed
    hand_in(submission("ada", "Ada King", "Participant 12345"), outcome("ada"))
    hand_in(submission("bob", "Bob", "Participant 7"))
    hand_in(submission("cyd", "Cyd, C", "4411"), outcome("cyd", hidden=0.0))

    def tables():
        paths = export.write(tmp_path, lab, export.rows(book, lab, store))
        assert [path.name for path in paths] == ["grades.csv", "moodle.csv", "canvas.csv"]
        return [read(path) for path in paths[1:]]

    moodle, canvas = tables()
    assert moodle[1][2] == "" and canvas[2][3] == "", "a question waits: the mark is not final"
    mark_by_hand(book, "ada", "q2-means", 0.0)
    mark_by_hand(book, "cyd", "q2-means", 2.0)
    moodle, canvas = tables()
    # Moodle's importer looks for these three and takes no file without them.
    assert {"Identifier", "Grade", "Last modified (grade)"} <= set(moodle[0])
    assert dict(zip(*moodle, strict=True)) == {
        "Identifier": "Participant 12345",
        "Full name": "Ada King",
        "Grade": "3",
        "Maximum grade": "5",
        "Last modified (grade)": "",
    }
    # Canvas: Student, then ID, then Section, more than three columns; "Points Possible" in the first cell of a row.
    assert canvas[0] == ["Student", "ID", "Section", NAME]
    assert canvas[1:] == [["Points Possible", "", "", "5"], ["Cyd, C", "4411", "", "3"]]
    store.fail("cyd", "a fault", "")
    export.write(tmp_path, lab, export.rows(book, lab, store))
    assert not (tmp_path / "canvas.csv").exists(), "no stale table stays"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", " =", "\n"])
def test_no_cell_of_text_is_a_formula(start):
    assert export._cell(f"{start}1").startswith("'")
    assert export._cell("a=1") == "a=1" and export._cell(-0.5) == "-0.5" and export._cell(2 / 3) == "0.666667"
