"""A lab notebook as data: exercises, points, tests, and the student's version of it.

A lab is an ordinary notebook with nbgrader's cell metadata (schema version 3). Each exercise is, in order:

1. a Markdown cell with a heading `## Exercise 1: A padded batch`, under it one line
   `●○○ · 15 minutes · 4 points` (difficulty, time, points: the same line serves the reader and this
   module), the task, and a hint to unfold, `<details><summary>Hint</summary> … </details>`;
2. one solution cell. Its `grade_id` is the exercise's id (`ex1-padded-batch`); exactly one region between
   `### BEGIN SOLUTION` and `### END SOLUTION`, inside a function, so that a stub still defines the name;
3. directly under it a visible test cell `ex1-padded-batch-test`: locked, graded, every assert with a
   message that teaches;
4. a hidden test cell `ex1-padded-batch-hidden`: locked, graded, with a region between
   `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`. (Such a region may also end the visible test cell.)

A question that a person marks has a heading `## Question 5: …`, the same line below it, and a Markdown answer
cell with `grade` and `solution` true. What follows another `#` or `##` heading belongs to no exercise.
The format of the metadata: nbgrader's documentation, contributor guide, "Nbgrader cell metadata".
"""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
CODE_STUB = "# YOUR CODE HERE\nraise NotImplementedError()"  # nbgrader's own default
TEXT_STUB = "YOUR ANSWER HERE"

_HEADING = re.compile(r"^##+ +(?:Exercise|Question) +(\d+): +(.+?) *$", re.MULTILINE)
_FACTS = re.compile(r"^([●○]{3}) *· *(\d+) minutes? *· *(\d+) points? *$", re.MULTILINE)
_HINT = re.compile(r"<details>\s*<summary>[^<]*[Hh]int[^<]*</summary>(.+?)</details>", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One notebook cell with the part of nbgrader's metadata that grading needs."""

    index: int
    type: str
    source: str
    grade_id: str = ""
    grade: bool = False
    solution: bool = False
    locked: bool = False
    points: float = 0.0

    @property
    def has_hidden_tests(self) -> bool:
        return BEGIN_HIDDEN in self.source

    @property
    def visible_source(self) -> str:
        """The source without its hidden region: what a student sees."""
        return replace_regions(self.source, BEGIN_HIDDEN, END_HIDDEN, None)

    @property
    def is_visible_test(self) -> bool:
        """Whether a student sees any code here: a comment alone checks nothing."""
        lines = (line.strip() for line in self.visible_source.splitlines())
        return any(line and not line.startswith("#") for line in lines)


@dataclass(frozen=True)
class Exercise:
    """One exercise; `solution` is None only for a question that a person marks."""

    id: str
    title: str
    difficulty: int
    minutes: int
    stated_points: int
    hint: str
    statement: Cell
    solution: Cell | None
    tests: tuple[Cell, ...]

    @property
    def visible_tests(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.tests if cell.is_visible_test)

    @property
    def hidden_tests(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.tests if cell.has_hidden_tests)

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.tests)

    @property
    def manual(self) -> bool:
        return self.solution is None


@dataclass(frozen=True)
class Lab:
    """A lab notebook: `cells`, `exercises` that tests mark, `questions` that a person marks."""

    path: Path
    notebook: nbformat.NotebookNode
    cells: tuple[Cell, ...]
    exercises: tuple[Exercise, ...]
    questions: tuple[Exercise, ...]

    @classmethod
    def read(cls, path: str | Path) -> Lab:
        """Read a lab from an `.ipynb` file; raises nbformat's errors for a file that is none."""
        notebook = nbformat.read(Path(path), as_version=4)
        return cls.from_notebook(notebook, Path(path))

    @classmethod
    def from_notebook(cls, notebook: nbformat.NotebookNode, path: str | Path = "lab.ipynb") -> Lab:
        cells = tuple(_cell(index, raw) for index, raw in enumerate(notebook.cells))
        found = [_exercise(cells, start, end) for start, end in _sections(cells)]
        return cls(
            path=Path(path),
            notebook=notebook,
            cells=cells,
            exercises=tuple(item for item in found if not item.manual),
            questions=tuple(item for item in found if item.manual),
        )

    @property
    def graded_cells(self) -> tuple[Cell, ...]:
        """The cells that tests mark, in order (`points` > 0 when the format is right)."""
        return tuple(c for c in self.cells if c.type == "code" and c.grade and not c.solution)

    @property
    def auto_points(self) -> float:
        return sum(cell.points for cell in self.graded_cells)

    @property
    def manual_points(self) -> float:
        return sum(c.points for c in self.cells if c.grade and c.solution)

    @property
    def points(self) -> float:
        return self.auto_points + self.manual_points

    @property
    def minutes(self) -> int:
        return sum(item.minutes for item in self.exercises + self.questions)

    def exercise(self, exercise_id: str) -> Exercise:
        """The exercise called `exercise_id`; KeyError names those that exist."""
        for item in self.exercises:
            if item.id == exercise_id:
                return item
        known = ", ".join(item.id for item in self.exercises)
        raise KeyError(f"{self.path.name} has no exercise {exercise_id!r}; it has {known}")

    def sources(self, answers: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
        """(label, code) of every code cell, with `answers` in place of the solutions they name."""
        answers = dict(answers or {})
        for exercise_id in answers:
            self.exercise(exercise_id)
        out = []
        for cell in self.cells:
            if cell.type == "code":
                code = cell.source
                if cell.grade_id in answers:
                    code = replace_regions(code, BEGIN_SOLUTION, END_SOLUTION, answers[cell.grade_id])
                out.append((cell.grade_id or f"cell-{cell.index}", code))
        return out

    def stub(self) -> nbformat.NotebookNode:
        """The student's version: stubs for solutions, no hidden tests, no outputs.

        The same text that nbgrader's ClearSolutions, ClearHiddenTests and ClearOutput give (a test compares
        them); written out here because learners read and run labs without nbgrader installed.
        """
        notebook = copy.deepcopy(self.notebook)
        for cell, raw in zip(self.cells, notebook.cells, strict=True):
            if cell.solution:
                raw.source = _stub_source(cell)
            raw.source = replace_regions(raw.source, BEGIN_HIDDEN, END_HIDDEN, None)
            if raw.cell_type == "code":
                raw.outputs, raw.execution_count = [], None
        return notebook


def replace_regions(source: str, begin: str, end: str, code: str | None) -> str:
    """`source` with each region from a `begin` to an `end` line replaced by `code`, indented as `begin` is.

    None removes the region. An unclosed region reaches to the end of the source.
    """
    out, inside = [], False
    for line in source.split("\n"):
        if begin in line:
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            out += [indent + new if new else new for new in _dedent(code)] if code is not None else []
        elif end in line:
            inside = False
        elif not inside:
            out.append(line)
    return "\n".join(out)


def region(source: str, begin: str = BEGIN_SOLUTION, end: str = END_SOLUTION) -> str:
    """The text between the first `begin` line and the next `end` line, dedented ('' when there is none)."""
    lines = source.split("\n")
    starts = [i for i, line in enumerate(lines) if begin in line]
    if not starts:
        return ""
    stops = [i for i, line in enumerate(lines) if end in line and i > starts[0]]
    return "\n".join(_dedent("\n".join(lines[starts[0] + 1 : stops[0] if stops else None])))


def _dedent(code: str) -> list[str]:
    return textwrap.dedent(code).strip("\n").split("\n")


def _stub_source(cell: Cell) -> str:
    stub = CODE_STUB if cell.type == "code" else TEXT_STUB
    if BEGIN_SOLUTION in cell.source:
        return replace_regions(cell.source, BEGIN_SOLUTION, END_SOLUTION, stub)
    return stub


def _cell(index: int, raw: nbformat.NotebookNode) -> Cell:
    meta: dict[str, Any] = raw.metadata.get("nbgrader", {})
    return Cell(
        index=index,
        type=raw.cell_type,
        source=raw.source,
        grade_id=str(meta.get("grade_id", "")),
        grade=bool(meta.get("grade")),
        solution=bool(meta.get("solution")),
        locked=bool(meta.get("locked")),
        points=float(meta.get("points", 0)),
    )


def _sections(cells: tuple[Cell, ...]) -> list[tuple[int, int]]:
    """[start, end) of each exercise's cells: from its heading to the next `#` or `##` heading."""

    def starts_section(cell: Cell) -> bool:
        return cell.type == "markdown" and not cell.solution and re.match(r"##? ", cell.source) is not None

    out = []
    for cell in cells:
        if cell.type == "markdown" and not cell.solution and _HEADING.search(cell.source):
            later = [c.index for c in cells[cell.index + 1 :] if starts_section(c)]
            out.append((cell.index, later[0] if later else len(cells)))
    return out


def _exercise(cells: tuple[Cell, ...], start: int, end: int) -> Exercise:
    statement, body = cells[start], cells[start + 1 : end]
    heading = _HEADING.search(statement.source)
    facts = _FACTS.search(statement.source)
    hints = [match for c in cells[start:end] if c.type == "markdown" for match in _HINT.findall(c.source)]
    solution = next((c for c in body if c.type == "code" and c.solution), None)
    answer = next((c for c in body if c.solution), None)
    graded = tuple(c for c in body if c.grade and (answer is None or c.index >= answer.index))
    return Exercise(
        id=answer.grade_id if answer else f"cell-{start}",
        title=heading.group(2) if heading else "",
        difficulty=facts.group(1).count("●") if facts else 0,
        minutes=int(facts.group(2)) if facts else 0,
        stated_points=int(facts.group(3)) if facts else 0,
        hint=hints[0].strip() if hints else "",
        statement=statement,
        solution=solution,
        tests=graded,
    )
