"""Marks as tables: one for people, and those that learning platforms take in.

Moodle's grading worksheet (assignment, "Upload grading worksheet"; its importer is
`mod/assign/feedback/offline/importgradeslib.php`) needs the columns Identifier, Grade and "Last modified (grade)". The
date is left open, as Moodle writes it for what has no mark yet; a mark that Moodle has already is replaced only where
the teacher ticks the box for records that were modified since.

Canvas' gradebook (`lib/gradebook_importer.rb`) needs Student, ID and Section, in this order, then a column an
assignment: named as in Canvas it goes there, with another name it makes a new one. The row "Points Possible" comes
before the students.

Where a person has still to mark a question, the mark is not final: these tables leave it blank.

Names come from what students hand in, so a cell that a spreadsheet would compute is made text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit.files import write_text
from labkit.grading.book import Book
from labkit.grading.lab import Lab
from labkit.grading.outcome import Submission
from labkit.grading.store import Store

MOODLE = "Participant "  # how the ids of Moodle's worksheet begin
Value = str | float | None
Table = list[list[Value]]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Row:
    """One student's marks.

    Attributes:
        points: by exercise, and by question that a person has marked; None where the mark is still to be given.
        penalty: points that lateness took off.
        total: all points without the penalty's, None where the submission could not be graded.
        older: whether it was marked by the lab as it was before `source/` was changed.
    """

    student: str
    name: str = ""
    lms_id: str = ""
    points: Mapping[str, float | None] = field(default_factory=dict)
    penalty: float = 0.0
    total: float | None = None
    notes: tuple[str, ...] = ()
    older: bool = False

    @property
    def final(self) -> float | None:
        """The total, None while a person has still to mark something: what a platform may be told."""
        return None if self.waits else self.total

    @property
    def waits(self) -> bool:
        """Whether a person has still to mark something."""
        return self.total is not None and None in self.points.values()


def rows(book: Book, lab: Lab, store: Store) -> list[Row]:
    """The marks of all who handed in a lab, by student; no points for those who could not be graded."""
    out = []
    with book.gradebook() as gradebook:
        found = {s.student.id: s for s in gradebook.assignment_submissions(store.name)}
        for who in store.submissions():
            outcome = store.outcome_of(who)
            why = store.failure(who.student)
            if why or outcome is None or not outcome.recorded or who.student not in found:
                said = f"Not graded: {why or 'the run has not come to it.'}"
                out.append(Row(who.student, who.name, who.lms_id, notes=(said,)))
            else:
                row = _row(who, lab, found[who.student], tuple(outcome.notes))
                out.append(replace(row, older=outcome.digest != store.digest(who)))
    return out


def _row(who: Submission, lab: Lab, submitted, notes: tuple[str, ...]) -> Row:
    grades = {grade.name: grade for notebook in submitted.notebooks for grade in notebook.grades}
    points: dict[str, float | None] = {}
    for item in (*lab.exercises, *lab.questions):
        mine = [grades[cell.grade_id] for cell in item.tests if cell.grade_id in grades]
        waits = any(grade.auto_score is None and grade.manual_score is None for grade in mine)
        points[item.id] = None if waits else sum(grade.score for grade in mine)
    penalty = submitted.late_submission_penalty or 0.0
    return Row(who.student, who.name, who.lms_id, points, penalty, max(submitted.score - penalty, 0.0), notes)


def write(folder: Path, lab: Lab, table: Iterable[Row]) -> list[Path]:
    """Write grades.csv, and moodle.csv or canvas.csv for the students whose ids such a platform gave; their paths."""
    table = list(table)
    name = lab.path.parent.name
    paths = [write_text(folder / "grades.csv", _csv(grades_table(lab, table)))]
    graded = [row for row in table if row.total is not None]
    forms = {
        "moodle.csv": (moodle_table, [row for row in graded if row.lms_id.startswith(MOODLE)]),
        "canvas.csv": (canvas_table, [row for row in graded if row.lms_id.isdecimal()]),
    }
    for file, (form, chosen) in forms.items():
        if chosen:
            paths.append(write_text(folder / file, _csv(form(name, lab.points, chosen))))
        else:
            (folder / file).unlink(missing_ok=True)
    return paths


def grades_table(lab: Lab, table: Iterable[Row]) -> Table:
    """A head, then a row a student: points of each exercise and question, penalty, points, and what was odd.

    "total" is final, and blank where a person has still to mark something; "so_far" is there then, too.
    """
    ids = [item.id for item in (*lab.exercises, *lab.questions)]
    head: list[Value] = ["student", "name", "lms_id", *ids, "manual", "late_penalty", "so_far", "total", "max", "notes"]
    questions = [item.id for item in lab.questions]

    def line(row: Row) -> list[Value]:
        given = [row.points.get(name) for name in questions]
        manual = None if None in given else sum(value for value in given if value is not None)
        penalty = row.penalty if row.total is not None else None
        marks = [row.points.get(name) for name in ids]
        told = {"A person has still to mark it.": row.waits, "Marked by older tests than others.": row.older}
        notes = " ".join([*row.notes, *(sentence for sentence, holds in told.items() if holds)])
        return [row.student, row.name, row.lms_id, *marks, manual, penalty, row.total, row.final, lab.points, notes]

    return [head, *map(line, table)]


def moodle_table(name: str, points: float, table: Iterable[Row]) -> Table:
    """Moodle's grading worksheet."""
    head: list[Value] = ["Identifier", "Full name", "Grade", "Maximum grade", "Last modified (grade)"]
    return [head, *([row.lms_id, row.name, row.final, points, ""] for row in table)]


def canvas_table(name: str, points: float, table: Iterable[Row]) -> Table:
    """Canvas' gradebook with one assignment, called as the lab."""
    possible: list[Value] = ["Points Possible", "", "", points]
    head: list[Value] = ["Student", "ID", "Section", name]
    return [head, possible, *([r.name, r.lms_id, "", r.final] for r in table)]


def _csv(table: Iterable[Iterable[Value]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in table)
    return out.getvalue()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return f"{round(value, 6):.10g}"
