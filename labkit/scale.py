"""The size that a lesson runs at, chosen from the machine.

A lesson's text holds at every scale: cells take their model, sizes and steps from the Scale and never ask for
a GPU themselves. `tiny` runs on any CPU, `small` on one GPU of 8 GB, `full` on a GPU of 24 GB and only on
request. LABKIT_SCALE overrides the choice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from labkit.errors import ScaleError, UnknownNameError
from labkit.machine import GB, Machine

VARIABLE = "LABKIT_SCALE"
SMALL_GPU_BYTES = 8 * GB
# A card sold with 24 GB shows less where it corrects memory errors (an L4 shows 23.7e9 bytes).
FULL_GPU_BYTES = 23 * GB


@dataclass(frozen=True)
class Scale:
    """Sizes for a lesson. `seq_len` is in tokens, `train_size` and `eval_size` in examples; `why` says in a
    sentence why this scale was chosen, and warns where it will be slow. `dtype` is a name in torch."""

    name: str
    model: str
    train_size: int
    eval_size: int
    batch_size: int
    seq_len: int
    epochs: int
    learning_rate: float
    device: str = "cpu"
    dtype: str = "float32"
    why: str = ""

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole training run: every epoch's last batch may be smaller."""
        return self.epochs * -(-self.train_size // self.batch_size)

    @staticmethod
    def here(machine: Machine | None = None, name: str | None = None) -> Scale:
        """The scale for `machine` (default: this one): `name`, else LABKIT_SCALE, else the machine's choice.

        Raises UnknownNameError for a name that is not a scale, ScaleError where the machine cannot run it.
        """
        asked = (name or os.environ.get(VARIABLE, "")).strip().lower()
        if asked and asked not in SCALES:
            raise UnknownNameError.among("scale", asked, SCALES)
        return _fitted(asked, machine or Machine.here())

    def __str__(self) -> str:
        data = f"{self.train_size} training and {self.eval_size} test examples"
        batches = f"{self.steps} steps of {self.batch_size} × {self.seq_len} tokens"
        where = f"model {self.model} in {self.dtype} on {self.device}"
        return f"scale {self.name}: {where}, {data}, {batches} ({self.why})"


SCALES = {
    "tiny": Scale("tiny", "tiny", 1000, 1500, batch_size=16, seq_len=64, epochs=1, learning_rate=5e-4),
    "small": Scale("small", "smollm2-135m", 1000, 1500, batch_size=16, seq_len=64, epochs=2, learning_rate=1e-4),
    "full": Scale("full", "facebook/opt-1.3b", 7000, 1500, batch_size=16, seq_len=64, epochs=2, learning_rate=1e-5),
}


def _fitted(asked: str, machine: Machine) -> Scale:
    gpu = machine.gpus[0] if machine.gpus else None
    reason = f"asked for by {VARIABLE} or --scale" if asked else ""
    name = asked or ("small" if gpu and gpu.memory_bytes >= SMALL_GPU_BYTES else "tiny")
    scale = replace(SCALES[name], device=machine.device)
    # Every lesson's tiny figures were set in float32, whose results agree most closely across machines.
    if name != "tiny" and gpu and gpu.capability >= (8, 0):
        scale = replace(scale, dtype="bfloat16")
    if name == "tiny":
        found = f"{gpu} has less than {SMALL_GPU_BYTES / GB:.0f} GB" if gpu else "this machine has no GPU"
        return replace(scale, why=reason or found)
    if name == "small" and gpu is None:
        slow = "without a GPU this takes many minutes per training run"
        return replace(scale, train_size=1000, epochs=1, why=f"{reason}; {slow}")
    _check(name, FULL_GPU_BYTES if name == "full" else SMALL_GPU_BYTES, machine)
    return replace(scale, why=reason or f"{gpu} has {SMALL_GPU_BYTES / GB:.0f} GB or more")


def _check(name: str, needed: int, machine: Machine) -> None:
    """Raise ScaleError unless the first GPU has the memory that scale `name` needs."""
    gpu = machine.gpus[0] if machine.gpus else None
    if gpu and gpu.memory_bytes >= needed:
        return
    fitting = "tiny" if gpu is None or gpu.memory_bytes < SMALL_GPU_BYTES else "small"
    needs = {"small": "8 GB", "full": "24 GB"}[name]
    raise ScaleError(
        f"Scale {name!r} needs a GPU with {needs} of memory, and this machine has {gpu or 'no GPU'}.",
        f"Set {VARIABLE}={fitting}, or unset it and let the machine choose.",
    )
