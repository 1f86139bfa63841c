"""What a student is told of an error, once hidden tests may have handed their values to answers.

An answer can carry what a hidden test gave it into anything that it prints, names or raises, and into the values that
a message quotes. So from the first hidden test on, a page says where something broke and of what kind it was; of a
message it holds the words that stand in the lab, and not the values between them. The teacher gets everything.
"""

from __future__ import annotations

import ast
import re
import traceback
from typing import Any

from labkit.errors import LabError
from labkit.grading.integrity import Classes
from labkit.grading.jail import ANSWER

_MOST = 600  # characters
_SHORT = 60  # lines
_GAP = "…"


class Told:
    """The sources of the cells so far, and whether a hidden test was among them."""

    def __init__(self) -> None:
        self._codes: dict[str, list[str]] = {}
        self._hidden = False
        self._last: tuple[str, bool] = ("", False)

    def note(self, name: str, code: str, hidden: bool = False) -> None:
        """A cell is about to run: its file name, its source, and whether it holds hidden tests."""
        self._codes[name] = code.splitlines()
        self._hidden = self._hidden or hidden
        self._last = name, hidden

    def shown(self, problem: BaseException, error: str, classes: Classes | None) -> str:
        """For the student; `error` is the whole text, for the teacher."""
        if not self._hidden:
            return error
        name, hidden = self._last
        if name.startswith(ANSWER):  # it may have chosen where and how it breaks
            return "An error, which is not shown behind a hidden test: run the cell in your notebook."
        return ("A hidden test: " if hidden else "") + self._told(problem, classes)[:_MOST]

    def _told(self, problem: BaseException, classes: Classes | None) -> str:
        frames = traceback.extract_tb(problem.__traceback__)
        kind = type(problem).__name__ if classes is None or classes.knows(type(problem)) else "an error of your own"
        if answers := [frame for frame in frames if frame.filename.startswith(ANSWER)]:
            name, line = answers[-1].filename, answers[-1].lineno or 0
            short = len(self._codes.get(name, [])) <= _SHORT  # a line's number says as much as there are lines
            place = f", line {line}: {self._line(name, line).strip()}" if short else ""
            return f"{kind} in your cell {name.removeprefix(ANSWER).rstrip('>')}{place}"
        own = [frame for frame in frames if frame.filename in self._codes]
        if type(problem) is AssertionError and own and own[-1] is frames[-1]:
            return self._words(own[-1].filename, own[-1].lineno or 0) or "it does not hold."
        if type(problem) is NameError and (found := self._missing(problem)):
            return f"name {found!r} is not defined. Is it defined in its cell?"
        if isinstance(problem, LabError):
            return re.sub(r"'[^']*'|\"[^\"]*\"|\d{3,}", _GAP, str(problem))
        return f"{kind}, raised in the test with what your answer returned."

    def _line(self, name: str, number: int) -> str:
        lines = self._codes.get(name, [])
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def _words(self, name: str, number: int) -> str:
        """The words of the message of the assert on a line, with a gap for each value in it."""
        for node in ast.walk(ast.parse("\n".join(self._codes[name]))):
            if (
                isinstance(node, ast.Assert)
                and node.lineno <= number <= (node.end_lineno or 0)
                and node.msg is not None
            ):
                return _words_of(node.msg)
        return ""

    def _missing(self, problem: NameError) -> str:
        """The name that a test misses, where it is one of the lab's words and not of an answer's."""
        words = {word for name, lines in self._codes.items() for word in _words_in(name, lines)}
        return problem.name if problem.name in words else ""


def _words_in(name: str, lines: list[str]) -> set[str]:
    return set() if name.startswith(ANSWER) else set(re.findall(r"\w+", " ".join(lines)))


def _words_of(message: Any) -> str:
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(_words_of(part) if isinstance(part, ast.Constant) else _GAP for part in message.values)
    if isinstance(message, ast.BinOp):
        return _words_of(message.left) + _words_of(message.right)
    return _GAP
