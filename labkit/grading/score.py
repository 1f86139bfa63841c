"""Grade a lab with given answers: which cells lose points, and why.

The lab runs in a process of its own (`labkit.grading.worker`), from which each answer branches off where it
differs, because importing torch takes longer than most labs. A cell that hangs or kills its process costs its
own answers the remaining points; the others go on. Fast, for tests and for a first look;
the marks that count come from nbgrader's autograder.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from labkit.grading.lab import CODE_STUB, Lab
from labkit.grading.needed import affected_cells, needed_cells
from labkit.grading.subset import lent

SECONDS_PER_CELL = 60.0
_START_UP_SECONDS = 60.0
Cells = list[tuple[str, str]]  # (label, code) of the cells to run, in order
Job = dict[str, Any]  # the worker's: variant, codes, skip


@dataclass
class CellScore:
    """One graded cell: its points, those it could give, and the error that cost the rest ('' if none)."""

    points: float
    max_points: float
    error: str = ""

    @property
    def lost(self) -> bool:
        return self.points < self.max_points


@dataclass
class Score:
    """What one set of answers earned; `errors` holds every cell that raised, graded or not."""

    cells: dict[str, CellScore]
    errors: dict[str, str] = field(default_factory=dict)
    stdout: dict[str, str] = field(default_factory=dict)

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.cells.values())

    @property
    def max_points(self) -> float:
        return sum(cell.max_points for cell in self.cells.values())

    @property
    def lost(self) -> tuple[str, ...]:
        """grade_ids of the cells that gave less than all their points, in the lab's order."""
        return tuple(name for name, cell in self.cells.items() if cell.lost)

    def __str__(self) -> str:
        lines = [f"{self.points:g} of {self.max_points:g} points"]
        lines += [f"  {n}: {c.points:g} of {c.max_points:g}  {c.error}" for n, c in self.cells.items() if c.lost]
        return "\n".join(lines)


def grade(lab: Lab, answers: Mapping[str, str] | None = None, seconds: float = SECONDS_PER_CELL) -> Score:
    """Grade one set of answers. See `grade_all`."""
    return grade_all(lab, {"answers": answers or {}}, seconds)["answers"]


def grade_all(
    lab: Lab,
    variants: Mapping[str, Mapping[str, str]],
    seconds: float = SECONDS_PER_CELL,
    workers: int = 1,
    only_needed: bool = False,
    only_affected: Collection[str] = (),
) -> dict[str, Score]:
    """Grade several sets of answers.

    Args:
        lab: the lab, with its hidden tests.
        variants: name -> {exercise id: code in place of its solution region}; exercises that are not named
            keep the reference solution.
        seconds: the longest that one cell may take.
        workers: processes that share the variants.
        only_needed: leave out the cells on which no points depend (`labkit.grading.needed`).
        only_affected: variants that take the result of a cell that reads nothing of their changed exercises from the
            lab itself, run once for all, where there are several variants.

    Returns:
        name -> Score, in the order given.

    Raises:
        KeyError: when an answer names an exercise that the lab does not have.
    """
    codes = {name: _changed(lab, answers) for name, answers in variants.items()}
    cells = [pair for pair in lab.sources() if not only_needed or pair[0] in needed_cells(lab)]
    names = list(codes)
    jobs = {
        n: {"variant": n, "codes": c, "skip": _skip(cells, c) if n in only_affected else []} for n, c in codes.items()
    }
    parts = [{n: jobs[n] for n in names[i::workers]} for i in range(workers)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        done = [
            s for part in pool.map(lambda part: _grade_part(lab, cells, part, seconds), parts) for s in part.items()
        ]
    scores = dict(done)
    return {name: scores[name] for name in names}


def stubs(lab: Lab) -> dict[str, str]:
    """Answers that leave every exercise as the student receives it."""
    return {item.id: CODE_STUB for item in lab.exercises}


def _changed(lab: Lab, answers: Mapping[str, str]) -> dict[str, str]:
    before = dict(lab.sources())
    return {label: code for label, code in lab.sources(answers) if code != before[label]}


def _skip(cells: Cells, changed: Mapping[str, str]) -> list[str]:
    """The cells that a change does not affect, and that nothing affected needs."""
    affected = affected_cells(cells, changed)
    return [label for label, _ in cells if label not in affected]


def _grade_part(lab: Lab, cells: Cells, jobs: dict[str, Job], seconds: float) -> dict[str, Score]:
    scores = {name: _unrun(lab) for name in jobs}
    todo = list(jobs)
    while todo:  # each turn finishes at least one variant: the one in which the process died, if it did
        todo = _run_process(lab, cells, {name: jobs[name] for name in todo}, scores, seconds)
    return scores


def _unrun(lab: Lab) -> Score:
    return Score({c.grade_id: CellScore(0.0, c.points, "was not reached") for c in lab.graded_cells})


def _run_process(lab: Lab, cells: Cells, jobs: dict[str, Job], scores: dict[str, Score], seconds: float) -> list[str]:
    """Run variants in one process until it ends; fill `scores`; return the variants still to run."""
    process = _start(lab)
    lines: queue.Queue[str] = queue.Queue()
    # Threads on both pipes: they have no time-out on Windows, and a big lab may fill one while we write.
    for target in (lambda: _write(process, lab, cells, jobs), lambda: _read(process, lines)):
        threading.Thread(target=target, daemon=True).start()
    todo, variant, cell, limit = list(jobs), next(iter(jobs)), "start-up", _START_UP_SECONDS + seconds
    try:
        while todo:
            line = lines.get(timeout=limit)
            if not line:
                _fail(scores[variant], cell, f"the process ended (exit code {process.wait()})")
                todo.remove(variant)
                break
            event, limit = json.loads(line), seconds
            if event["event"] == "died":  # in the cell that it reported last
                _fail(scores[event["variant"]], cell, f"the process ended (exit code {event['code']})")
            else:
                variant, cell = event["variant"], event["cell"]
            if event["event"] == "end":
                _record(scores[variant], cell, event)
            elif event["event"] in ("done", "died"):
                todo.remove(event["variant"])
                variant, cell = (todo or [variant])[0], "start-up"
    except queue.Empty:
        _fail(scores[variant], cell, f"took more than {limit:g} s")
        todo.remove(variant)
    finally:
        _kill(process)
    return todo


def _start(lab: Lab) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    folder = lab.path.parent if lab.path.parent.is_dir() else None
    return subprocess.Popen(
        [sys.executable, "-m", "labkit.grading.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env=environment,
        start_new_session=True,  # so that a killed lab takes the processes that it started along
    )


def _write(process: subprocess.Popen[str], lab: Lab, cells: Cells, jobs: dict[str, Job]) -> None:
    head = {
        "cells": cells,
        "graded": {c.grade_id: c.points for c in lab.graded_cells},
        "answers": [item.id for item in lab.exercises],
        "extra": sorted(lent(lab)),
    }
    assert process.stdin is not None
    try:
        process.stdin.writelines(json.dumps(item) + "\n" for item in [head, *jobs.values()])
        process.stdin.close()
    except (BrokenPipeError, OSError):
        pass  # the process died early: the reader sees the end of its output and reports that


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def _record(score: Score, cell: str, event: dict) -> None:
    if cell in score.cells:
        score.cells[cell].points, score.cells[cell].error = event["points"], event["error"]
    if event["error"]:
        score.errors[cell] = event["error"]
    score.stdout[cell] = event["stdout"]


def _fail(score: Score, cell: str, error: str) -> None:
    score.errors[cell] = error
    if cell in score.cells:
        score.cells[cell].points, score.cells[cell].error = 0.0, error


def _kill(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
