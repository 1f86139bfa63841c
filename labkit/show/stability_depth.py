"""Figures of lesson 03 on deep stacks: gradients by layer, what is left of the input, which setting learns.

Figure functions return a matplotlib Figure for `labkit.show.figure`; titles are computed from what they draw. What is
known of every layer comes as a list of seeds for each normalization, each a list of layers: a thin line a seed, and
ratios in titles are medians over the seeds. The attention of the lesson is in `labkit.show.stability`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labkit.numerics.depth import DepthRun

# One colour, one dash and one mark for each normalization in every figure of the lesson.
NORM_STYLES: dict[str, tuple[str, Any, str]] = {
    "pre-ln": (PALETTE["blue"], "-", "o"),
    "post-ln": (PALETTE["red"], "--", "s"),
    "deepnorm": (PALETTE["green"], "-.", "D"),
    "deepnorm-glm": (PALETTE["purple"], ":", "^"),
}
BySeed = Sequence[Sequence[float]]


def _lines(ax: Axes, norm: str, places: Sequence[int], seeds: BySeed) -> None:
    """A thin line for each seed; only the first has a label."""
    colour, dash, _ = NORM_STYLES[norm]
    for number, values in enumerate(seeds):
        label = norm if number == 0 else f"_{norm}"  # matplotlib leaves names with an underscore out of a legend
        ax.plot(places, values, color=colour, linestyle=dash, linewidth=1.3, label=label)


def profile_figure(profiles: Mapping[str, BySeed], when: str = "before training") -> Figure:
    """Gradient norm by layer on a logarithmic axis."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for norm, seeds in profiles.items():
        _lines(ax, norm, range(1, len(seeds[0]) + 1), seeds)
    ax.set(yscale="log", xlabel="layer (1 is next to the input)", ylabel="gradient norm")
    ax.set_title(_two_lines(profile_words(profiles, when)))
    ax.legend()
    return fig


def profile_words(profiles: Mapping[str, BySeed], when: str = "before training") -> str:
    """First against last layer, one clause a normalization."""
    layers = len(next(iter(profiles.values()))[0])
    ratios = ", ".join(f"{norm} {_times(_ratio(seeds))}" for norm, seeds in profiles.items())
    return f"{layers} layers, {when}, first layer's gradient over the last's: {ratios}"


def _ratio(seeds: BySeed) -> float:
    return statistics.median(values[0] / values[-1] for values in seeds)


def ratio_figure(profiles: Mapping[int, Mapping[str, BySeed]]) -> Figure:
    """First layer's gradient over the last layer's against depth: a mark a seed, a line through the medians."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    depths = sorted(profiles)
    for norm in profiles[depths[-1]]:
        colour, dash, mark = NORM_STYLES[norm]
        ax.plot(depths, [_ratio(profiles[n][norm]) for n in depths], color=colour, linestyle=dash, label=norm)
        for n in depths:
            ratios = [values[0] / values[-1] for values in profiles[n][norm]]
            ax.scatter([n] * len(ratios), ratios, color=colour, marker=mark, s=16)
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, [str(layers) for layers in depths])
    ax.set(yscale="log", xlabel="layers", ylabel="first layer's gradient / last's")
    ax.set_title(_two_lines(ratio_words(profiles)))
    ax.legend()
    return fig


def ratio_words(profiles: Mapping[int, Mapping[str, BySeed]]) -> str:
    """Between which ratios the seeds lie at the greatest depth."""
    deepest = max(profiles)
    parts = []
    for norm, seeds in profiles[deepest].items():
        ratios = sorted(values[0] / values[-1] for values in seeds)
        parts.append(f"{norm} {_times(ratios[0])} to {_times(ratios[-1])}")
    return f"{deepest} layers, before training, first layer's gradient over the last's, by seed: {', '.join(parts)}"


def spread_figure(spreads: Mapping[str, BySeed], when: str) -> Figure:
    """Share of the stream that differs between places, from the input (0) through the layers."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    for norm, seeds in spreads.items():
        _lines(ax, norm, range(len(seeds[0])), seeds)
    ax.set(yscale="log", xlabel="layer (0 is the input)", ylabel="share that differs")
    ends = ", ".join(f"{n} {_times(statistics.median(values[-1] for values in s))}" for n, s in spreads.items())
    ax.set_title(f"{when[:1].upper()}{when[1:]}, share that differs between places at the end:\n{ends}")
    ax.legend()
    return fig


def _two_lines(words: str) -> str:
    """What is told, and its numbers below."""
    told, numbers = words.rsplit(": ", 1)
    return f"{told}:\n{numbers}"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if 0.01 <= ratio < 1000 else f"{ratio:.0e}"


def loss_figure(runs: Sequence[DepthRun], bar: float, window: int = 5) -> Figure:
    """Loss by step, a mean over `window` steps, one line a run, and the bar."""
    import matplotlib.pyplot as plt

    from labkit.show.plots import smoothed

    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    norms = dict.fromkeys(run.config.norm for run in runs)
    for norm in norms:
        curves = [smoothed(run.losses, window) for run in runs if run.config.norm == norm]
        _lines(ax, norm, range(1, len(curves[0]) + 1), curves)
    ax.axhline(bar, color=PALETTE["grey"], linewidth=1)
    ax.text(1, bar, "letter frequencies alone", va="top", fontsize="small")  # where all losses are far above
    ax.set(xlabel="step", ylabel=f"loss (nats a byte), mean of {window} steps")
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.learning_rate for run in runs}))
    ax.set_title(f"{runs[0].config.layers} layers, rate {rates}: {verdict_words(runs)}")
    ax.legend()
    return fig


def verdict_words(runs: Sequence[DepthRun]) -> str:
    """How many runs of each normalization learn."""
    parts = []
    for norm in dict.fromkeys(run.config.norm for run in runs):
        fates = [run.outcome for run in runs if run.config.norm == norm]
        parts.append(f"{norm} {fates.count('learns')} of {len(fates)}")
    return f"runs that learn: {', '.join(parts)}"


def outcome_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The recorded depth rows: a panel a depth, a cell a setting with its final loss, coloured by what became of it."""
    import matplotlib.pyplot as plt

    depths = sorted({row["layers"] for row in rows})
    norms = {n: [m for m in NORM_STYLES if any((r["layers"], r["norm"]) == (n, m) for r in rows)] for n in depths}
    settings = sorted({(row["learning_rate"], row["warmup_steps"]) for row in rows})
    heights = [len(norms[layers]) for layers in depths]
    size = (8.8, 0.6 + 0.6 * len(depths) + 0.34 * sum(heights))
    fig, axes = plt.subplots(len(depths), 1, figsize=size, squeeze=False, height_ratios=heights)
    for ax, layers in zip(axes[:, 0], depths, strict=True):
        here = [row for row in rows if row["layers"] == layers]
        for row in here:
            x, y = settings.index((row["learning_rate"], row["warmup_steps"])), norms[layers].index(row["norm"])
            name, colour = fate(row)
            ax.add_patch(plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=PALETTE[colour], alpha=0.35))
            loss = "–" if row["loss"] is None else f"{row['loss']:.2f}"
            ax.text(x, y, f"{name} {loss}", ha="center", va="center", fontsize="small")
        ax.set(xlim=(-0.5, len(settings) - 0.5), ylim=(len(norms[layers]) - 0.5, -0.5))
        ax.set_yticks(range(len(norms[layers])), norms[layers])
        labels = [f"rate {rate:g}\n{f'warm-up {w}' if w else 'no warm-up'}" for rate, w in settings]
        ax.set_xticks(range(len(settings)), labels if layers == depths[-1] else [""] * len(settings))
        ax.grid(visible=False)
        ax.set_title(f"{layers} layers. {_learning(here)}", fontsize="small")
    return fig


def fate(row: Mapping[str, Any]) -> tuple[str, str]:
    """What became of a recorded setting, and its colour; where seeds differ, with how many of them."""
    seeds = row["learns"] + row["stuck"] + row["diverged"]
    for outcome, colour in (("diverged", "red"), ("stuck", "orange")):
        if row[outcome]:
            return _counted(outcome, row[outcome], seeds), colour
    return "learns", "blue"


def _counted(name: str, count: int, seeds: int) -> str:
    return name if count == seeds else f"{count} of {seeds} {name}"


def _learning(rows: Sequence[Mapping[str, Any]]) -> str:
    """Settings in which every seed learned, one clause a normalization."""
    parts = []
    for norm in NORM_STYLES:
        fates = [fate(row)[0] for row in rows if row["norm"] == norm]
        if fates:
            parts.append(f"{norm} {sum(f == 'learns' for f in fates)} of {len(fates)}")
    return f"Settings where all seeds learn: {', '.join(parts)}"


def outcome_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each depth, in how many settings of a normalization every seed learned, and how the others are called."""
    parts = []
    for layers in sorted({row["layers"] for row in rows}):
        here = [row for row in rows if row["layers"] == layers]
        others = sorted({f"{row['norm']} {fate(row)[0]}" for row in here if fate(row)[0] != "learns"})
        parts.append(f"{layers} layers. {_learning(here)}. Others: {', '.join(others) or 'none'}")
    return ". ".join(parts)


def update_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Final loss against the size of the first update: a panel a depth, a mark a setting, hollow if a seed failed."""
    import matplotlib.pyplot as plt

    depths = sorted({row["layers"] for row in rows})
    size = (0.8 + min(2.6 * len(depths), 8.2), 3.7)  # no wider than a page, however many depths
    fig, axes = plt.subplots(1, len(depths), figsize=size, squeeze=False, sharex=True, sharey=True)
    for ax, layers in zip(axes[0], depths, strict=True):
        for row in rows:
            if row["layers"] == layers and row["loss"] is not None:
                colour, _, mark = NORM_STYLES[row["norm"]]
                face = colour if fate(row)[0] == "learns" else "none"
                style = {"edgecolors": colour, "facecolors": face, "marker": mark, "s": 30}
                ax.scatter(row["update"], row["loss"], label=row["norm"], **style)
        ax.axhline(rows[0]["unigram_loss"], color=PALETTE["grey"], linewidth=1)
        ax.set(xscale="log", xlabel="change by the first step")
        ax.set_title(f"{layers} layers", fontsize="small")
    axes[0, 0].set_ylabel("loss at the end (nats a byte)")
    words = axes[0, 0].get_yaxis_transform()  # across the axis, whatever its scale
    axes[0, 0].text(0.02, rows[0]["unigram_loss"], "letter frequencies", transform=words, va="bottom", fontsize="small")
    shown = {row["norm"] for row in rows if row["loss"] is not None}
    ordered = [_mark(*NORM_STYLES[norm][::2], norm) for norm in NORM_STYLES if norm in shown]
    if any(fate(row)[0] != "learns" for row in rows):
        ordered.append(_mark(PALETTE["grey"], "o", "hollow: a seed failed", filled=False))
    fig.legend(handles=ordered, loc="outside lower center", ncols=len(ordered), fontsize="small")
    fig.suptitle(update_words(rows), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _mark(colour: str, mark: str, label: str, filled: bool = True) -> Any:
    """For a legend."""
    import matplotlib.pyplot as plt

    face = colour if filled else "none"
    return plt.Line2D([], [], linestyle="", marker=mark, color=colour, markerfacecolor=face, label=label)


def update_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The smallest first update of a setting in which a seed failed, and the largest where all learned."""
    lost = [row["update"] for row in rows if fate(row)[0] != "learns"]
    fine = [row["update"] for row in rows if fate(row)[0] == "learns"]
    if not lost:
        return f"All seeds learn after a first update of {max(fine):.2g}"
    rest = f", all learn after one of {max(fine):.2g}" if fine else ""
    return f"A seed fails after a first update of {min(lost):.2g}{rest}"
