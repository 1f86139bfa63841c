"""The cell magic `%%ranks N`: the cell runs on N ranks, and what its last expression is on each comes back.

    %%ranks 4 --send x,y --name sums
    t = x.to(device) * rank
    dist.all_reduce(t)
    t

In the cell `rank`, `world_size`, `device`, `dist` (torch.distributed), `torch` and `progress(done, total)` are there,
and of the notebook's variables those that `--send` names; functions and classes may be among them. The list of the
ranks' values, in order, is the cell's value (and thus `_`) and is kept as `results`, or as `--name` says.
"""

from __future__ import annotations

import argparse
import ast
import shlex
from typing import Any, NoReturn

from labkit.errors import LabError
from labkit.parallel.cell import FILENAME, run_cell
from labkit.parallel.launch import launch


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong option is an error of the cell; it must not end the kernel."""
        raise LabError(f"%%ranks: {message}.", "Write, for example: %%ranks 4 --send x,y --name results.")


def _parser() -> _Parser:
    parser = _Parser(prog="%%ranks", add_help=False)
    parser.add_argument("ranks", type=int)
    parser.add_argument("--send", default="", type=lambda text: [name for name in text.split(",") if name])
    parser.add_argument("--name", default="results")
    parser.add_argument("--timeout", type=float, default=600.0, dest="timeout_s")
    parser.add_argument("--stall", type=float, default=12.0, dest="stall_s")
    parser.add_argument("--device", default=None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    return parser


def run(line: str, cell: str, namespace: dict[str, Any]) -> list | None:
    """What `%%ranks line` does with `cell`; `namespace` is the notebook's.

    Raises:
        LabError: for options that are wrong, variables that do not exist, and whatever `launch` raises.
        SyntaxError: for a cell that is not Python.
    """
    given = _parser().parse_args(shlex.split(line))
    ast.parse(cell, FILENAME)
    absent = [name for name in given.send if name not in namespace]
    if absent:
        raise LabError(f"%%ranks: the notebook has no {absent[0]!r} to send.", "Run the cell that defines it.")
    sent = {name: namespace[name] for name in given.send}
    values = launch(
        run_cell,
        given.ranks,
        cell,
        sent,
        timeout_s=given.timeout_s,
        stall_s=given.stall_s,
        device=given.device,
        check=given.check,
        show=not given.quiet,
    )
    namespace[given.name] = values
    silent = cell.rstrip().endswith(";") or all(value is None for value in values)
    return None if silent else values


def register(shell: Any) -> None:
    """Give an IPython shell the magic."""

    def ranks(line: str, cell: str) -> list | None:
        return run(line, cell, shell.user_ns)

    ranks.__doc__ = __doc__
    shell.register_magic_function(ranks, magic_kind="cell", magic_name="ranks")
