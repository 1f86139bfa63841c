"""Submissions of the small lab, for the tests of what becomes of broken and of hostile ones.

An answer stands in `def mean(values):`. Full marks are 3: 1 for the visible test, 2 for the hidden one. Some answers
are right if, and only if, their attack found nothing: they earn full marks behind good walls.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell

from labkit.grading.lab import Lab
from labkit.grading.outcome import Submission

from .small_lab import small_lab

RIGHT = "return sum(values) / len(values)"
WRONG = "return 0"


@dataclass(frozen=True)
class Case:
    """A submission's bytes, the points it must get, and text that must stand in its errors or notes."""

    raw: bytes
    points: float
    says: str = ""
    restarts: int = 0


def notebook(
    answer: str = RIGHT, before: str = "", extra: str = "", change: Callable[[Any], None] | None = None
) -> bytes:
    """The released small lab with `answer` in mean, `before` above it in its cell, and `extra` in a cell of its own."""
    released = Lab.from_notebook(small_lab()).stub()
    body = textwrap.indent(textwrap.dedent(answer).strip(), "    ")
    released.cells[2].source = f"{textwrap.dedent(before).strip()}\ndef mean(values):\n{body}"
    if extra:
        released.cells.insert(2, new_code_cell(textwrap.dedent(extra).strip()))
    if change:
        change(released)
    return nbformat.writes(released).encode()


def submission(raw: bytes, student: str = "mallory") -> Submission:
    return Submission(student, raw=raw)
