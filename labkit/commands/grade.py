"""`labkit grade LAB` and `labkit grade again`: marks submissions, writes the gradebook, feedback, tables and a summary.

What is done is stored at once, under a name made of the submission's bytes and the lab's. So a run that was stopped
goes on where it was, a submission that was handed in again is graded again, and so are all when the lab was changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from labkit.commands.grade_report import count, names, report
from labkit.commands.terminal import console
from labkit.errors import LabError, UnknownNameError
from labkit.grading.batch import Done, Job, merged, run_all
from labkit.grading.lab import Exercise, Lab
from labkit.grading.outcome import Submission
from labkit.grading.store import Store, opened

if TYPE_CHECKING:
    from labkit.grading.book import Book


def grade(
    lab: str,
    submissions: Path | None,
    course: Path,
    workers: int | None = None,
    timeout: float | None = None,
    memory: float | None = None,
    trust: bool = False,
    due: str | None = None,
    lms: str = "auto",
) -> int:
    """Grade what was handed in; returns the exit code: 1 if one could not be, or its feedback is withheld.

    Args:
        lab: its name or number in the course.
        submissions: folder or zip; None for what the course has received before.
        workers: submissions at a time; one a core by default.
        timeout: seconds for one cell; memory: GiB for one submission; trust: run without walls.
        due: the due date from now on, as `labkit.grading.late.due` reads it; lms: as `labkit.grading.intake.collect`.

    Raises LabError for a wrong usage, no sandbox, nothing to grade, tests that fail the lab's own solutions, or a disk
    that is full.
    """
    limits, workers = _limits(timeout, memory), _workers(workers)
    from labkit.grading import late
    from labkit.grading.sandbox import ready

    when = late.due(due) if due else None
    with opened(course, lab) as (book, the_lab, store):
        ready(trust)
        found = _collected(store, submissions, lms)
        _prove(the_lab, store, limits, trust)
        book.refresh(the_lab)
        todo, told = _todo(store, found)
        if due:
            late.set_due(book, store.name, when)
        absent = sorted({who.student for who in store.submissions()} - {who.student for who in found})
        return _do(book, the_lab, store, todo, _runner(book, the_lab, store, limits, trust), workers, told, absent)


def again(
    lab: str,
    exercise: str,
    course: Path,
    workers: int | None = None,
    timeout: float | None = None,
    memory: float | None = None,
    trust: bool = False,
) -> int:
    """Run one exercise's tests again for all, as they now stand in the course's source; returns the exit code.

    Marks of other exercises, marks and comments that a person gave, and penalties stay.

    Args:
        exercise: its id, or the beginning of it.

    Raises:
        LabError: as `grade`, and for an exercise that the lab does not have; no mark is touched then.
    """
    limits, workers = _limits(timeout, memory), _workers(workers)
    from labkit.grading.sandbox import ready

    with opened(course, lab) as (book, the_lab, store):
        item = _exercise(the_lab, exercise)
        labels = [cell.grade_id for cell in item.tests]
        received = store.submissions()
        known = [(who, outcome) for who in received if (outcome := store.outcome_of(who))]
        todo = [Job(who, store.digest_after(who, found, labels), found, item.id) for who, found in known]
        if not todo:
            raise LabError(
                f"No submission of {store.name} is graded yet.",
                f"Grade them first: labkit grade {store.name} --submissions DIR",
            )
        ready(trust)
        _prove(the_lab, store, limits, trust, item.id)
        book.refresh(the_lab)
        told = f"{store.name}, {item.id}: {count(len(todo), 'submission')}"
        return _do(book, the_lab, store, todo, _runner(book, the_lab, store, limits, trust), workers, told)


def _prove(lab: Lab, store: Store, limits: Any, trust: bool, exercise: str = "") -> None:
    """Refuse tests that fail the lab's own solutions before anybody's mark is touched.

    All tests are run once for each state of the lab; those of an `exercise` that is named, every time.
    """
    from labkit.grading.reference import prove

    if exercise or not store.proven:
        with console().status("Running the lab's own solutions"):
            prove(lab, limits, exercise, trust)
    if not exercise:
        store.prove()


def _limits(timeout: float | None, memory: float | None) -> Any:
    from labkit.grading.sandbox import Limits

    limits = Limits()
    if timeout is not None:
        longest = max(limits.total_s, limits.total_s / limits.cell_s * timeout)
        limits = replace(limits, cell_s=timeout, total_s=longest)
    return replace(limits, memory_gib=memory) if memory is not None else limits


def _workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise LabError(f"{workers} workers grade nothing.", "Set --workers to 1 or more.")
    return workers


def _collected(store: Store, path: Path | None, lms: str) -> list[Submission]:
    from labkit.grading.intake import collect

    found = store.submissions() if path is None else collect(path, lms=lms, lab=store.name)
    if not found:
        cause = f"There is nothing to grade in {path or store.received}."
        raise LabError(cause, f"Give the folder or zip: labkit grade {store.name} --submissions DIR")
    return found


def _todo(store: Store, found: Sequence[Submission]) -> tuple[list[Job], str]:
    """Jobs for what is not graded yet, and a word on how many are, and on who was by other tests.

    What is known but for its date or name is recorded only.
    """
    jobs, before, changed = [], 0, []
    for submission in found:
        new, digest = store.keep(submission), store.digest(submission)
        outcome = store.outcome(submission.student)
        if outcome is None or outcome.digest != digest:
            jobs.append(Job(submission, digest))
            changed += [submission.student] if store.outcome_of(submission) else []
        elif new or not outcome.recorded or store.failure(submission.student):
            jobs.append(Job(submission, digest, outcome))
        else:
            before += 1
    known = f", {before} of them graded before" if before else ""
    told = f"{store.name}: {count(len(found), 'submission')}{known}"
    if changed:
        told += f"\nsource/ was changed since, so these are graded again: {names(changed)}."
    return jobs, told


def _exercise(lab: Lab, name: str) -> Exercise:
    found = [item for item in lab.exercises if item.id == name or item.id.startswith(f"{name}-")]
    if len(found) != 1:
        raise UnknownNameError.among("exercise", name, [item.id for item in lab.exercises])
    return found[0]


def _runner(book: Book, lab: Lab, store: Store, limits: Any, trust: bool) -> Callable[..., Done]:
    """What a thread does with a job; its outcome is stored before anything else can fail."""
    from labkit.grading.rebuild import rebuild
    from labkit.grading.supervise import run_submission

    others = book.others(store.name)

    def run(job: Job, stop: Any) -> Done:
        rebuilt = rebuild(lab, job.submission, others)
        outcome = job.outcome
        if outcome is None or job.exercise:
            who = job.submission.student
            only: dict[str, Any] = {"only": job.exercise, "trust": trust, "stop": stop}
            found = run_submission(lab, rebuilt, who, job.digest, limits, **only)
            outcome = merged(lab, outcome, found, job.exercise, job.digest) if outcome else found
            store.save(outcome)
        return Done(outcome, rebuilt.notebook)

    return run


def _do(
    book: Book,
    lab: Lab,
    store: Store,
    todo: Sequence[Job],
    run: Callable[..., Done],
    workers: int,
    told: str,
    absent: Sequence[str] = (),
) -> int:
    terminal = console()
    terminal.print(told, soft_wrap=True)
    try:
        failures = _grade_all(book, store, todo, run, workers, terminal)
    except (KeyboardInterrupt, SystemExit):
        book.let_go()
        terminal.print(_stopped(store, todo), soft_wrap=True)
        raise
    return report(book, lab, store, failures, absent, terminal)


def _stopped(store: Store, todo: Sequence[Job]) -> str:
    kept = [store.outcome(job.submission.student) for job in todo]
    done = sum(found is not None and found.digest == job.digest for found, job in zip(kept, todo, strict=True))
    if any(job.exercise for job in todo):
        return "[yellow]Stopped before all were marked by the new tests.[/] The same command runs them for all again."
    return (
        f"[yellow]{done} of {count(len(todo), 'submission')} are done and kept.[/] The same command goes on with the "
        "rest; tables and feedback are written at its end."
    )


def _grade_all(
    book: Book, store: Store, todo: Sequence[Job], run: Callable, workers: int, terminal: Console
) -> dict[str, str]:
    """Run and record what is to be done; returns what failed, and why."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from labkit.grading.record import record

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[last]}"),
    )
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("grading", total=len(todo), last="")

        def finish(job: Job, done: Done) -> None:
            record(book, job.submission, done.outcome, done.notebook)
            store.save(done.outcome)
            bar.update(task, advance=1, last=escape(job.submission.student[:32]))

        def failed(job: Job, why: str, traceback: str) -> None:
            store.fail(job.submission.student, why, traceback)
            bar.update(task, advance=1)

        return run_all(todo, run, finish, failed, workers)
