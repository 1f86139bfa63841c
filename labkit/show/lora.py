"""Figures of lesson 10: directions that suffice, how fast an update's singular values fall, and operations.

Whatever is drawn here was trained or computed in the lesson. Bytes are in `lora_bytes`, the recorded tables' figures in
`lora_tables`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.show.lora_runs import standard_error
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.9


def dimensions_figure(rows: Sequence[dict[str, Any]], before: float, full: float, count: int) -> Figure:
    """Accuracy after training in random subspaces, against their dimension: single marks, since nothing between ran.

    Args:
        rows: of dimensions and accuracy (a share).
        before, full: accuracy without training, and of full fine-tuning.
        count: test sentences, for the standard errors.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    ordered = sorted(rows, key=lambda row: row["dimensions"])
    where, accuracy = [row["dimensions"] for row in ordered], [100 * row["accuracy"] for row in ordered]
    errors = [100 * standard_error(row["accuracy"], count) for row in ordered]
    ax.errorbar(where, accuracy, errors, fmt="o", color=PALETTE["blue"], capsize=4, label="random subspace, ± 1 s.e.")
    lines = {"full fine-tuning": (full, "black", "-"), f"{SHARE:.0%} of its gain": (bar(before, full), "red", "--")}
    for name, (value, colour, dash) in {**lines, "without training": (before, "grey", ":")}.items():
        ax.axhline(100 * value, color=PALETTE[colour], linestyle=dash, linewidth=1, label=name)
    ax.set(xscale="log", xlabel="dimensions d", ylabel="accuracy (%)", xlim=(where[0] / 4, where[-1] * 4))
    ax.set_xticks(where, [f"{d:,}" for d in where])
    ax.minorticks_off()
    ax.set_title(_enough(ordered, before, full))
    fig.legend(loc="outside lower center", ncols=2, fontsize="small")
    return fig


def bar(before: float, full: float) -> float:
    """The accuracy at which `SHARE` of full fine-tuning's gain is reached."""
    return before + SHARE * (full - before)


def _enough(ordered: Sequence[dict[str, Any]], before: float, full: float) -> str:
    found = reaching(ordered, before, full)
    if found is not None:
        return f"{found:,} random directions reach {SHARE:.0%} of full fine-tuning's gain"
    if full <= before:
        return "Full fine-tuning has gained nothing here: nothing to reach"
    best = max(row["accuracy"] for row in ordered)
    return f"None of these subspaces reaches {SHARE:.0%} of the gain; the best has {gained(best, before, full):.0%}"


def gained(accuracy: float, before: float, full: float) -> float:
    """Share of full fine-tuning's gain over the untrained model; nan where it gained nothing."""
    return (accuracy - before) / (full - before) if full > before else math.nan


def reaching(rows: Sequence[dict[str, Any]], before: float, full: float) -> int | None:
    """The smallest dimension among `rows` with `SHARE` of full fine-tuning's gain; None where none has."""
    if full <= before:
        return None
    return min((r["dimensions"] for r in rows if r["accuracy"] >= bar(before, full)), default=None)


def dimensions_words(rows: Sequence[dict[str, Any]], before: float, full: float, count: int) -> str:
    """The finding and every point."""
    ordered = sorted(rows, key=lambda row: row["dimensions"])
    points = ", ".join(
        f"d = {row['dimensions']:,}: {100 * row['accuracy']:.1f} ± {100 * standard_error(row['accuracy'], count):.1f} %"
        f", {gained(row['accuracy'], before, full):.0%} of the gain"
        for row in ordered
    )
    ends = f"Without training {100 * before:.1f} %, full fine-tuning {100 * full:.1f} %."
    return f"Marks of accuracy over the dimension of a subspace. {_enough(ordered, before, full)}. {points}. {ends}"


def singular_values(update: Float[Tensor, "out in"]) -> Float[Tensor, " n"]:
    """Singular values, the largest first, on the CPU.

    Raises:
        LabError: for an update that is zero, which has no direction.
    """
    values = torch.linalg.svdvals(update.detach().float().cpu())
    if not values[0] > 0:
        raise LabError("This update is zero.", "Take the difference of the weights after training and before.")
    return values


def kept(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Share of the sum of squares that the first 1, 2, … singular values hold: what a matrix of that rank can keep."""
    squares = values.double().square()
    return (squares.cumsum(0) / squares.sum()).float()


def rank_for(values: Float[Tensor, " n"], share: float = SHARE) -> int:
    """The least rank that keeps `share` of the sum of squares."""
    return int((kept(values) < share).sum()) + 1


def spectra_figure(
    spectra: Mapping[str, Float[Tensor, " n"]],
    controls: Mapping[str, Float[Tensor, " n"]],
    share: float = SHARE,
) -> Figure:
    """How much of each matrix's update a matrix of lower rank keeps.

    Args:
        spectra: singular values by name.
        controls: the same of random matrices, in grey, each marked with its name's last word.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.8))
    styles, greys = iter(zip(CYCLE * 2, DASHES * 2, strict=False)), itertools.cycle((":", "-.", "--"))
    for name, values in {**spectra, **controls}.items():
        colour, dash = (PALETTE["grey"], next(greys)) if name in controls else next(styles)
        label = f"{name}: rank {rank_for(values, share)} of {len(values)}"
        ranks = range(1, len(values) + 1)
        ax.plot(ranks, (100 * kept(values)).tolist(), color=colour, linestyle=dash, label=label)
        if name in controls:  # in the lower right, where they lie apart
            place, word = rank_for(values, 0.25), name.split()[-1]
            ax.text(place, 25, word, ha="center", va="center", fontsize="small", backgroundcolor="white")
    ax.axhline(100 * share, color=PALETTE["grey"], linewidth=1)
    ax.set(xscale="log", xlabel="rank", ylabel="of the squared update (%)", ylim=(0, 103))
    ax.set_title(_ranks(spectra, controls, share))
    fig.legend(loc="outside lower center", ncols=2, fontsize="small", title=f"rank that keeps {share:.0%}")
    return fig


def _span(spectra: Mapping[str, Tensor], share: float) -> str:
    ranks = [rank_for(values, share) for values in spectra.values()]
    return f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"ranks {min(ranks)} to {max(ranks)}"


def _ranks(spectra: Mapping[str, Tensor], controls: Mapping[str, Tensor], share: float) -> str:
    return f"{share:.0%} of an update's squares need {_span(spectra, share)}; of noise, {_span(controls, share)}"


def spectra_words(spectra: Mapping[str, Tensor], controls: Mapping[str, Tensor], share: float = SHARE) -> str:
    """The finding, and what rank 8 keeps of each."""
    said = []
    for name, values in {**spectra, **controls}.items():
        first = min(8, len(values))
        said.append(
            f"{name}: rank {first} keeps {kept(values)[first - 1]:.0%}, {share:.0%} need rank "
            f"{rank_for(values, share)} of {len(values)}"
        )
    return f"Lines of what a lower rank keeps of an update. {_ranks(spectra, controls, share)}. {'; '.join(said)}."


def flops_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Operations of forward and backward as stacked bars.

    Args:
        rows: of method, flops_forward and flops_backward, full fine-tuning first; of model, where it is to be named.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 1.2 + 0.5 * len(rows)))
    names = [row["method"] for row in rows]
    size, unit = _scaled(max(row["flops_forward"] + row["flops_backward"] for row in rows))
    left = [0.0] * len(rows)
    for part, colour in (("forward", "sky"), ("backward", "blue")):
        widths = [row[f"flops_{part}"] / size for row in rows]
        ax.barh(names, widths, left=left, color=PALETTE[colour], edgecolor="white", label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set(xlabel=f"operations of a step ({unit})")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_title(_operations(rows))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    return fig


def _scaled(most: float) -> tuple[float, str]:
    size = next(size for size in (1e12, 1e9, 1e6, 1.0) if most >= size or size == 1.0)
    return size, {1e12: "10¹²", 1e9: "10⁹", 1e6: "10⁶", 1.0: "1"}[size]


def _operations(rows: Sequence[dict[str, Any]]) -> str:
    whole = {row["method"]: row["flops_forward"] + row["flops_backward"] for row in rows}
    first, *others = whole
    shares = ", ".join(f"{name} {whole[name] / whole[first]:.0%}" for name in others)
    begin = f"{rows[0]['model']}, of" if rows[0].get("model") else "Of"
    return f"{begin} full fine-tuning's operations: {shares}"


def flops_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all numbers."""
    said = "; ".join(
        f"{row['method']}: forward {row['flops_forward']:,}, backward {row['flops_backward']:,}" for row in rows
    )
    return f"Stacked bars of operations. {_operations(rows)}. {said}."
