"""labkit: the package that every notebook of "Big models, small memory" calls.

Importing it is cheap (no torch, no transformers): the names below are loaded when first used (PEP 562).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

FEW_CORES = 4

# OpenMP's threads spin while they wait. Beside a browser or a second kernel on two cores that made a training step four
# times slower here. Where cores are many, waking sleeping threads costs more than they take from anyone: AdamW in host
# memory took 1.6 ns a value with the short spin on 16 cores, 0.34 without. It must be set before torch is loaded.
if len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) <= FEW_CORES:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # libgomp: Linux
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # libomp: macOS, Windows; milliseconds

_HOME = {
    "Machine": "labkit.machine",
    "Scale": "labkit.scale",
    "Ledger": "labkit.ledger",
    "Method": "labkit.methods",
    "FullFineTuning": "labkit.methods",
    "LinearProbing": "labkit.methods",
    "Run": "labkit.run",
    "train": "labkit.training",
    "evaluate": "labkit.training",
    "start": "labkit.show.lesson",
}
_MODULES = {"assets", "bench", "machine", "models", "numerics", "scale", "show", "tasks", "training"}

__all__ = ["__version__", *sorted(_HOME), *sorted(_MODULES)]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"labkit has no {name!r}; it offers {', '.join(sorted(_HOME))}")


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from labkit.ledger import Ledger as Ledger
    from labkit.machine import Machine as Machine
    from labkit.methods import FullFineTuning as FullFineTuning
    from labkit.methods import LinearProbing as LinearProbing
    from labkit.methods import Method as Method
    from labkit.run import Run as Run
    from labkit.scale import Scale as Scale
    from labkit.show.lesson import start as start
    from labkit.training import evaluate as evaluate
    from labkit.training import train as train
