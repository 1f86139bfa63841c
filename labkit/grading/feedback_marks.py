"""What a feedback page says of marks: points by exercise, what waits for the teacher, who handed in when, and what
lateness cost and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import GetGrades

from labkit.grading.lab import Exercise, Lab
from labkit.grading.late import reason


class Marks(GetGrades):
    """nbgrader's marks and comments, whether a mark is still to be given by a person, and facts about the hand-in."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        nb, resources = super().preprocess(nb, resources)
        with self.gradebook:
            found = self.gradebook.find_submission(self.assignment_id, self.student_id)
            names = (found.student.first_name, found.student.last_name)
            resources["labkit"] = {
                "name": " ".join(name for name in names if name),
                "received": _local(found.timestamp),
                "due": _local(found.assignment.duedate),
                "late": reason(self.config, found.total_seconds_late) if found.late_submission_penalty else "",
            }
        return nb, resources

    def _get_score(self, cell: NotebookNode, resources: Any) -> None:
        super()._get_score(cell, resources)
        place = (self.notebook_id, self.assignment_id, self.student_id)
        grade = self.gradebook.find_grade(cell.metadata["nbgrader"]["grade_id"], *place)
        cell.metadata.nbgrader["waits"] = grade.manual_score is None and grade.auto_score is None


def _local(when: datetime | None) -> str:
    """A time of the gradebook's, which is UTC without a zone, on this machine's clock; '' for none."""
    return f"{when.replace(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M %Z}" if when else ""


def exercises(lab: Lab, nb: NotebookNode) -> list[dict[str, Any]]:
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
