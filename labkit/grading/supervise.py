"""Runs one submission in its sandbox, cell by cell, and says what each cell earned.

The process inside knows one cell at a time, with a nonce for its reply: hidden tests that have not come up are not
there to be read. A cell that takes too long, needs too much memory, ends its process or leaves a thread behind loses
its own points; the process is ended with all that it started, and another one goes on without that cell. What a dead
process did not run earns nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from labkit.grading.lab import Lab
from labkit.grading.needed import names, needed_cells
from labkit.grading.outcome import CellOutcome, Outcome
from labkit.grading.rebuild import Rebuilt, Step
from labkit.grading.sandbox import Limits
from labkit.grading.subset import imports, lent, may_import
from labkit.grading.walled import Ended, Walled

MOST_RESTARTS = 12
MOST_EXTRAS = 100


@dataclass
class _Progress:
    """What is known of a submission so far; `skip` are cells that ended a process."""

    outcome: Outcome
    until: float
    skip: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)


def run_submission(
    lab: Lab,
    rebuilt: Rebuilt,
    student: str,
    digest: str,
    limits: Limits,
    only: str = "",
    trust: bool = False,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run a submission's cells and the lab's tests.

    Args:
        only: an exercise's id; tests of other exercises are left out, and are missing in the result.
        trust: run it without walls.
        stop: when set, the run ends within a second, with KeyboardInterrupt.

    Raises:
        LabError: the sandbox cannot be started.
        KeyboardInterrupt: `stop` was set.
    """
    begin = time.monotonic()
    needed = set(needed_cells(lab))
    steps = [step for step in rebuilt.steps if step.kind != "own" or step.label in needed]
    steps = [step for step in steps if step.kind != "test" or only in ("", step.exercise)]
    outcome = Outcome(student, lab.path.parent.name, digest, notes=list(rebuilt.notes))
    for step in steps:
        if step.kind == "test":
            outcome.cells[step.label] = CellOutcome(0.0, step.points, "was not reached", "was not reached")
    progress = _Progress(outcome, begin + limits.total_s)
    shared, modules = _shared(steps), {"preload": _imports(steps), "extra": sorted(lent(lab))}
    while _run_once(steps, shared, modules, progress, limits, trust, stop):
        outcome.restarts += 1
        if outcome.restarts > MOST_RESTARTS or time.monotonic() > progress.until:
            outcome.notes.append("Grading was given up: too many cells ended the process, or the time was over.")
            break
    outcome.seconds = round(time.monotonic() - begin, 2)
    outcome.peak_mib = round(outcome.peak_mib, 1)
    return outcome


def _run_once(
    steps: list[Step],
    shared: set[str],
    modules: dict[str, list[str]],
    progress: _Progress,
    limits: Limits,
    trust: bool,
    stop: threading.Event | None,
) -> bool:
    """Run what is left in one process; whether another one must go on."""
    outcome = progress.outcome
    with Walled(limits, modules, trust, stop) as process:
        try:
            for step in _left(steps, progress):
                seconds = min(limits.cell_s, progress.until - time.monotonic())
                reply = process.ask(_job(step, step.label in shared), max(seconds, 0.1))
                _note(outcome, step, reply)
                progress.reached.add(step.label)
                if reply["threads"]:
                    progress.skip.add(step.label)
                    return True
        except Ended as ended:
            if ended.label == "":
                raise ended.error() from None
            _note(outcome, next(s for s in steps if s.label == ended.label), _lost(str(ended)))
            progress.skip.add(ended.label)
            return True
        finally:
            outcome.peak_mib = max(outcome.peak_mib, process.peak_mib)
    return False


def _left(steps: list[Step], progress: _Progress) -> list[Step]:
    """The steps of the next process: tests that have a result do not run twice, all else does, but what is skipped."""
    done = {step.label for step in steps if step.kind == "test" and step.label in progress.reached}
    extras = [step.label for step in steps if step.kind == "extra"][MOST_EXTRAS:]
    return [step for step in steps if step.label not in done | progress.skip | set(extras)]


def _job(step: Step, shared: bool) -> dict[str, Any]:
    fields = {"kind": step.kind, "label": step.label, "code": step.code, "names": step.names}
    return fields | {"points": step.points, "hidden": step.hidden, "shared": shared}


def _lost(why: str) -> dict[str, Any]:
    return {"points": 0.0, "error": why, "shown": why, "stdout": "", "odd": [], "ran": False}


def _note(outcome: Outcome, step: Step, reply: dict[str, Any]) -> None:
    before = outcome.cells.get(step.label)
    if step.kind in ("own", "extra") and not reply["error"]:
        outcome.cells.pop(step.label, None)
    elif step.kind != "test" and before is not None and before.error and not before.ran:
        return  # what ended an earlier process stays said
    else:
        outcome.cells[step.label] = CellOutcome(
            points=min(float(reply["points"]), step.points),
            max_points=step.points,
            error=reply["error"],
            shown="" if step.kind == "own" else reply["shown"],  # the lab's cells are not the student's to mend
            stdout=reply["stdout"],
            ran=reply.get("ran", True),
        )
    for sentence in reply["odd"]:
        told = f"In {step.label}: {sentence}"
        if told not in outcome.notes:
            outcome.notes.append(told)


def _shared(steps: Iterable[Step]) -> set[str]:
    """Labels of the lab's own cells that bind a name which an answer reads, or which such a cell reads."""
    own = {step.label: names(step.code) for step in steps if step.kind == "own"}
    wanted = set().union(*(names(step.code)[1] for step in steps if step.kind in ("answer", "extra")))
    found: set[str] = set()
    while new := {label for label, (bound, _) in own.items() if bound & wanted} - found:
        found |= new
        wanted |= set().union(*(own[label][1] for label in new))
    return found


def _imports(steps: Iterable[Step]) -> list[str]:
    """Modules that the lab imports anywhere, or an answer may, so that no answer is on the stack while they load."""
    found: dict[str, None] = {}
    for step in steps:
        named = [module for module, _ in imports(step.code)]
        found |= dict.fromkeys(name for name in named if step.kind in ("own", "test") or may_import(name))
    return list(found)
