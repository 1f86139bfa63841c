"""Grading without running code, for the tests of `labkit grade`: a stand-in for the sandbox, and a class of three."""

from __future__ import annotations

import csv

import nbformat
import pytest

from labkit.grading.outcome import CellOutcome, Outcome

from .small_course import NAME, handed_in


class Engine:
    """In place of the sandbox: gives the points that an answer's comment names, and notes who ran."""

    def __init__(self):
        self.ran, self.tests, self.before = [], {}, lambda student, stop: None
        self.proved, self.reference = 0, 2.0

    def run_submission(self, lab, rebuilt, student, digest, limits, only="", trust=False, stop=None):
        answer = next(step.code for step in rebuilt.steps if step.kind == "answer")
        if "BEGIN SOLUTION" in answer:  # the lab's own
            self.proved += 1
            points = self.reference
        else:
            self.ran.append(student)
            self.before(student, stop)
            points = float(answer.rpartition("# ")[2] or 0)
        found = Outcome(student, lab.path.parent.name, digest, notes=list(rebuilt.notes))
        for step in rebuilt.steps:
            if step.kind == "test" and only in ("", step.exercise):
                self.tests[step.label] = step.code
                earned = min(points, step.points)
                error = "" if earned == step.points else "AssertionError: wrong"
                found.cells[step.label] = CellOutcome(0.0 if error else earned, step.points, error, error, ran=True)
        return found


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr("labkit.grading.supervise.run_submission", engine.run_submission)
    monkeypatch.setattr("labkit.grading.sandbox.ready", lambda trust=False: None)
    monkeypatch.setenv("COLUMNS", "200")
    return engine


@pytest.fixture
def folder(course, tmp_path):
    """Three submissions: all points, those of the visible test, none; returns (folder, hand in another)."""
    lab = course.lab(NAME)

    def hand_in(student, points, text="When sizes differ."):
        notebook = handed_in(lab, f"return 0  # {points}", text)
        path = tmp_path / "submissions" / student / "lab.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)

    for student, points in {"ada": 2, "bob": 1, "cyd": 0}.items():
        hand_in(student, points)
    return tmp_path / "submissions", hand_in


def table(course):
    with (course.root / "exports" / NAME / "grades.csv").open(newline="", encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def totals(course):
    """Points as they are, whether or not a person has still to mark a question."""
    return {student: row["so_far"] for student, row in table(course).items()}
