"""Figure of lesson 06: when buckets of gradients leave, and what of the network's time the backward pass hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.parallel.reducer_watch import Watched
from labkit.show.anatomy_style import MIB, number
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def buckets_figure(ways: Mapping[str, Watched]) -> Figure:
    """A panel for each way to send: the backward pass as a bar, and below it the averages, from begin to end."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(ways), 1, figsize=(7.2, 0.4 + 1.5 * len(ways)), sharex=True, squeeze=False)
    for ax, (name, watched) in zip(axes[:, 0], ways.items(), strict=True):
        _panel(ax, watched)
        ax.set_title(_title(name, watched))
    last = max(_end(watched) for watched in ways.values())
    axes[-1, 0].set(xlabel="time since the backward pass began (ms)", xlim=(0, 1.02 * last))
    return fig


def _panel(ax: Axes, watched: Watched) -> None:
    ax.broken_barh([(0, watched.backward_ms)], (-0.4, 0.8), facecolors=PALETTE["orange"])
    for row, one in enumerate(watched.sent):
        # An average waits behind the one before it: what is drawn solid is its own time.
        free = max(one.begun, watched.sent[row - 1].done if row else 0.0)
        lane = 1 + row % 2 * 0.9
        ax.broken_barh([(one.begun, free - one.begun)], (lane + 0.35, 0.1), facecolors=PALETTE["grey"])
        ax.broken_barh([(free, one.done - free)], (lane, 0.8), facecolors=PALETTE["blue"], edgecolor="white")
    ax.axvline(watched.backward_ms, color=PALETTE["black"], linestyle="--", linewidth=1)
    ax.set_yticks([0, 1.85], ["backward", "averages"], fontsize="small")
    ax.set_ylim(2.9, -0.6)
    ax.grid(False, axis="y")


def _end(watched: Watched) -> float:
    return max([watched.backward_ms, *(one.done for one in watched.sent)])


def _title(name: str, watched: Watched) -> str:
    told = f"{name}: {watched.early} of {len(watched.sent)} begin in the backward pass"
    return f"{told}; {number(watched.exposed_ms)} ms are exposed"


def buckets_words(ways: Mapping[str, Watched]) -> str:
    """Each panel's title, the times, and what is sent."""
    told = []
    for name, watched in ways.items():
        size = sum(one.bytes for one in watched.sent) / MIB
        times = f"backward ends at {number(watched.backward_ms)} ms, the last average at {number(_end(watched))} ms"
        told.append(f"{_title(name, watched)}; {times}; {number(size)} MiB are averaged.")
    return "Bars of the backward pass and of averages of gradients over time. " + " ".join(told)
