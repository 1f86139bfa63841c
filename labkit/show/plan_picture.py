"""The planner's answer as a figure, a table and lines of code: for a notebook, with or without its widget.

Everything is drawn from a `labkit.planner.Plan`, so that figure, table and words cannot disagree; the widget
(`labkit.show.plan_widget`) paints the same page anew when a control changes.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.planner import Option, Plan
from labkit.show.anatomy_style import (
    COLOURS,
    GIB,
    amount,
    called,
    gpu_lines,
    ink,
    number,
    unit_of,
    visible,
    where,
)
from labkit.show.display import figure_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = 0.4  # how much of its colour a bar keeps that does not fit
WIDTH, NAMES, BAR = 8.0, 2.3, 0.27  # inches: of the figure, of the ways' names in it, and from bar to bar
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # so that a sum can be read on the line
NUMERIC = ("largest batch", "step (s)", "host (GiB)")


def plan_figure(plan: Plan) -> Figure:
    """A stacked bar for each way's peak, those that fit on top, and a line where the GPU's usable bytes end."""
    _not_empty(plan)
    longest = max(option.peak.total for option in plan.options)
    # The line belongs to the picture unless the bars would be too short beside it.
    end = 1.14 * (max(longest, plan.usable) if plan.usable <= 8 * longest else longest)
    size, unit = unit_of(end)
    fig, ax = _axes(len(plan.options))
    _bars(ax, plan, size, end)
    gpu_lines(ax, {f"usable: {amount(plan.usable)}": plan.usable}, size, end, upright=True)
    ax.set(xlim=(0, end / size), xlabel=f"memory at the peak ({unit})")
    ax.set_yticks(range(len(plan.options)), [option.name for option in plan.options], fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(plan.options) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_axisbelow(True)
    _title_and_legend(fig, ax, plan)
    return fig


def _axes(bars: int) -> tuple[Figure, Axes]:
    """Axes with room for what stands around them; constrained layout would find it too, by drawing it all twice."""
    import matplotlib.pyplot as plt

    above, below, height = 0.85, 1.0, BAR * bars
    whole = above + height + below
    fig = plt.figure(figsize=(WIDTH, whole), layout="none")
    return fig, fig.add_axes((NAMES / WIDTH, below / whole, 1 - (NAMES + 0.15) / WIDTH, height / whole))


def _title_and_legend(fig: Figure, ax: Axes, plan: Plan) -> None:
    from matplotlib.patches import Patch

    # Room for the line's name, which stands between axis and title, 2 % of the axis's height above it.
    pad = 15 + 0.02 * 72 * BAR * len(plan.options)
    ax.set_title("\n".join(_finding(plan)), pad=pad, x=-(NAMES - 0.1) / (WIDTH - NAMES - 0.15))
    # In full colours: a bar that does not fit is pale.
    names = visible(option.peak for option in plan.options)
    patches = [Patch(color=COLOURS[name], label=called(name)) for name in names]
    fig.legend(handles=patches, loc="lower center", ncols=min(4, len(names)), fontsize="small")


def _bars(ax: Axes, plan: Plan, size: int, end: float) -> None:
    """The bars with their sums; those of ways that do not fit are pale."""
    rows = range(len(plan.options))
    left = [0.0 for _ in rows]
    alphas = [1.0 if option.fits else PALE for option in plan.options]
    for name in visible(option.peak for option in plan.options):
        widths = [option.peak.bytes.get(name, 0) / size for option in plan.options]
        bars = ax.barh(rows, widths, 0.74, left, color=COLOURS[name])
        for row, (bar, alpha) in enumerate(zip(bars, alphas, strict=True)):
            bar.set_alpha(alpha)
            if widths[row] > 0.07 * end / size:
                colour = ink(name) if alpha == 1 else "black"
                middle, text = left[row] + widths[row] / 2, number(widths[row])
                ax.text(middle, row, text, ha="center", va="center", color=colour, fontsize="x-small")
            left[row] += widths[row]
    for row, option in enumerate(plan.options):
        words = number(option.peak.total / size) + (", host too small" if _host_fails(plan, option) else "")
        place: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": "x-small"}
        ax.text(left[row] + 0.008 * end / size, row, words, bbox=BEHIND, **place)


def _host_fails(plan: Plan, option: Option) -> bool:
    """Whether a way fits the GPU and not the host."""
    return not option.fits and option.peak.total <= plan.usable


def _not_empty(plan: Plan) -> None:
    if not plan.options:
        raise LabError("The plan has no ways.", "Make one with labkit.planner.plan.")


def _gpu(plan: Plan) -> str:
    """The GPU's name, and how many of them the ways that shard were planned for."""
    gpus = max(option.case.world_size for option in plan.options)
    return f"{gpus} × {plan.gpu}" if gpus > 1 else plan.gpu


def _finding(plan: Plan) -> tuple[str, str]:
    """How many ways fit, and what the first of them, or else the nearest, needs."""
    count, fitting = len(plan.options), sum(option.fits for option in plan.options)
    peaks = sorted(plan.options, key=lambda option: option.peak.total)
    least, most = peaks[0], peaks[-1]
    size, unit = unit_of(most.peak.total)
    low, high = (f"{number(option.peak.total / size)} {unit}" for option in (least, most))
    best, train, room = plan.best, f"to train {_model(plan)}", f"{amount(plan.usable)} are usable"
    if best is None:
        first = f"No way {train} fits {_gpu(plan)}"
        if _host_fails(plan, least):
            return first, f"{least.name} would, but needs {amount(least.host_bytes)} on the host"
        return first, f"The smallest peak, {least.name}, is {low}; {room}"
    first = f"{fitting} of {count} ways {train} {'fits' if fitting == 1 else 'fit'} {_gpu(plan)}"
    if fitting == count > 1:
        return first, f"The peaks go from {low} ({least.name}) to {high}; {room}"
    return first, f"The first, {best.name}, needs {number(best.peak.total / size)} {unit}; {room}"


def _model(plan: Plan) -> str:
    """The model's name without the folders or the account before it."""
    return plan.model.replace("\\", "/").rstrip("/").split("/")[-1]


def plan_words(plan: Plan) -> str:
    """The finding, and each way's peak with its largest category."""
    _not_empty(plan)
    first, second = _finding(plan)
    ways = "; ".join(_spoken(plan, option) for option in plan.options)
    shape = f"{plan.batch} × {plan.seq_len} tokens"
    return (
        f"Stacked bars of predicted peaks at {shape}, against {amount(plan.usable)} usable. {first}. {second}. {ways}."
    )


def _spoken(plan: Plan, option: Option) -> str:
    category = max(option.peak.bytes, key=option.peak.bytes.__getitem__)
    fits = "fits" if option.fits else "the host is too small" if _host_fails(plan, option) else "does not fit"
    return f"{option.name} {amount(option.peak.total)}, the largest part {called(category)}, {fits}"


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row a way, those that fit first, for `labkit.show.table`; "–" where there is nothing to tell."""
    return [
        {
            "method": option.name,
            "what": option.way.what,
            "fits": "yes" if option.fits else "no (host)" if _host_fails(plan, option) else "no",
            "peak": f"{amount(option.peak.total)} {where(option.peak)}",
            "largest batch": str(option.largest_batch or "–"),
            "step (s)": "–" if option.seconds is None else f"{option.seconds:.2g}",
            "host (GiB)": number(option.host_bytes / GIB) if option.host_bytes else "–",
        }
        for option in plan.options
    ]


def plan_table(plan: Plan) -> str:
    """The ways as an HTML table that keeps its columns apart wherever it is shown."""
    _not_empty(plan)
    rows = plan_rows(plan)
    columns = list(rows[0])
    head = "".join(f'<th scope="col" style="{_style(name)}">{html.escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    arch = plan.arch
    size = f"{_model(plan)}: {arch.parameters:,} parameters, {arch.layers} layers of width {arch.hidden}"
    room = f"{plan.batch} × {plan.seq_len} tokens on {_gpu(plan)}, of which tensors may fill {amount(plan.usable)}"
    each = " each" if _gpu(plan) != plan.gpu else ""
    caption = f'<caption style="text-align:left">{html.escape(f"{size}; {room}{each}.")}</caption>'
    inner = f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div style="overflow-x:auto"><table style="border-collapse:collapse;line-height:1.3">{inner}</table></div>'


def _style(column: str) -> str:
    width = {"method": ";white-space:nowrap", "what": ";min-width:13em", "peak": ";min-width:8em"}.get(column, "")
    return f"text-align:{'right' if column in NUMERIC else 'left'};padding:3px 8px{width}"


def _cells(row: dict[str, Any]) -> str:
    cells = [f'<td style="{_style(name)}">{html.escape(text)}</td>' for name, text in list(row.items())[1:]]
    first = f'<th scope="row" style="{_style("method")}">{html.escape(row["method"])}</th>'
    return "".join([first, *cells])


def plan_html(plan: Plan) -> str:
    """Figure, table, the lines that run the first way that fits, and what the plan does not know."""
    unknown = "".join(f"<li>{html.escape(text)}</li>" for text in (*plan.unknown, *_notes(plan)))
    figure = figure_html(plan_figure(plan), plan_words(plan))
    return f"{figure}{plan_table(plan)}{_lines(plan)}<p>What the plan does not know:</p><ul>{unknown}</ul>"


def _notes(plan: Plan) -> list[str]:
    longest = plan.arch.max_tokens
    return [f"Tokens beyond the model's {longest:,} positions."] if 0 < longest < plan.seq_len else []


def _lines(plan: Plan) -> str:
    if plan.best is None:
        return f"<p>{html.escape('No lines to run: ' + '. '.join(_finding(plan)) + '.')}</p>"
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import BashLexer, PythonLexer

    look = HtmlFormatter(noclasses=True, nobackground=True, prestyles="font-family: monospace")
    lexer = BashLexer() if plan.best.way.job else PythonLexer()
    code = highlight(plan.lines(plan.best), lexer, look)
    return f"<p>The lines that run <b>{html.escape(plan.best.name)}</b>, the first that fits:</p>{code}"


def show_plan(plan: Plan) -> None:
    """Display a plan in a notebook without its widget; the plain twin has the words and the lines."""
    from IPython.display import display

    lines = f"\n{plan.lines(plan.best)}" if plan.best else ""
    display({"text/html": plan_html(plan), "text/plain": f"[figure] {plan_words(plan)}{lines}"}, raw=True)
