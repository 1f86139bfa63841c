"""Errors that a learner can act on: what is wrong, and the remedy, in one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """Base of every error that labkit raises on purpose.

    `cause` says what is wrong and where; `remedy` says what to do about it. `str()` gives both. The command
    line prints a LabError as one sentence and exits with code 2; a notebook shows it as any exception.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        # Both go to args, so that the error survives pickling between processes.
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}".strip()


class ScaleError(LabError):
    """The requested scale is unknown, or this machine cannot run it."""


class AssetError(LabError):
    """A pinned file cannot be fetched, verified or stored."""


class LessonError(LabError):
    """A lesson cannot be found, opened or executed."""


class UnknownNameError(LabError):
    """A lesson, table, asset or scale of this name does not exist; `known` lists those that do."""

    @classmethod
    def among(cls, kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
        """The error for `given`, suggesting the nearest of `known` (difflib), else listing them all."""
        names = list(known)
        near = difflib.get_close_matches(given.lower(), [name.lower() for name in names], n=1, cutoff=0.5)
        match = next((name for name in names if near and name.lower() == near[0]), None)
        # A part of a name ("floating" for "01-floating-point") is too short for difflib's ratio.
        match = match or next((name for name in names if given and given.lower() in name.lower()), None)
        listing = ", ".join(names) if names else "none yet"
        hint = f"Did you mean {match!r}? " if match else ""
        return cls(f"There is no {kind} {given!r}.", f"{hint}Known: {listing}.")
