"""How the command line speaks: one console, errors as one sentence, exit codes.

0: done. 1: a lesson failed. 2: a LabError (the user can mend it). 130: Ctrl-C. 128 + N: signal N.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from labkit.errors import LabError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def console(stderr: bool = False):
    """A rich console for stdout or stderr; where that is no terminal, wide enough not to break sentences."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 120)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command: a LabError becomes a red sentence and exit code 2, Ctrl-C exit code 130.

    With LABKIT_DEBUG=1 a LabError keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except LabError as error:
            if os.environ.get("LABKIT_DEBUG") == "1":
                raise
            say_error(error)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            console(stderr=True).print("[yellow]Stopped.[/] Nothing was left half-written.")
            raise typer.Exit(INTERRUPTED) from None

    return run


def say_error(error: LabError) -> None:
    """Print an error's cause in red and its remedy after it, to stderr."""
    from rich.markup import escape

    remedy = f" {escape(error.remedy)}" if error.remedy else ""
    console(stderr=True).print(f"[bold red]{escape(error.cause)}[/]{remedy}", soft_wrap=True)


def gigabytes(count: float) -> str:
    """Bytes for a reader, in powers of ten as disks and GPUs are sold."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
