"""What a submission is, and what grading it found: the records that intake, sandbox, gradebook and feedback share.

An `Outcome` is stored as JSON beside the gradebook, so that grading which was stopped goes on where it was, and
so that a mark can be traced to what ran.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.files import write_text

if TYPE_CHECKING:
    from labkit.grading.entries import Entry


@dataclass(frozen=True)
class Submission:
    """One student's lab as it was handed in.

    Attributes:
        student: the id in the gradebook: ASCII letters, digits, '-', '_' and '.', not empty, unique in a class.
        name: the student's name as the export writes it, '' where it is unknown.
        lms_id: what the learning platform calls this student in its own tables, '' where it has none.
        raw: the notebook's bytes, b"" when there is none.
        problem: why there is no notebook to read, in one sentence for the student; '' when there is one.
        received: when it was handed in, in UTC without a zone, as nbgrader keeps it; None when unknown.
        source: the file's name in what was collected.
        files: what else was handed in, or all of it where no notebook was found; read when it is stored.
    """

    student: str
    name: str = ""
    lms_id: str = ""
    raw: bytes = field(default=b"", repr=False)
    problem: str = ""
    received: datetime | None = None
    source: str = ""
    files: tuple[Entry, ...] = field(default=(), repr=False, compare=False)


@dataclass
class CellOutcome:
    """One cell that ran, or did not.

    Attributes:
        points, max_points: what it earned and could earn; both 0 for a cell that tests nothing.
        error: what went wrong, with everything that a teacher wants to know; '' when nothing did.
        shown: the same for the student: nothing of a hidden test but its own message.
        stdout: what it printed, shortened.
        ran: whether it ran to its end, with or without an error.
    """

    points: float = 0.0
    max_points: float = 0.0
    error: str = ""
    shown: str = ""
    stdout: str = ""
    ran: bool = False


@dataclass
class Outcome:
    """What grading one submission found.

    Attributes:
        digest: of the submission's bytes and the lab's, see `digest`; another one means: grade again.
        cells: by grade_id, or by "cell-N" for what has none, in the order of the lab.
        notes: what was odd about the notebook or its run, a sentence each, for student and teacher.
        seconds, peak_mib: time and largest memory of its processes together.
        restarts: how often its process ended or was ended before all cells had run.
        recorded: whether the gradebook has it.
    """

    student: str
    lab: str
    digest: str
    cells: dict[str, CellOutcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mib: float = 0.0
    restarts: int = 0
    recorded: bool = False

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.cells.values())

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Outcome | None:
        """Read it back; None where there is none, or none that this version can read."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            fields["cells"] = {label: CellOutcome(**cell) for label, cell in fields["cells"].items()}
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def digest(raw: bytes, lab: bytes) -> str:
    """One name for a submission and the lab that marks it."""
    return hashlib.sha256(len(raw).to_bytes(8, "big") + raw + lab).hexdigest()[:32]
