"""Figures of lesson 14: estimates in a landscape, points on a formula's curve, descents, the recorded table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.show.style import PALETTE
from labkit.zeroth.gradient import Objective, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("blue", "orange", "green", "red", "purple", "sky")
MARKS = ("o", "s", "^", "D", "v", "P")
SHOWN = 40  # arrows; more hide each other
WINDOW = 2.5  # to each side of the point


@dataclass(frozen=True)
class Series:
    """Points that were measured, and what a formula says there.

    Attributes:
        predicted: of the same length, or empty where there is no formula.
        at: where a vertical line marks a place of its own, such as the best τ by formula.
    """

    label: str
    x: Sequence[float]
    measured: Sequence[float]
    predicted: Sequence[float] = field(default_factory=tuple)
    at: float | None = None


def series_figure(
    series: Sequence[Series], xlabel: str, ylabel: str, title: str, yscale: str = "log", xscale: str = "log"
) -> Figure:
    """Measured points as marks, formulas as lines of the same colour; the legend says which is which."""
    import matplotlib.pyplot as plt

    _some(series)
    fig, ax = plt.subplots(figsize=(7.2, 3.9))
    for place, (one, colour, mark) in enumerate(zip(series, COLOURS, MARKS, strict=False)):
        drawn: dict[str, Any] = {"color": PALETTE[colour]}
        line = "none" if len(one.predicted) else "-"
        size = max(4, 9 - 2 * place)  # a later mark on the same place does not hide the earlier
        ax.plot(one.x, one.measured, marker=mark, ls=line, ms=size, label=one.label, **drawn)
        if len(one.predicted):
            alone = "_" if len(one.x) == 1 else ""  # a line through one point would not be seen
            ax.plot(one.x, one.predicted, ls="-", lw=1, marker=alone, ms=16, **drawn)
        if one.at is not None:
            ax.axvline(one.at, ls=":", lw=1.2, **drawn)
    _explained(ax, series)
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    ax.set_title(title)
    ax.legend(fontsize="small")
    return fig


def _explained(ax: Axes, series: Sequence[Series]) -> None:
    """Entries of the legend for the kinds of line that occur."""
    grey = PALETTE["grey"]
    if any(len(one.predicted) for one in series):
        ax.plot([], [], ls="-", lw=1, color=grey, label="line without marks: formula")
    if any(one.at is not None for one in series):
        ax.plot([], [], ls=":", lw=1.2, color=grey, label="dotted: best by formula")


def series_words(series: Sequence[Series], what: str) -> str:
    """Every point, and the formula's value in brackets."""
    _some(series)
    said = []
    for one in series:
        pairs: list[float | None] = [*one.predicted] or [None] * len(one.x)
        points = [
            f"{y:.3g} at {x:.4g}" + (f" (formula {p:.3g})" if p is not None else "")
            for x, y, p in zip(one.x, one.measured, pairs, strict=True)
        ]
        mark = f"; marked at {one.at:.2g}" if one.at is not None else ""
        said.append(f"{one.label}: {', '.join(points)}{mark}")
    return f"{what}. {'; '.join(said)}."


def furthest(series: Sequence[Series]) -> float:
    """The largest distance of a measured point from its formula, as a share of the formula."""
    return max(
        abs(y / p - 1) for one in series for y, p in zip(one.measured, one.predicted, strict=True) if p
    )  # fmt: skip


def growth(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent p of y ~ x^p, from the first point to the last."""
    return math.log(ys[-1] / ys[0]) / math.log(xs[-1] / xs[0])


def listed(vector: Float[Tensor, " d"], sign: str = "+") -> str:
    """Entries to three decimals, with their signs unless `sign` is empty."""
    return ", ".join(format(abs(v) if not sign else v, f"{sign}.3f") for v in vector.tolist())


def estimates(
    f: Objective, x: Float[Tensor, " 2"], tau: float, kind: str, directions: str, n: int, count: int, seed: int = 0
) -> Float[Tensor, "count 2"]:
    """Some estimates of the gradient at a point of the plane."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([estimate(f, x, tau, kind, directions, n, generator) for _ in range(count)])


def landscape_figure(f: Any, x: Float[Tensor, " 2"], found: Float[Tensor, "count 2"], title: str) -> Figure:
    """Contours, and from x the estimates, their mean and the gradient, all as arrows of one scale."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 5.0))
    gradient, mean = f.gradient(x), found.mean(0)
    # A few are so long that the gradient would be a dot beside them, or they would leave the axes.
    reach = float(found.norm(dim=1).quantile(0.9).clamp(min=float(gradient.norm())))
    drawn = found[found.norm(dim=1) <= reach][:SHOWN]
    scale = 0.95 * WINDOW / reach
    first, second = (float(at) + WINDOW * torch.linspace(-1, 1, 81, dtype=x.dtype) for at in x)
    values = [[float(f(torch.stack((a, b)))) for a in first] for b in second]
    ax.contour(first, second, values, levels=14, colors=PALETTE["grey"], linewidths=0.6, linestyles="-")
    arrows: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
    for vector in drawn:
        ax.quiver(*x, *(vector * scale), color=PALETTE["sky"], width=0.004, **arrows)
    ax.quiver(*x, *(gradient * scale), color=PALETTE["black"], width=0.010, label="gradient", **arrows)
    ax.quiver(*x, *(mean * scale), color=PALETTE["red"], width=0.006, label="mean of the estimates", **arrows)
    told = f"{len(drawn)} of {len(found)} estimates, none of the longest tenth"
    ax.plot([], [], ls="-", lw=2, color=PALETTE["sky"], label=told)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", xlim=_ends(first), ylim=_ends(second))
    ax.set_title(title)
    ax.legend(loc="lower left", fontsize="small", frameon=True)
    return fig


def landscape_facts(f: Any, x: Float[Tensor, " 2"], found: Float[Tensor, "count 2"]) -> dict[str, float]:
    """Distance of the mean from the gradient, spread, and the share that points downhill, all relative."""
    gradient = f.gradient(x)
    length = float(gradient.norm())
    return {
        "off": float((found.mean(0) - gradient).norm()) / length,
        "spread": float((found - gradient).square().sum(1).mean().sqrt()) / length,
        "downhill": float((found @ gradient < 0).double().mean()),
    }


def landscape_finding(facts: Mapping[str, float]) -> str:
    """One line: how far estimates are off, alone (root mean square) and in the mean."""
    return f"The rms error is {facts['spread']:.0%} of the gradient, the mean's {facts['off']:.0%}"


def landscape_words(facts: Mapping[str, float], setting: str) -> str:
    """The finding, and where the arrows point."""
    wrong = f"{facts['downhill']:.0%} of them point downhill, away from the gradient"
    return f"Arrows in a plane with contours; {setting}. {landscape_finding(facts)}; {wrong}."


def descents_figure(runs: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, title: str) -> Figure:
    """Lines of (what was spent, what was reached), one a run."""
    import matplotlib.pyplot as plt

    _some(runs)
    fig, ax = plt.subplots(figsize=(7.2, 3.9))
    for name, points in runs.items():
        ax.plot(*zip(*points, strict=True), label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title)
    ax.legend(fontsize="small")
    return fig


def descents_words(runs: Mapping[str, Sequence[tuple[float, float]]], what: str) -> str:
    """Beginning and end of every line."""
    ends = [f"{name} from {p[0][1]:.4g} to {p[-1][1]:.4g} after {p[-1][0]:,.0f}" for name, p in runs.items()]
    return f"{what}. {'; '.join(ends)}."


def _by_dimension(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The table's rows in which d changes."""
    chosen = [row for row in rows if row["sweep"] == "d" and row["variance"] is not None]
    _some(chosen)
    return sorted(chosen, key=lambda row: row["d"])


def recorded_series(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """The table's variance by dimension, for each part and direction."""
    chosen, made = _by_dimension(rows), []
    for part, directions in dict.fromkeys((row["part"], row["directions"]) for row in chosen):
        own = [row for row in chosen if (row["part"], row["directions"]) == (part, directions)]
        xs, ys, ps = ([row[name] for row in own] for name in ("d", "variance", "predicted_variance"))
        made.append(Series(f"{part}, {directions}", xs, ys, ps))
    return made


def recorded_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Up to which d the variance follows the formula, and how far off the furthest point is."""
    chosen = _by_dimension(rows)
    off = max(abs(row["variance"] - row["predicted_variance"]) / row["variance_error"] for row in chosen)
    return f"The variance is d ‖∇f‖² up to d = {chosen[-1]['d']:,}, within {off:.1f} standard errors"


def _ends(grid: Tensor) -> tuple[float, float]:
    return float(grid[0]), float(grid[-1])


def _some(given: Any) -> None:
    if not given:
        raise LabError("There is nothing to draw.", "Record the table with: labkit bench zo-variance.")
