"""What a course keeps beside nbgrader's files: submissions as they were handed in, and what grading them found.

`received/LAB/STUDENT/HASH.ipynb` are the bytes of each hand-in, older ones too, and `handed-in.json` says which one
counts; `outcomes/LAB/STUDENT.json` is the `Outcome` of the last run, and `outcomes/LAB/.labs` the labs that marked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import write_bytes, write_text
from labkit.grading.lab import Lab
from labkit.grading.outcome import Outcome, Submission, digest

_HANDED_IN = "handed-in.json"
Cells = list[list[Any]]  # [type, source, nbgrader's metadata] of each cell of a lab


class Store:
    """The submissions and outcomes of one lab in one course."""

    def __init__(self, course: Path, lab: Lab) -> None:
        self.name = lab.path.parent.name
        self.received = course / "received" / self.name
        self.outcomes = course / "outcomes" / self.name
        self.cells = [[c.cell_type, c.source, c.metadata.get("nbgrader")] for c in lab.notebook.cells]
        self._lab = _written(self.cells)

    def digest(self, submission: Submission) -> str:
        """The name of this submission under this lab; outputs and a notebook's other settings play no part."""
        return digest(submission.raw or submission.problem.encode(), self._lab)

    def keep(self, submission: Submission) -> bool:
        """Store a submission; whether anything about it is new.

        Raises:
            LabError: the student's id is no name of a folder.
        """
        if submission.student in ("", ".", "..") or "/" in submission.student:
            raise LabError(f"{submission.student!r} cannot be a student's id.", "Rename the folder of the submission.")
        folder = self.received / submission.student
        kept = folder / f"{hashlib.sha256(submission.raw).hexdigest()[:32]}.ipynb"
        if not kept.is_file():
            write_bytes(kept, submission.raw)
        facts = {
            "name": submission.name,
            "lms_id": submission.lms_id,
            "problem": submission.problem,
            "received": submission.received.isoformat() if submission.received else None,
            "source": submission.source,
            "file": kept.name,
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        path = folder / _HANDED_IN
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return False
        write_text(path, text)
        return True

    def submissions(self) -> list[Submission]:
        """Each student's last submission, by student."""
        return [_submission(path) for path in sorted(self.received.glob(f"*/{_HANDED_IN}"))]

    def outcome(self, student: str) -> Outcome | None:
        return Outcome.load(self._path(student))

    def save(self, outcome: Outcome) -> None:
        """Store an outcome, and the lab that it is of."""
        marking = self.outcomes / ".labs" / f"{hashlib.sha256(self._lab).hexdigest()[:32]}.json"
        if not marking.is_file():
            write_bytes(marking, self._lab)
        outcome.save(self._path(outcome.student))
        self._failure(outcome.student).unlink(missing_ok=True)

    def fail(self, student: str, traceback: str) -> None:
        """Put a student's outcome aside, because it could not be graded: no mark is better than a wrong one."""
        self._path(student).unlink(missing_ok=True)
        write_text(self._failure(student), traceback)

    def digest_after(self, submission: Submission, outcome: Outcome, labels: Iterable[str]) -> str:
        """What to call an outcome in which the cells `labels` were marked anew by this lab, and the others were not.

        The submission's digest under this lab where it differs in these cells only from the lab that marked the rest;
        the old one otherwise, so that the rest is graded again when all are.
        """
        for path in (self.outcomes / ".labs").glob("*.json"):
            before = path.read_bytes()
            if digest(submission.raw or submission.problem.encode(), before) == outcome.digest:
                same = _without(json.loads(before), labels) == _without(json.loads(self._lab), labels)
                return self.digest(submission) if same else outcome.digest
        return outcome.digest

    def _path(self, student: str) -> Path:
        return self.outcomes / f"{student}.json"

    def _failure(self, student: str) -> Path:
        return self.outcomes / f"{student}.failed.txt"


def _written(cells: Cells) -> bytes:
    return json.dumps(cells, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")


def _without(cells: Cells, labels: Iterable[str]) -> Cells:
    left_out = set(labels)
    return [cell for cell in cells if (cell[2] or {}).get("grade_id") not in left_out]


def _submission(path: Path) -> Submission:
    facts = json.loads(path.read_text(encoding="utf-8"))
    received = datetime.fromisoformat(facts["received"]) if facts["received"] else None
    return Submission(
        student=path.parent.name,
        name=facts["name"],
        lms_id=facts["lms_id"],
        raw=(path.parent / facts["file"]).read_bytes(),
        problem=facts["problem"],
        received=received,
        source=facts["source"],
    )
