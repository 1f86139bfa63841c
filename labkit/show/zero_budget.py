"""The figure of lesson 07 that adds up what a step of ZeRO needs at once, and the same of the recorded table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.parallel.zero_peak import Budget
from labkit.show.anatomy_style import COLOURS, amount, number, unit_of
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Depth (layers) and method, in the order in which they are drawn.
Budgets = Mapping[tuple[int, str], Budget]
PARTS = {
    "standing": ("shards and replicas that stand", COLOURS["weights"]),
    "gathered": ("gathered weights", PALETTE["sky"]),
    "gradients": ("gradients", COLOURS["gradients"]),
    "rest": ("activations, and what passes", COLOURS["activations"]),
}


def budget_figure(budgets: Budgets, wholes: Mapping[int, int]) -> Figure:
    """Stacked bars of each method's largest moment, by depth, and a line at what one rank would need to hold alone.

    Args:
        budgets: of a step, by depth and method.
        wholes: bytes of all weights, gradients and optimizer states, by depth.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 1.7 + 0.36 * len(budgets)))
    size, unit = unit_of(max(wholes.values()))
    names, left = [f"{method}, {depth} layers" for depth, method in budgets], [0.0] * len(budgets)
    for part, (told, colour) in PARTS.items():
        widths = [getattr(budget, part) / size for budget in budgets.values()]
        ax.barh(names, widths, 0.7, left, color=colour, edgecolor="white", linewidth=0.5, label=told)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (end, (depth, _)) in enumerate(zip(left, budgets, strict=True)):
        ax.text(end + 0.01 * max(left), place, number(end), va="center", fontsize="small")
        line: dict[str, Any] = {"color": PALETTE["black"], "linestyle": "-", "label": _once(place)}
        ax.plot([wholes[depth] / size] * 2, [place - 0.42, place + 0.42], **line)
    ax.set(xlabel=f"most bytes of a step on one rank ({unit})", ylim=(len(budgets) - 0.5, -0.5))
    ax.grid(False, axis="y")
    ax.set_title(_title(budgets, wholes), fontsize="small")
    fig.legend(*ax.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=2)
    return fig


def _once(place: int) -> str | None:
    return "weights, gradients and states, unsharded" if not place else None


def _title(budgets: Budgets, wholes: Mapping[int, int]) -> str:
    (depth, method), least = min(
        ((key, b) for key, b in budgets.items() if key[0] == max(wholes)), key=lambda pair: pair[1].total
    )
    share = 100 * least.total / wholes[depth]
    return f"{depth} layers in {amount(least.total)} ({method}),\n{share:.0f} % of the unsharded model's bytes"


def budget_words(budgets: Budgets, wholes: Mapping[int, int]) -> str:
    """Each bar's parts and its sum."""
    each = []
    for (depth, method), budget in budgets.items():
        sizes = ", ".join(f"{told} {amount(getattr(budget, part))}" for part, (told, _) in PARTS.items())
        each.append(f"{method}, {depth} layers: {sizes}, in all {amount(budget.total)} (whole {amount(wholes[depth])})")
    told = " ".join(_title(budgets, wholes).split())
    return f"Stacked bars of the most bytes of a step. {told}. {'; '.join(each)}."


def recorded_rows(rows: Sequence[Mapping[str, Any]], label: Any) -> list[dict[str, Any]]:
    """Rows of the recorded table as a sum, in GiB: what stands without gradients, activations, and what is left.

    Rows whose activations were not counted are left out.
    """
    found = []
    for row in rows:
        if row["activations_mib"] is None:
            continue
        names = ("weights_mib", "master_weights_mib", "optimizer_states_mib")
        stands = sum(row[name] or 0 for name in names)
        left = row["peak_allocated_mib"] - stands - row["activations_mib"]
        sizes = {"peak": row["peak_allocated_mib"], "weights, masters, states": stands}
        sizes |= {"activations": row["activations_mib"], "left": left, "gradients": row["gradients_mib"]}
        found.append({"method": label(row), **{name: round(mib / 1024, 2) for name, mib in sizes.items()}})
    return found
