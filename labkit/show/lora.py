"""Figures of lesson 10: directions that suffice, how fast an update's singular values fall, bytes and operations.

Whatever is drawn here was trained or computed in the lesson. The recorded tables' figures are in `lora_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import activations
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.show.style import CYCLE, DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30
SHARE = 0.9
CROSSING = {
    "full: weights, gradients, moments": ("red", "-", "o"),
    "LoRA: the same": ("blue", "--", "s"),
    "full: activations": ("orange", "-.", "^"),
    "LoRA: activations": ("sky", ":", "D"),
}


def dimensions_figure(rows: Sequence[dict[str, Any]], before: float, full: float) -> Figure:
    """Accuracy after training in random subspaces, against their dimension.

    Args:
        rows: of dimensions and accuracy (a share).
        before, full: accuracy without training, and of full fine-tuning.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ordered = sorted(rows, key=lambda row: row["dimensions"])
    where, accuracy = [row["dimensions"] for row in ordered], [100 * row["accuracy"] for row in ordered]
    ax.plot(where, accuracy, "o-", color=PALETTE["blue"], label="random subspace")
    lines = {"full fine-tuning": (full, "black", "-"), "nine tenths of it": (SHARE * full, "red", "--")}
    for name, (value, colour, dash) in {**lines, "without training": (before, "grey", ":")}.items():
        ax.axhline(100 * value, color=PALETTE[colour], linestyle=dash, linewidth=1, label=name)
    ax.set(xscale="log", xlabel="dimensions d", ylabel="accuracy (%)")
    ax.set_title(_enough(ordered, full))
    ax.legend(loc="lower right", fontsize="small")
    return fig


def _enough(ordered: Sequence[dict[str, Any]], full: float) -> str:
    found = reaching(ordered, full)
    if found is None:
        return f"None of these subspaces reaches {SHARE:.0%} of full fine-tuning's accuracy"
    return f"{found:,} random directions reach {SHARE:.0%} of full fine-tuning's accuracy"


def reaching(rows: Sequence[dict[str, Any]], full: float) -> int | None:
    """The smallest dimension among `rows` with `SHARE` of full fine-tuning's accuracy; None where none has."""
    good = [row["dimensions"] for row in rows if row["accuracy"] >= SHARE * full]
    return min(good, default=None)


def dimensions_words(rows: Sequence[dict[str, Any]], before: float, full: float) -> str:
    """The finding and every point."""
    ordered = sorted(rows, key=lambda row: row["dimensions"])
    points = ", ".join(f"d = {row['dimensions']:,}: {100 * row['accuracy']:.1f} %" for row in ordered)
    ends = f"Without training {100 * before:.1f} %, full fine-tuning {100 * full:.1f} %."
    return f"Accuracy over the dimension of a random subspace. {_enough(ordered, full)}. {points}. {ends}"


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


def spectra_figure(spectra: Mapping[str, Float[Tensor, " n"]], share: float = SHARE) -> Figure:
    """How much of each matrix's update a matrix of lower rank keeps.

    Args:
        spectra: singular values by name.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.4))
    for (name, values), colour, dash in zip(spectra.items(), CYCLE * 2, DASHES * 2, strict=False):
        shares = 100 * kept(values)
        label = f"{name}: rank {rank_for(values, share)} of {len(values)}"
        ax.plot(range(1, len(values) + 1), shares.tolist(), color=colour, linestyle=dash, label=label)
    ax.axhline(100 * share, color=PALETTE["grey"], linewidth=1)
    ax.set(xscale="log", xlabel="rank", ylabel="of the squared update (%)", ylim=(0, 103))
    ax.set_title(_ranks(spectra, share))
    fig.legend(loc="outside lower center", ncols=2, fontsize="small")
    return fig


def _ranks(spectra: Mapping[str, Tensor], share: float) -> str:
    ranks = [rank_for(values, share) for values in spectra.values()]
    span = f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"ranks from {min(ranks)} to {max(ranks)}"
    return f"{share:.0%} of the squares need {span}"


def spectra_words(spectra: Mapping[str, Tensor], share: float = SHARE) -> str:
    """The finding, and what rank 8 keeps of each."""
    said = []
    for name, values in spectra.items():
        first = min(8, len(values))
        said.append(
            f"{name}: rank {first} keeps {kept(values)[first - 1]:.0%}, {share:.0%} need rank "
            f"{rank_for(values, share)} of {len(values)}"
        )
    return f"Lines of how much of an update a lower rank keeps. {_ranks(spectra, share)}. {'; '.join(said)}."


def crossing(arch: Architecture, batches: Sequence[int], seq_len: int, weights: str) -> dict[str, list[int]]:
    """Bytes by formula of what stands and of the activations, full and LoRA, for each batch.

    Args:
        weights: dtype of the weights; where it has 16 bits, full fine-tuning has fp32 master weights beside them.
    """
    found: dict[str, list[int]] = {name: [] for name in CROSSING}
    for batch in batches:
        for label, train in (("full", "full"), ("LoRA", "lora")):
            master = train == "full" and weights != "float32"
            one = Case(arch, batch, seq_len, weights, train=train, master=master, adapter="lora")
            stands = sum(n for name, n in standing(one).items() if name != "buffers") + gradients(one)
            rest = "weights, gradients, moments" if label == "full" else "the same"
            found[f"{label}: {rest}"].append(stands)
            found[f"{label}: activations"].append(kept_by(one))
    return found


def kept_by(case: Case) -> int:
    """Bytes of activations of all blocks, head and loss."""
    blocks = activations.total(activations.block(case)) * (case.arch.layers - 1)
    first = activations.total(activations.block(case, first=True))
    return blocks + first + activations.total(activations.outside(case))


def crossing_figure(sizes: Mapping[str, list[int]], batches: Sequence[int], seq_len: int, model: str) -> Figure:
    """What stands and what grows with the batch, full and LoRA, on logarithmic axes."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.0))
    tokens = [batch * seq_len for batch in batches]
    for name, (colour, dash, mark) in CROSSING.items():
        gib = [size / GIB for size in sizes[name]]
        ax.plot(tokens, gib, dash, marker=mark, color=PALETTE[colour], label=name)
    ax.set(xscale="log", yscale="log", xlabel="tokens in a step", ylabel="memory (GiB)")
    ax.set_title(_saved(sizes, tokens, model))
    ax.legend(fontsize="small")
    return fig


def _whole(sizes: Mapping[str, list[int]], kind: str, place: int) -> int:
    return sum(values[place] for name, values in sizes.items() if name.startswith(kind))


def _saved(sizes: Mapping[str, list[int]], tokens: Sequence[int], model: str) -> str:
    first, last = (1 - _whole(sizes, "LoRA", at) / _whole(sizes, "full", at) for at in (0, -1))
    return f"{model}: LoRA saves {first:.0%} at {tokens[0]:,} tokens and {last:.0%} at {tokens[-1]:,}"


def crossing_words(sizes: Mapping[str, list[int]], batches: Sequence[int], seq_len: int, model: str) -> str:
    """The finding, and the first and last point of each line."""
    tokens = [batch * seq_len for batch in batches]
    ends = "; ".join(f"{name} from {v[0] / GIB:.2f} to {v[-1] / GIB:.2f} GiB" for name, v in sizes.items())
    return f"Lines of memory over the tokens in a step. {_saved(sizes, tokens, model)}. {ends}."


def flops_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Operations of forward and backward as stacked bars.

    Args:
        rows: of method, flops_forward and flops_backward, full fine-tuning first.
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
    return "Of full fine-tuning's operations: " + ", ".join(
        f"{name} {whole[name] / whole[first]:.0%}" for name in others
    )


def flops_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all numbers."""
    said = "; ".join(
        f"{row['method']}: forward {row['flops_forward']:,}, backward {row['flops_backward']:,}" for row in rows
    )
    return f"Stacked bars of operations. {_operations(rows)}. {said}."
