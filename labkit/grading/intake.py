"""Submissions out of what a learning platform exports: one record for each student, whatever they handed in.

Layouts that are known by their names:

- Moodle, "Download all submissions": folders `Full Name_12345_assignsubmission_file` (older ones end in `_`), or flat
  files `Full Name_12345_assignsubmission_file_lab.ipynb`; the number is the participant's, and "Participant" stands
  for a name that is hidden (`mod/assign/classes/downloader.php`). Of a group it is the group's number, by which
  Moodle would give the marks to somebody else, so do not give it their table; the default group has none.
- Canvas, "Download Submissions": flat files `lovelaceada_4711_99_lab.ipynb`, after the name perhaps `_LATE`; the
  first number is the student's, the second the file's; `lovelaceada_4711_text.html` where something was typed in,
  `anon_aB3xZ_99_lab.ipynb` where names are hidden; a second attempt is called `lab-1.ipynb`
  (`lib/content_zipper.rb`).
- Anything else, also beside these: a folder, a zip or a notebook for each student, by whose name the student is known;
  so nbgrader's own `submitted/STUDENT/LAB/lab.ipynb`, too.

A student's notebook may lie in folders of their own, or in a zip. The time of handing in is that of `timestamp.txt`
beside the notebook, as nbgrader writes it; else the file's own in its folder or zip.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.entries import Entry, UnreadableError, in_zip, listed
from labkit.grading.outcome import Submission
from labkit.grading.rebuild import MOST_BYTES

PLATFORMS = ("auto", "moodle", "canvas", "folders")
_MOODLE = re.compile(r"^(?P<name>.+?)(?:_(?P<id>\d+))?_assignsubmission_(?P<type>[a-z]+)(?:_(?P<file>.+)|_?)$")
_CANVAS = re.compile(
    r"^(?:(?:LATE_)?anon_(?P<hidden>[A-Za-z0-9]+)|(?P<name>.+?)_(?:LATE_)?(?P<id>\d+))"
    r"_(?:\d+_(?P<file>.+)|(?P<typed>(?:text|link)\.html))$"
)
_HANDED_IN = (".ipynb", ".zip")
_LESSON = re.compile(r"^\d\d-[a-z0-9-]+$")
_MOST_ZIP = 4 * MOST_BYTES
_LONGEST_ID = 60


@dataclass(frozen=True)
class _Student:
    """Whose files these are: what is unique to the student, the name, and the platform's id."""

    key: str
    name: str = ""
    lms_id: str = ""


def collect(path: Path, notebook: str = "lab.ipynb", lms: str = "auto", lab: str = "") -> list[Submission]:
    """Every student's submission in a folder or zip, by student.

    Args:
        notebook: the name of the file that is marked; a student's only notebook is taken under any name.
        lms: whose export it is; "auto" goes by the names.
        lab: where a student has a folder of this name, the notebook is looked for in it.

    Raises:
        LabError: `path` cannot be read, holds no submission, or `lms` is unknown.
    """
    if lms not in PLATFORMS:
        raise LabError(f"There is no platform {lms!r}.", f"Known: {', '.join(PLATFORMS)}.")
    files = _by_student(listed(path), lms, notebook)
    if not files:
        raise LabError(f"There is no submission in {path}.", "It needs a folder, a zip or a notebook for each student.")
    ids = _ids(files)
    found = [_submission(student, entries, notebook, lab) for student, entries in files.items()]
    return sorted(
        (replace(s, student=ids[student]) for s, student in zip(found, files, strict=True)), key=lambda s: s.student
    )


def _by_student(entries: list[Entry], lms: str, notebook: str) -> dict[_Student, list[Entry]]:
    entries = _below_one_folder(entries, notebook)
    if lms == "auto":
        moodle = any(_MOODLE.match(entry.parts[0]) for entry in entries)
        lms = "moodle" if moodle else "canvas" if _is_canvas(entries) else "folders"
    found: dict[_Student, list[Entry]] = {}
    for entry in entries:
        student, name = _owner(entry, lms)
        if student is not None:
            found.setdefault(student, []).append(replace(entry, parts=(*entry.parts[1:-1], name)))
    return found


def _is_canvas(entries: list[Entry]) -> bool:
    """Whether most are files as Canvas names them: one folder or file may happen to have such a name."""
    tops = {entry.parts[0]: len(entry.parts) == 1 for entry in entries}
    named = {top for top, flat in tops.items() if flat and _CANVAS.match(top)}
    others = {top for top, flat in tops.items() if not flat or top.lower().endswith(_HANDED_IN)} - named
    return len(named) > len(others)


def _owner(entry: Entry, lms: str) -> tuple[_Student | None, str]:
    """The student to whom a file belongs, and its name without what the platform added."""
    top, flat = entry.parts[0], len(entry.parts) == 1
    if lms == "moodle" and (match := _MOODLE.match(top)):
        number = match["id"]
        key, lms_id = (f"{match['name']}-{number}", f"Participant {number}") if number else (match["name"], "")
        # Text typed into the platform and comments are no notebook, but whoever handed in only these did hand in.
        return _Student(key, match["name"], lms_id), (match["file"] or top) if flat else entry.name
    if lms == "canvas" and flat and (match := _CANVAS.match(top)):
        key = f"anon-{match['hidden']}" if match["hidden"] else f"{match['name']}-{match['id']}"
        return _Student(key, match["name"] or "", match["id"] or ""), match["file"] or match["typed"]
    if flat and not top.lower().endswith(_HANDED_IN):
        return None, ""
    return _Student(Path(top).stem if flat else top), entry.name


def _below_one_folder(entries: list[Entry], notebook: str) -> list[Entry]:
    """Without a folder around everybody's: a zip often has one. One student's own folder looks different."""
    tops = {entry.parts[0] for entry in entries}
    if len(tops) != 1 or any(len(entry.parts) == 1 or _MOODLE.match(entry.parts[0]) for entry in entries):
        return entries
    below = {entry.parts[1]: len(entry.parts) > 2 for entry in entries}
    inside = [replace(entry, parts=entry.parts[1:]) for entry in entries]
    if any(map(_MOODLE.match, below)) or _is_canvas(inside):
        return inside
    people = [name for name, folder in below.items() if folder or name.lower().endswith(_HANDED_IN)]
    if len(people) < 2 or any(_LESSON.match(name) or _attempt(name, notebook) is not None for name in below):
        return entries
    return inside


def _submission(student: _Student, entries: list[Entry], notebook: str, lab: str) -> Submission:
    base = Submission("", student.name, student.lms_id, received=max(entry.when for entry in entries))
    entries = [e for e in entries if lab in e.parts[:-1]] or entries
    base = replace(base, files=tuple(entries))
    try:
        chosen, entries = _chosen(entries, notebook)
        raw = chosen.read(MOST_BYTES)
        base = replace(base, files=tuple(entry for entry in base.files if entry is not chosen))
        beside = [e for e in entries if e.parts == (*chosen.parts[:-1], "timestamp.txt")]
        received = _stamp(beside[0]) if beside else None
        return replace(base, raw=raw, received=received or chosen.when, source="/".join(chosen.parts))
    except UnreadableError as error:
        told = str(error)
        return replace(base, problem=told[:1].upper() + told[1:], source="/".join(entries[0].parts))


def _chosen(entries: list[Entry], notebook: str) -> tuple[Entry, list[Entry]]:
    """The student's notebook, and the files among which it lies."""
    found = [entry for entry in entries if entry.name.lower().endswith(".ipynb")]
    zips = [entry for entry in entries if entry.name.lower().endswith(".zip")]
    if not found and zips:
        entries = [
            entry for file in zips for entry in in_zip(file.read(_MOST_ZIP)) if ".ipynb_checkpoints" not in entry.parts
        ]
        found = [e for e in entries if e.name.lower().endswith(".ipynb") and "__MACOSX" not in e.parts]
    attempts = {entry.parts: attempt for entry in found if (attempt := _attempt(entry.name, notebook)) is not None}
    if named := [entry for entry in found if entry.parts in attempts]:
        # The name itself before numbered ones, then the last attempt, then what lies least deep.
        order = {parts: (n != 0, -n, len(parts), parts) for parts, n in attempts.items()}
        return min(named, key=lambda entry: order[entry.parts]), entries
    if len(found) == 1:
        return found[0], entries
    if found:
        raise UnreadableError(f"there are {len(found)} notebooks, and none of them is called {notebook}.")
    if closed := [entry.closed for entry in entries if entry.closed]:
        raise UnreadableError(closed[0])
    names = ", ".join(sorted({entry.name for entry in entries})[:3])
    raise UnreadableError(f"there is no notebook in what was handed in ({names}).")


def _attempt(name: str, notebook: str) -> int | None:
    """0 for `lab.ipynb`; N for `lab-N.ipynb` and `lab (N).ipynb`, as Canvas and browsers name a later one; or None."""
    match = re.fullmatch(
        re.escape(notebook.removesuffix(".ipynb")) + r"(?:-(\d{1,9})| ?\((\d{1,9})\))?\.ipynb", name, re.I
    )
    return int(match[1] or match[2] or 0) if match else None


def _stamp(entry: Entry) -> datetime | None:
    from nbgrader.utils import parse_utc

    try:
        return parse_utc(entry.read(1000).decode().strip())
    except (UnreadableError, ValueError, OverflowError, TypeError):
        return None


def _ids(students: Iterable[_Student]) -> dict[_Student, str]:
    """An id for each student's gradebook: readable, safe as a folder's name, and the same tomorrow.

    A name that lost something is marked even where nobody else has the rest of it: somebody may in the next export.
    A platform's number tells students apart anyhow.
    """
    plain = {student: _plain(student.key) for student in students}
    counts = Counter(name.lower() for name in plain.values())  # some disks do not tell upper from lower case
    out = {}
    for student, name in plain.items():
        lossy = name != student.key and not student.lms_id
        unclear = lossy or counts[name.lower()] > 1 or len(name) > _LONGEST_ID or not name
        mark = hashlib.sha256(student.key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        out[student] = f"{name[:_LONGEST_ID] or 'student'}-{mark}" if unclear else name
    return out


def _plain(key: str) -> str:
    folded = unicodedata.normalize("NFKD", key)
    ascii_ = "".join(c for c in folded if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_).strip("-.")
