"""The command `labkit`. Each command's work is in labkit/commands, imported only when it runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import labkit
from labkit.commands.grade_app import app as grade_app
from labkit.commands.terminal import INTERRUPTED, guarded

app = typer.Typer(
    name="labkit",
    help="Big models, small memory: a hands-on course on training large models in the memory you have.",
    epilog="Start with: labkit doctor, then labkit lab. A lesson is named by its number (01) or its name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ScaleOption = Annotated[
    str | None,
    typer.Option("--scale", metavar="tiny|small|full", help="Size to run at. Default: what the machine allows."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"labkit {labkit.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing to do here: the options above end the program themselves."""


@app.command("lab")
@guarded
def lab_command(
    lesson: Annotated[
        str, typer.Argument(metavar="LESSON", help="Lesson to open, such as 01 or floating-point.")
    ] = "00",
    lab: Annotated[bool, typer.Option("--lab", help="Open your copy of its lab (in my-labs) instead.")] = False,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, or only print the address.")
    ] = True,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port to serve on. Default: 8888, or the next free one.")
    ] = None,
) -> None:
    """Open JupyterLab on a lesson (lesson 00 by default). Ctrl-C stops it."""
    from labkit.commands.lab import lab as serve

    serve(lesson, lab, browser, port)


@app.command("run")
@guarded
def run_command(
    lessons: Annotated[list[str] | None, typer.Argument(metavar="LESSON", help="Lessons to run. Default: all.")] = None,
    scale: ScaleOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the executed notebooks and pages.")] = Path(
        "out"
    ),
    labs: Annotated[bool, typer.Option("--labs", help="Run the labs too.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="How long a single cell may take.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="For authors: also store the outputs in the lesson itself.")
    ] = False,
) -> None:
    """Execute lessons without a browser; write each as a notebook and as a page that needs no network."""
    from labkit.commands.run import run

    raise typer.Exit(run(lessons or [], scale, out, labs, timeout, update))


@app.command("doctor")
@guarded
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Examine this machine: what each lesson will run at, and every problem with its remedy."""
    from labkit.commands.doctor import doctor

    raise typer.Exit(doctor(as_json))


@app.command("fetch")
@guarded
def fetch_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Files to fetch, by name. Default: all.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also convert SmolLM2, so that it loads quickly from then on.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte of the files that are there.")] = False,
) -> None:
    """Fetch the models and data that are not in the repository, and check them."""
    from labkit.commands.fetch import fetch

    raise typer.Exit(fetch(names or [], everything, verify))


@app.command("bench")
@guarded
def bench_command(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="Table to measure. Without one, they are listed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the table. Default: data/reference.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the rows of a measurement that was cut off.")
    ] = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Compute its formulas again; what was measured stays as it is.")
    ] = False,
) -> None:
    """List the reference tables, or measure one again on this machine."""
    from labkit.commands.bench import bench

    raise typer.Exit(bench(table, out, resume, predict))


@app.command("plan")
@guarded
def plan_command(
    model: Annotated[str, typer.Option(metavar="ID", help="A published size, a hub id, a folder or a config.json.")],
    gpu: Annotated[str, typer.Option(metavar="SIZE", help='A GPU\'s name or memory, such as "rtx-4090" or "24GB".')],
    gpus: Annotated[int, typer.Option(metavar="N", help="How many of them.")] = 1,
    host: Annotated[str, typer.Option(metavar="SIZE", help='Memory of the host, such as "128GB".')] = "",
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences a step, on each GPU.")] = 16,
    seq: Annotated[int, typer.Option(metavar="N", help="Tokens a sequence.")] = 64,
    method: Annotated[str, typer.Option(metavar="NAME", help="One way to train only.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Predict which ways to train a model fit a GPU, their bytes, and the largest batch."""
    from labkit.commands.plan import show_plan

    raise typer.Exit(show_plan(model, gpu, gpus, host, batch, seq, method, as_json))


@app.command("check")
@guarded
def check_command(
    lab: Annotated[str, typer.Argument(metavar="LAB", help="Your notebook, or the lesson whose lab you have begun.")],
    timeout: Annotated[float, typer.Option(min=1, metavar="S", help="Seconds for one cell.")] = 60.0,
) -> None:
    """Run the visible tests of a lab, as you would before handing it in."""
    from labkit.commands.check import check

    raise typer.Exit(check(lab, timeout))


@app.command("release")
@guarded
def release_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the students' copies.")],
    labs: Annotated[
        list[str] | None, typer.Argument(metavar="LAB", help="Labs, by number or name. Default: all.")
    ] = None,
) -> None:
    """For teachers: write students' copies of labs, after each has run with its solutions and without."""
    from labkit.commands.release import release

    raise typer.Exit(release(labs or [], out))


app.add_typer(grade_app, name="grade")


def _terminate(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """The console script `labkit`."""
    # Termination and a closed terminal must unwind the stack as Ctrl-C does, or what a command started would
    # outlive it. A signal that is ignored (nohup) stays ignored.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    try:
        app()
    except KeyboardInterrupt:  # before or after a command, which handles its own
        sys.exit(INTERRUPTED)
