"""`labkit run`: executes lessons headless; writes the executed notebook and a page that needs no network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from rich.console import Console
from rich.markup import escape

from labkit.commands.settle import settle
from labkit.commands.terminal import FAILED, console
from labkit.errors import LessonError
from labkit.files import write_text
from labkit.lessons import LessonFolder, all_lessons, find
from labkit.scale import VARIABLE, Scale

# Seconds for one cell. On the slowest machine meant for its scale, a lesson's cell should take a fifth of it.
TIMEOUTS = {"tiny": 120.0, "small": 900.0, "full": 3600.0}


@dataclass(frozen=True)
class Job:
    """One notebook to execute, and the stem of the files it becomes in the output folder."""

    notebook: Path
    stem: str

    @staticmethod
    def of(lesson: LessonFolder, labs: bool) -> list[Job]:
        jobs = [Job(lesson.lesson, lesson.slug)]
        if labs and lesson.lab.is_file():
            jobs.append(Job(lesson.lab, f"{lesson.slug}-lab"))
        return jobs


def run(names: list[str], scale: str | None, out: Path, labs: bool, timeout: float | None, update: bool) -> int:
    """Execute the named lessons (all without names); returns the exit code: 1 if any failed.

    With `update` an executed notebook also replaces the lesson's own, in the form in which it is committed.
    """
    lessons = [find(name) for name in names] if names else all_lessons()
    jobs = [job for lesson in lessons for job in Job.of(lesson, labs)]
    if not jobs:
        raise LessonError("There is no lesson to run.", "Run git status: the folder lessons should hold them.")
    chosen = Scale.here(name=scale)  # an unknown or too large scale ends here, before any kernel starts
    terminal = console()
    terminal.print(escape(f"At {chosen}"), soft_wrap=True)
    seconds = timeout or TIMEOUTS[chosen.name]
    # Without a request the lesson chooses for itself, and says the true reason at its top.
    environment = {VARIABLE: chosen.name} if scale else {}
    failed = [job for job in jobs if not _run_job(job, environment, out, seconds, terminal, update)]
    return FAILED if failed else 0


def _run_job(job: Job, environment: dict[str, str], out: Path, timeout: float, terminal: Console, update: bool) -> bool:
    """Execute one notebook and write what became of it; whether it succeeded."""
    from labkit.commands.execute import execute
    from labkit.show.page import page

    notebook = _read(job.notebook)
    folder = job.notebook.parent
    begin = time.monotonic()
    with _progress(job, notebook, terminal) as progress:
        failure = execute(notebook, folder, timeout, environment, progress)
    seconds = time.monotonic() - begin
    failed_copy = out / f"{job.stem}.failed.ipynb"
    if failure:
        write_text(failed_copy, nbformat.writes(notebook))
        terminal.print(f"[bold red]✗ {job.stem}[/] failed in code cell {failure.cell}, after {seconds:.0f} s:")
        terminal.print(escape(_indented(failure.source)), style="dim", soft_wrap=True)
        terminal.print(f"[red]{escape(failure.error)}[/]", soft_wrap=True)
        terminal.print(f"The notebook with its traceback is {failed_copy}", soft_wrap=True)
        return False
    title = LessonFolder(job.stem, folder).title if job.notebook.name == "lesson.ipynb" else job.stem
    write_text(out / f"{job.stem}.ipynb", nbformat.writes(notebook))  # first: minutes of work, whatever the page does
    write_text(out / f"{job.stem}.html", page(notebook, title, folder))
    failed_copy.unlink(missing_ok=True)
    if update:
        notebook.metadata["language_info"] = {"name": "python"}  # the rest depends on the author's Python
        write_text(job.notebook, nbformat.writes(settle(notebook)) + "\n")
    terminal.print(
        f"[green]✓ {job.stem}[/] in {seconds:.0f} s: {out / job.stem}.ipynb and {out / job.stem}.html",
        soft_wrap=True,
    )
    return True


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise LessonError(f"{path} cannot be read as a notebook ({error}).", "Run: git checkout -- lessons") from error


def _indented(source: str) -> str:
    return "\n".join(f"    {line}" for line in source.splitlines())


@contextlib.contextmanager
def _progress(job: Job, notebook: nbformat.NotebookNode, terminal: Console) -> Iterator[Callable[[int, str], None]]:
    """A bar that counts cells and shows the one that runs. Where output is no terminal it stays silent."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[cell]}"),
    )
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(job.stem, total=cells, cell="starting a kernel")
        yield lambda done, line: bar.update(task, completed=done, cell=escape(line[:48]))
