"""The table `zo-offload` (lesson 16) beside the poster's: peak memory and tokens a second, by model.

The poster does not say which MB it counts in. Its marks stand as if they were 10^6 bytes; as 2^20 they lie 5 % higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.bench.zo_offload import PUBLISHED
from labkit.errors import LabError
from labkit.show.style import PALETTE
from labkit.show.zo_offload import COLOURS, MEZO, NAMES, OFFLOAD, SIZES, fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labkit.zeroth.offload.roofline import Machine

MB = 10**6
MIB = 2**20
Row = Mapping[str, Any]


def poster(model: str, method: str, dtype: str) -> tuple[int | None, int | None]:
    """MB and tokens a second, None where the poster has a dash.

    Raises:
        LabError: for a model or method that it does not have.
    """
    for row in PUBLISHED:
        if (row["model"], row["method"], row["dtype"]) == (model, method, dtype):
            return row["memory_mb"], row["tokens_per_s"]
    raise LabError(f"The poster has no {method} of {model} in {dtype}.", f"Ask for one of {', '.join(SIZES)}.")


def poster_rows(dtype: str = "float16") -> list[dict[str, Any]]:
    """For each model the poster's MB and tokens a second of both methods, and their ratios."""
    found = []
    for model in SIZES:
        (mb, rate), (small, slow) = (poster(model, method, dtype) for method in (MEZO, OFFLOAD))
        found.append(
            {
                "model": model,
                "MeZO: memory": mb,
                "ZO-Offload: memory": small,
                "MeZO: rate": rate,
                "ZO-Offload: rate": slow,
                "rates' ratio": round(slow / rate, 2) if rate and slow else None,
            }
        )
    return found  # fmt: skip


def _best(rows: Sequence[Row], method: str, model: str, dtype: str) -> Row | None:
    """The quickest measured row of one sequence, in the weights' own format."""
    same = [
        r for r in rows
        if (r["method"], r["model"], r["dtype"], r["batch"], r["transfer"]) == (method, model, dtype, 1, "")
        and r["step_ms"]
    ]  # fmt: skip
    return min(same, key=lambda r: r["step_ms"], default=None)


def grid(rows: Sequence[Row], dtype: str = "float16") -> dict[str, dict[str, tuple[float, float]]]:
    """Measured MB (10^6 bytes, allocated) and tokens a second by method and model."""
    found: dict[str, dict[str, tuple[float, float]]] = {MEZO: {}, OFFLOAD: {}}
    for method, points in found.items():
        for model in SIZES:
            row = _best(rows, method, model, dtype)
            if row and row.get("peak_allocated_mib"):
                points[model] = row["peak_allocated_mib"] * MIB / MB, row["tokens_per_s"]
    return found


def grid_figure(rows: Sequence[Row] = (), dtype: str = "float16") -> Figure:
    """Peak memory and tokens a second by model: the poster's figures as marks, recorded ones as lines.

    Args:
        rows: of the table `zo-offload`; () for the poster alone.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.8))
    for place, (axis, label) in enumerate(zip(axes, ("GPU memory (MB)", "tokens a second"), strict=True)):
        axis.set_xticks(range(len(SIZES)), SIZES, rotation=40, ha="right")
        for method in (MEZO, OFFLOAD):
            _points(axis, method, place, dtype)
            measured = grid(rows, dtype)[method]
            at = [(SIZES.index(m), values[place]) for m, values in measured.items()]
            if at:
                style = {"color": PALETTE[COLOURS[method]], "marker": ".", "linestyle": "-"}
                axis.plot(*zip(*at, strict=True), label=f"{NAMES[method]}, recorded", **style)
        axis.set(yscale="log", ylabel=f"{label}, logarithmic")
    axes[0].axhline(24 * 2**30 / MB, color=PALETTE["black"], linestyle=":", label="24 GiB")
    axes[0].legend(fontsize="small")
    fig.suptitle(grid_finding(rows, dtype), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _points(axis: Axes, method: str, place: int, dtype: str) -> None:
    """The poster's figures of one method."""
    found = [(n, poster(m, method, dtype)[place]) for n, m in enumerate(SIZES)]
    at = [(n, value) for n, value in found if value is not None]
    mark = {MEZO: "o", OFFLOAD: "s"}[method]
    style: dict[str, Any] = {"color": PALETTE[COLOURS[method]], "linestyle": "", "markerfacecolor": "none"}
    axis.plot(*zip(*at, strict=True), marker=mark, label=f"{NAMES[method]}, poster", **style)


def grid_finding(rows: Sequence[Row] = (), dtype: str = "float16") -> str:
    """What the poster claims of the largest model that both methods train, and what was recorded of it."""
    both = [m for m in SIZES if None not in (*poster(m, MEZO, dtype), *poster(m, OFFLOAD, dtype))]
    (mb, rate), (small, slow) = (poster(both[-1], method, dtype) for method in (MEZO, OFFLOAD))
    assert mb and rate and small and slow
    told = f"{both[-1]} in {dtype}: poster {small / mb:.0%} of MeZO's memory at {slow / rate:.0%} of its rate"
    ours = [points.get(both[-1]) for points in grid(rows, dtype).values()]
    if not all(ours):
        return told
    mezo, own = (point for point in ours if point)
    return f"{told}, recorded {own[0] / mezo[0]:.0%} at {own[1] / mezo[1]:.0%}"


def grid_words(rows: Sequence[Row] = (), dtype: str = "float16") -> str:
    """Both panels in words."""
    told = []
    for method in (MEZO, OFFLOAD):
        each = [f"{m} {mb:,} MB at {rate:,}" for m in SIZES for mb, rate in [poster(m, method, dtype)] if mb and rate]
        told.append(f"{NAMES[method]}, poster: {', '.join(each)} tokens a second")
        ours = [f"{m} {mb:,.0f} MB at {rate:,.0f}" for m, (mb, rate) in grid(rows, dtype)[method].items()]
        if ours:
            told.append(f"recorded: {', '.join(ours)}")
    return f"Memory and tokens a second by model. {grid_finding(rows, dtype)}. {'; '.join(told)}."


def grid_rows(rows: Sequence[Row], dtype: str = "float16") -> list[dict[str, Any]]:
    """By model, in its own format, where both methods were measured: MB and tokens a second of their quickest rows.

    "by formula" is the rate that bus and arithmetic alone would allow ZO-Offload.

    Raises:
        LabError: where there is no such model.
    """
    found = []
    for model in SIZES:
        mezo, own = (_best(rows, method, model, dtype) for method in (MEZO, OFFLOAD))
        if not (mezo and own):
            continue
        mb = [round(row["peak_allocated_mib"] * MIB / MB) for row in (mezo, own)]
        rates = [round(row["tokens_per_s"]) for row in (mezo, own)]
        formula = round(own["batch"] * own["seq_len"] / own["predicted_ms"] * 1e3)
        shown = {"model": model, "MeZO: memory": mb[0], "ZO-Offload: memory": mb[1]}
        shown |= {"by the driver": round(own["driver_mib"] * MIB / MB), "MeZO: rate": rates[0]}
        shown |= {"ZO-Offload: rate": rates[1], "by formula": formula, "rates' ratio": round(rates[1] / rates[0], 2)}
        found.append(shown)
    if not found:
        raise LabError(f"The table has no pair of both methods in {dtype}.", "Record it with: labkit bench zo-offload.")
    return found


def _like(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows that were timed and have these values."""
    return [row for row in rows if row["step_ms"] and all(row[name] == value for name, value in wanted.items())]


_PLAIN: dict[str, Any] = {"dtype": "float16", "transfer": "", "cap_gb": 0.0}


def by_period(rows: Sequence[Row], model: str = "opt-13b") -> list[dict[str, Any]]:
    """One sequence, by k: a step as it was measured, and by the roofline."""
    found = _like(rows, model=model, method=OFFLOAD, batch=1, parts=3, slots=3, **_PLAIN)
    return [
        {"k": row["write_back"], "step": round(row["step_ms"]), "formula": round(row["predicted_ms"])}
        for row in sorted(found, key=lambda row: row["write_back"])
    ]


def by_batch(rows: Sequence[Row], model: str = "opt-13b") -> list[dict[str, Any]]:
    """By sequences: MeZO's step, and ZO-Offload's that writes back at every upload, or as seldom as it was measured."""
    found = []
    for row in sorted(_like(rows, model=model, method=MEZO, **_PLAIN), key=lambda row: row["batch"]):
        own = _like(rows, model=model, method=OFFLOAD, batch=row["batch"], parts=3, slots=3, **_PLAIN)
        if own:
            least = min(own, key=lambda other: other["write_back"])
            shown = {"sequences": row["batch"], "tokens": row["batch"] * row["seq_len"], "MeZO": round(row["step_ms"])}
            ratio = round(row["step_ms"] / least["step_ms"], 3)
            found.append(
                shown | {"k": least["write_back"], "ZO-Offload": round(least["step_ms"]), "of MeZO's rate": ratio}
            )
    return found


def machine(rows: Sequence[Row], model: str = "opt-13b") -> Machine:
    """The roofline of the recorded machine: its bus as measured apart, its arithmetic from MeZO's steps by batch.

    Raises:
        LabError: for rows without a measurement of the bus, or with fewer than two batches.
    """
    bus = next((row for row in rows if row["up_both_gb_per_s"]), None)
    if bus is None:
        raise LabError("These rows have no measured bus.", "Measure zo-offload again where there is a GPU.")
    steps = {row["tokens"]: row["MeZO"] for row in by_batch(rows, model)}
    return fitted(steps, bus["up_gb_per_s"], bus["up_both_gb_per_s"])


def coded_rows(rows: Sequence[Row], model: str = "opt-13b") -> list[dict[str, Any]]:
    """What travels in fewer bits, after the weights' own: what trains, how often it is coded anew, a step."""
    plain = _like(rows, model=model, method=OFFLOAD, batch=1, write_back=8, parts=3, slots=3, **_PLAIN)
    coded = [r for r in rows if r["step_ms"] and r["transfer"] and not r["cap_gb"] and r["model"] == model]
    return [
        {
            "transfer": row["transfer"] or row["dtype"],
            "trains": "LoRA" if row["method"].endswith("lora") else "all",
            "coded anew": f"every {row['renew']}th" if row["renew"] else "never" if row["transfer"] else None,
            "steps before": row["moves"],
            "parts": row["parts"],
            "slots": row["slots"],
            "step": round(row["step_ms"]),
            "peak": round(row["peak_allocated_mib"] * MIB / MB),
            "host": round(row["host_gib"], 1),
        }
        for row in [*plain, *coded]
    ]


def capped_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Models on a GPU of which only a part may be used, measured or with the reason why not."""
    return [
        {
            "model": row["model"],
            "transfer": row["transfer"] or row["dtype"],
            "steps before": row["moves"],
            "step": row["step_ms"] and round(row["step_ms"] / 1e3, 2),
            "rate": row["tokens_per_s"] and round(row["tokens_per_s"]),
            "peak": row["peak_allocated_mib"] and round(row["peak_allocated_mib"] * MIB / MB),
            "by the driver": row["driver_mib"] and round(row["driver_mib"] * MIB / MB),
            "host": row["host_gib"] and round(row["host_gib"], 1),
            "note": row["note"],
        }
        for row in sorted(rows, key=lambda row: SIZES.index(row["model"]))
        if row["cap_gb"]
    ]


def losses(rows: Sequence[Row], model: str = "opt-13b") -> dict[str, list[float]]:
    """Losses in nats, step by step, of one batch and the same seeds: MeZO, ZO-Offload, and int8 coded anew.

    Raises:
        LabError: where one of the three was not recorded.
    """
    same = {"model": model, "dtype": "float16", "batch": 1, "cap_gb": 0.0}
    cases = {
        "MeZO": _like(rows, method=MEZO, **same),
        "ZO-Offload": _like(rows, method=OFFLOAD, transfer="", **same),
        "ZO-Offload, int8": [row for row in _like(rows, method=OFFLOAD, transfer="int8", **same) if row["renew"]],
    }
    missing = [name for name, found in cases.items() if not found]
    if missing:
        raise LabError(f"The table has no {', '.join(missing)} of {model}.", "Record it with: labkit bench zo-offload.")
    return {name: max((row["losses"] for row in found), key=len) for name, found in cases.items()}


def losses_figure(rows: Sequence[Row], model: str = "opt-13b") -> Figure:
    """The three curves over the steps; where two are equal, one lies in the other."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.2, 3.2))
    styles = (("red", "o", "-", 7.0), ("blue", ".", "-", 3.0), ("green", "s", "--", 3.0))
    for (name, curve), (colour, mark, dash, size) in zip(losses(rows, model).items(), styles, strict=True):
        steps = range(1, len(curve) + 1)
        axis.plot(steps, curve, color=PALETTE[colour], marker=mark, linestyle=dash, markersize=size, label=name)
    axis.set(xlabel="step", ylabel="loss (nats)", title=losses_finding(rows, model))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.legend(fontsize="small")
    return fig


def losses_finding(rows: Sequence[Row], model: str = "opt-13b") -> str:
    """How far the curves are apart."""
    mezo, plain, coded = losses(rows, model).values()
    shared = min(len(mezo), len(plain))
    equal = "are MeZO's" if mezo[:shared] == plain[:shared] else "are not MeZO's"
    most = max(abs(a - b) for a, b in zip(plain, coded, strict=False))
    return f"{model}: losses {equal}, {shared} steps long; int8's lie within {most:.4f} nats"


def losses_words(rows: Sequence[Row], model: str = "opt-13b") -> str:
    """The curves in words."""
    told = "; ".join(f"{n}: {len(v)} steps, {min(v):.4f} to {max(v):.4f}" for n, v in losses(rows, model).items())
    return f"Lines of the loss over the steps. {losses_finding(rows, model)}. {told}."
