"""What each way to share a model makes a rank send, by tokens in a step: the last figure of lesson 08."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.ledger.shapes import Architecture
from labkit.parallel.model_traffic import WAYS, sent_per_step, tokens_where_equal
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30
STYLES = {"ddp": ("blue", "-"), "zero3": ("red", "--"), "tensor": ("green", "-."), "pipeline": ("black", ":")}
CALLED = {"ddp": "data parallel", "zero3": "ZeRO-3", "tensor": "tensor parallel", "pipeline": "pipeline"}
LEAST, MOST = 9, 23  # powers of two, tokens


def sent_rows(shape: Architecture, ranks: int, tokens: int, seq: int = 1024) -> list[dict[str, Any]]:
    """For each way what a rank sends in a step of so many tokens, in GiB; 16-bit values."""
    batch = max(1, tokens // seq)
    return [
        {"method": way, "sent": sent_per_step(way, shape, ranks, batch, min(seq, tokens)) / GIB, "grows with": by}
        for way, by in zip(WAYS, ("parameters", "parameters", "tokens × layers", "tokens"), strict=True)
    ]


def sent_figure(shape: Architecture, ranks: int, name: str) -> Figure:
    """Bytes that a rank sends in a step, by tokens in the whole batch, one line a way; 16-bit values.

    Args:
        shape: of the model called `name`.
        ranks: that share it, each way with all of them.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.6, 3.8))
    steps = [2**power for power in range(LEAST, MOST + 1)]
    for way, (colour, dash) in STYLES.items():
        sent = [sent_per_step(way, shape, ranks, 1, tokens) / GIB for tokens in steps]
        ax.plot(steps, sent, dash, color=PALETTE[colour], label=CALLED[way])
    equal = tokens_where_equal(shape)
    height = sent_per_step("ddp", shape, ranks, 1, 1) / GIB
    ax.plot([equal], [height], "o", color=PALETTE["black"], fillstyle="none", ms=9)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set(xlabel="tokens in the whole batch", ylabel="sent by a rank (GiB a step)")
    ax.set_title(_title(shape, ranks, name))
    ax.legend(fontsize="small")
    return fig


def _title(shape: Architecture, ranks: int, name: str) -> str:
    equal = tokens_where_equal(shape)
    return (
        f"{name} on {ranks} ranks: below {equal:,.0f} tokens (○) tensor\nparallelism sends less than data parallelism"
    )


def sent_words(shape: Architecture, ranks: int, name: str) -> str:
    """Every line's ends."""
    ends = [
        f"{CALLED[way]} {' to '.join(f'{sent_per_step(way, shape, ranks, 1, 2**e) / GIB:.3g}' for e in (LEAST, MOST))}"
        for way in WAYS
    ]
    return (
        f"Lines of GiB that a rank sends in a step, from {2**LEAST} to {2**MOST} tokens. "
        f"{_title(shape, ranks, name).replace(chr(10), ' ')}. {'; '.join(ends)}."
    )
