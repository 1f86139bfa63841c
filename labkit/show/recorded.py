"""Recorded reference tables (`data/reference/NAME.json`), for drawing beside the learner's own figures."""

from __future__ import annotations

from labkit.bench.record import Table, read


def reference(name: str) -> Table:
    """Return the recorded table `name`.

    Raises:
        LabError: when it was never recorded or the name is unknown.
    """
    return read(name)
