"""How a class did in a lab: the distribution of scores, and the share of points that each exercise earned."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from labkit.files import write_bytes, write_text
from labkit.show.display import figure_html, html_table
from labkit.show.style import PALETTE, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 10
Shares = Mapping[str, Sequence[float]]  # exercise -> share of its points that each student earned


def grades_figure(scores: Sequence[float], most: float, shares: Shares) -> Figure:
    """A histogram of scores (points) beside bars of each exercise's mean share of points (percent)."""
    import matplotlib.pyplot as plt

    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, max(3.4, 1.4 + 0.4 * len(shares))))
    edges = [most * i / _BINS for i in range(_BINS + 1)]
    left.hist([min(score, most) for score in scores], bins=edges, color=PALETTE["blue"], edgecolor="white")
    left.axvline(median(scores), color=PALETTE["black"], linestyle="-", linewidth=1)
    left.set(xlabel=f"score (points of {most:g})", ylabel="students", xlim=(0, most))
    left.yaxis.get_major_locator().set_params(integer=True)
    left.set_title(_half(scores))
    percent = {name: 100 * mean(values) for name, values in shares.items() if values}
    colours = [PALETTE["orange" if _hardest(shares).endswith(f": {name}") else "sky"] for name in percent]
    right.barh(list(percent), list(percent.values()), color=colours)
    for place, value in enumerate(percent.values()):
        right.text(value, place, f" {value:.0f} %", va="center", fontsize="small")
    right.set(xlabel="share of the points that was earned (%)", xlim=(0, 115))
    right.invert_yaxis()
    right.grid(False, axis="y")
    right.set_title(_hardest(shares))
    return fig


def grades_words(scores: Sequence[float], most: float, shares: Shares) -> str:
    """What the figure shows, for who cannot see it."""
    each = "; ".join(f"{name} {100 * mean(values):.0f} %" for name, values in shares.items() if values)
    return (
        f"Left, a histogram of {len(scores)} scores out of {most:g} points: lowest {min(scores):g}, median "
        f"{median(scores):g}, mean {mean(scores):.3g}, highest {max(scores):g}. Right, bars of the mean share of "
        f"points by exercise: {each}."
    )


def _half(scores: Sequence[float]) -> str:
    return f"Half of {len(scores)} have {median(scores):g} points or more"


def _hardest(shares: Shares) -> str:
    # One that a person has marked for a few only says nothing of the class.
    most = max(map(len, shares.values()), default=0)
    means = {name: mean(values) for name, values in shares.items() if values and len(values) == most}
    if not means:
        return "Nothing is marked yet"
    name = min(means, key=lambda key: means[key])
    return f"Hardest: {name}" if min(means.values()) < max(means.values()) else "All exercises did equally well"


def summary(
    folder: Path, title: str, scores: Sequence[float], most: float, shares: Shares, facts: Sequence[str] = ()
) -> list[Path]:
    """Write summary.svg, summary.png and summary.html (figure, table, `facts` a line each) to a folder.

    Args:
        scores: of those who have one, in points; not empty.
        most: points that could be earned.

    Returns:
        the paths.
    """
    import io

    pictures = []
    fig = grades_figure(scores, most, shares)
    for form in ("svg", "png"):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=form, dpi=110)
        pictures.append(write_bytes(folder / f"summary.{form}", buffer.getvalue()))
    image = figure_html(fig, grades_words(scores, most, shares))
    body = [[name, *_numbers(values)] for name, values in shares.items()]
    heads = ["exercise", "marked", "mean share", "all points", "no points"]
    table = html_table(heads, body, [False, True, True, True, True], "Each exercise, over the students marked")
    said = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body { font-family: sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; } "
        "img { max-width: 100%; height: auto; }</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{said}{image}{table}</body></html>\n"
    )
    return [*pictures, write_text(folder / "summary.html", page)]


def _numbers(values: Sequence[float]) -> list[str]:
    if not values:
        return ["0", "–", "–", "–"]
    whole, none = (sum(test(value) for value in values) for test in (lambda v: v >= 1, lambda v: v <= 0))
    return [str(len(values)), f"{100 * mean(values):.0f} %", str(whole), str(none)]
