"""Widgets of lessons 04 and 05: a ledger that answers at once, and a model cut into checkpointed segments.

Each paints one figure anew when a value changes, from formulas alone (`labkit.ledger.predict`). The same figure, with
alternative text, is the static twin for GitHub, paper and pages. All controls are ordinary ipywidgets with a
description: Tab reaches them, the arrow keys change them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError, UnknownNameError
from labkit.ledger.case import OPTIMIZERS, Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.ledger.trace import Trace
from labkit.show.anatomy_style import (
    CATEGORIES,
    COLOURS,
    GPUS,
    amount,
    axis_end,
    called,
    gpu_lines,
    highest,
    holder,
    ink,
    legend_below,
    number,
    parts,
    unit_of,
    visible,
    where,
)
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.segment_layout import SegmentPlan, layout_figure, layout_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICIES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"weights": "bfloat16"},
    "bf16 autocast": {"compute": "bfloat16"},
    "bf16 + master": {"weights": "bfloat16", "master": True},
}
TRAINS = {"everything": "full", "LoRA on q and v": "lora", "nothing (forward only)": "nothing"}
ATTENTION = {"flash (keeps no scores)": "flash", "eager (keeps the scores)": "eager"}
CHECKPOINTING = {"off": False, "every layer": True}
# On the cells themselves: a widget's table has no style that keeps columns apart, and a page's may overrule a table's.
HEAD = "text-align:right;padding:3px 8px 3px 20px"
NAME = "text-align:left;padding:3px 8px"


def ledger_figure(trace: Trace, gpus: Mapping[str, int] = GPUS) -> Figure:
    """The predicted peak as one stacked bar, with a line for each GPU size that the axis reaches."""
    import matplotlib.pyplot as plt

    peak = trace.peak
    end = axis_end(peak.total, gpus)
    size, unit = unit_of(end)
    fig, ax = plt.subplots(figsize=(7.2, 2.3))
    left = 0.0
    for name in visible([peak]):
        width = peak.bytes.get(name, 0) / size
        ax.barh(0, width, 0.7, left, color=COLOURS[name], edgecolor="white", label=called(name))
        if width > 0.06 * end / size:
            words: dict[str, Any] = {"ha": "center", "va": "center", "color": ink(name), "fontsize": "small"}
            ax.text(left + width / 2, 0, number(width), **words)
        left += width
    gpu_lines(ax, gpus, size, end, upright=True)
    dashed = "; dashed: what tensors may fill of a GPU" if ax.lines else ""
    ax.set(yticks=[], xlim=(0, end / size), xlabel=f"memory at the peak ({unit}){dashed}")
    ax.grid(False, axis="y")
    ax.set_axisbelow(True)
    # Room for the GPUs' names, which stand between axis and title.
    ax.set_title(_verdict(trace, gpus), pad=20)
    legend_below(fig, ax, 7)
    return fig


def _verdict(trace: Trace, gpus: Mapping[str, int]) -> str:
    """The peak, and the smallest GPU that holds it."""
    peak, name = trace.peak, holder(trace.peak.total, gpus)
    fits = (
        f"fits {name} ({100 * peak.total / gpus[name]:.0f} % of what tensors may fill)"
        if name
        else "fits none of these GPUs"
    )
    return f"{amount(peak.total)} {where(peak)}: {fits}"


def ledger_words(trace: Trace, gpus: Mapping[str, int] = GPUS) -> str:
    """The verdict, and the categories at the peak."""
    return f"Stacked bar of the predicted peak. {_verdict(trace, gpus)}. At the peak: {parts(trace.peak)}."


def ledger_table(trace: Trace, parameters: int) -> str:
    """Categories as an HTML table: bytes at the peak, at their own highest, and that a parameter of the model."""
    size, unit = unit_of(trace.peak.total)
    head = ("category", f"at the peak ({unit})", f"highest in the step ({unit})", "highest, bytes a parameter")
    styles = (NAME, HEAD, HEAD, HEAD)
    cells = "".join(f'<th scope="col" style="{s}">{text}</th>' for text, s in zip(head, styles, strict=True))
    lines = [f'<tr><td aria-hidden="true"></td>{cells}</tr>']
    tops, peak = highest(trace), trace.peak.bytes
    rows = [(name, peak.get(name, 0), tops[name]) for name in CATEGORIES if name in tops]
    for name, now, top in rows:
        patch = f'<td aria-hidden="true" style="background:{COLOURS[name]}">&nbsp;&nbsp;</td>'
        lines.append(f"<tr>{patch}{_row(called(name), now / size, top / size, top / parameters)}</tr>")
    total = trace.peak.total
    lines.append(f'<tr><td aria-hidden="true"></td>{_row("sum", total / size, total / size, total / parameters)}</tr>')
    table = '<table cellpadding="8" style="text-align:right;line-height:1.3">'
    return f'<div style="overflow-x:auto">{table}{"".join(lines)}</table></div>'


def _row(name: str, now: float, top: float, each: float) -> str:
    numbers = (f"{now:,.2f}", f"{top:,.2f}", f"{each:.2f}")
    return f'<th scope="row" style="{NAME}">{name}</th>' + "".join(f"<td>{text}</td>" for text in numbers)


class LedgerExplorer(Explorer):
    """What a training step needs, by formula: choose a model and how it trains, and see the peak against GPU sizes.

    Args:
        models: architectures by name.
        model, batch, seq_len: what to begin with (default: the first model).
        gpus: bytes that tensors may fill, by name.

    Raises LabError without models, and for a model that is not among them.
    """

    BATCHES = tuple(2**i for i in range(9))
    LENGTHS = tuple(2**i for i in range(5, 14))

    def __init__(
        self,
        models: Mapping[str, Architecture],
        model: str = "",
        batch: int = 4,
        seq_len: int = 512,
        gpus: Mapping[str, int] = GPUS,
    ) -> None:
        if not models:
            raise LabError("There are no models to choose from.", "Give at least one architecture.")
        if model and model not in models:
            raise UnknownNameError.among("model", model, models)
        self.models, self.gpus = dict(models), gpus
        choices: dict[str, tuple[str, Sequence[Any], Any]] = {
            "model": ("model", list(models), model or next(iter(models))),
            "policy": ("dtypes", list(POLICIES), "fp32"),
            "train": ("what trains", list(TRAINS.items()), "full"),
            "optimizer": ("optimizer", list(OPTIMIZERS), "adamw"),
            "checkpointing": ("checkpointing", list(CHECKPOINTING.items()), False),
            "attention": ("attention", list(ATTENTION.items()), "flash"),
        }
        batches, lengths = sorted({*self.BATCHES, batch}), sorted({*self.LENGTHS, seq_len})
        sliders = {"batch": ("batch (sequences)", batches, batch), "seq_len": ("tokens a sequence", lengths, seq_len)}
        super().__init__(sliders, choices)

    def case_of(self, **values: Any) -> Case:
        """The case that the controls describe; adapters have fp32 already, so that only full training has masters."""
        arch, policy = self.models[values["model"]], dict(POLICIES[values["policy"]])
        policy["master"] = policy.get("master", False) and values["train"] == "full"
        segments = arch.layers if values["checkpointing"] else 0
        kept = {key: values[key] for key in ("batch", "seq_len", "train", "optimizer", "attention")}
        return Case(arch, segments=segments, **kept, **policy)

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The bar, the table, and what a formula cannot know."""
        values = self._values(values)
        case = self.case_of(**values)
        trace = predict(case)
        notes = ["A dashed line is what remains of a GPU for tensors, without the CUDA context, workspaces and gaps."]
        if case.keeps_scores and case.attention == "flash":
            notes.append("In fp32 no fused kernel takes query heads that share keys: the scores are kept all the same.")
        if 0 < case.arch.max_tokens < case.seq_len:
            notes.append(f"This model has only {case.arch.max_tokens} positions.")
        name = f"{values['model']} ({_millions(case.arch.parameters)} parameters), {_spoken(case, values)}"
        words = f"{name}. {ledger_words(trace, self.gpus)}"
        picture = figure_html(ledger_figure(trace, self.gpus), words)
        text = html.escape(" ".join(notes))
        return f"{picture}{ledger_table(trace, case.arch.parameters)}<p>{text}</p>", words


def _millions(parameters: int) -> str:
    return f"{number(parameters / 1e9)} billion" if parameters >= 1e9 else f"{number(parameters / 1e6)} million"


def _spoken(case: Case, values: Mapping[str, Any]) -> str:
    trains = next(text for text, value in TRAINS.items() if value == case.train)
    optimizer = "" if case.train == "nothing" else f", {case.optimizer}"
    kept = f", {case.segments} checkpointed segments" if case.segments else ""
    shape = f"{case.batch} × {case.seq_len} tokens"
    return f"{values['policy']}, trains {trains}{optimizer}{kept}, {case.attention} attention, {shape}"


class SegmentExplorer(Explorer):
    """A slider for the number of checkpointed segments: which inputs are kept, what is computed again, and the bytes.

    Args:
        case: whose layers are cut; its own `segments` is where the slider begins, or about the root of the layers.
    """

    def __init__(self, case: Case) -> None:
        self.plan = SegmentPlan.of(case)
        layers = case.arch.layers
        options = [("0 (off)", 0), *((str(s), s) for s in range(1, layers + 1))]
        super().__init__({"segments": ("segments", options, case.segments or round(layers**0.5))})

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The layers in their segments above the two curves, and the sum in words."""
        words = layout_words(self.plan, values["segments"])
        fig = layout_figure(self.plan, values["segments"])
        return f"{figure_html(fig, words)}<p>{html.escape(self.plan.sum_words(values['segments']))}</p>", words
