"""Labs as data (`lab`), their format (`check`), and a quick grader (`score`, which runs `worker`).

The names load when first used: the worker process imports this package too and must start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Cell": "lab",
    "CellScore": "score",
    "Exercise": "lab",
    "Lab": "lab",
    "Score": "score",
    "check_format": "check",
    "grade": "score",
    "grade_all": "score",
    "stubs": "score",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"labkit.grading.{_HOME[name]}"), name)
    raise AttributeError(f"labkit.grading has no {name!r}; it offers {', '.join(__all__)}")


if TYPE_CHECKING:
    from labkit.grading.check import check_format as check_format
    from labkit.grading.lab import Cell as Cell
    from labkit.grading.lab import Exercise as Exercise
    from labkit.grading.lab import Lab as Lab
    from labkit.grading.score import CellScore as CellScore
    from labkit.grading.score import Score as Score
    from labkit.grading.score import grade as grade
    from labkit.grading.score import grade_all as grade_all
    from labkit.grading.score import stubs as stubs
