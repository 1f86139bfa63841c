"""What each way to share a model makes a rank send, and how long links need for it: the last section of lesson 08.

Two links, in bytes a second and one direction. NVLink 4, between the GPUs of a machine, has 900 GB/s in both directions
together (NVIDIA H100 and H200 data sheets). Between machines one port of 400 Gb/s, Ethernet or InfiniBand, which all
GPUs of a machine share here; large machines have a port for each GPU. Nothing reaches these rates in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.parallel.model_traffic import WAYS, divided, sent_per_step, tokens_where_equal
from labkit.parallel.pipeline_schedule import ideal_bubble
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30
INSIDE, BETWEEN = 450e9, 50e9
STYLES = {"ddp": ("blue", "-"), "zero3": ("red", "--"), "tensor": ("green", "-."), "pipeline": ("black", ":")}
CALLED = {"ddp": "data parallel", "zero3": "ZeRO-3", "tensor": "tensor parallel", "pipeline": "pipeline"}
LEAST, MOST = 9, 23  # powers of two, tokens


def sent_rows(shape: Architecture, ranks: int, tokens: int, seq: int = 1024) -> list[dict[str, Any]]:
    """For each way what a rank sends in a step of so many tokens, in GiB, and the seconds on both links; 16-bit values.

    The ranks are the GPUs of one machine, or each is alone in a machine of its own.
    """
    batch = max(1, tokens // seq)
    found = []
    for way, by in zip(WAYS, ("parameters", "parameters", "tokens × layers", "tokens"), strict=True):
        sent = sent_per_step(way, shape, ranks, batch, min(seq, tokens))
        found.append(
            {
                "cut": CALLED[way],
                "grows with": by,
                "sent (GiB)": round(sent / GIB, 1),
                "s in one machine": round(sent / INSIDE, 2),
                "s between machines": round(sent / BETWEEN, 2),
            }
        )
    return found


def division_rows(
    shape: Architecture, divisions: Sequence[tuple[int, int, int]], batch: int, seq: int, gpus: int = 8
) -> list[dict[str, Any]]:
    """Tensor × pipeline × data over two machines: what a GPU holds, and what crosses the link between them in a step.

    Tensor ranks are neighbours, then replicas, and stages lie farthest apart, as in Megatron. AdamW with mixed
    precision holds 16 bytes a parameter; micro-batches have one row; values are 16-bit ones. Collectives are rings,
    whose one edge between the machines carries what any of its ranks sends.

    Args:
        divisions: of `2 * gpus` ranks.
        gpus: in a machine.

    Raises:
        LabError: for a division of another number of ranks, or one that the model's sizes do not allow.
    """
    found = []
    for tensor, pipeline, data in divisions:
        if tensor * pipeline * data != 2 * gpus:
            cause = f"{tensor} × {pipeline} × {data} are not the {2 * gpus} GPUs of two machines."
            raise LabError(cause, f"Choose three factors of {2 * gpus}.")
        sent = divided(shape, tensor, pipeline, data, batch, seq)
        reach = {"tensor": tensor, "data": tensor * data, "pipeline": tensor * data * pipeline}
        groups = {"tensor": 1, "data": tensor * pipeline, "pipeline": tensor * data}  # that have such an edge
        cross = {way: groups[way] * sent[way] for way in reach if sent[way] and reach[way] > gpus}
        crossing = sum(cross.values())
        found.append(
            {
                "tensor × pipeline × data": f"{tensor} × {pipeline} × {data}",
                "held (GB)": round(16 * shape.parameters / tensor / pipeline / 1e9),
                "crosses": ", ".join(cross),
                "GB each way": round(crossing / 1e9, 1),
                "seconds": round(crossing / BETWEEN, 2),
                "bubble (%)": round(100 * ideal_bubble(pipeline, batch // data), 1),
            }
        )
    return found


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
    right = ax.secondary_yaxis("right", functions=(_seconds, _gib))
    right.set_ylabel(f"seconds on a link of {BETWEEN / 1e9:.0f} GB/s")
    ax.set_title(_title(shape, ranks, name))
    ax.legend(fontsize="small")
    return fig


def _seconds(gib: Any) -> Any:
    return gib * (GIB / BETWEEN)


def _gib(seconds: Any) -> Any:
    return seconds / (GIB / BETWEEN)


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
        f"Lines of GiB that a rank sends in a step, from {2**LEAST} to {2**MOST} tokens; on the right the seconds on a "
        f"link of {BETWEEN / 1e9:.0f} GB/s. "
        f"{_title(shape, ranks, name).replace(chr(10), ' ')}. {'; '.join(ends)}."
    )
