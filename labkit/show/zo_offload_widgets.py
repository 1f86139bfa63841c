"""Widget of lesson 16: what ran when on the three streams, with overlap and without, of runs that were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.errors import LabError
from labkit.show.compute_for_memory import Spans, overlap_words
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.zo_offload import streams_figure


class StreamExplorer(Explorer):
    """The lanes of a recorded run, chosen by its settings.

    Args:
        runs: spans (`labkit.memory.timeline.Timeline.spans`) by overlap and by k, of every pair of both.

    Raises:
        LabError: for no runs, or where a pair is missing.
    """

    def __init__(self, runs: Mapping[tuple[bool, int], Spans]) -> None:
        self.runs = dict(runs)
        overlaps = sorted({overlap for overlap, _ in self.runs}, reverse=True)
        periods = sorted({k for _, k in self.runs})
        if not self.runs or len(self.runs) != len(overlaps) * len(periods):
            raise LabError("The runs are not one for each choice.", "Record every pair of overlap and k.")
        words = {True: "on", False: "off"}
        choices: dict[str, tuple[str, list[tuple[str, Any]], Any]] = {
            "overlap": ("overlap", [(words[overlap], overlap) for overlap in overlaps], overlaps[0]),
            "write_back": ("written back", [(_every(k), k) for k in periods], periods[0]),
        }
        super().__init__({}, choices)

    def picture_of(self, **given: Any) -> tuple[str, str]:
        """Bars on the lanes of one run."""
        chosen = self._values(given)
        spans = self.runs[chosen["overlap"], chosen["write_back"]]
        name = f"{'on' if chosen['overlap'] else 'off'}, k = {chosen['write_back']}"
        words = overlap_words({name: spans})
        return figure_html(streams_figure({name: spans}), words), words


def _every(k: int) -> str:
    return "at each upload" if k == 1 else f"at one upload in {k}" if k else "never"
