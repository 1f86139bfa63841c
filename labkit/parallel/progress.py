"""How far a rank is, told to the progress bar of the launch that started it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

VARIABLE = "LABKIT_RANK_PROGRESS"
_INTERVAL_S = 0.1
_last = 0.0


def report(done: int, total: int) -> None:
    """Say that this rank has done `done` of `total` steps; cheap enough for every step, and silent without a launch."""
    global _last
    place, now = os.environ.get(VARIABLE), time.monotonic()
    if not place or (now - _last < _INTERVAL_S and done < total):
        return
    _last = now
    part = Path(f"{place}.part")
    part.write_text(json.dumps([done, total]))
    part.replace(place)
