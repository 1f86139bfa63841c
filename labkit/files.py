"""Files that are either whole or absent: written beside their place, then moved there in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from labkit.errors import LabError


def write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to `path` atomically, making its folder; a crash leaves the old file or none.

    Raises:
        LabError: when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is for its owner alone; the finished one gets what an ordinary new file gets.
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise LabError(
            f"Could not write {path.name} in {path.parent}: {error.strerror or error}.",
            "Free some disk space or choose a folder that you may write to.",
        ) from error
    finally:
        if part is not None and part.exists():
            part.unlink()
    return path


def _umask() -> int:
    """The process's file-mode mask; the system only tells it when it is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8, atomically; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))
