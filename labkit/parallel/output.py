"""Where the ranks' output goes: each rank's lines under its number, and one progress bar.

This is the output of a terminal. A notebook's own (`labkit.show.ranks`) takes its place by `use`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


class Sink(Protocol):
    """What a launch tells while it runs."""

    def text(self, rank: int, text: str) -> None:
        """`rank` wrote `text`, which may end within a line."""

    def progress(self, done: float, total: float) -> None:
        """The ranks together have done `done` of `total` steps, or, where they report none, ranks."""

    def failed(self, rank: int | None, traceback: str, others: dict[int, str]) -> None:
        """`rank` is why the launch failed, there; `others` tells where the others were."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """Shows nothing."""

    def text(self, rank: int, text: str) -> None:
        """Nothing."""

    def progress(self, done: float, total: float) -> None:
        """Nothing."""

    def failed(self, rank: int | None, traceback: str, others: dict[int, str]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Terminal:
    """Lines with the rank before each, on standard output; a bar where standard error is a terminal."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._begun: dict[int, str] = {}
        self._bar: Any = None

    def text(self, rank: int, text: str) -> None:
        """Print the lines that are whole now."""
        *lines, rest = (self._begun.get(rank, "") + text).split("\n")
        self._begun[rank] = rest
        self._print(rank, lines)

    def _print(self, rank: int, lines: list[str]) -> None:
        for line in lines:
            # A rank's own bar redraws its line; the last drawing is the one to keep.
            drawn = line.rstrip("\r").rpartition("\r")[2]
            if self._bar is None:
                print(f"[rank {rank}] {drawn}", flush=True)
            else:
                self._bar.write(f"[rank {rank}] {drawn}", file=sys.stdout)

    def progress(self, done: float, total: float) -> None:
        """Draw the bar."""
        if self._bar is None:
            self._bar = progress_bar(self._ranks, disable=None)
        draw(self._bar, done, total)

    def failed(self, rank: int | None, traceback: str, others: dict[int, str]) -> None:
        """The failed rank's traceback, then where the others were, on standard error."""
        self._flush()
        for number, stack in [(rank, traceback), *others.items()]:
            if number is not None and stack:
                print("\n".join(f"[rank {number}] {line}" for line in stack.splitlines()), file=sys.stderr, flush=True)

    def _flush(self) -> None:
        for rank, rest in self._begun.items():
            if rest:
                self._print(rank, [rest])
        self._begun = {}

    def close(self) -> None:
        """Print what ended without a newline, take the bar away."""
        self._flush()
        if self._bar is not None:
            self._bar.close()


def progress_bar(ranks: int, disable: bool | None) -> Any:
    """The one bar of a launch, which goes when the launch is over."""
    from tqdm.auto import tqdm

    return tqdm(total=ranks, desc=f"{ranks} ranks", leave=False, disable=disable)


def draw(bar: Any, done: float, total: float) -> None:
    """Set a bar."""
    if (bar.n, bar.total) != (done, total):
        bar.n, bar.total = done, total
        bar.refresh()


_make: Callable[[int], Sink] = Terminal


def use(make: Callable[[int], Sink]) -> None:
    """Let launches show their output by `make(number of ranks)` from now on."""
    global _make
    _make = make


def sink(ranks: int, show: bool | Sink) -> Sink:
    """The sink that `show` asks for: a given one, the one in use, or none."""
    if isinstance(show, bool):
        return _make(ranks) if show else Silent()
    return show
