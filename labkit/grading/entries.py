"""The files in a folder or a zip of submissions, listed and read without trusting them.

Nothing is extracted and no link is followed: a file is read into memory, up to a bound, when it is asked for. So names
that climb out of their folder, links to other people's files and zips that grow without end have nothing to work on.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labkit.errors import LabError

MOST_FILES = 50_000
_DEEPEST = 100  # folders in each other; a path that is too long for the system comes later
_UNKNOWN = datetime(1980, 1, 1)  # where the calendar of zips begins
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


class UnreadableError(Exception):
    """A file that is not read; `str()` says why, to its student."""


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        parts: the folders and the name, below the folder or zip that was listed; all can be written as UTF-8.
        when: when it was last changed, in UTC without a zone.
        read: gives its bytes, up to so many; raises UnreadableError.
        closed: for a folder into which nobody looked, why, in one sentence; its name then stands twice in `parts`.
    """

    parts: tuple[str, ...]
    when: datetime
    read: Callable[[int], bytes]
    closed: str = ""

    @property
    def name(self) -> str:
        return self.parts[-1]


def listed(path: Path) -> list[Entry]:
    """All files in a folder or a zip, hidden ones and checkpoints left out.

    Raises:
        LabError: there is nothing at `path`, it is neither, cannot be read, or holds too many files.
    """
    if not path.exists():
        raise LabError(f"There is no {path}.", "Name the folder or the zip with the submissions.")
    try:
        found = _in_folder(path) if path.is_dir() else in_zip(path.read_bytes())
    except UnreadableError as error:
        raise LabError(f"{path} cannot be read: {error}", "Name a folder, or the zip of your platform.") from error
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror or error}).", "Check its permissions.") from error
    kept = [entry for entry in found if entry.parts and not any(map(_is_noise, entry.parts))]
    if len(kept) > MOST_FILES:
        raise LabError(f"{path} holds more than {MOST_FILES} files.", "Grade the class in parts.")
    return sorted(kept, key=lambda entry: entry.parts)


def _is_noise(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _in_folder(top: Path) -> list[Entry]:
    """Without recursion: a student's folders may be nested deeper than Python's stack."""
    found: list[Entry] = []
    todo: list[tuple[Path, tuple[str, ...]]] = [(top, ())]
    while todo:
        folder, parts = todo.pop()
        try:
            with os.scandir(folder) as items:
                inside = list(items)
        except OSError as error:
            if not parts:
                raise
            found.append(_closed(parts, f"{parts[-1]} cannot be opened ({error.strerror or error})."))
            continue
        for item in inside:
            place = (*parts, storable(item.name))
            if item.is_dir(follow_symlinks=False) and len(place) < _DEEPEST:
                todo.append((folder / item.name, place))
            elif item.is_dir(follow_symlinks=False):
                found.append(_closed(place, f"there are more than {_DEEPEST} folders in each other."))
            elif item.is_symlink() and Path(item.path).is_dir():
                found.append(_closed(place, f"{place[-1]} is a link, which is not followed."))
            else:
                found.append(Entry(place, _changed(item), functools.partial(_file, Path(item.path))))
    return found


def storable(name: str) -> str:
    """A name that can be stored and shown: bytes that are no text and control characters are written as escapes."""
    plain = unicodedata.category
    return "".join(c.encode("unicode_escape").decode() if plain(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name)


def _closed(place: tuple[str, ...], why: str) -> Entry:
    def read(most: int) -> bytes:
        raise UnreadableError(why)

    return Entry((*place, place[-1]), _UNKNOWN, read, why)


def _changed(item: os.DirEntry[str]) -> datetime:
    try:
        return datetime.fromtimestamp(item.stat(follow_symlinks=False).st_mtime, UTC).replace(tzinfo=None)
    except (OSError, OverflowError, ValueError):
        return _UNKNOWN


def _file(path: Path, most: int) -> bytes:
    name = storable(path.name)
    if path.is_symlink():
        raise UnreadableError(f"{name} is a link, which is not followed.")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise UnreadableError(f"{name} is not a plain file.")
            return _bounded(file.read(most + 1), most, name)
    except OSError as error:
        raise UnreadableError(f"{name} cannot be read ({error.strerror or error}).") from error


def in_zip(raw: bytes) -> list[Entry]:
    """All files in a zip; raises UnreadableError for what is none, or holds too many."""
    # Counted in the bytes, because zipfile makes an object of each entry before it tells how many there are.
    if raw.count(zipfile.stringCentralDir) > MOST_FILES:  # type: ignore[attr-defined]
        raise UnreadableError(f"it holds more than {MOST_FILES} files.")
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
        infos = archive.infolist()
    except _ZIP_ERRORS as error:
        raise UnreadableError(f"it is not a whole zip ({error}).") from error
    found = []
    for info in infos:
        names = info.filename.replace("\\", "/").split("/")
        parts = tuple(storable(name) for name in names if name not in ("", ".", ".."))
        if not info.is_dir() and parts:
            found.append(Entry(parts, _zip_time(info), functools.partial(_member, archive, info)))
    return found


def _zip_time(info: zipfile.ZipInfo) -> datetime:
    """A zip keeps local time without saying where; this machine's is the best guess."""
    try:
        return datetime(*info.date_time).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return _UNKNOWN


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    name = storable(info.filename.rsplit("/", 1)[-1])
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UnreadableError(f"{name} is a link, which is not followed.")
    if info.flag_bits & 1:
        raise UnreadableError(f"{name} is encrypted.")
    try:
        with archive.open(info) as file:
            return _bounded(file.read(most + 1), most, name)
    except _ZIP_ERRORS as error:
        raise UnreadableError(f"{name} is damaged ({error}).") from error


def _bounded(data: bytes, most: int, name: str) -> bytes:
    if len(data) > most:
        raise UnreadableError(f"{name} has more than the {most / 1e6:.0f} MB that are read.")
    return data
