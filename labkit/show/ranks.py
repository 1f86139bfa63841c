"""What a notebook shows of a launch: a section for each rank, to unfold, updated while the ranks write."""

from __future__ import annotations

import html
import re
import time
from typing import Any

from labkit.parallel import cells, output

_INTERVAL_S = 0.25
_MOST = 20_000  # characters kept of a rank, so that a notebook stays small
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_STYLE = "margin:0 0 0 1em;white-space:pre-wrap;max-height:30em;overflow:auto"


class Folded:
    """A sink that keeps one output of the cell up to date."""

    def __init__(self, ranks: int) -> None:
        self._texts = [""] * ranks
        self._failed: list[tuple[int | None, str]] = []
        self._handle: Any = None
        self._shown = 0.0
        self._stale = False
        self._bar: Any = None

    def text(self, rank: int, text: str) -> None:
        """Add to a rank's section."""
        self._texts[rank] = _drawn(self._texts[rank] + _ESCAPES.sub("", text))[-_MOST:]
        self._stale = True
        self._show()

    def progress(self, done: float, total: float) -> None:
        """Draw the bar, and what has not been shown yet."""
        if self._bar is None:
            self._bar = output.progress_bar(len(self._texts), disable=False)
        output.draw(self._bar, done, total)
        self._show()

    def failed(self, rank: int | None, traceback: str, others: dict[int, str]) -> None:
        """The failed rank's traceback comes first, unfolded; then where the others were."""
        self._failed = [(rank, traceback), *others.items()]
        self._stale = True

    def close(self) -> None:
        """Show all, take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._show(now=True)

    def _show(self, now: bool = False) -> None:
        if not self._stale or (not now and time.monotonic() - self._shown < _INTERVAL_S):
            return
        from IPython.display import display

        data = {"text/html": self._html(), "text/plain": self._plain()}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
        self._shown, self._stale = time.monotonic(), False

    def _sections(self) -> list[tuple[str, str, bool]]:
        """Title, text and whether it is unfolded, of each section."""
        found = []
        for number, (rank, stack) in enumerate(self._failed):
            if stack:
                found.append((f"Rank {rank} {'failed' if number == 0 else 'was waiting'} here", stack, number == 0))
        for rank, text in enumerate(self._texts):
            lines = text.count("\n") + (not text.endswith("\n")) if text else 0
            found.append((f"Rank {rank}: {lines} line{'s' * (lines != 1)}", text, rank == 0 and not self._failed))
        return found

    def _html(self) -> str:
        return "".join(
            f"<details{' open' * unfolded}><summary>{html.escape(title)}</summary>"
            f'<pre style="{_STYLE}">{html.escape(text)}</pre></details>'
            for title, text, unfolded in self._sections()
        )

    def _plain(self) -> str:
        return "\n".join(f"{title}\n{text}".rstrip() for title, text, _ in self._sections())


def _drawn(text: str) -> str:
    """Lines as a terminal would leave them: a carriage return begins the line anew."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def register(shell: Any = None) -> None:
    """Give the IPython shell, by default the one that runs, the magic and this output; outside one, nothing."""
    if shell is None:
        try:
            from IPython.core.getipython import get_ipython
        except ImportError:
            return
        shell = get_ipython()
    if shell is None:
        return
    cells.register(shell)
    # A terminal's IPython draws no HTML.
    if getattr(shell, "kernel", None) is not None:
        output.use(Folded)
