"""A submission put back into the lab's form: the teacher's cells as released, the student's answers in their places.

What a student hands in is a file that anybody may have edited: tests deleted or softened, points raised, ids used
twice, outputs invented. None of this reaches the grader, because a notebook is built anew from the lab. From the
submission come only the sources of its answers, found by their `grade_id`, and of cells that the lab does not have.
`steps` says what is run: the lab's own cells, answers, further cells where they stood, and tests with hidden parts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from labkit.grading.lab import BEGIN_HIDDEN, CODE_STUB, Cell, Lab
from labkit.grading.needed import names
from labkit.grading.outcome import Submission
from labkit.grading.subset import without_magics

MOST_BYTES = 20_000_000  # of a notebook; its outputs count, and figures are large
MOST_SOURCE = 200_000  # characters of code and text, together

ANOTHER_LAB = "This is lab "  # how the sentence on another lab's notebook begins

Kind = Literal["own", "answer", "extra", "test"]


@dataclass(frozen=True)
class Step:
    """One cell to run.

    Attributes:
        names: for an answer, the global names that the lab's own solution binds there.
        hidden: for a test, whether the student does not see it whole.
        exercise: for an answer or a test, its exercise's id.
    """

    kind: Kind
    label: str
    code: str
    names: tuple[str, ...] = ()
    points: float = 0.0
    hidden: bool = False
    exercise: str = ""


@dataclass(frozen=True)
class Rebuilt:
    """The notebook to store as submitted, what to run, and what was odd about the file, a sentence each."""

    notebook: nbformat.NotebookNode
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Found:
    """What a submission holds: answers by grade_id, and other cells behind the lab's cell that they follow."""

    answers: dict[str, str] = field(default_factory=dict)
    extras: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # index in the lab (-1: before all)
    notes: list[str] = field(default_factory=list)


def rebuild(lab: Lab, submission: Submission, others: Mapping[str, Collection[str]] | None = None) -> Rebuilt:
    """Put a submission's answers into the lab; whatever it holds, this returns.

    An answer that is missing stays the released stub. The reasons are in `notes`.

    Args:
        others: the grade_ids of the course's other labs, by the labs' names: one of these may have been handed in.
    """
    cells, problem = _cells(submission)
    problem = problem or _another_lab(lab, cells, others or {})
    found = _sort(lab, cells) if not problem else _Found(notes=[problem])
    if not problem:
        missing = [item.id for item in lab.exercises if item.id not in found.answers]
        if missing:
            found.notes.append(f"No answer cell was found for {', '.join(missing)}.")
    steps = tuple(_steps(lab, found))
    return Rebuilt(_notebook(lab, found), steps, tuple(found.notes))


def _cells(submission: Submission) -> tuple[list[dict[str, Any]], str]:
    """The cells of the file, and the sentence for a file that has none."""
    if submission.problem:
        return [], submission.problem
    if not submission.raw.strip():
        return [], "The notebook is an empty file."
    if len(submission.raw) > MOST_BYTES:
        size = len(submission.raw) / 1e6
        return [], f"The notebook has {size:.0f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that are read."
    try:
        data = json.loads(submission.raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return [], "The file is not a notebook: it is not JSON."
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        old = isinstance(data, dict) and isinstance(data.get("worksheets"), list)
        told = "has the form of nbformat 3; save it in JupyterLab" if old else "has no list of cells"
        return [], f"The file is not a notebook of today's format: it {told}."
    cells = [cell for cell in data["cells"] if isinstance(cell, dict) and _source(cell) is not None]
    if sum(len(_source(cell) or "") for cell in cells) > MOST_SOURCE:
        return [], f"The notebook holds more than {MOST_SOURCE:,} characters of code and text."
    return cells, ""


def _another_lab(lab: Lab, cells: list[dict[str, Any]], others: Mapping[str, Collection[str]]) -> str:
    """The sentence for a notebook with more of another lab in it than of this one, of which it lacks the most."""
    there = {_grade_id(cell) for cell in cells} - {""}
    ours = {cell.grade_id for cell in lab.cells if cell.grade_id}
    counts = {name: len(there & set(theirs)) for name, theirs in others.items()}
    best = max(counts, key=lambda name: counts[name], default="")
    if not best or counts[best] <= len(there & ours) or 2 * len(there & ours) >= len(ours):
        return ""
    asked = lab.path.parent.name
    numbers = [name.partition("-")[0] if name[:1].isdigit() else name for name in (best, asked)]
    return f"{ANOTHER_LAB}{numbers[0]}, and lab {numbers[1]} was asked."


def _source(cell: dict[str, Any]) -> str | None:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    # A lone surrogate is valid JSON and no valid text: nothing could store or print it.
    return source.encode("utf-8", "replace").decode("utf-8")


def _grade_id(cell: dict[str, Any]) -> str:
    meta = cell.get("metadata")
    marks = meta.get("nbgrader") if isinstance(meta, dict) else None
    found = marks.get("grade_id") if isinstance(marks, dict) else None
    return found if isinstance(found, str) else ""


def _sort(lab: Lab, cells: list[dict[str, Any]]) -> _Found:
    """Find what each cell of a submission is."""
    by_id = {cell.grade_id: cell for cell in lab.cells if cell.grade_id}
    by_name = {raw.get("id"): cell for cell, raw in zip(lab.cells, lab.stub().cells, strict=True)}
    by_source = {c.visible_source.strip(): c for c in lab.cells if not c.grade_id}
    found, place = _Found(), -1
    for raw in cells:
        source, grade_id = _source(raw) or "", _grade_id(raw)
        known = by_id.get(grade_id) or by_source.get(source.strip())
        named = by_name.get(raw.get("id")) if isinstance(raw.get("id"), str) else None
        if known is None and named is not None and not named.grade_id:
            known = named
        if known is not None:
            place = known.index
        if known is not None and known.grade_id:
            _take(known, source, found)
        elif raw.get("cell_type") in ("code", "markdown") and (known is None or source.strip() != known.source.strip()):
            found.extras.setdefault(place, []).append((str(raw["cell_type"]), source))
    return found


def _take(cell: Cell, source: str, found: _Found) -> None:
    if not cell.solution:
        if source.strip() not in (cell.visible_source.strip(), cell.source.strip()):
            found.notes.append(f"The test {cell.grade_id} was changed; the lab's own test was run.")
    elif cell.grade_id in found.answers:
        found.notes.append(f"The cell {cell.grade_id} is there more than once; the first was marked.")
    else:
        found.answers[cell.grade_id] = source


def _steps(lab: Lab, found: _Found) -> Iterator[Step]:
    owners = {cell.grade_id: item.id for item in lab.exercises for cell in item.tests}
    yield from _extras(found, -1)
    for cell in lab.cells:
        label = cell.grade_id or f"cell-{cell.index}"
        if cell.type == "code" and cell.solution:
            bound = tuple(sorted(names(cell.source)[0]))
            yield Step("answer", label, without_magics(found.answers.get(label, "")), bound, exercise=label)
        elif cell.type == "code" and cell.grade:
            hidden = BEGIN_HIDDEN in cell.source
            yield Step("test", label, cell.source, (), cell.points, hidden, owners.get(label, ""))
        elif cell.type == "code":
            yield Step("own", label, cell.source)
        yield from _extras(found, cell.index)


def _extras(found: _Found, place: int) -> Iterator[Step]:
    for number, (kind, source) in enumerate(found.extras.get(place, ()), 1):
        if kind == "code" and source.strip():
            yield Step("extra", f"added-{place + 1}-{number}", without_magics(source))


def _notebook(lab: Lab, found: _Found) -> nbformat.NotebookNode:
    notebook = lab.stub()
    cells = _added(found, -1)
    for cell, raw in zip(lab.cells, notebook.cells, strict=True):
        if cell.solution and cell.grade_id in found.answers:
            raw.source = found.answers[cell.grade_id]
        elif cell.solution and cell.type == "code":
            raw.source = raw.source or CODE_STUB
        cells += [raw, *_added(found, cell.index)]
    notebook.cells = cells
    return notebook


def _added(found: _Found, place: int) -> list[nbformat.NotebookNode]:
    new = {"code": new_code_cell, "markdown": new_markdown_cell}
    return [
        new[kind](source, id=f"added-{place + 1}-{number}")
        for number, (kind, source) in enumerate(found.extras.get(place, ()), 1)
    ]
