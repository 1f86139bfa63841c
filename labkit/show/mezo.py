"""Figures of lesson 15: learning by steps and by seconds, needs as published, as recorded and by the ledger.

The published figures are tables 22 and 23 of Malladi et al. 2023 (arXiv:2305.17333) as lecture 000 shows them: OPT on
A100s of 80 GB. The lecture gives no batch size for the memory; our predictions are for one sequence of 400 tokens. It
writes GB, which we read as 2^30 bytes: 58 GB of 10^9 bytes would be less than OPT-30B's weights in 16 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit import published
from labkit.bench import mezo_memory, mezo_time
from labkit.errors import LabError, UnknownNameError
from labkit.ledger.case import Case
from labkit.ledger.gpus import usable
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GB, GIB = 10**9, 2**30
TOKENS = 400
SIZES = ("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b")
MEZO, LORA, FULL = "MeZO, inference", "LoRA", "full"
# 16-bit weights where they are only read or nudged, fp32, 16-bit products and AdamW where all of them train.
METHODS: dict[str, dict[str, Any]] = {
    MEZO: {"weights": "float16", "train": "nothing"},
    LORA: {"weights": "float16", "train": "lora"},
    FULL: {"weights": "float32", "compute": "bfloat16"},
}
COLOURS = {MEZO: "blue", LORA: "green", FULL: "red", "in context": "sky", "prefix": "orange"}
MARKS = {MEZO: "o", "in context": "v", "prefix": "s", FULL: "D"}
_NAMES = {MEZO: "zero-shot and mezo", "in context": "in-context", "prefix": "prefix", FULL: "full"}
# By size: GPUs and GB, None where the paper has the GPUs only.
PUBLISHED: dict[str, tuple[tuple[int, int | None], ...]] = {
    shown: tuple((row["gpus"], row["gb"]) for row in mezo_memory.PUBLISHED if row["method"] == method)
    for shown, method in _NAMES.items()
}
TIMED = tuple(dict.fromkeys(row["model"] for row in mezo_time.PUBLISHED))
# By size: seconds a step and GPUs, on MultiRC.
SECONDS: dict[str, tuple[tuple[float, int], ...]] = {
    shown: tuple(
        (row["seconds"], row["gpus"]) for row in mezo_time.PUBLISHED if (row["method"], row["batch"]) == (method, batch)
    )
    for shown, method, batch in (
        ("MeZO, batch 16", "mezo", 16),
        ("MeZO, batch 8", "mezo", 8),
        ("full, batch 8", "full", 8),
    )
}


@functools.cache
def needed(model: str, method: str, batch: int = 1) -> int:
    """Peak bytes of a step by the ledger's formula, with sequences of 400 tokens.

    Raises:
        UnknownNameError: for a method that is none of METHODS.
    """
    if method not in METHODS:
        raise UnknownNameError.among("method", method, METHODS)
    arch = Architecture.of(published.config(model))
    return predict(Case(arch, batch, TOKENS, **METHODS[method])).peak.total


def memory_rows() -> list[dict[str, Any]]:
    """Published GiB and the ledger's prediction for each size, of MeZO and of full fine-tuning."""
    rows = []
    for place, model in enumerate(SIZES):
        row: dict[str, Any] = {"model": model}
        for method in (MEZO, FULL):
            gb, ours = PUBLISHED[method][place][1], needed(model, method) / GIB
            row |= {f"{method}: published": gb, "ledger" if method == MEZO else "ledger, full": round(ours, 1)}
        rows.append(row)
    return rows


def recorded_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the rows of table `mezo-memory`: GiB by formula, at the peak and on the card, beside the published.

    `times inference` is the peak of a step of MeZO over that of a forward pass on the same batch.
    """
    rows = []
    for row in found:
        shown = {"zero-shot": MEZO, "mezo": MEZO, "mezo walk": MEZO, "in-context": "in context"}
        method = shown.get(row["method"], row["method"])
        sizes = (row[name] for name in ("predicted_mib", "peak_allocated_mib", "driver_mib"))
        predicted, peak, card = (None if mib is None else round(mib / 1024, 1) for mib in sizes)
        rows.append(
            {
                "model": row["model"],
                "method": row["method"],
                "ledger": predicted,
                "peak": peak,
                "on the card": card,
                "published": PUBLISHED[method][SIZES.index(row["model"])][1],
                "times inference": row["over_inference"],
            }
        )
    return rows


def memory_figure() -> Figure:
    """GiB by size: marks are published, lines the ledger's, dotted what one and eight GPUs of 80 GB hold."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 4.4))
    places = range(len(SIZES))
    for method, found in PUBLISHED.items():
        known = [(place, gb) for place, (_, gb) in enumerate(found) if gb is not None]
        style: dict[str, Any] = {"color": PALETTE[COLOURS[method]], "label": f"{method}, published (as GiB)"}
        ax.plot(*zip(*known, strict=True), MARKS[method], **style)
    for method in METHODS:
        ours = [needed(model, method) / GIB for model in SIZES]
        ax.plot(places, ours, "-", lw=1.2, color=PALETTE[COLOURS[method]], label=f"{method}, ledger")
    for count in (1, 8):
        ax.axhline(80 * count, ls=":", lw=1, color=PALETTE["grey"])
        ax.text(0, 82 * count, f"{count} × 80 GB", fontsize="small", va="bottom", color=PALETTE["grey"])
    ax.set(xticks=places, xticklabels=SIZES, ylabel="memory (GiB)", yscale="log")
    ax.set_title(memory_finding())
    ax.legend(fontsize="small", ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12))
    return fig


def ratio(method: str, over: str = MEZO) -> tuple[float, float]:
    """The least and the largest of published needs of a method over another's, among the sizes that have both."""
    pairs = zip(PUBLISHED[method], PUBLISHED[over], strict=True)
    found = [a / b for (_, a), (_, b) in pairs if a is not None and b is not None]
    return min(found), max(found)


def memory_finding() -> str:
    """By which factor full fine-tuning needs more."""
    low, high = ratio(FULL)
    return f"Published: full fine-tuning takes {low:.0f} to {high:.0f} times MeZO's memory"


def memory_words() -> str:
    """Every figure."""
    told = []
    for method, found in PUBLISHED.items():
        said = [f"{m} {gb} GiB" if gb else f"{m} {n} GPUs" for m, (n, gb) in zip(SIZES, found, strict=True)]
        told.append(f"{method}: {', '.join(said)}")
    ours = [f"{m}: " + ", ".join(f"{s} {needed(s, m) / GIB:.0f}" for s in SIZES) for m in METHODS]
    return f"{memory_finding()}. Published: {'; '.join(told)}. By the ledger in GiB: {'; '.join(ours)}."


def largest(size: int, method: str, batch: int = 1) -> str | None:
    """The largest model whose step fits on a GPU of `size` bytes, or None."""
    fitting = [model for model in SIZES if needed(model, method, batch) <= usable(size)]
    return fitting[-1] if fitting else None


def fit_finding(gpu: str, size: int, batch: int = 1) -> str:
    """What each method can tune at most there."""
    return f"{gpu}: " + "; ".join(f"{method} up to {largest(size, method, batch) or 'none'}" for method in METHODS)


def fit_figure(gpu: str, size: int, batch: int = 1) -> Figure:
    """Bars of GB, a group for each size of model; those that do not fit are pale."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    room = usable(size)
    for row, method in enumerate(METHODS):
        for place, model in enumerate(SIZES):
            need, fits = needed(model, method, batch), needed(model, method, batch) <= room
            style: dict[str, Any] = {"alpha": 1.0 if fits else 0.3, "hatch": None if fits else "//"}
            ax.bar(place + 0.27 * (row - 1), need / GB, 0.25, color=PALETTE[COLOURS[method]], **style)
    ax.axhline(room / GB, color=PALETTE["black"], lw=1)
    ax.text(-0.45, room / GB, f"usable on {gpu}: {room / GB:.0f} GB", fontsize="small", va="bottom")
    ax.set(xticks=range(len(SIZES)), xticklabels=SIZES, ylabel="peak of a step (GB)", yscale="log")
    ax.set_title(fit_finding(gpu, size, batch), fontsize="small")
    patches = [Patch(color=PALETTE[COLOURS[method]], label=method) for method in METHODS]
    ax.legend(handles=patches, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.1), ncols=3)
    return fig


def fit_words(gpu: str, size: int, batch: int = 1) -> str:
    """The finding, and the sequences that a step has."""
    return f"Bars of predicted peaks, {batch} × {TOKENS} tokens, pale where too large. {fit_finding(gpu, size, batch)}."


def time_rows() -> list[dict[str, Any]]:
    """Seconds a step with GPUs in brackets, and at batch 8 GPU-seconds of full fine-tuning over MeZO's."""
    rows = []
    for place, model in enumerate(TIMED):
        row: dict[str, Any] = {"model": model}
        for name, found in SECONDS.items():
            seconds, gpus = found[place]
            row[name] = f"{seconds:.3f} ({gpus})"
        (mezo, few), (full, many) = SECONDS["MeZO, batch 8"][place], SECONDS["full, batch 8"][place]
        row["full / MeZO, GPU-seconds a step of batch 8"] = round(full * many / (mezo * few), 1)
        rows.append(row)
    return rows


Curve = Sequence[tuple[int, float, float]]
"""(step, seconds until then, loss) of each evaluation."""


def curve(run: Any, before: Mapping[str, float]) -> list[tuple[int, float, float]]:
    """Of a run that was evaluated on the way, from the loss before it on."""
    points = [(0, 0.0, before["loss"])]
    for found in run.evaluations:
        points.append((found["step"], sum(run.step_seconds[: found["step"]]), found["loss"]))
    return points


def learning_figure(curves: Mapping[str, Curve], title: str) -> Figure:
    """Loss on held-out sentences by steps, and beside it by seconds."""
    import matplotlib.pyplot as plt

    if not curves:
        raise LabError("There is nothing to draw.", "Give at least one run.")
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), sharey=True)
    for name, points in curves.items():
        steps, seconds, losses = zip(*points, strict=True)
        left.plot(steps, losses, marker="o", ms=4, label=name)
        right.plot(seconds, losses, marker="o", ms=4)
    left.set(xlabel="steps", ylabel="loss, held-out sentences (nats)")
    right.set(xlabel="seconds in steps")
    fig.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    left.legend(fontsize="small")
    return fig


def learning_words(curves: Mapping[str, Curve]) -> str:
    """Beginning and end of each curve."""
    ends = [
        f"{n} from {p[0][2]:.3f} to {p[-1][2]:.3f} in {p[-1][0]} steps, {p[-1][1]:.1f} s" for n, p in curves.items()
    ]
    return f"Loss on held-out sentences by steps and by seconds. {'; '.join(ends)}."
