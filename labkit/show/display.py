"""Figures, tables and source listings as notebook outputs that every reader can use.

JupyterLab ignores alternative text on `image/png` outputs and nbconvert's lab template drops it, so a figure is
emitted as HTML (`<figure><img alt=…>`) with the alternative text as its plain-text twin.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # the type of an output that only a running kernel draws


def _emit(html_text: str, plain: str) -> None:
    from IPython.display import display

    display({"text/html": html_text, "text/plain": plain}, raw=True)


def figure(fig: Figure, alt: str) -> None:
    """Display a matplotlib figure with alternative text, and close it.

    Args:
        fig: the figure.
        alt: what the figure shows, in a sentence or two, with its numbers, for a reader who cannot see it.

    Raises:
        LabError: when `alt` is missing or says nothing.
    """
    _emit(figure_html(fig, alt), f"[figure] {alt}")


def figure_html(fig: Figure, alt: str) -> str:
    """A matplotlib figure as HTML with its alternative text, for a widget that paints itself; closes the figure.

    Raises:
        LabError: when `alt` is missing or says nothing.
    """
    import matplotlib.pyplot as plt

    if len(alt.split()) < 5:
        raise LabError(f"The alternative text {alt!r} says nothing.", "Describe the finding in a sentence.")
    png = _png(fig)
    if _titles_made_to_fit(fig):
        png = _png(fig)
    width = int(fig.get_figwidth() * 100)
    plt.close(fig)
    data = base64.b64encode(_fewer_colours(png)).decode()
    return (
        f'<figure style="margin:0"><img alt="{html.escape(alt, quote=True)}" width="{width}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 1})  # packed again with fewer colours
    return buffer.getvalue()


def _titles_made_to_fit(fig: Figure) -> bool:
    """Whether a title of a figure that was drawn was cut: a smaller font for one too wide, height for one too high."""
    changed = False
    titles = [text for axis in fig.axes for text in (axis._left_title, axis.title)]  # type: ignore[attr-defined]
    shown = [text for text in (*titles, fig._suptitle) if text is not None and text.get_text()]  # type: ignore[attr-defined]
    for text in shown:
        while text.get_window_extent().x1 > fig.bbox.x1 and text.get_fontsize() > 6:
            text.set_fontsize(0.98 * text.get_fontsize())
            changed = True
    over = max((text.get_window_extent().y1 - fig.bbox.y1 for text in shown), default=0.0)
    if over > 0:
        fig.set_figheight(fig.get_figheight() + (over + 4) / fig.dpi)
    return changed or bool(over > 0)


def _fewer_colours(png: bytes) -> bytes:
    """Quantize a PNG to a palette of 256 colours: a third of the bytes, no difference that an eye sees."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, format="PNG", optimize=True)
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # Seven significant digits: enough to tell 65504 from 65536, short enough to read.
        return f"{value:.7g}"
    return str(value)


def table(rows: list[dict], units: dict[str, str] | None = None, caption: str = "") -> None:
    """Display rows as an HTML table with a plain-text twin.

    Args:
        rows: one dict a row; the first row's keys are the columns, in order.
        units: unit of a column, written under its name.
        caption: what the table shows.

    Raises:
        LabError: when there are no rows.
    """
    if not rows:
        raise LabError("The table has no rows.", "Give at least one row.")
    units = units or {}
    columns = list(rows[0])
    heads = [_head(name, units.get(name, "")) for name in columns]
    body = [[_cell(row.get(name)) for name in columns] for row in rows]
    numeric = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    _emit(html_table(heads, body, numeric, caption), _plain_table(heads, body, numeric, caption))


def _head(name: str, unit: str) -> str:
    """A column's name with its unit, unless the name ends with it already (`step_ms`)."""
    told = f"_{name}".endswith("_" + unit.lower().replace("/", "_per_"))
    return f"{name} ({unit})" if unit and not told else name


def html_table(heads: list[str], body: list[list[str]], numeric: list[bool], caption: str) -> str:
    """An HTML table of cells that are text already, for a page or widget that holds more than the table.

    Args:
        numeric: for each column whether it is set flush right.
        caption: above the table; empty for none.
    """
    # JupyterLab's own style of tables, with its padding, does not reach into widgets.
    style = [f"text-align:{'right' if n else 'left'};padding:0.3em 0.5em" for n in numeric]
    pairs = list(zip(heads, style, strict=True))
    head = "".join(f'<th scope="col" style="{a}">{html.escape(h)}</th>' for h, a in pairs)
    lines = [
        "<tr>" + "".join(f'<td style="{a}">{html.escape(v)}</td>' for v, a in zip(r, style, strict=True)) + "</tr>"
        for r in body
    ]
    title = f'<caption style="text-align:left">{html.escape(caption)}</caption>' if caption else ""
    body_html = "".join(lines)
    # A table wider than the page scrolls in its own box.
    table_html = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body_html}</tbody></table>"
    return f'<div style="overflow-x:auto">{table_html}</div>'


def _plain_table(heads: list[str], body: list[list[str]], numeric: list[bool], caption: str) -> str:
    widths = [max(len(r[i]) for r in [heads, *body]) for i in range(len(heads))]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, numeric, strict=True)
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in cells).rstrip()

    lines = [line(heads), "  ".join("-" * w for w in widths), *(line(r) for r in body)]
    return "\n".join(([caption] if caption else []) + lines)


def source(obj: Any) -> None:
    """Display the source code of a labkit function, method or class, highlighted, with its place.

    Raises:
        LabError: when the object has no Python source.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    try:
        code, first = inspect.getsourcelines(obj)
    except (OSError, TypeError) as error:
        raise LabError(f"{obj!r} has no Python source to show.", "Pass a function or a class.") from error
    text = inspect.cleandoc("\n" + "".join(code))
    place = f"{obj.__module__.replace('.', '/')}.py, line {first}"
    block = highlight(
        text, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True, prestyles="font-family: monospace")
    )
    _emit(f"<p><code>{html.escape(place)}</code></p>{block}", f"# {place}\n{text}")


def note(text: str) -> None:
    """Display one sentence of result, the same in HTML and plain text."""
    _emit(f"<p>{html.escape(text)}</p>", text)
