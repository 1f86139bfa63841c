"""The folder through which a launch, its supervisor and its ranks talk: one small file for each thing that is said.

Files survive the death of whoever wrote them, so the last words of a rank that was killed can still be read, and no
pipe can fill up or block. Each is written beside its place and moved there, and thus read whole or not at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS, PAYLOAD, REPORT = "settings.json", "payload.pickle", "report.json"


@dataclass(frozen=True)
class Folder:
    """One launch's folder."""

    path: Path

    def of(self, rank: int, kind: str) -> Path:
        """The file of `rank` that holds its `kind`: log, state, progress, error, result, stack or trace."""
        return self.path / f"rank{rank}.{kind}"

    def write(self, name: str | Path, data: bytes) -> None:
        """Write a file of the folder in one step. Nothing waits for the disk: it need not outlive the machine."""
        place = self.path / name
        part = place.with_name(f".{place.name}.{os.getpid()}")
        part.write_bytes(data)
        part.replace(place)

    def write_json(self, name: str | Path, value: Any) -> None:
        """Write `value` as JSON, in one step."""
        self.write(name, json.dumps(value).encode())

    def read_json(self, name: str | Path) -> Any:
        """What was written there, or None while nothing was."""
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return None

    def read_text(self, name: str | Path, last: int = 1_000_000) -> str:
        """The last `last` bytes of a file that may still grow; empty where there is none."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
