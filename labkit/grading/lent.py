"""What answers get in the place of some of Python's functions: the same, without the ways to attributes and files.

Used by `labkit.grading.guards`, which decides who gets them.
"""

from __future__ import annotations

import functools
import os
import re
import string
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.grading.subset import OutsideError, name_problem


def wraps(is_answers: Callable[[str], bool]) -> Callable:
    """`functools.wraps` for answers' functions: Python's sets attributes of whatever it is given."""

    def wraps(wrapped: Callable) -> Callable:
        def wrap(wrapper: Any) -> Any:
            if type(wrapper) is not types.FunctionType or not is_answers(wrapper.__code__.co_filename):
                raise OutsideError("Use functools.wraps on a function of your own.")
            return functools.update_wrapper(wrapper, wrapped, updated=())

        return wrap

    return wraps


class Printer:
    """`sys.stdout` for answers."""

    def write(self, text: str) -> int:
        """Print it."""
        print(text, end="")
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def formatting(text: Any, name: str) -> Callable:
    """`str.format`, which reads attributes by itself, without those that answers do not read."""
    if isinstance(text, type):
        raise OutsideError(f"Write text.{name}(…) instead of str.{name}(text, …).")

    def call(*values: Any, **named: Any) -> str:
        plain = str.__str__(text)
        fields = [field for _, field, form, _ in string.Formatter().parse(plain) for field in (field, form)]
        parts = [part for field in fields if field for part in re.split(r"[.{}]", field)[1:]]
        if any(part.startswith("_") or name_problem(part) for part in parts):
            raise OutsideError("The grader does not run answers that format inner attributes.")
        return getattr(plain, name)(*values, **named)

    return call


def open_(file: Any, *more: Any, **named: Any) -> Any:
    """Python's `open`, for files in the home and the folder for temporary ones."""
    if isinstance(file, int) or not _is_own(file):
        raise OutsideError("The grader's answers open files of their own only, in their folder.")
    return Path(os.fsdecode(file)).open(*more, **named)


def _is_own(file: Any) -> bool:
    place = Path(os.path.realpath(os.fsdecode(file)))
    return any(place.is_relative_to(os.path.realpath(top)) for top in (Path.cwd(), "/tmp"))
