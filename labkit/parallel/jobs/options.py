"""A job's dataclass from its command line: one option a field, `seq_len` as `--seq-len`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, TypeVar

from labkit.errors import LabError

Job = TypeVar("Job", bound=Any)


def parsed(kind: type[Job], name: str, about: str, example: str, arguments: Sequence[str] | None = None) -> Job:
    """The job that a command line asks for; a field without a default is required, a False one is a switch.

    Args:
        name: of the job.
        about: what --help says.
        example: options that a wrong command line is answered with.
        arguments: default: this process's.

    Raises:
        LabError: for options that are wrong.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            """A sentence in the place of usage and an exit."""
            raise LabError(f"{name}: {message}.", f"Write, for example: {example}.")

    parser = Parser(prog=name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(kind):
        option, default = f"--{field.name.replace('_', '-')}", field.default
        if default is MISSING:
            parser.add_argument(option, required=True)
        elif default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(default), default=default)
    return kind(**vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments)))


def at_least_one(job: Any, *names: str) -> None:
    """Raise LabError for the first of these fields that is below 1."""
    for name in names:
        if getattr(job, name) < 1:
            raise LabError(f"{name} is {getattr(job, name)}.", "Give a whole number of at least 1.")
