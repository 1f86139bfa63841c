"""What a course keeps beside nbgrader's files: submissions as they were handed in, and what grading them found.

`received/LAB/STUDENT/HASH.ipynb` are the bytes of each notebook, older ones too, `HASH-NAME` those of any other file
that was handed in, and `handed-in.json` says which ones count; `outcomes/LAB/STUDENT.json` is the `Outcome` of the last
run, and `outcomes/LAB/.labs` the labs that marked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.files import write_bytes, write_text
from labkit.grading.entries import UnreadableError
from labkit.grading.lab import Lab
from labkit.grading.outcome import Outcome, Submission, digest

if TYPE_CHECKING:
    from labkit.grading.book import Book

_HANDED_IN = "handed-in.json"
_MOST_BESIDE = 80_000_000  # bytes of one student's files beside the notebook
_MOST_FILES = 100
_LONGEST = 80  # characters of a file's name
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
        notebook = "" if submission.problem else _kept(folder, submission.raw, ".ipynb")
        files, left_out = _others(folder, submission)
        facts = {
            "name": submission.name,
            "lms_id": submission.lms_id,
            "problem": submission.problem,
            "received": submission.received.isoformat() if submission.received else None,
            "source": submission.source,
            "file": notebook,
            "files": files,
            "left_out": left_out,
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
        """Store an outcome, and the lab as it is now."""
        marking = self.outcomes / ".labs" / f"{hashlib.sha256(self._lab).hexdigest()[:32]}.json"
        if not marking.is_file():
            write_bytes(marking, self._lab)
        outcome.save(self._path(outcome.student))
        self._failure(outcome.student).unlink(missing_ok=True)

    @property
    def proven(self) -> bool:
        """Whether this state of the lab was seen to mark its own solutions right."""
        return self._proof().is_file()

    def prove(self) -> None:
        """Note that it was."""
        write_text(self._proof(), "")

    def _proof(self) -> Path:
        return self.outcomes / ".labs" / f"{hashlib.sha256(self._lab).hexdigest()[:32]}.proven"

    def fail(self, student: str, why: str, traceback: str) -> None:
        """Note that a student could not be graded; until an outcome is saved there is no mark: better than a wrong one.

        Args:
            why: in one line.
        """
        write_text(self._failure(student), f"{why}\n\n{traceback}")

    def failure(self, student: str) -> str:
        """Why a student could not be graded, '' where nothing failed."""
        path = self._failure(student)
        return path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""

    def outcome_of(self, submission: Submission) -> Outcome | None:
        """The outcome of this submission, marked by any state of the lab; None when the stored one is of an older."""
        outcome = self.outcome(submission.student)
        return outcome if outcome and self._marking(submission, outcome) is not None else None

    def digest_after(self, submission: Submission, outcome: Outcome, labels: Iterable[str]) -> str:
        """What to call an outcome in which the cells `labels` were marked anew by this lab, and the others were not.

        The submission's digest under this lab where it differs in these cells only from the lab that marked the rest;
        the old one otherwise, so that the rest is graded again when all are.
        """
        before = self._marking(submission, outcome)
        same = before is not None and _without(json.loads(before), labels) == _without(json.loads(self._lab), labels)
        return self.digest(submission) if same else outcome.digest

    def _marking(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """The lab that marked an outcome, if it is of this submission."""
        material = submission.raw or submission.problem.encode()
        for path in (self.outcomes / ".labs").glob("*.json"):
            if digest(material, before := path.read_bytes()) == outcome.digest:
                return before
        return None

    def _path(self, student: str) -> Path:
        return self.outcomes / f"{student}.json"

    def _failure(self, student: str) -> Path:
        return self.outcomes / f"{student}.failed.txt"


@contextlib.contextmanager
def opened(course: Path, lab: str) -> Iterator[tuple[Book, Lab, Store]]:
    """The course, one of its labs and its store, for this process alone; LabError while another has it."""
    from filelock import FileLock, Timeout

    from labkit.grading.book import Book

    book = Book(course)
    the_lab = book.lab(book.find(lab))
    lock = FileLock(book.root / ".grading.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LabError(f"Another command is grading in {course}.", "Wait until it has ended, or stop it.") from None
    try:
        yield book, the_lab, Store(book.root, the_lab)
    finally:
        lock.release()


def _written(cells: Cells) -> bytes:
    return json.dumps(cells, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")


def _without(cells: Cells, labels: Iterable[str]) -> Cells:
    left_out = set(labels)
    return [cell for cell in cells if (cell[2] or {}).get("grade_id") not in left_out]


def _kept(folder: Path, raw: bytes, end: str) -> str:
    """The name under which bytes lie in a folder, stored if they are new."""
    name = f"{hashlib.sha256(raw).hexdigest()[:32]}{end}"
    if not (folder / name).is_file():
        write_bytes(folder / name, raw)
    return name


def _others(folder: Path, submission: Submission) -> tuple[list[str], list[str]]:
    """Store what was handed in beside the notebook, or in its place; the files' names, and why others are left out."""
    files: list[str] = []
    left_out: list[str] = []
    room = _MOST_BESIDE
    if len(submission.files) > _MOST_FILES:
        left_out.append(f"Of {len(submission.files)} files the first {_MOST_FILES} are kept.")
    for entry in submission.files[:_MOST_FILES]:
        try:
            raw = entry.read(room)
        except UnreadableError as error:
            left_out.append(str(error))
            continue
        room -= len(raw)
        files.append(_kept(folder, raw, f"-{re.sub(r'[^A-Za-z0-9._-]+', '-', entry.name)[-_LONGEST:]}"))
    return files, left_out


def _submission(path: Path) -> Submission:
    facts = json.loads(path.read_text(encoding="utf-8"))
    received = datetime.fromisoformat(facts["received"]) if facts["received"] else None
    return Submission(
        student=path.parent.name,
        name=facts["name"],
        lms_id=facts["lms_id"],
        raw=(path.parent / facts["file"]).read_bytes() if facts["file"] else b"",
        problem=facts["problem"],
        received=received,
        source=facts["source"],
    )
