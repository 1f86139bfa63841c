"""`labkit release`: students' copies of labs. `labkit grade init`: a course for nbgrader."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from labkit.commands.terminal import console
from labkit.lessons import LessonFolder, all_lessons, find


def release(labs: list[str], out: Path) -> int:
    """Run labs with and without their solutions, and write students' copies; returns the exit code."""
    from labkit.grading.release import release as write

    terminal = console()
    lessons = [find(name) for name in labs] if labs else _with_labs()
    chosen = list({lesson.slug: lesson for lesson in lessons}.values())
    with terminal.status("") as status:
        paths = write(chosen, out, lambda slug: status.update(f"Running {slug} with its solutions, and without"))
    for path in paths:
        terminal.print(f"[green]✓[/] {escape(str(path))}", soft_wrap=True)
    return 0


def init(folder: Path) -> int:
    """Make a course, or bring one up to date; returns the exit code."""
    from labkit.grading.course import init as make

    terminal = console()
    with terminal.status("") as status:
        made = make(folder, _with_labs(), lambda slug: status.update(f"Taking {slug} into the gradebook"))
    told = {
        "new": (made.new, "new in the course"),
        "updated": (made.updated, "brought up to date with their lessons"),
        "kept": (made.kept, "left as you changed them"),
        "same": (made.same, "there already"),
    }
    for slugs, what in told.values():
        if slugs:
            count = f"{len(slugs)} lab{'s' if len(slugs) > 1 else ''} {what}"
            terminal.print(f"[green]✓[/] {count}: {', '.join(slugs)}", soft_wrap=True)
    for slug in made.held:
        why = "its lesson or you added or removed cells, and submissions with the old ones are marked"
        terminal.print(f"[yellow]![/] {slug} stays as it was: {why}.", soft_wrap=True)
    place = escape(str(folder))
    terminal.print(f"Hand out {place}/release. Grade with: labkit grade LAB --submissions DIR --course {place}")
    return 0


def _with_labs() -> list[LessonFolder]:
    return [lesson for lesson in all_lessons() if lesson.lab.is_file()]
