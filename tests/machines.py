"""Machines that are not here, for tests of what depends on the machine."""

from __future__ import annotations

from typing import Any

from labkit.machine import GB, Machine


def machine(**facts: Any) -> Machine:
    """A plain machine without a GPU, with `facts` in place of its own."""
    plain: dict[str, Any] = {
        "system": "Linux x86_64",
        "processor": "a processor",
        "cores": 8,
        "memory_bytes": 16 * GB,
        "disk_free_bytes": 100 * GB,
        "python": "3.12.1",
        "versions": {"torch": "2.13.0"},
    }
    return Machine(**{**plain, **facts})
