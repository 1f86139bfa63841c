"""Figures of lesson 04: the bytes of one training step by category, through the step and at its peak.

Figure functions return a matplotlib Figure for `labkit.show.figure`; the `*_words` function beside each gives its
alternative text from the same numbers. Tables of measured peaks, and sweeps, are in `labkit.show.anatomy_record`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.trace import Moment, Trace
from labkit.show.anatomy_style import (
    COLOURS,
    GPUS,
    HAIR,
    amount,
    axis_end,
    called,
    gpu_lines,
    holder,
    ink,
    legend_below,
    number,
    off,
    parts,
    unit_of,
    visible,
    where,
)
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Widths of the stretches of a step. The loss stands apart, and the end of the backward pass, when no activations are
# left: formula and trace have unequally many moments there.
STRETCHES = {
    "start": 0.08,
    "forward": 1.0,
    "loss, forward": 0.16,
    "loss, backward": 0.16,
    "backward": 1.45,
    "backward, end": 0.15,
    "update": 0.3,
    "end": 0.08,
}
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}


def stretches(trace: Trace) -> dict[str, list[Moment]]:
    """The moments by stretch of the step; those with logits belong to the loss, those without activations to the end.

    A trace begins by registering what is there already, one category after the other: only its last start counts.
    """
    at = {p: [m for m in trace.moments if m.place == p] for p in ("start", "forward", "backward", "update", "end")}
    forward, backward = at["forward"], at["backward"]
    first = next((i for i, moment in enumerate(forward) if moment.bytes.get("logits")), len(forward))
    past = max((i for i, moment in enumerate(backward) if moment.bytes.get("logits")), default=-1) + 1
    held = HAIR * max((moment.bytes.get("activations", 0) for moment in backward), default=0)
    last = max((i for i, m in enumerate(backward) if m.bytes.get("activations", 0) > held), default=past - 1) + 1
    return {
        "start": at["start"][-1:],
        "forward": forward[:first],
        "loss, forward": forward[first:],
        "loss, backward": backward[:past],
        "backward": backward[past : max(past, last)],
        "backward, end": backward[max(past, last) :],
        "update": at["update"],
        "end": at["end"],
    }


def _edges(traces: Sequence[Trace]) -> dict[str, tuple[float, float]]:
    """Where each stretch lies that any of the traces has."""
    edges, x = {}, 0.0
    found = [stretches(trace) for trace in traces]
    for name, width in STRETCHES.items():
        if any(of[name] for of in found):
            edges[name] = (x, x + width)
            x += width
    return edges


def path(trace: Trace, edges: Mapping[str, tuple[float, float]], formula: bool) -> list[tuple[float, Moment]]:
    """The corners of a trace's outline: its moments share each stretch evenly and each lasts until the next.

    The formula's forward pass is known after 0, 1, … all blocks, and is drawn straight from one to the next.
    """
    corners: list[tuple[float, Moment]] = []
    for name, moments in stretches(trace).items():
        if name not in edges:
            continue
        (begin, end), count = edges[name], len(moments)
        if formula and name == "forward" and count > 1:
            corners += [(begin + (end - begin) * i / (count - 1), moment) for i, moment in enumerate(moments)]
            continue
        for i, moment in enumerate(moments):
            corners += [(begin + (end - begin) * (i + j) / count, moment) for j in (0, 1)]
        if not moments and corners and name != "end":
            corners.append((end, corners[-1][1]))  # nothing changes here
    return corners


def timeline_figure(predicted: Trace, traced: Trace | None = None, followed: Trace | None = None) -> Figure:
    """Bytes through one step: the formula as stacked areas by category, the traced sum as a line over them.

    Args:
        predicted: from `labkit.ledger.predict.predict`.
        traced: of the same case, from `labkit.memory.step.trace` or `follow`.
        followed: the same step on real tensors, from `follow`.
    """
    import matplotlib.pyplot as plt

    seen = [trace for trace in (predicted, traced, followed) if trace]
    edges = _edges(seen)
    tops = [trace.peak.total for trace in seen]
    size, unit = unit_of(max(tops))
    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    outline = path(predicted, edges, formula=True)
    names = visible(predicted.moments)
    heights = [[moment.bytes.get(name, 0) / size for _, moment in outline] for name in names]
    xs, colours = [x for x, _ in outline], [COLOURS[name] for name in names]
    ax.stackplot(xs, heights, labels=[called(n) for n in names], colors=colours, edgecolor="white", linewidth=0.4)
    for trace, label, style in ((traced, "sum, traced", ("-", 1.1)), (followed, "sum, real tensors", (":", 2.6))):
        if trace:
            line = path(trace, edges, formula=False)
            ys, (dash, width) = [moment.total / size for _, moment in line], style
            ax.plot([x for x, _ in line], ys, color=PALETTE["black"], linestyle=dash, linewidth=width, label=label)
    _peak_mark(ax, outline, size)
    _phases(ax, edges)
    ax.set(ylabel=f"memory ({unit})", ylim=(0, 1.2 * max(tops) / size))
    ax.set_title(_timeline_title(predicted, traced, followed))
    legend_below(fig, ax)
    return fig


def _peak_mark(ax: Axes, outline: Sequence[tuple[float, Moment]], size: int) -> None:
    """A triangle on the formula's peak, with its bytes and its place."""
    peak = max((moment for _, moment in outline), key=lambda moment: moment.total)
    at = [x for x, moment in outline if moment is peak]
    x, y, end = sum(at) / len(at), peak.total / size, outline[-1][0]
    ax.plot([x], [y], "v", color=PALETTE["black"], ms=7, zorder=5)
    side = "right" if x > 0.75 * end else "left" if x < 0.25 * end else "center"
    words = f"peak {amount(peak.total)}, {where(peak)}"
    style: dict[str, Any] = {"ha": side, "fontsize": "small", "fontweight": "bold", "bbox": LABEL_BOX}
    ax.annotate(words, (x, y), (0, 9), textcoords="offset points", **style)


def _phases(ax: Axes, edges: Mapping[str, tuple[float, float]]) -> None:
    """Names of the phases under the axis, and a line where one ends."""
    both = [name for name in ("loss, forward", "loss, backward") if name in edges]
    marks = {name: sum(edges[name]) / 2 for name in ("forward", "backward", "update") if name in edges}
    if both:
        marks["loss"] = (edges[both[0]][0] + edges[both[-1]][1]) / 2
    ax.set_xticks(list(marks.values()), list(marks))
    for begin in {
        edges[name][0] for name in edges if name in ("forward", "loss, forward", "backward", "update", "end")
    }:
        ax.axvline(begin, color=PALETTE["grey"], linewidth=0.8)
    ax.set(xlim=(0, max(end for _, end in edges.values())), xlabel="progress through the step (operations, not time)")
    ax.grid(False, axis="x")


def _timeline_title(predicted: Trace, traced: Trace | None, followed: Trace | None) -> str:
    peak = predicted.peak
    count, name = max((count, name) for name, count in peak.bytes.items())
    share = f"{100 * count / peak.total:.0f} % of it are {called(name)}"
    lines, beside = [f"Peak of {amount(peak.total)} {where(peak)}; {share}"], []
    if traced:
        beside.append(f"traced {amount(traced.peak.total)} ({off(traced.peak.total, peak.total)})")
    if followed:
        beside.append(f"on real tensors {amount(followed.peak.total)} ({off(followed.peak.total, peak.total)})")
    return "\n".join([*lines, ", ".join(beside)]) if beside else lines[0]


def timeline_words(predicted: Trace, traced: Trace | None = None, followed: Trace | None = None) -> str:
    """What stays, the peak with its categories, and what the traces say."""
    start, peak = predicted.moments[0], predicted.peak
    text = (
        f"Stacked areas of memory through one training step, by formula. Before it there are {amount(start.total)}: "
        f"{parts(start)}. The peak, {amount(peak.total)}, comes {where(peak)}: {parts(peak)}."
    )
    for seen, name in ((traced, "The traced sum"), (followed, "The sum over real tensors, dotted,")):
        if seen:
            top = seen.peak
            text += f" {name} peaks {where(top)} with {amount(top.total)} ({off(top.total, peak.total)})."
    return text


def bars_figure(cases: Mapping[str, Case], gpus: Mapping[str, int] = GPUS) -> Figure:
    """The peak of each case as a stacked bar, against the sizes of GPUs.

    A line stands where a GPU's room for tensors ends: its context and the gaps between allocations have been taken off.

    Args:
        cases: by the name under the bar; a line break in it is kept.
        gpus: bytes that tensors may fill, by name.
    """
    import matplotlib.pyplot as plt

    peaks = _peaks(cases)
    most = max(peak.total for peak in peaks.values())
    end = axis_end(most, gpus)
    size, unit = unit_of(end)
    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    for name in visible(peaks.values()):
        heights = [peak.bytes.get(name, 0) / size for peak in peaks.values()]
        below = [_below(peak, name) / size for peak in peaks.values()]
        ax.bar(range(len(peaks)), heights, 0.62, below, color=COLOURS[name], edgecolor="white", label=called(name))
        for x, (height, bottom) in enumerate(zip(heights, below, strict=True)):
            if height > 0.055 * end / size:
                words: dict[str, Any] = {"ha": "center", "va": "center", "color": ink(name), "fontsize": "small"}
                ax.text(x, bottom + height / 2, number(height), **words)
    for x, peak in enumerate(peaks.values()):
        told = f"{amount(peak.total)}\n{_fit(peak, gpus)}"
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": "small", "bbox": LABEL_BOX}
        ax.text(x, peak.total / size + 0.012 * end / size, told, **style)
    gpu_lines(ax, gpus, size, end)
    dashed = "\ndashed: room for tensors" if ax.lines else ""
    ax.set(ylabel=f"memory at the peak ({unit}){dashed}", ylim=(0, 1.06 * max(end, 1.1 * most) / size))
    ax.set_xticks(range(len(peaks)), list(peaks), fontsize="small")
    ax.grid(False, axis="x")
    ax.set_axisbelow(True)
    ax.set_title(_bars_title(peaks, gpus))
    legend_below(fig, ax)
    return fig


def _peaks(cases: Mapping[str, Case]) -> dict[str, Moment]:
    if not cases:
        raise LabError("There are no cases to draw.", "Give at least one.")
    return {name: predict(case).peak for name, case in cases.items()}


def _below(peak: Moment, category: str) -> int:
    """Bytes of the categories that are stacked below one."""
    order = list(COLOURS)
    return sum(peak.bytes.get(name, 0) for name in order[: order.index(category)])


def _fit(peak: Moment, gpus: Mapping[str, int]) -> str:
    name = holder(peak.total, gpus)
    return f"fits {name}" if name else "fits none"


def _bars_title(peaks: Mapping[str, Moment], gpus: Mapping[str, int]) -> str:
    """The span of the peaks, and for each GPU that holds more than a smaller one the largest that it holds."""
    order = sorted(peaks, key=lambda name: peaks[name].total)
    if len(order) == 1:
        return f"The peak is {amount(peaks[order[0]].total)} ({_flat(order[0])})"
    (least, low), (most, high) = ((_flat(n), peaks[n].total) for n in (order[0], order[-1]))
    first = f"{most} needs {number(high / low)} times the memory of {least}"
    told, before = [], ""
    for gpu in sorted(gpus, key=lambda name: gpus[name]):
        held = [name for name in order if peaks[name].total <= gpus[gpu]]
        if held and held[-1] != before:
            before = held[-1]
            told.append(f"{gpu}: {_flat(before)}")
    return f"{first}\nLargest to fit {'; '.join(told) or 'is none'}"


def _flat(name: str) -> str:
    return " ".join(name.split())


def bars_words(cases: Mapping[str, Case], gpus: Mapping[str, int] = GPUS) -> str:
    """Each case's peak, its categories and the smallest GPU that holds it."""
    told = [f"{_flat(n)}: {amount(p.total)} ({parts(p)}), {_fit(p, gpus)}" for n, p in _peaks(cases).items()]
    return f"Stacked bars of predicted peak memory with lines for {', '.join(gpus)}. {'; '.join(told)}."
