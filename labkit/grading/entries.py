"""The files in a folder or a zip of submissions, listed and read without trusting them.

Nothing is extracted and no link is followed: a file is read into memory, up to a bound, when it is asked for. So names
that climb out of their folder, links to other people's files and zips that grow without end have nothing to work on.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labkit.errors import LabError

MOST_FILES = 50_000
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


class UnreadableError(Exception):
    """A file that is not read; `str()` says why, to its student."""


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        parts: the folders and the name, below the folder or zip that was listed.
        when: when it was last changed, in UTC without a zone.
        read: gives its bytes, up to so many; raises UnreadableError.
    """

    parts: tuple[str, ...]
    when: datetime
    read: Callable[[int], bytes]

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
    found: list[Entry] = []
    for folder, names, files in os.walk(top):
        here = Path(folder)
        links = [name for name in names if (here / name).is_symlink()]  # os.walk lists them and does not go in
        for name in [*files, *links]:
            path = here / name
            when = datetime.fromtimestamp(path.lstat().st_mtime, UTC).replace(tzinfo=None)
            found.append(Entry(path.relative_to(top).parts, when, functools.partial(_file, path)))
    return found


def _file(path: Path, most: int) -> bytes:
    if path.is_symlink():
        raise UnreadableError(f"{path.name} is a link, which is not followed.")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise UnreadableError(f"{path.name} is not a plain file.")
            return _bounded(file.read(most + 1), most, path.name)
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read ({error.strerror or error}).") from error


def in_zip(raw: bytes) -> list[Entry]:
    """All files in a zip; raises UnreadableError for what is none."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
        infos = archive.infolist()
    except _ZIP_ERRORS as error:
        raise UnreadableError(f"it is not a whole zip ({error}).") from error
    found = []
    for info in infos[: MOST_FILES + 1]:
        parts = tuple(part for part in info.filename.replace("\\", "/").split("/") if part not in ("", ".", ".."))
        if not info.is_dir() and parts:
            found.append(Entry(parts, _zip_time(info), functools.partial(_member, archive, info)))
    return found


def _zip_time(info: zipfile.ZipInfo) -> datetime:
    """A zip keeps local time without saying where; this machine's is the best guess."""
    try:
        return datetime(*info.date_time).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return datetime(1980, 1, 1)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    name = info.filename.rsplit("/", 1)[-1]
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
