"""A step's bytes as a file for Perfetto (ui.perfetto.dev) or chrome://tracing: one counter track a category.

The format is Chrome's trace events: `"ph": "C"` sets the values of a counter at a time. A trace knows the order of its
moments and not their times, so that one moment is one microsecond there. For a real run on a GPU torch's own recorder
shows every block with the line of code that asked for it: `torch.cuda.memory._record_memory_history()`, then
`torch.cuda.memory._dump_snapshot(path)`, opened at pytorch.org/memory_viz.
"""

from __future__ import annotations

import json
from pathlib import Path

from labkit.files import write_text
from labkit.ledger.counting import MIB
from labkit.ledger.trace import Trace


def export(trace: Trace, path: Path | str) -> Path:
    """Write a trace, whole or not at all; returns the file. Values are MiB."""
    names = sorted({name for moment in trace.moments for name in moment.bytes})
    events: list[dict] = [{"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "one training step"}}]
    place = None
    for time, moment in enumerate(trace.moments):
        values = {name: round(moment.bytes.get(name, 0) / MIB, 4) for name in names}
        events.append({"name": "MiB by category", "ph": "C", "pid": 0, "ts": time, "args": values})
        if moment.place != place:
            place = moment.place
            events.append({"name": place, "ph": "i", "s": "p", "pid": 0, "tid": 0, "ts": time})
    return write_text(Path(path), json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")
