"""What the tables of single training steps share: models by name, the time of a step, and rows for what does not fit.

A model by name is its published configuration with random weights and no dropout, which takes the bytes and the time of
the trained one. `llama-NxH` is a stack of N thin blocks of width H with few words, in which neither the weights nor the
loss hide what the blocks need: a model that nobody publishes, to see a formula by.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from labkit.errors import UnknownNameError

if TYPE_CHECKING:
    from labkit.ledger.case import Case
    from labkit.memory.step import Step

Found = TypeVar("Found")
THIN_HEAD, THIN_WORDS, THIN_POSITIONS = 32, 1024, 2048
BYTES, SYNTHETIC_BYTES = 2**28, 2**21  # of a copy that the bus is measured with
COPIES_TIMED, SYNTHETIC_COPIES = 32, 4
_NO_ROOM = ("out of memory", "can't allocate memory", "not enough memory")


def configuration(name: str) -> Any:
    """transformers' configuration of the tiny model, of a published one or of a `llama-NxH`, without dropout.

    Raises:
        UnknownNameError: for another name.
    """
    from transformers import LlamaConfig

    from labkit import models, published

    if name == "tiny":
        return models.config("tiny")
    if name in published.NAMES:
        return published.config(name, **({"dropout": 0.0} if name in published.OPT else {}))
    if thin := re.fullmatch(r"llama-([1-9]\d*)x([1-9]\d*)", name):
        return LlamaConfig(**_thin(*map(int, thin.groups())))
    raise UnknownNameError.among("model to measure", name, ("tiny", *published.NAMES, "llama-NxH"))


def case_of(row: dict, on_cpu: Container[str]) -> Case:
    """The step without optimizer states that a row describes; on a GPU, unless its model is one of `on_cpu`."""
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture

    device = "cpu" if row["model"] in on_cpu else "cuda"
    size = {name: row[name] for name in ("batch", "seq_len", "segments")}
    arch = Architecture.of(configuration(row["model"]))
    return Case(arch, weights=row["dtype"], optimizer="sgd", device=device, **size)


def rounding(case: Case) -> int:
    """What sizes are multiples of: CUDA's allocator has blocks, and on a CPU storages are counted as they are."""
    from labkit.ledger.trace import BLOCK

    return BLOCK if case.device == "cuda" else 1


def _thin(layers: int, width: int) -> dict[str, Any]:
    heads = max(1, width // THIN_HEAD)
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": THIN_POSITIONS,
        "vocab_size": THIN_WORDS,
        "tie_word_embeddings": True,
    }


def draw_tokens(step: Step, seed: int = 0) -> None:
    """Random words, the same for every method, in place of those that a `Step` is made with."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(step.case.arch.vocab, step.tokens.shape, generator=generator)
    step.tokens = words.to(step.tokens.device)


def median_ms(run: Callable[[], Any], count: int, device: str) -> float:
    """Median time from the beginning of one of `count` runs to the beginning of the next, in milliseconds.

    On CUDA the beginnings are events on the current stream and nothing waits in between: what a run leaves to be done
    beside the next one counts where the next one has to wait for it.
    """
    import torch

    if device != "cuda":
        clock = [time.perf_counter()]
        for _ in range(count):
            run()
            clock.append(time.perf_counter())
        return 1e3 * statistics.median(b - a for a, b in pairwise(clock))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks))


def alternating_ms(runs: Sequence[Callable[[], Any]], count: int, device: str) -> list[list[float]]:
    """Milliseconds of `count` runs of each, taken in turn, so that what else a machine does meets all of them.

    Each run has the device to itself: the next one begins when it is idle.
    """
    import torch

    def idle() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    found: list[list[float]] = [[] for _ in runs]
    for _ in range(count):
        for run, times in zip(runs, found, strict=True):
            begin = idle()
            run()
            times.append(1e3 * (idle() - begin))
    return found


def is_in(setting: Any, done: Sequence[dict]) -> bool:
    """Whether one of these rows has this setting, a dataclass."""
    return any(asdict(setting).items() <= found.items() for found in done)


def bus_rates(device: str, gb_per_s: float | None = None) -> dict[str, float]:
    """GB/s (10^9 bytes a second) of copies between the device and pinned memory, one way alone and both at once.

    Of copies that follow each other, the first quarter does not count: what a beginning waits for is no part of a rate.
    """
    import torch

    from labkit.memory.lanes import Bus, host_buffer
    from labkit.memory.timeline import COPIES, DOWNLOAD, UPLOAD, Timeline

    size, count = (SYNTHETIC_BYTES, SYNTHETIC_COPIES) if gb_per_s else (BYTES, COPIES_TIMED)
    timeline = Timeline(device)
    bus = Bus(device, synthetic_gb_per_s=gb_per_s, timeline=timeline)
    near = {lane: torch.zeros(size, dtype=torch.uint8, device=device) for lane in COPIES}
    far = {lane: host_buffer(size, torch.uint8, pinned=bus.on_gpu) for lane in COPIES}
    found = {}
    for lanes, name in (((DOWNLOAD,), "{}"), ((UPLOAD,), "{}"), (COPIES, "{}_both")):
        timeline.restart()
        tickets = []
        for _ in range(count):
            if DOWNLOAD in lanes:
                tickets.append(bus.download([(far[DOWNLOAD], near[DOWNLOAD])], "rate"))
            if UPLOAD in lanes:
                tickets.append(bus.upload([(near[UPLOAD], far[UPLOAD])], "rate"))
        for ticket in tickets:
            ticket.wait()
        spans = timeline.spans()
        for lane in lanes:
            ends = [span.end_ms for span in spans if span.lane == lane]
            found[name.format(lane)] = size * (count - count // 4) / (ends[-1] - ends[count // 4 - 1]) / 1e6
    bus.close()
    return found


def attempt(work: Callable[[], Found], device: str) -> tuple[Found | None, str]:
    """What `work` returns; or None and a note, where memory does not suffice; what `work` held is released then."""
    import torch

    from labkit.bench.workers import clear

    try:
        return work(), ""
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error)
        if isinstance(error, RuntimeError) and not any(words in said.lower() for words in _NO_ROOM):
            raise
        note = f"out of memory: {said.splitlines()[0][:160]}" if said else "out of memory"
    # Not in the handler, in which the error's traceback still holds every tensor of the attempt.
    clear(device)
    return None, note


def room_here() -> int:
    """Bytes that tensors may fill on the GPU that is here."""
    import torch

    from labkit.ledger.gpus import usable

    return usable(torch.cuda.get_device_properties(0).total_memory)


def rounded(value: float | None, digits: int = 3) -> float | None:
    """For JSON; None stays."""
    return None if value is None else round(value, digits)
