"""Figures of lesson 12: where a step's bytes are, gradient norms and where they are clipped, curves, recorded tables.

Each function returns a matplotlib Figure for `labkit.show.figure` or the words that describe it. Conversations and
their masks are in `labkit.show.conversations`, the chat box in `labkit.show.chat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.run import Run
from labkit.show.plots import CATEGORY_COLOURS, smoothed
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GB = 10**9
PARTS = ("weights", "master_weights", "gradients", "optimizer_states")
LOOK = {  # method of the tables: colour, dash and marker
    "full": ("red", ":", "s"),
    "bf16": ("red", ":", "s"),
    "lora": ("orange", "--", "o"),
    "qlora": ("blue", "-", "D"),
}


def ways(arch: Architecture, rank: int = 8, targets: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Bytes by category that stand in a step's middle, activations apart, of three ways to train one model.

    Args:
        targets: of the adapters; none means every matrix of a block.
    """
    beside = tuple(targets) or tuple(arch.matrices)
    adapted = Case(arch, 1, 1, "bfloat16", train="lora", adapter="lora", rank=rank, targets=beside)
    cases = {
        "full fine-tuning": Case(arch, 1, 1, "bfloat16", master=True),
        "LoRA over bf16": adapted,
        "QLoRA": adapted.with_(four_bit=True),
    }
    found = {}
    for name, case in cases.items():
        every = standing(case, 1) | {"gradients": gradients(case, 1)}
        found[name] = {part: every[part] for part in PARTS if part in every}
    return found


def ways_figure(sizes: Mapping[str, Mapping[str, int]], model: str, gpu_gb: float) -> Figure:
    """One stacked bar a way in gigabytes, all of them and without the first, against what a GPU has."""
    import matplotlib.pyplot as plt

    _some(sizes)
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.6), width_ratios=(1, 1))
    for axis, names in zip(axes, (list(sizes), list(sizes)[1:]), strict=True):
        for place, name in enumerate(names):
            left = 0.0
            for part, count in sizes[name].items():
                colour = PALETTE[CATEGORY_COLOURS[part]]
                axis.barh(place, count / GB, left=left, color=colour, label=part.replace("_", " "))
                left += count / GB
            axis.text(left, place, f" {left:,.0f}", va="center", fontsize="small")
        axis.axvline(gpu_gb, color=PALETTE["black"], linewidth=1)
        above = axis.get_xaxis_transform()
        axis.text(gpu_gb, 1.01, f"{gpu_gb:g} GB", transform=above, ha="center", va="bottom", fontsize="small")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.margins(x=0.14)
    axes[0].set_xlabel("GB")
    axes[1].set_xlabel("GB, the last two enlarged")
    handles = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(ways_finding(sizes, model, gpu_gb), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def ways_finding(sizes: Mapping[str, Mapping[str, int]], model: str, gpu_gb: float) -> str:
    """Which ways stay below what the GPU has, as long as nothing else is counted."""
    fitting = [name for name, parts in sizes.items() if sum(parts.values()) < gpu_gb * GB]
    told = " and ".join(fitting) if fitting else "nothing"
    return f"{model} in {gpu_gb:g} GB, before activations: {told} {'stay' if len(fitting) > 1 else 'stays'} below"


def ways_words(sizes: Mapping[str, Mapping[str, int]], model: str, gpu_gb: float) -> str:
    """The bars in words."""
    told = "; ".join(
        f"{name} {sum(parts.values()) / GB:,.1f} GB ("
        + ", ".join(f"{part.replace('_', ' ')} {count / GB:,.2f}" for part, count in parts.items())
        + ")"
        for name, parts in sizes.items()
    )
    return f"Bars of the bytes that stand in a step. {ways_finding(sizes, model, gpu_gb)}: {told}."


def norms_figure(norms: Sequence[float], limit: float) -> Figure:
    """The gradient's norm at every step before it is clipped, with the limit as a line."""
    import matplotlib.pyplot as plt

    _some(norms)
    fig, axis = plt.subplots(figsize=(7.2, 2.8))
    steps = range(1, len(norms) + 1)
    over = [norm > limit for norm in norms]
    colours = [PALETTE["red"] if o else PALETTE["blue"] for o in over]
    axis.bar(steps, norms, color=colours)
    axis.axhline(limit, color=PALETTE["black"], linewidth=1)
    axis.text(len(norms) + 0.5, limit, f" {limit:g}", va="bottom")
    axis.set(xlabel="step", ylabel="norm before clipping")
    axis.set_title(norms_finding(norms, limit))
    return fig


def norms_finding(norms: Sequence[float], limit: float) -> str:
    """How many steps are clipped, and by how much."""
    over = [norm for norm in norms if norm > limit]
    scaled = f", at the median to {limit / median(over):.0%} of their length" if over else ""
    return f"{len(over)} of {len(norms)} steps are clipped{scaled}"


def curves_figure(run: Run, window: int = 8) -> Figure:
    """Training loss of every step and as a moving mean; held-out loss and share of tokens right where it was judged."""
    import matplotlib.pyplot as plt

    _some(run.evaluations)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2), width_ratios=(3, 2))
    steps = range(1, len(run.losses) + 1)
    left.plot(steps, run.losses, ".", color=PALETTE["grey"], label="a training step")
    left.plot(steps, smoothed(run.losses, window), "-", color=PALETTE["blue"], label=f"mean of the last {window}")
    at = [row["step"] for row in run.evaluations]
    left.plot(
        at,
        [row["loss"] for row in run.evaluations],
        "D--",
        color=PALETTE["orange"],
        label="held-out, mean of conversations",
    )
    left.set(xlabel="step", ylabel="loss (nats)")
    left.legend(fontsize="small")
    right.plot(at, [100 * row["accuracy"] for row in run.evaluations], "D--", color=PALETTE["orange"])
    right.set(xlabel="step", ylabel="answer tokens right (%)")
    right.set_title("held-out", fontsize="small", fontweight="normal")
    fig.suptitle(curves_finding(run), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def curves_finding(run: Run) -> str:
    """Held-out loss and share of tokens, first and last."""
    first, last = run.evaluations[0], run.evaluations[-1]
    shares = f"{first['accuracy']:.0%} to {last['accuracy']:.0%} of answer tokens right"
    return f"Held-out: {first['loss']:.2f} to {last['loss']:.2f} nats (mean over conversations), {shares}"


def recorded_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Table `qlora`: a panel a task, a line a method with the bytes of its weights; a point with one deviation."""
    import matplotlib.pyplot as plt

    _some(rows)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    fig, axes = plt.subplots(1, len(tasks), figsize=(8.8, 3.4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        own = [row for row in rows if row["task"] == task]
        for place, row in enumerate(own):
            colour, _, marker = _look(row["method"])
            error = 100 * (row.get("accuracy_std") or 0)
            axis.errorbar(100 * row["accuracy"], place, xerr=error, marker=marker, color=colour, capsize=3)
        axis.set_yticks(range(len(own)), [f"{row['method']}\n{row['weights_mib']:.0f} MiB" for row in own])
        axis.tick_params(axis="y", labelsize="small")
        axis.invert_yaxis()
        axis.margins(y=0.12)
        axis.set(xlabel="accuracy (%), one deviation of the seeds")
        axis.set_title(task, fontsize="small", fontweight="normal")
    fig.suptitle(recorded_finding(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def recorded_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """The largest distance of a 4-bit base from LoRA over 16 bits, and the seeds' spread beside it."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        by = {row["method"]: row for row in rows if row["task"] == task}
        gaps = [by[name]["accuracy"] - by["lora"]["accuracy"] for name in by if name.startswith("qlora")]
        if gaps and "lora" in by:
            spread = 100 * (by["lora"].get("accuracy_std") or 0)
            found.append(f"{task}: {100 * min(gaps):+.1f} to {100 * max(gaps):+.1f} points (seeds ±{spread:.1f})")
    return "Fewer bits against LoRA over 16 bits:\n" + "; ".join(found)


def recorded_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The points in words."""
    told = "; ".join(
        f"{row['task']}, {row['method']}: {100 * row['accuracy']:.1f} % with {row['weights_mib']:.0f} MiB of weights"
        for row in rows
    )
    finding = " ".join(recorded_finding(rows).split())
    return f"Accuracy of each method, with the bytes of its weights. {finding}. {told}."


def instruct_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Table `instruct`: training and held-out loss over the steps, the mean over seeds, a line a method."""
    import matplotlib.pyplot as plt

    _some(rows)
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.3))
    for axis, column, name in zip(axes, ("train_loss", "loss"), ("training", "held-out"), strict=True):
        for method, points in instruct_means(rows, column).items():
            colour, dash, marker = _look(method)
            steps, means = zip(*points, strict=True)
            axis.plot(steps, means, linestyle=dash, marker=marker, color=colour, label=method)
            spread = [_spread(rows, method, step, column) for step in steps]
            low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="step", title=f"{name} loss")
    axes[0].set_ylabel("nats, mean of the seeds ± deviation")
    axes[1].legend(fontsize="small")
    fig.suptitle(instruct_finding(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def instruct_means(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[tuple[int, float]]]:
    """For each method the column's mean over seeds at every step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        steps = sorted({row["step"] for row in own})
        found[method] = [(step, fmean(row[column] for row in own if row["step"] == step)) for step in steps]
    return found


def instruct_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each method where its held-out loss is lowest, and at its last step: mean ± deviation of the seeds."""
    found = []
    for method, points in instruct_means(rows, "loss").items():
        right = dict(instruct_means(rows, "accuracy")[method])
        for where, (step, loss) in (("lowest", min(points, key=lambda at: at[1])), ("last", points[-1])):
            told = f"{loss:.3f} ± {_spread(rows, method, step, 'loss'):.3f}"
            shown = {"step": step, "held-out loss": told, "tokens right": f"{100 * right[step]:.1f}"}
            found.append({"method": method, "where": where} | shown)
    return found


def gaps(rows: Sequence[Mapping[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Of table `qlora`, each base less LoRA over 16 bits: points, their standard error over `seeds`, and the ratio."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        by = {row["method"]: row for row in rows if row["task"] == task}
        if "lora" not in by:
            continue
        plain, coded = by["lora"], {name: row for name, row in by.items() if name.startswith("qlora")}
        for name, row in coded.items():
            points = 100 * (row["accuracy"] - plain["accuracy"])
            error = 100 * sqrt((row["accuracy_std"] ** 2 + plain["accuracy_std"] ** 2) / seeds)
            told = {"less LoRA": f"{points:+.1f}", "standard error": f"{error:.2f}", "ratio": f"{points / error:+.1f}"}
            found.append({"task": task, "method": name} | told)
    return found


def _spread(rows: Sequence[Mapping[str, Any]], method: str, step: int, column: str) -> float:
    """The deviation over seeds; 0 for one seed."""
    values = [row[column] for row in rows if row["method"] == method and row["step"] == step]
    return stdev(values) if len(values) > 1 else 0.0


def instruct_finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """The lowest held-out loss of each method and its step."""
    best = {method: min(p, key=lambda at: at[1]) for method, p in instruct_means(rows, "loss").items()}
    return "Lowest held-out loss: " + ", ".join(
        f"{name} {low:.3f} at step {step}" for name, (step, low) in best.items()
    )


def _look(method: str) -> tuple[str, str, str]:
    """Colour, dash and marker of a method."""
    colour, dash, marker = LOOK[method.partition(" ")[0]]
    return PALETTE[colour], dash, marker


def _some(rows: Any) -> None:
    if not rows:
        raise LabError("There is nothing to draw.", "Give at least one row.")
