"""Which ways to train fit a GPU: the predicted ledger of each, the largest batch, and the lines that run it.

Every figure is a prediction (`labkit.ledger.predict`) of the most bytes that tensors hold at once, compared with what a
GPU leaves to them (`labkit.ledger.gpus.usable`). A way is one entry of WAYS (`labkit.ways`); a lesson that teaches
another one adds an entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import paths, published
from labkit.errors import LabError, UnknownNameError
from labkit.ledger import flops
from labkit.ledger.case import Case
from labkit.ledger.flops import Rate
from labkit.ledger.gpus import GPUS, host_memory, memory, usable
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.ways import DISTRIBUTED, WAYS, Way

if TYPE_CHECKING:
    from labkit.ledger.trace import Moment
    from labkit.machine import Machine

MOST_BATCH = 2**16
_TOKENIZER, _WORDS = "tiny", 8192  # what a configuration alone is trained with, and how many words that has


@dataclass(frozen=True)
class Option:
    """A way at a batch: what it needs, and whether that fits.

    Attributes:
        peak: the moment of the step with the most bytes.
        host_bytes: on the host.
        largest_batch: that fits; 0 for none.
        fits: whether this batch does.
        seconds: expected of a step, from measured ones; None where none is near enough.
        problem: why not, in a sentence.
    """

    way: Way
    case: Case
    peak: Moment
    host_bytes: int
    largest_batch: int
    fits: bool
    seconds: float | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """The way's name, and whether it keeps activations."""
        return self.way.name + ("+checkpointing" if self.case.segments else "")

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "method": self.name,
            "what": self.way.what,
            "fits": self.fits,
            "peak_bytes": self.peak.total,
            "peak_at": self.peak.place,
            "bytes": self.peak.bytes,
            "host_bytes": self.host_bytes,
            "largest_batch": self.largest_batch,
            "step_seconds": self.seconds,
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Plan:
    """All ways for one model and GPU, those that fit first, the one with the widest numbers first among them.

    Attributes:
        usable: bytes of the GPU that tensors may fill.
        unknown: what the prediction does not know.
    """

    model: str
    arch: Architecture
    gpu: str
    usable: int
    batch: int
    seq_len: int
    options: tuple[Option, ...]
    unknown: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Option | None:
        """The first that fits."""
        return next((option for option in self.options if option.fits), None)

    def lines(self, option: Option) -> str:
        """Python that trains by an option; what is missing where nothing can run."""
        source, tokenizer = _origin(self.model, self.arch)
        if tokenizer and self.arch.vocab < _WORDS:
            small = f"its vocabulary of {self.arch.vocab:,} is smaller than that of our tokenizer"
            return f"# Missing: weights and tokenizer of {self.model}; {small}. Plan with a folder that has both."
        return option.way.lines(source, self.batch, self.seq_len, option.case.segments, tokenizer)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        best = self.best
        return {
            "model": self.model,
            "parameters": self.arch.parameters,
            "gpu": self.gpu,
            "usable_bytes": self.usable,
            "batch": self.batch,
            "seq_len": self.seq_len,
            "methods": [option.as_dict() for option in self.options],
            "best": best.name if best else None,
            "lines": self.lines(best) if best else None,
            "unknown": list(self.unknown),
        }


def architecture(model: str) -> Architecture:
    """Sizes of a published model, of a `config.json`, or of a model that `labkit.models` knows.

    Raises:
        LabError: for a model that is not found, or a configuration without what the formulas need.
    """
    if model in published.NAMES:
        return Architecture.of(published.config(model))
    from labkit import models

    if model.endswith(".json"):
        return Architecture.of(models.from_file(Path(model)))
    if model != "tiny" and "/" not in model and not Path(model).exists():
        # On a hub a name with neither an owner nor a file would be looked for in vain, for as long as the hub lets one.
        raise UnknownNameError.among("model", model, ("tiny", *published.NAMES))
    return Architecture.of(models.config(model))


def _origin(model: str, arch: Architecture) -> tuple[str, str]:
    """What to build for a model, and whose tokenizer: empty where it is its own, and its weights can be loaded."""
    if model in published.LLAMA:
        return model, _TOKENIZER
    path = Path(model)
    folder = path.parent if path.suffix == ".json" else path
    if not folder.is_dir() or model == "tiny":
        return published.source(model), ""
    whole = any(folder.glob("*.safetensors")) and any(folder.glob("tokenizer*"))
    return (str(folder), "") if whole else (model, _TOKENIZER)


def gpus_of(machine: Machine) -> tuple[str, int]:
    """The size of a machine's GPUs as `plan` takes it, and how many there are; two of 8 GB where there is none."""
    if not machine.gpus:
        return "8GB", 2
    return f"{min(gpu.memory_bytes for gpu in machine.gpus) // 2**20}MB", len(machine.gpus)


def plan(
    model: str, gpu: str, batch: int = 16, seq_len: int = 64, host: str = "", gpus: int = 1, only: str = ""
) -> Plan:
    """Predict every way for a model on a GPU.

    Args:
        model: a published name, a `config.json`, or what `labkit.models.load` takes.
        gpu: a name such as "rtx-4090", or a size such as "24GB".
        host: memory of the host, as a size; empty where it does not matter.
        gpus: how many of them; `batch` is that of each.
        only: the name of one way.

    Raises:
        LabError: for an unknown model or GPU, or sizes below 1.
    """
    if gpus < 1:
        raise LabError(f"{gpus} GPUs are none.", "Give a number of at least 1.")
    ways = _ways(gpus, only)
    arch, room = architecture(model), usable(memory(gpu))
    limits = _Limits(room, host_memory(host) if host else None, gpu, rates(gpu))
    found = [
        _option(way.case(arch, batch, seq_len, checkpointing), way, limits)
        for way in ways
        for checkpointing in (False, True)
    ]
    found.sort(key=lambda option: not option.fits)
    return Plan(model, arch, gpu, room, batch, seq_len, tuple(found), tuple(_unknown(found)))


def _ways(gpus: int, only: str) -> list[Way]:
    """All ways on so many GPUs, beside several those that need one and a host; or the one that is asked for."""
    alone = [replace(way, what=f"on one GPU: {way.what}") for way in WAYS if way.host]
    ways = [*(way.on(gpus) for way in DISTRIBUTED), *alone] if gpus > 1 else [*WAYS]
    found = [way for way in ways if only in ("", way.name)]
    if found:
        return found
    if only in {way.name for way in (*WAYS, *DISTRIBUTED)}:
        needs, remedy = ("one GPU", "Plan for one") if gpus > 1 else ("several GPUs", "Plan for them (--gpus 2)")
        raise LabError(f"{only} is a way to train on {needs}.", f"{remedy}, or choose another way.")
    raise UnknownNameError.among("way to train", only, [way.name for way in ways])


@dataclass(frozen=True)
class _Limits:
    """What there is: bytes on the GPU and on the host, and steps that were measured on such a GPU."""

    room: int
    host: int | None
    gpu: str
    rates: list[Rate]


def _option(case: Case, way: Way, limits: _Limits) -> Option:
    peak, host_bytes = predict(case).peak, way.host(case) if way.host else 0
    on_host, problem = limits.host is None or host_bytes <= limits.host, ""
    if not on_host:
        problem = f"It needs {host_bytes / 2**30:,.1f} GiB on the host."
    elif peak.total > limits.room:
        category = max(peak.bytes, key=peak.bytes.__getitem__)
        problem = f"{peak.total / 2**30:,.1f} GiB at the peak, of which {category.replace('_', ' ')} "
        problem += f"{peak.bytes[category] / 2**30:,.1f}."
    largest = largest_batch(case, limits.room) if on_host else 0
    # What crosses the bus or the network is in no rate.
    slowed = way.host is not None or case.world_size > 1
    expected = None if slowed else flops.seconds(case, limits.gpu, limits.rates)
    return Option(way, case, peak, host_bytes, largest, not problem, expected, problem)


def rates(gpu: str) -> list[Rate]:
    """Steps that the table `anatomy` has measured on a GPU of that name; none for a mere size."""
    path = paths.DATA / "reference" / "anatomy.json"
    if gpu.strip().lower() not in GPUS or not path.exists():
        return []
    table = json.loads(path.read_text(encoding="utf-8"))
    if gpu.split("-")[0].upper() not in table["machine"].upper().split():
        return []
    return [
        Rate(gpu, row["products"], row["flops"], row["step_ms"] / 1000, row["optimizer"] == "adamw8bit")
        for row in table["rows"]
        if row.get("step_ms")
    ]


def largest_batch(case: Case, room: int) -> int:
    """The largest batch whose peak is at most `room` bytes; 0 for none."""
    return _largest(case.with_(batch=1), room)


@lru_cache(maxsize=4096)
def _largest(case: Case, room: int) -> int:
    """The same for a case of any batch: who tries several in the planner's widget need not wait for it again."""

    def fits(batch: int) -> bool:
        return predict(case.with_(batch=batch)).peak.total <= room

    if not fits(1):
        return 0
    low = 1
    while low < MOST_BATCH and fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _unknown(options: list[Option]) -> Iterator[str]:
    yield "Scratch space of kernels, and gaps between blocks: a reserve stands for them."
    yield "Logits are counted for every token, as language modelling needs them; a classifier needs fewer."
    if any(option.case.world_size > 1 for option in options):
        yield "Step times on several GPUs: they depend on what connects these."
    elif any(option.seconds is None for option in options):
        yield "Step times where none is given: no step of about that size was measured on such a GPU."
