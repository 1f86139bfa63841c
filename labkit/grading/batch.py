"""Runs the submissions of a class side by side, and stops when it is told to without losing what is done."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from labkit.grading.lab import Lab
from labkit.grading.outcome import Outcome, Submission

Run = Callable[["Job", threading.Event], "Done"]


@dataclass(frozen=True)
class Job:
    """A submission to run, or one that ran before and has to be recorded only: then `outcome` is there.

    Attributes:
        exercise: the one whose tests run anew; all when it is ''.
    """

    submission: Submission
    digest: str
    outcome: Outcome | None = None
    exercise: str = ""


@dataclass(frozen=True)
class Done:
    """What a job found, and the submission in the lab's form."""

    outcome: Outcome
    notebook: Any


def run_all(
    jobs: Sequence[Job],
    run: Run,
    finish: Callable[[Job, Done], None],
    failed: Callable[[Job, str, str], None],
    workers: int,
) -> dict[str, str]:
    """Run jobs in `workers` threads; finish each in this thread as it ends.

    A job that raises fails alone. What ends this thread (Ctrl-C, SIGTERM) sets the event that every `run` is given,
    waits until they have ended, and goes on.

    Args:
        finish: called with each job that ended.
        failed: called with a job that raised, here or in `finish`, why in one line, and the traceback.

    Returns:
        student -> why it could not be graded, in one line.
    """
    stop, failures = threading.Event(), {}
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="grade") as pool:
        futures: dict[Future[Done], Job] = {pool.submit(run, job, stop): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures.pop(future)
                try:
                    finish(job, future.result())
                except Exception as error:
                    why = " ".join(f"{type(error).__name__}: {error}".split())
                    failures[job.submission.student] = why
                    failed(job, why, traceback.format_exc())
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            with _deaf_to_interrupts():
                pool.shutdown(wait=True)
            raise
    return failures


def merged(lab: Lab, old: Outcome, new: Outcome, exercise: str, digest: str) -> Outcome:
    """The outcome `old` with the tests of one exercise as `new` found them, and what is said of these."""
    labels = [cell.grade_id for cell in lab.exercise(exercise).tests]
    cells = dict(old.cells)
    cells.update({label: new.cells[label] for label in labels if label in new.cells})
    about = tuple(f"In {label}: " for label in labels)
    notes = [note for note in old.notes if not note.startswith(about)]
    notes += [note for note in new.notes if note not in notes]
    order = {label: place for place, label in enumerate(dict.fromkeys([*dict(lab.sources()), *cells]))}
    return Outcome(
        student=old.student,
        lab=old.lab,
        digest=digest,
        cells=dict(sorted(cells.items(), key=lambda item: order[item[0]])),
        notes=notes,
        seconds=old.seconds,
        peak_mib=max(old.peak_mib, new.peak_mib),
        restarts=old.restarts,
    )


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A second Ctrl-C does not end the waiting for processes that are ending."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
