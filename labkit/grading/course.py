"""An nbgrader course made from the lessons, and brought up to date with them.

The folder is nbgrader's own: `nbgrader_config.py`, `source/`, `release/`, `gradebook.db`. A lab that the teacher has
changed in `source/` stays as it is; others follow the lessons. Submissions and marks are never touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from labkit.errors import LabError
from labkit.files import write_bytes, write_text
from labkit.grading.book import Book, nbgrader_courses
from labkit.grading.lab import Lab
from labkit.lessons import LessonFolder

_COPIED = ".labkit.json"  # in source/: what each lab was when it was copied
_SETTINGS = '''"""nbgrader's settings for this course; labkit grade init wrote them once, and leaves them alone."""

c = get_config()  # noqa: F821 (nbgrader provides it)

c.CourseDirectory.course_id = "big-models-small-memory"
# Relative to this folder. For a server's database, its SQLAlchemy address.
c.CourseDirectory.db_url = "sqlite:///gradebook.db"

# What lateness costs, where a lab has a due date (labkit grade LAB --due): percent of the score for each day
# that has begun, after some minutes of grace, up to a maximum.
c.AssignLatePenalties.plugin_class = "labkit.grading.late.DailyPenalty"
c.DailyPenalty.percent_per_day = 10.0
c.DailyPenalty.grace_minutes = 15.0
c.DailyPenalty.maximum_percent = 50.0

# What a cell printed is kept up to this many lines, in the formgrader and in feedback.
c.LimitOutput.max_lines = 200

# The formgrader shows this course when JupyterLab is started in this folder.
c.FormgradeApp.max_rows = 500
'''


@dataclass
class Made:
    """What `init` did: labs that are new, that followed their lesson, that it left alone because a teacher changed
    them, that were as they should be, and that stay as they were because cells came or went after a submission."""

    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def init(folder: Path, lessons: list[LessonFolder], progress: Callable[[str], None] = lambda slug: None) -> Made:
    """Make a course in `folder` with the labs of `lessons`, or bring the one there up to date.

    Raises:
        LabError: the folder holds something else, nbgrader is not installed, or refuses a lab.
    """
    nbgrader_courses()  # before anything is made
    settings = folder / "nbgrader_config.py"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not settings.is_file())):
        raise LabError(f"{folder} holds something else than a course.", "Name an empty or a new folder.")
    try:
        (folder / "source").mkdir(parents=True, exist_ok=True)
        if not settings.is_file():
            write_text(settings, _SETTINGS)
    except OSError as error:
        raise LabError(f"{folder} cannot be made ({error.strerror or error}).", "Choose another folder.") from error
    book, made = Book(folder), Made()
    copied = _copied(folder)
    for lesson in lessons:
        if lesson.lab.is_file():
            progress(lesson.slug)
            _take(book, lesson, copied, made)
            write_text(folder / "source" / _COPIED, json.dumps(copied, indent=1) + "\n")
    return made


def _take(book: Book, lesson: LessonFolder, copied: dict[str, str], made: Made) -> None:
    raw = lesson.lab.read_bytes()
    path = book.root / "source" / lesson.slug / "lab.ipynb"
    there = path.read_bytes() if path.is_file() else b""
    theirs = bool(there) and there != raw and _name(there) != copied.get(lesson.slug)
    if not book.admits(Lab.read(path if theirs else lesson.lab)):
        made.held.append(lesson.slug)
        return
    group = made.kept if theirs else made.same if there == raw else made.updated if there else made.new
    group.append(lesson.slug)
    if not theirs:
        if there != raw:
            write_bytes(path, raw)
        copied[lesson.slug] = _name(raw)
    book.refresh(Lab.read(path))


def _copied(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / "source" / _COPIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
