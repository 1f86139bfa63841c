"""The command `labkit grade`: a lab is graded by naming it, and the other things have words of their own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from labkit.commands.terminal import guarded


class LabFirst(TyperGroup):
    """Takes a first word that is no command, or an option, for what `grade lab` expects: `labkit grade 06 …`.

    A word that is nearly a command is a mistyped one, and no lab.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        near = difflib.get_close_matches(args[0], ["again", "init"], n=1, cutoff=0.7) if args else []
        if near and args[0] not in self.commands:
            ctx.fail(f"There is no command or lab {args[0]!r}. Did you mean {near[0]!r}?")
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["lab", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=LabFirst, no_args_is_help=True, help="Make a course for nbgrader, and grade its labs.")
CourseOption = Annotated[
    Path, typer.Option("--course", metavar="COURSE_DIR", help="The course's folder. Default: this folder.")
]
WorkersOption = Annotated[int | None, typer.Option(metavar="N", help="Submissions at a time. Default: one a core.")]
TimeoutOption = Annotated[float | None, typer.Option(metavar="S", help="Seconds for one cell. Default: 60.")]
MemoryOption = Annotated[float | None, typer.Option(metavar="G", help="GiB for one submission. Default: 4.")]
TrustOption = Annotated[bool, typer.Option("--trust", help="Run without a sandbox what you would run yourself.")]


@app.command("init")
@guarded
def init_command(course: Annotated[Path, typer.Argument(metavar="COURSE_DIR", help="An empty or new folder.")]) -> None:
    """Make an nbgrader course of all labs, or bring one up to date; marks and submissions stay."""
    from labkit.commands.release import init

    raise typer.Exit(init(course))


@app.command("lab")
@guarded
def lab_command(
    lab: Annotated[str, typer.Argument(metavar="LAB", help="The lab, by number or name.")],
    submissions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder or zip of submissions. Default: those collected before."),
    ] = None,
    course: CourseOption = Path(),
    workers: WorkersOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
    trust: TrustOption = False,
    due: Annotated[
        str | None, typer.Option(metavar="WHEN", help='Due date, such as "2026-12-01 23:59 Europe/Vienna".')
    ] = None,
    lms: Annotated[
        str, typer.Option(metavar="auto|moodle|canvas|folders", help="The platform that exported the submissions.")
    ] = "auto",
) -> None:
    """Grade a lab's submissions (the word lab may be left out); stopped, it goes on where it was."""
    from labkit.commands.grade import grade

    raise typer.Exit(grade(lab, submissions, course, workers, timeout, memory, trust, due, lms))


@app.command("again")
@guarded
def again_command(
    lab: Annotated[str, typer.Argument(metavar="LAB", help="The lab, by number or name.")],
    exercise: Annotated[str, typer.Argument(metavar="EXERCISE", help="The exercise, such as ex2.")],
    course: CourseOption = Path(),
    workers: WorkersOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
    trust: TrustOption = False,
) -> None:
    """Run one exercise's tests again for all, as they stand in the course's source now."""
    from labkit.commands.grade import again

    raise typer.Exit(again(lab, exercise, course, workers, timeout, memory, trust))
