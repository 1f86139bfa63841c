"""Figures of lesson 17: how large a model each recipe brings onto the GPUs, and what recipes cost beside each other.

A recipe has one colour, dash and marker in all of them. Predicted peaks are the planner's; measured ones and all costs
are rows of the table `capstone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.planner import architecture, plan
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB, MIB = 2**30, 2**20
RECIPES = {"ddp": "torch.ddp", "torch.fsdp2": "torch.fsdp2", "torch.fsdp2+peft.lora": "torch.fsdp2+peft.lora"}
LOOK = {  # by the name that the table has
    "torch.ddp": ("everything on each GPU", "red", ":", "s"),
    "torch.fsdp2": ("sharded", "blue", "--", "o"),
    "torch.fsdp2+peft.lora": ("sharded + LoRA", "green", "-", "D"),
}
COSTS = (
    ("peak_allocated_mib", "memory a GPU (GiB)", 1 / 1024),
    ("step_ms", "a step (ms)", 1.0),
    ("accuracy", "accuracy (%)", 100.0),
    ("joules_per_step", "energy a step (J)", 1.0),
)


def ladder(models: Sequence[str], gpu: str, gpus: int, batch: int, seq_len: int) -> list[dict[str, Any]]:
    """For each recipe and model its predicted peak, with checkpointing where only that fits.

    Returns:
        rows of recipe, model, parameters, peak and usable (bytes), checkpointed and fits.
    """
    rows = []
    for model in models:
        found = plan(model, gpu, batch, seq_len, gpus=gpus)
        for way, recipe in RECIPES.items():
            both = [option for option in found.options if option.way.name == way]
            plain, checkpointed = sorted(both, key=lambda option: bool(option.case.segments))
            least = checkpointed if checkpointed.fits and not plain.fits else plain
            rows.append(
                {
                    "recipe": recipe,
                    "model": model,
                    "parameters": found.arch.parameters,
                    "peak": least.peak.total,
                    "usable": found.usable,
                    "checkpointed": bool(least.case.segments),
                    "fits": least.fits,
                }
            )
    return rows


def largest(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The largest model of each recipe that fits; a dash for none."""
    found = {}
    for recipe in RECIPES.values():
        fitting = [row for row in rows if row["recipe"] == recipe and row["fits"]]
        found[recipe] = max(fitting, key=lambda row: row["parameters"])["model"] if fitting else "–"
    return found


def ladder_figure(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]] = ()) -> Figure:
    """Peaks by size of the model, against what a GPU has.

    Args:
        rows: of `ladder`.
        measured: rows of the table, whose allocator's peaks are drawn as filled marks where a line has their setting.
    """
    import matplotlib.pyplot as plt

    _some(rows)
    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    for recipe, (label, colour, dash, mark) in LOOK.items():
        own = sorted((row for row in rows if row["recipe"] == recipe), key=lambda row: row["parameters"])
        sizes, peaks = [row["parameters"] / 1e9 for row in own], [row["peak"] / GIB for row in own]
        ax.plot(sizes, peaks, dash, marker=mark, mfc="white", color=PALETTE[colour], label=label)
        seen = _seen(own, measured)
        where = [architecture(row["model"]).parameters / 1e9 for row in seen]
        ax.plot(where, [row["peak_allocated_mib"] / 1024 for row in seen], ls="none", marker=mark, ms=9,
                color=PALETTE[colour], label=f"{label}, measured" if seen else None)  # fmt: skip
    room = rows[0]["usable"] / GIB
    ax.axhline(room, color="black", linewidth=1)
    ax.annotate(f"usable: {room:.0f} GiB", (0.01, room), xycoords=("axes fraction", "data"), va="bottom")
    ax.set(xscale="log", yscale="log", xlabel="parameters (10⁹)", ylabel="peak on a GPU (GiB)")
    ax.set_title(_finding(rows))
    ax.legend(loc="upper left", fontsize="small")
    return fig


def _seen(own: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured rows of a line: its recipe and models, checkpointed as there."""
    known = {(row["recipe"], row["model"], row["checkpointed"]) for row in own}
    return [
        row
        for row in measured
        if row["peak_allocated_mib"] and (row["method"], row["model"], row["checkpointed"]) in known
    ]


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    best = largest(rows)
    return f"Largest that fits: {best['torch.ddp']} whole, {best['torch.fsdp2']} sharded, {best[_LORA]} with LoRA"


_LORA = "torch.fsdp2+peft.lora"


def ladder_words(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]] = ()) -> str:
    """The finding and all peaks."""
    _some(rows)
    said = [f"{_finding(rows)}, of {rows[0]['usable'] / GIB:.0f} GiB usable on each GPU."]
    for recipe, (label, *_) in LOOK.items():
        line = [row for row in rows if row["recipe"] == recipe]
        own = [f"{row['model']} {row['peak'] / GIB:.1f}{' checkpointed' * row['checkpointed']}" for row in line]
        said.append(f"Predicted peaks in GiB, {label}: {', '.join(own)}.")
        seen = [f"{row['model']} {row['peak_allocated_mib'] / 1024:.1f}" for row in _seen(line, measured)]
        said += [f"Measured, {label}: {', '.join(seen)}."] if seen else []
    return "Lines of peak memory by size of the model. " + " ".join(said)


def trainings(rows: Sequence[dict[str, Any]], world_size: int | None = None) -> list[dict[str, Any]]:
    """Whole trainings of the table, a row for each recipe on `world_size` ranks (default: the most), means over seeds.

    Columns that were not measured are None.

    Raises:
        LabError: where the table has none.
    """
    own = [row for row in rows if row.get("steps") and row["accuracy"] is not None]
    _some(own)
    ranks = world_size or max(row["world_size"] for row in own)
    found = []
    for recipe in LOOK:
        same = [row for row in own if row["method"] == recipe and row["world_size"] == ranks]
        if same:
            means = {name: _mean([row[name] for row in same]) for name, *_ in (*COSTS, ("accuracy_before",))}
            kept = ("model", "method", "world_size", "dtype", "batch", "trainable_params")
            found.append({**{name: same[0][name] for name in kept}, "seeds": len(same), **means})
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else mean(value for value in values if value is not None)


def recipes_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Memory, time, accuracy and energy of each recipe, a panel each. `rows` are those of `trainings`."""
    import matplotlib.pyplot as plt

    _some(rows)
    fig, panels = plt.subplots(1, len(COSTS), figsize=(9.0, 3.0))
    for ax, (name, label, factor) in zip(panels, COSTS, strict=True):
        _panel(ax, rows, name, factor)
        ax.set_title(label, fontsize="small")
    names = [LOOK[row["method"]][0] for row in rows]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PALETTE[LOOK[row["method"]][1]]) for row in rows]
    fig.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    fig.suptitle(_cheapest(rows), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _panel(ax: Axes, rows: Sequence[dict[str, Any]], name: str, factor: float) -> None:
    for place, row in enumerate(rows):
        value = row[name]
        if value is None:
            ax.text(place, 0, "not\nmeasured", ha="center", va="bottom", fontsize="x-small")
            continue
        ax.bar(place, value * factor, color=PALETTE[LOOK[row["method"]][1]])
        ax.text(place, value * factor, f"{value * factor:.3g}", ha="center", va="bottom", fontsize="x-small")
    ax.set_xticks([])
    ax.margins(y=0.15)


def _cheapest(rows: Sequence[dict[str, Any]]) -> str:
    """Which recipe is least in memory, time and energy, and most in accuracy."""
    won: dict[str, list[str]] = {}
    for name, words in (("peak_allocated_mib", "the least memory"), ("step_ms", "the fastest step"),
                        ("accuracy", "the most accurate"), ("joules_per_step", "the least energy")):  # fmt: skip
        known = [row for row in rows if row[name] is not None]
        if len(known) == len(rows):
            best = (max if name == "accuracy" else min)(known, key=lambda row: row[name])
            won.setdefault(LOOK[best["method"]][0], []).append(words)
    text = "; ".join(f"{recipe}: {', '.join(words)}" for recipe, words in won.items())
    return text[:1].upper() + text[1:]


def by_size(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str], list[str]]:
    """Steps of ever larger models, in units that one reads, their columns' units, and what was planned and not run."""
    shown, refused = [], []
    for row in rows:
        name = f"{LOOK[row['method']][0]}, {row['model']}"
        if row["steps"]:
            continue
        if row["peak_allocated_mib"] is None:
            refused.append(f"{name}: {row['predicted_mib'] / 1024:.0f} GiB predicted")
            continue
        peak, predicted = row["peak_allocated_mib"], row["predicted_mib"]
        tokens = row["tokens_per_s"] * row["step_ms"] / 1e3
        shown.append(
            {
                "recipe": LOOK[row["method"]][0],
                "model": row["model"],
                "predicted": round(predicted / 1024, 1),
                "measured": round(peak / 1024, 1),
                "apart": f"{peak / predicted - 1:+.1%}",
                "step": round(row["step_ms"]),
                "speed": round(row["tokens_per_s"]),
                "energy": None if row["joules_per_step"] is None else round(1e3 * row["joules_per_step"] / tokens, 1),
            }
        )
    units = {"predicted": "GiB", "measured": "GiB", "step": "ms", "speed": "tokens/s", "energy": "mJ a token"}
    return shown, units, refused


def recipes_words(rows: Sequence[dict[str, Any]]) -> str:
    """The finding and all values."""
    _some(rows)
    said = []
    for row in rows:
        values = [
            f"{label} {'not measured' if row[name] is None else format(row[name] * factor, '.3g')}"
            for name, label, factor in COSTS
        ]
        said.append(f"{LOOK[row['method']][0]}: {', '.join(values)}")
    first = rows[0]
    return f"Bars for {first['model']} on {first['world_size']} ranks. {_cheapest(rows)}. {'; '.join(said)}."


def _some(rows: Sequence[Any]) -> None:
    if not rows:
        raise LabError("There is nothing to draw.", "Record the table with: labkit bench capstone.")
