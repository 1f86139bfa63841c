"""Executes a notebook in a fresh kernel, cell by cell, without a browser, and leaves no process behind.

nbclient mimics a browser's Output widgets: while a cell runs, it sends their state back on the socket on
which it waits for the kernel's reply. Sending swallows that socket's wake-up signal, and now and then the
reply lies unread until the cell's timeout (nbclient issue 312). No page needs that mimicry, so the `Client`
here drops comm messages: outputs captured by a widget become outputs of their cell, as they are in nbval.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nbclient.client import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from labkit.download import end_process_tree


class Client(NotebookClient):
    """A NotebookClient that only listens; see the module's docstring."""

    def handle_comm_msg(self, outs: list[NotebookNode], msg: dict[str, Any], cell_index: int) -> None:
        """Ignore a widget's message instead of answering for a browser that is not there."""


@dataclass(frozen=True)
class Failure:
    """Why a notebook stopped: the cell's number among code cells (from 1), its source, the error."""

    cell: int
    source: str
    error: str
    traceback: str = ""


def execute(
    notebook: NotebookNode,
    folder: Path,
    timeout: float,
    environment: dict[str, str] | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Failure | None:
    """Run every code cell of `notebook` in place, in `folder`; returns None, or what failed.

    `timeout` is in seconds per cell. `progress` is called with the number of code cells done and the first
    line of the next. However this ends, the kernel and all that it started end before it returns or raises.
    """
    client = _client(notebook, folder, timeout)
    notebook.metadata.pop("widgets", None)
    cells = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    # Twice: around everything for a kernel that fails to start, and inside, while the kernel is still alive
    # and its own children can be found through it.
    variables = {**os.environ, **(environment or {})}
    mine = set(psutil.Process().children())
    with _no_process_beside(mine), client.setup_kernel(env=variables), _no_process_beside(mine):
        for number, (index, cell) in enumerate(cells, 1):
            if progress:
                progress(number - 1, _first_line(cell.source))
            failure = _run_cell(client, cell, index, number, timeout)
            if failure:
                return failure
        _note_language(client, notebook)
    if progress:
        progress(len(cells), "")
    return None


def _client(notebook: NotebookNode, folder: Path, timeout: float) -> Client:
    client = Client(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        shutdown_kernel="immediate",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # a kernel's warnings mean nothing to a learner
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.reset_execution_trackers()
    return client


def _run_cell(client: Client, cell: NotebookNode, index: int, number: int, timeout: float) -> Failure | None:
    try:
        client.execute_cell(cell, index, execution_count=number)
    except CellExecutionError as error:
        return Failure(number, cell.source, f"{error.ename}: {error.evalue}", str(error.traceback))
    except CellTimeoutError:
        message = f"it was still running after {timeout:g} s. Allow more with --timeout."
        return Failure(number, cell.source, message)
    except DeadKernelError:
        message = "the kernel died, as it does when memory runs out. Close other programs or take a smaller scale."
        return Failure(number, cell.source, message)
    return None


def _note_language(client: Client, notebook: NotebookNode) -> None:
    assert client.kc is not None
    reply = client.wait_for_reply(client.kc.kernel_info())
    if reply:
        notebook.metadata["language_info"] = reply["content"]["language_info"]


def _first_line(source: str) -> str:
    lines = (line.strip() for line in source.splitlines())
    return next((line for line in lines if line and not line.startswith("%")), "")


@contextlib.contextmanager
def _no_process_beside(mine: set[psutil.Process]) -> Iterator[None]:
    """At the end, end every child but `mine`, with its own children, undisturbed by a second Ctrl-C."""
    try:
        yield
    finally:
        with _deaf_to_interrupts():
            for child in set(psutil.Process().children()) - mine:
                end_process_tree(child.pid)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which alone receives Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
