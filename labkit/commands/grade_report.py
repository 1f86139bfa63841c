"""What `labkit grade` says at its end: tables, feedback, who waits for a person, and who was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from labkit.commands.terminal import FAILED
from labkit.grading.lab import Lab
from labkit.grading.rebuild import ANOTHER_LAB
from labkit.grading.store import Store

if TYPE_CHECKING:
    from labkit.grading.book import Book
    from labkit.grading.export import Row

_NAMED = 5  # students named in a sentence; the tables name all


def report(
    book: Book, lab: Lab, store: Store, failures: Mapping[str, str], absent: Sequence[str], terminal: Console
) -> int:
    """Penalties, tables, summary and feedback, from the gradebook as it is now, and a word on each.

    Args:
        failures: student -> why this run could not grade them.
        absent: students whose last submission came with an earlier export than the one that was graded.

    Returns:
        the exit code: 1 where a submission could not be graded, or a page is withheld.
    """
    from labkit.grading import export
    from labkit.grading.late import reassess

    command = f"labkit grade {store.name} --course {escape(str(book.root))}"
    reassess(book, store.name)
    table = export.rows(book, lab, store)
    graded = [row for row in table if row.total is not None]
    folder = book.root / "exports" / store.name
    paths = export.write(folder, lab, table)
    if graded:
        paths += _summary(folder, lab, store.name, graded, len(table))
    terminal.print(f"[green]✓[/] {count(len(graded), 'mark')} in {', '.join(map(str, paths))}", soft_wrap=True)
    if waiting := [row.student for row in graded if row.waits]:
        terminal.print(
            f"[yellow]! {len(waiting)} of {len(graded)} marks are not final[/], and the tables leave them blank: "
            f"a person has still to mark a question of {names(waiting)}. Open the formgrader, then run {command}",
            soft_wrap=True,
        )
    _others(table, failures, absent, terminal, command)
    for student, why in failures.items():
        terminal.print(
            f"[bold red]✗ {escape(student)}[/] could not be graded and has no mark: {escape(why)} "
            f"(see {store.outcomes / student}.failed.txt)",
            soft_wrap=True,
        )
    whole = _pages(book, lab, store, [row.student for row in graded], terminal)
    return 0 if whole and not failures else FAILED


def _pages(book: Book, lab: Lab, store: Store, students: Sequence[str], terminal: Console) -> bool:
    """Write feedback; whether every student has a page."""
    from labkit.grading.feedback import feedback

    pages = feedback(book, lab, store, students)
    place = f"{book.root / 'feedback'}/STUDENT/{store.name}"
    terminal.print(f"[green]✓[/] {count(len(pages.written), 'feedback page')} in {place}", soft_wrap=True)
    for student, line in pages.withheld.items():
        terminal.print(
            f"[bold red]✗ The page of {escape(student)} is withheld[/]: it would show a line of a solution or of a "
            f"hidden test, {escape(line)!r}. Look for it in the messages of the lab's tests; the mark stands.",
            soft_wrap=True,
        )
    return not pages.withheld


def _others(
    table: Sequence[Row], failures: Mapping[str, str], absent: Sequence[str], terminal: Console, command: str
) -> None:
    """Who was left out by this run, and what to do about it."""
    if absent:
        told = f"Not in this export, though received before: {names(absent)}. What they handed in then counts."
        terminal.print(told, soft_wrap=True)
    for row in table:
        if other := next((note for note in row.notes if note.startswith(ANOTHER_LAB)), ""):
            terminal.print(f"[yellow]! {escape(row.student)} handed in another lab[/]: {escape(other)}", soft_wrap=True)
    unmarked = [row.student for row in table if row.total is None and row.student not in failures]
    if unmarked:
        terminal.print(
            f"[yellow]! Not graded yet[/], and without a mark: {names(unmarked)}. Grade them: {command}", soft_wrap=True
        )
    if older := [row.student for row in table if row.older]:
        terminal.print(
            f"[yellow]! Marked by older tests[/], from before source/ was changed: {names(older)}. "
            f"Mark all by the same tests: {command}",
            soft_wrap=True,
        )


def _summary(folder: Path, lab: Lab, name: str, graded: Sequence[Any], handed_in: int) -> list[Path]:
    import matplotlib as mpl

    from labkit.show.grades import summary

    mpl.use("Agg")  # a window's toolkit would be loaded else, where there is one
    shares = {
        item.title: [row.points[item.id] / item.points for row in graded if row.points[item.id] is not None]
        for item in (*lab.exercises, *lab.questions)
        if item.points
    }
    facts = [f"{count(handed_in, 'submission')}, {len(graded)} with a mark, {sum(r.waits for r in graded)} of these "
             "with a part that a person has still to mark."]  # fmt: skip
    if late := sum(row.penalty > 0 for row in graded):
        facts.append(f"{late} lost points by lateness.")
    return summary(folder, f"{name}: marks", [row.total for row in graded], lab.points, shares, facts)


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def names(students: Sequence[str]) -> str:
    more = f" and {len(students) - _NAMED} more" if len(students) > _NAMED else ""
    return f"{escape(', '.join(students[:_NAMED]))}{more}"
