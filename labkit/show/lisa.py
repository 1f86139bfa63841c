"""Figures of lesson 13: what training moves, descent by blocks, bytes over switches, what a sleeping bottom saves,
how long a projection lasts, and the recorded table. Each returns a matplotlib Figure or the words that describe it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, blocks_of
from labkit.layerwise.galore import directions, projected
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@torch.no_grad()
def changes(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """By block, the root mean square of what its weights moved; both models without adapters."""
    pairs = zip(blocks_of(before).items(), blocks_of(after).values(), strict=True)
    found = {}
    for (name, old), new in pairs:
        squares = sum(float((a.cpu() - b.cpu()).double().square().sum()) for a, b in zip(old, new, strict=True))
        found[name] = (squares / sum(p.numel() for p in old)) ** 0.5
    return found


def changes_figure(moved: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel a method, a bar a block: how far a weight of it moved."""
    import matplotlib.pyplot as plt

    _some(moved)
    fig, axes = plt.subplots(1, len(moved), figsize=(8.2, 3.0), squeeze=False)
    for axis, (method, blocks), colour in zip(axes[0], moved.items(), CYCLE, strict=False):
        axis.bar(range(len(blocks)), [1e4 * value for value in blocks.values()], color=colour)
        axis.set_xticks(range(len(blocks)), [_short(name) for name in blocks], fontsize="small")
        axis.set(xlabel="layer")
        axis.set_title(f"{method}\n{_spread(blocks)}", fontsize="small", fontweight="normal")
    axes[0][0].set_ylabel("root mean square change (10⁻⁴)")
    fig.suptitle(changes_finding(moved), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def changes_finding(moved: Mapping[str, Mapping[str, float]]) -> str:
    """Which block each method moves the most."""
    told = [f"{method}: {_named(max(blocks, key=lambda b: blocks[b]))}" for method, blocks in moved.items()]
    return f"Moved the most, weight by weight:\n{'; '.join(told)}"


def changes_words(moved: Mapping[str, Mapping[str, float]]) -> str:
    """The bars in words."""
    told = "; ".join(
        f"{method}: " + ", ".join(f"{_named(b)} {1e4 * v:.2f}" for b, v in blocks.items())
        for method, blocks in moved.items()
    )
    finding = changes_finding(moved).replace("\n", " ")
    return f"Bars of the root mean square change of a block's weights, in 10⁻⁴. {finding}. {told}."


def _spread(blocks: Mapping[str, float]) -> str:
    values = [value for name, value in blocks.items() if name != OUTSIDE]
    return f"layers within ×{max(values) / min(values):.1f}" if min(values) else "some layers stand still"


def _short(block: str) -> str:
    return "out" if block == OUTSIDE else block


def _named(block: str) -> str:
    return "what lies outside" if block == OUTSIDE else f"layer {block}"


def descent_figure(
    quadratic: Any, paths: Mapping[str, Sequence[Float[Tensor, " d"]]], orders: Mapping[str, Sequence[float]]
) -> Figure:
    """Left: paths on a quadratic of two values. Right: how fast f falls on a larger one, order by order."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    reach = 1.15 * max(float(x.abs().max()) for path in paths.values() for x in path)
    line = torch.linspace(-reach, reach, 81)
    heights = torch.tensor([[quadratic.value(torch.stack((a, b))) for a in line] for b in line])
    levels = [share * float(heights.max()) for share in (0.003, 0.01, 0.03, 0.08, 0.16, 0.3, 0.5, 0.75)]
    left.contour(line, line, heights, levels=levels, colors=PALETTE["grey"], linewidths=0.6)
    for (name, path), colour, mark in zip(paths.items(), ("blue", "red"), MARKS, strict=False):
        left.plot(*zip(*(x.tolist() for x in path), strict=True), f"{mark}-", color=PALETTE[colour], label=name, ms=4)
    left.set(xlabel="first value", ylabel="second value", aspect="equal")
    left.legend(fontsize="small", loc="lower left")
    for (name, values), colour, dash in zip(orders.items(), CYCLE, DASHES, strict=False):
        right.semilogy(range(len(values)), values, color=colour, linestyle=dash, label=name)
    right.set(xlabel="turns (one block each)", ylabel="f above its minimum")
    right.legend(fontsize="small")
    fig.suptitle(descent_finding(orders), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def descent_finding(orders: Mapping[str, Sequence[float]]) -> str:
    """What share of f is left at the end, best and worst order."""
    left = {name: values[-1] / values[0] for name, values in orders.items()}
    best, worst = min(left, key=lambda n: left[n]), max(left, key=lambda n: left[n])
    turns = len(next(iter(orders.values()))) - 1
    return f"After {turns} turns {left[best]:.0e} of f is left ({best}) to {left[worst]:.0e} ({worst})"


def descent_words(orders: Mapping[str, Sequence[float]]) -> str:
    """Both panels in words."""
    ends = "; ".join(f"{name} from {values[0]:.2g} to {values[-1]:.2g}" for name, values in orders.items())
    return (
        "Left, on the ellipses of a quadratic, a path along the axes and one of gradient descent go to the middle. "
        f"Right, f falls in turns. {descent_finding(orders)}. {ends}."
    )


def switches_figure(series: Mapping[str, Sequence[float]], flat: float, full: float, most: float) -> Figure:
    """Bytes of gradients and states on the device after each step, with formulas as lines.

    Args:
        series: MiB by way of treating states.
        flat, full, most: MiB by formula: of what is awake, of full fine-tuning, and with the states of everything and
            the gradients of what is awake.
    """
    import matplotlib.pyplot as plt

    _some(series)
    fig, axis = plt.subplots(figsize=(7.4, 3.4))
    for (name, values), colour, dash, mark in zip(series.items(), CYCLE, DASHES, MARKS, strict=False):
        steps = range(1, len(values) + 1)
        axis.plot(steps, values, color=colour, linestyle=dash, marker=mark, ms=4, label=name)
    lines = ((flat, "12 (Ψ₀ + γψ)", "top"), (most, "8 N + 4 (Ψ₀ + γψ)", "bottom"), (full, "full: 12 N", "bottom"))
    for value, label, side in lines:
        axis.axhline(value, color=PALETTE["grey"], linewidth=1, linestyle=":")
        gap = -4 if side == "top" else 2
        axis.annotate(label, (1.2, value), (0, gap), textcoords="offset points", va=side, fontsize="small")
    axis.set(xlabel="step, layers drawn anew in each", ylabel="gradients and states (MiB)", ylim=(0, 1.12 * full))
    axis.legend(fontsize="small", loc="lower left")
    axis.set_title(switches_finding(series))
    return fig


def switches_finding(series: Mapping[str, Sequence[float]]) -> str:
    """How each series grew, the one that grew the most first."""
    grown = sorted(((v[-1] / v[0], n) for n, v in series.items()), key=lambda pair: -pair[0])
    (most, name), *others = [(f"×{growth:.2f}", name) for growth, name in grown]
    return f"States {name} grow {most} in {len(series[name])} steps" + "".join(f"; {n} {g}" for g, n in others)


def switches_words(series: Mapping[str, Sequence[float]], flat: float, full: float, most: float) -> str:
    """The lines in words."""
    told = "; ".join(f"{n} from {v[0]:.1f} to {v[-1]:.1f} MiB" for n, v in series.items())
    formulas = f"by formula {flat:.1f}, with all states {most:.1f}, full {full:.1f}"
    return f"Lines of bytes over steps. {switches_finding(series)}. {told}; {formulas}."


def bottom_figure(rows: Sequence[Mapping[str, Any]], full: Mapping[str, float]) -> Figure:
    """What is kept for backward and how many operations backward has, by the one layer that is awake.

    Args:
        rows: with `awake` (a layer's number), `beside` (what else is awake, in words), `mib` and `gflop`; those with
            the least beside come last.
        full: `mib` and `gflop` with everything awake.
    """
    import matplotlib.pyplot as plt

    _some(rows)
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for axis, column, label in zip(axes, ("mib", "gflop"), ("kept (MiB)", "backward (10⁹ operations)"), strict=True):
        axis.axhline(full[column], color=PALETTE["grey"], linestyle=":", label="everything")
        for beside, colour, mark, dash in zip(_besides(rows), CYCLE, MARKS, DASHES, strict=False):
            own = [row for row in rows if row["beside"] == beside]
            x, y = [row["awake"] for row in own], [row[column] for row in own]
            axis.plot(
                x,
                y,
                marker=mark,
                color=colour,
                label="layer by itself" if beside == "nothing" else f"layer, {beside}",
                linestyle=dash,
                ms=4,
            )
        axis.set(xlabel="the one layer that is awake", ylabel=label)
        axis.set_ylim(0, 1.1 * full[column])
    axes[0].legend(fontsize="x-small", loc="lower left")
    fig.suptitle(bottom_finding(rows, full), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _besides(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["beside"] for row in rows))


def bottom_finding(rows: Sequence[Mapping[str, Any]], full: Mapping[str, float]) -> str:
    """What is kept of what everything keeps: with all outside, and by the lowest and the highest layer alone."""
    first, *_, last = _besides(rows)
    flat, alone = ([row["mib"] / full["mib"] for row in rows if row["beside"] == name] for name in (first, last))
    return f"Kept of what everything keeps: {max(flat):.0%} with {first}, {alone[0]:.0%} to {alone[-1]:.0%} without"


def bottom_words(rows: Sequence[Mapping[str, Any]], full: Mapping[str, float]) -> str:
    """Both panels in words."""
    told = "; ".join(
        f"layer {r['awake']} and {r['beside']}: {r['mib']:.1f} MiB, {r['gflop']:.2f} · 10⁹ operations" for r in rows
    )
    whole = f"everything: {full['mib']:.1f} MiB, {full['gflop']:.2f} · 10⁹"
    return f"Lines over the layer that is awake. {bottom_finding(rows, full)}. {told}; {whole}."


def kept_by(basis_of: Float[Tensor, "m n"], gradient: Float[Tensor, "m n"], rank: int) -> float:
    """Share of a gradient's squares that lies in the first `rank` directions of another one (or its own)."""
    low = projected(gradient, directions(basis_of, rank))
    return float(low.double().square().sum() / gradient.double().square().sum())


def stale_figure(rows: Sequence[Mapping[str, Any]], rank: int) -> Figure:
    """Over the steps since a projection was made: what it keeps of the gradient, and what a new one would.

    Args:
        rows: with `matrix`, `step`, `own` and `old` (shares).
    """
    import matplotlib.pyplot as plt

    _some(rows)
    names = list(dict.fromkeys(row["matrix"] for row in rows))
    fig, axes = plt.subplots(1, len(names), figsize=(8.4, 3.0), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["matrix"] == name]
        steps = [row["step"] for row in own]
        axis.plot(steps, [100 * row["own"] for row in own], "o-", color=PALETTE["blue"], label="made anew")
        axis.plot(steps, [100 * row["old"] for row in own], "s--", color=PALETTE["orange"], label="made at step 0")
        axis.set(xlabel="step", ylim=(0, 103))
        axis.set_title(name, fontsize="small", fontweight="normal")
    axes[0][0].set_ylabel(f"squares kept by rank {rank} (%)")
    axes[0][-1].legend(fontsize="small")
    fig.suptitle(stale_finding(rows, rank), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def stale_finding(rows: Sequence[Mapping[str, Any]], rank: int) -> str:
    """Least and most that the old projection keeps of later gradients."""
    first = min(row["step"] for row in rows)
    old, own = ([row[name] for row in rows if row["step"] > first] for name in ("old", "own"))
    spans = [f"{min(v):.0%} to {max(v):.0%}" for v in (own, old)]
    return f"Of later gradients a new rank {rank} keeps {spans[0]}, the old one {spans[1]}"


def stale_words(rows: Sequence[Mapping[str, Any]], rank: int) -> str:
    """The lines in words."""
    told = "; ".join(f"{r['matrix']}, step {r['step']}: new {r['own']:.0%}, old {r['old']:.0%}" for r in rows)
    return f"Lines of the share of a gradient's squares that a projection keeps. {stale_finding(rows, rank)}. {told}."


def _some(rows: Any) -> None:
    if not rows:
        raise LabError("There is nothing to draw.", "Give at least one row.")
