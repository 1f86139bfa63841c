"""Where things lie: the checkout, the user's cache and the user's state.

ROOT is the checkout (the course is installed editable from it). The cache may be deleted at any time: all
in it can be fetched or computed again. The state folder holds what the learner made, such as predictions.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from labkit.errors import LabError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
LESSONS = ROOT / "lessons"
MY_LABS = ROOT / "my-labs"  # where the learner works: a lab in lessons/ has its solutions


def cache_path() -> Path:
    """The cache folder, whether it exists or not: LABKIT_CACHE, else the platform's place for caches."""
    override = os.environ.get("LABKIT_CACHE", "").strip()
    return Path(override).expanduser().absolute() if override else platformdirs.user_cache_path("labkit", False)


def state_path() -> Path:
    """The state folder, whether it exists or not: LABKIT_STATE, else the platform's place for state."""
    override = os.environ.get("LABKIT_STATE", "").strip()
    return Path(override).expanduser().absolute() if override else platformdirs.user_state_path("labkit", False)


def cache_dir() -> Path:
    """The cache folder, made if missing. Raises LabError where it cannot be made."""
    return _made(cache_path(), "cache", "LABKIT_CACHE")


def state_dir() -> Path:
    """The state folder, made if missing. Raises LabError where it cannot be made."""
    return _made(state_path(), "state", "LABKIT_STATE")


def _made(folder: Path, what: str, variable: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"The {what} folder {folder} cannot be made ({error.strerror or error}).",
            f"Set {variable} to a folder that you can write to.",
        ) from error
    return folder


def existing_parent(folder: Path) -> Path:
    """`folder` itself or its nearest ancestor that exists, for asking about its disk."""
    return next(path for path in (folder, *folder.parents) if path.exists())
