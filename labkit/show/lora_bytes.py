"""Figure of lesson 10: what stands and what grows with the tokens of a step, full fine-tuning and LoRA, by the ledger.

What stands does not depend on the batch, and activations are proportional to it (at one length of sequences), so that
they are equal at standing / (activations a token) tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.ledger import activations
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30
CROSSING = {
    "full: weights, gradients, moments": ("red", "-", "o"),
    "LoRA: the same": ("blue", "--", "s"),
    "full: activations": ("orange", "-.", "^"),
    "LoRA: activations": ("sky", ":", "D"),
}


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


def equal_at(sizes: Mapping[str, list[int]], tokens: Sequence[int], kind: str) -> int:
    """Tokens in a step at which `kind`'s activations have the bytes of what stands (`kind` is "full" or "LoRA")."""
    stands, grows = (sizes[name] for name in CROSSING if name.startswith(kind))
    return round(stands[-1] / (grows[-1] / tokens[-1]))


def crossing_figure(
    sizes: Mapping[str, list[int]], batches: Sequence[int], seq_len: int, model: str, asked: int
) -> Figure:
    """What stands and what grows with the batch, full and LoRA, on logarithmic axes.

    Args:
        asked: tokens in a step that get a vertical line: those of the prediction.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.8))
    tokens = [batch * seq_len for batch in batches]
    for name, (colour, dash, mark) in CROSSING.items():
        gib = [size / GIB for size in sizes[name]]
        ax.plot(tokens, gib, dash, marker=mark, color=PALETTE[colour], label=name)
    for kind, first in (("full", "full: weights, gradients, moments"), ("LoRA", "LoRA: the same")):
        where = equal_at(sizes, tokens, kind)
        ax.plot(where, sizes[first][0] / GIB, "x", color="black", markersize=10, markeredgewidth=2)
        text = f"{kind}: equal at {where:,}"
        ax.annotate(text, (where, sizes[first][0] / GIB), (0, 9), textcoords="offset points", ha="right", fontsize=9)
    ax.axvline(
        asked,
        color=PALETTE["grey"],
        linewidth=1,
        label=f"{asked:,} tokens: LoRA saves {_share(sizes, tokens.index(asked)):.0%}",
    )
    ax.set(xscale="log", yscale="log", xlabel="tokens in a step", ylabel="memory (GiB)")
    ax.set_title(_saved(sizes, tokens, model))
    fig.legend(loc="outside lower center", ncols=2, fontsize="small")
    return fig


def _whole(sizes: Mapping[str, list[int]], kind: str, place: int) -> int:
    return sum(values[place] for name, values in sizes.items() if name.startswith(kind))


def _share(sizes: Mapping[str, list[int]], place: int) -> float:
    return 1 - _whole(sizes, "LoRA", place) / _whole(sizes, "full", place)


def _saved(sizes: Mapping[str, list[int]], tokens: Sequence[int], model: str) -> str:
    first, last = (_share(sizes, at) for at in (0, -1))
    return f"{model}: LoRA saves {first:.0%} at {tokens[0]:,} tokens and {last:.0%} at {tokens[-1]:,}"


def crossing_words(sizes: Mapping[str, list[int]], batches: Sequence[int], seq_len: int, model: str) -> str:
    """The finding, and the first and last point of each line."""
    tokens = [batch * seq_len for batch in batches]
    ends = "; ".join(f"{name} from {v[0] / GIB:.2f} to {v[-1] / GIB:.2f} GiB" for name, v in sizes.items())
    equal = ", ".join(f"{kind} at {equal_at(sizes, tokens, kind):,} tokens" for kind in ("full", "LoRA"))
    said = f"{_saved(sizes, tokens, model)}. {ends}. Activations equal what stands for {equal}"
    return f"Lines of memory over the tokens in a step. {said}."
