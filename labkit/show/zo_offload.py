"""Figures of lesson 16: what a model needs beside a card, the roofline with runs on it, and the table `zo-offload`.

Needs are counted on models without memory (torch's device "meta"), cut as the method cuts them. The poster's figures
(Wang et al., lecture 001) are marks, ours are lines and bars.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from labkit.bench.zo_offload import PUBLISHED
from labkit.errors import LabError
from labkit.ledger.gpus import memory, usable
from labkit.memory.timeline import COMPUTE, COPIES, WAIT, Span, union, without
from labkit.show.compute_for_memory import overlap_figure
from labkit.show.style import PALETTE
from labkit.zeroth.offload.roofline import Machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GB = 10**9
SIZES = tuple(dict.fromkeys(row["model"] for row in PUBLISHED))
MEZO, OFFLOAD = "mezo", "zo-offload"
NAMES = {MEZO: "MeZO", OFFLOAD: "ZO-Offload"}
ENDS = {"embedding": "E", "head": "H"}
COLOURS = {MEZO: "red", OFFLOAD: "blue"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Needs:
    """Bytes of a model in a format.

    Attributes:
        blocks: of all blocks, which travel.
        slot: of the largest piece, a place's size.
        stays: of embeddings, last norm and head.
    """

    blocks: int
    slot: int
    stays: int

    @property
    def weights(self) -> int:
        """All of them."""
        return self.blocks + self.stays

    def device(self, slots: int = 3) -> int:
        """What ZO-Offload holds of them on the device."""
        return self.stays + slots * self.slot


@functools.cache
def needs(model: str, dtype: str = "float16", parts: int = 1) -> Needs:
    """Of a published model, its blocks whole or in thirds.

    Raises:
        UnknownNameError: for another name.
        LabError: for another number of parts.
    """
    import torch

    from labkit.bench.zo_offload_steps import configuration_of
    from labkit.zeroth.offload.load import frame
    from labkit.zeroth.pieces import cut, resident

    shell = frame(configuration_of(model), getattr(torch, dtype), "meta")
    pieces = cut(shell, parts)
    stays = sum(p.numel() * p.element_size() for p in resident(shell, pieces).values())
    return Needs(sum(p.nbytes for p in pieces), max(p.nbytes for p in pieces), stays)


def need_rows(models: Sequence[str] = SIZES, slots: int = 3) -> list[dict[str, Any]]:
    """For each model GB of fp16 weights, of a block, of what stays, and on the device, blocks whole and in thirds."""
    found = []
    for model in models:
        whole, thirds = needs(model), needs(model, parts=3)
        sizes = {
            "weights": whole.weights,
            "a block": whole.slot,
            "stays": whole.stays,
            f"stays + {slots} slots": whole.device(slots),
            f"stays + {slots} of a third": thirds.device(slots),
        }
        found.append({"model": model, **{name: round(size / GB, 2) for name, size in sizes.items()}})
    return found


def need_figure(gpu: str, models: Sequence[str] = SIZES, slots: int = 3) -> Figure:
    """All weights beside what is on the device at a time, by model, against what a GPU has for tensors; fp16.

    Args:
        gpu: a name or a size, see `labkit.ledger.gpus.memory`.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.6, 3.8))
    thirds = [needs(m, parts=3).device(slots) / GB for m in models]
    lines = {
        "all weights": ("red", "o", "-", [needs(m).weights / GB for m in models]),
        f"on the GPU: {slots} slots and what stays": ("blue", "s", "-", [needs(m).device(slots) / GB for m in models]),
        f"the same, {slots} slots of a third": ("sky", "D", "--", thirds),
    }
    for label, (colour, mark, dash, values) in lines.items():
        axis.plot(models, values, color=PALETTE[colour], marker=mark, linestyle=dash, label=label)
    axis.axhline(usable(memory(gpu)) / GB, color=PALETTE["black"], linestyle=":", label=f"usable of {_size(gpu)}")
    axis.set(yscale="log", ylabel="fp16 weights (GB, logarithmic)", title=need_finding(gpu, models, slots))
    axis.tick_params(axis="x", labelrotation=25)
    axis.legend(fontsize="small")
    return fig


def _size(gpu: str) -> str:
    return f"{memory(gpu) / 2**30:.0f} GiB"


def need_finding(gpu: str, models: Sequence[str] = SIZES, slots: int = 3) -> str:
    """The largest model whose weights a GPU holds, and the largest whose slots."""
    room = usable(memory(gpu))
    whole = [m for m in models if needs(m).weights <= room]
    served = [m for m in models if needs(m).device(slots) <= room]
    ends = [found[-1].upper() if found else "no model" for found in (whole, served)]
    return f"{_size(gpu)} hold the weights of {ends[0]}, or the slots of {ends[1]}"


def need_words(gpu: str, models: Sequence[str] = SIZES, slots: int = 3) -> str:
    """The lines in words."""
    told = "; ".join(
        f"{m} {needs(m).weights / GB:.3g} GB of weights, {needs(m).device(slots) / GB:.3g} on the GPU, "
        f"{needs(m, parts=3).device(slots) / GB:.3g} with slots of a third"
        for m in models
    )
    return f"Lines over models, fp16. {need_finding(gpu, models, slots)}. {told}."


def by_block(spans: Sequence[Span]) -> list[Span]:
    """A step's spans for a narrow picture: blocks by their numbers, both passes over one as one span."""
    found: list[Span] = []
    last: dict[str, int] = {}
    for span in spans:
        name = span.name.removesuffix(" +").removesuffix(" -").removeprefix("block ")
        place = last.get(span.lane)
        if span.lane == COMPUTE and place is not None and found[place].name == name:
            found[place] = replace(found[place], end_ms=span.end_ms)
            continue
        last[span.lane] = len(found)
        found.append(replace(span, name=name))
    return found


def streams_figure(runs: Mapping[str, Sequence[Span]]) -> Figure:
    """The lanes of lesson 05 with a name on every bar that has room: blocks by number, E for embedding, H for head.

    Args:
        runs: spans of `by_block` by the run's name, one panel each.
    """
    fig = overlap_figure(runs)
    for axis, spans in zip(fig.axes, runs.values(), strict=True):
        for text in list(axis.texts):
            text.remove()
        lanes, whole = [label.get_text() for label in axis.get_yticklabels()], axis.get_xlim()[1]
        zero = min(span.start_ms for span in spans)
        for span in spans:
            if span.lane != WAIT and span.end_ms - span.start_ms >= 0.012 * whole:
                name, middle = ENDS.get(span.name, span.name), (span.start_ms + span.end_ms) / 2 - zero
                style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": "x-small"}
                axis.text(middle, lanes.index(span.lane), name, clip_on=True, **style)
    return fig


def lane_rows(runs: Mapping[tuple[bool, int], Sequence[Span]]) -> list[dict[str, Any]]:
    """For each run, by overlap and k: its milliseconds, and how long each lane was at work.

    Spans of a lane that overlap are counted once, and compute without its waits.
    """
    found = []
    for (overlap, k), spans in runs.items():
        waits = union((s.start_ms, s.end_ms) for s in spans if s.lane == WAIT)
        row: dict[str, Any] = {"overlap": "on" if overlap else "off", "k": k}
        row["step"] = round(max(s.end_ms for s in spans) - min(s.start_ms for s in spans))
        for lane in (COMPUTE, *COPIES):
            busy = union((s.start_ms, s.end_ms) for s in spans if s.lane == lane)
            busy = without(busy, waits) if lane == COMPUTE else busy
            row[lane] = round(sum(end - start for start, end in busy))
        found.append(row)
    return found


@dataclass(frozen=True)
class Measured:
    """A step of so many tokens, in milliseconds: all on the device, overlapped, and in order."""

    tokens: int
    mezo_ms: float
    overlapped_ms: float
    in_order_ms: float


def fitted(points: Mapping[int, float], up: float, both: float) -> Machine:
    """A machine from MeZO's steps: 2 T f + 3 z of tokens T, by least squares; z is 0 where the fit finds less.

    What a step of no tokens would take is all counted as noise, the host's own time among it.

    Args:
        points: milliseconds by tokens.
        up, both: GB/s of the bus.

    Raises:
        LabError: for fewer than two lengths.
    """
    import numpy as np

    if len(points) < 2:
        raise LabError("A line needs two points.", "Time MeZO at two lengths or more.")
    slope, begin = np.polyfit(list(points), list(points.values()), 1)
    return Machine(up, both, max(0.0, 1e3 * float(slope) / 2), max(0.0, float(begin) / 3))


def roofline_figure(machine: Machine, uploaded: int, write_back: int, runs: Sequence[Measured]) -> Figure:
    """Milliseconds a step over tokens: both bounds as lines, their crossing, and what was measured as marks."""
    import matplotlib.pyplot as plt
    import numpy as np

    fig, axis = plt.subplots(figsize=(7.6, 4.0))
    tokens = np.linspace(0, 1.08 * max(run.tokens for run in runs), 200)
    compute = [machine.compute_ms(round(t), write_back) for t in tokens]
    bus = machine.bus_ms(uploaded, write_back)
    axis.plot(tokens, compute, color=PALETTE["green"], linestyle="--", label="arithmetic, predicted")
    axis.axhline(bus, color=PALETTE["purple"], linestyle="-.", label="bus, predicted")
    axis.plot(tokens, np.maximum(compute, bus), color=PALETTE["sky"], linewidth=6, alpha=0.4, label="the larger")
    axis.axvline(machine.crossing(uploaded, write_back), color=PALETTE["grey"], linestyle=":", label="crossing")
    for label, colour, mark, values in (
        ("overlapped, measured", "blue", "o", [run.overlapped_ms for run in runs]),
        ("in order, measured", "orange", "s", [run.in_order_ms for run in runs]),
        ("all on the device, measured", "red", "x", [run.mezo_ms for run in runs]),
    ):
        axis.plot([run.tokens for run in runs], values, mark, color=PALETTE[colour], linestyle="", label=label)
    axis.set(xlabel="tokens a step", ylabel="a step (ms)", xlim=(0, tokens[-1]))
    axis.set_ylim(bottom=0)
    axis.set_title(roofline_finding(machine, uploaded, write_back, runs))
    fig.legend(loc="outside lower center", ncols=3, fontsize="small")
    return fig


def off_the_roof(machine: Machine, uploaded: int, write_back: int, run: Measured) -> float:
    """By what share an overlapped step took longer than the larger bound."""
    return run.overlapped_ms / machine.step_ms(uploaded, run.tokens, write_back) - 1


def roofline_finding(machine: Machine, uploaded: int, write_back: int, runs: Sequence[Measured]) -> str:
    """The crossing, and how far the runs are from the larger bound."""
    offs = sorted(abs(off_the_roof(machine, uploaded, write_back, run)) for run in runs)
    crossing = machine.crossing(uploaded, write_back)
    first = f"From {crossing:,.0f} tokens on arithmetic should hide the bus"
    return f"{first};\nhalf of the runs are within {offs[len(offs) // 2]:.0%} of the larger bound"


def roofline_words(machine: Machine, uploaded: int, write_back: int, runs: Sequence[Measured]) -> str:
    """Bounds and runs in words."""
    told = "; ".join(
        f"{r.tokens:,} tokens: predicted {machine.step_ms(uploaded, r.tokens, write_back):.0f} ms, overlapped "
        f"{r.overlapped_ms:.0f}, in order {r.in_order_ms:.0f}, all on the device {r.mezo_ms:.0f}"
        for r in runs
    )
    finding = roofline_finding(machine, uploaded, write_back, runs).replace("\n", " ")
    bus = machine.bus_ms(uploaded, write_back)
    return f"A level line of the bus at {bus:.0f} ms, a rising one of arithmetic, and marks. {finding}. {told}."
