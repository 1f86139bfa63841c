"""The bit explorer: one value in many number formats, bit by bit, with every bit there to flip.

`bits_figure` is the static picture, an HTML table with a plain-text twin, for GitHub, paper and pages.
`bit_explorer` is the widget around the same table. Its controls are ordinary ipywidgets, so Tab, Enter,
Space and the arrow keys work, and each has a description or a tooltip for screen readers. Sign, exponent and
mantissa stand in columns of their own with different underlines, so that colour is never the only sign.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from typing import Any

from labkit.errors import LabError
from labkit.numerics import formats as nf
from labkit.numerics.formats import Format
from labkit.show.display import _emit

PARTS = ("sign", "exponent", "mantissa")
# Okabe & Ito's red, blue and green as tints, legible on light and dark pages
TINTS = {"sign": "213,94,0", "exponent": "0,114,178", "mantissa": "0,158,115"}
LINES = {"sign": "double", "exponent": "solid", "mantissa": "dashed"}
COLUMNS = ("format", *PARTS, "hex", "value", "relative error", "kind")
_POWER = re.compile(r"([+-]?)\s*(\d+(?:\.\d+)?)\s*(?:\^|\*\*)\s*([+-]?\d+)")


def read_value(text: str | float) -> float:
    """The number that a learner typed: "0.1", "1e-8", "-inf", "nan", "2^-14". Raises LabError for others."""
    if isinstance(text, int | float):
        return float(text)
    cleaned = text.strip().replace("−", "-").replace("_", "")
    try:
        power = _POWER.fullmatch(cleaned)
        if power:
            sign, base, exponent = power.groups()
            return (-1.0 if sign == "-" else 1.0) * float(base) ** int(exponent)
        return float(cleaned)
    except (ValueError, ArithmeticError):
        raise LabError(f"{text!r} is not a number.", "Type one such as 0.1, 1e-8, 2^-14, inf or nan.") from None


def row(value: float, fmt: Format) -> dict[str, str]:
    """One line of the table: `value` as `fmt` stores it, a string for each of COLUMNS."""
    if math.isnan(value) and fmt.nan_code is None:
        return dict.fromkeys(COLUMNS, "–") | {"format": fmt.name, "kind": "no code for NaN"}
    part = nf.fields(int(nf.encode(value, fmt)), fmt)
    sign, exponent, mantissa = [*part.bits.split(" "), ""][:3]
    return {
        "format": fmt.name,
        "sign": sign,
        "exponent": exponent,
        "mantissa": mantissa,
        "hex": f"0x{part.code:0{-(-fmt.bits // 4)}X}",
        "value": f"{part.value:.9g}",
        "relative error": _error(value, part.value),
        "kind": part.kind + _lost(value, part),
    }


def _error(value: float, stored: float) -> str:
    if stored == value or (math.isnan(stored) and math.isnan(value)):
        return "exact"
    relative = (stored - value) / abs(value)
    return f"{relative:+.2g}" if math.isfinite(relative) else "–"


def _lost(value: float, part: nf.Fields) -> str:
    """What became of a finite value that the format cannot hold: overflow, saturation, underflow."""
    if not math.isfinite(value):
        return ""
    if part.kind in ("infinity", "NaN"):
        return ", overflow"
    if abs(value) > part.fmt.max + nf.spacing(part.fmt.max, part.fmt) / 2:
        return ", saturated"
    return ", underflow" if part.kind == "zero" and value != 0 else ""


def bits_html(value: float, chosen: Iterable[Format], caption: str = "") -> str:
    """The table as HTML: a row for each format, a column each for sign, exponent and mantissa bits."""
    heads = "".join(f'<th scope="col" style="text-align:left;padding:3px 8px">{name}</th>' for name in COLUMNS)
    body = []
    for fmt in chosen:
        cells = []
        for name, text in row(value, fmt).items():
            style = "text-align:left;white-space:nowrap;padding:3px 8px"
            if name in PARTS and text != "–":
                style += f";font-family:monospace;background:rgba({TINTS[name]},.2)"
                line = f"border-bottom:3px {LINES[name]} rgb({TINTS[name]})"
                text = f'<span style="{line}">{html.escape(text)}</span>'
            elif name == "format":
                cells.append(f'<th scope="row" style="{style}">{html.escape(text)}</th>')
                continue
            cells.append(f'<td style="{style}">{text if name in PARTS else html.escape(text)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f'<caption style="text-align:left">{html.escape(caption)}</caption>'
    table = f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}</div>'


def bits_text(value: float, chosen: Iterable[Format], caption: str = "") -> str:
    """The same table as plain text."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(row(value, fmt) for fmt in chosen)]
    widths = {name: max(len(r[name]) for r in rows) for name in COLUMNS}
    lines = ["  ".join(r[name].ljust(widths[name]) for name in COLUMNS).rstrip() for r in rows]
    return "\n".join([caption, *lines])


def _choose(chosen: Iterable[str | Format] | None) -> list[Format]:
    return [Format.parse(f) for f in (nf.FORMATS if chosen is None else chosen)]


def _caption(value: float) -> str:
    return f"{value!r} in each format (nearest, ties to even)"


def bits_figure(value: str | float, chosen: Iterable[str | Format] | None = None) -> None:
    """Display `value` in all formats (or the `chosen` ones) as a static table.

    Raises LabError for text that is no number and for an unknown format.
    """
    number, fmts = read_value(value), _choose(chosen)
    _emit(bits_html(number, fmts, _caption(number)), bits_text(number, fmts, _caption(number)))


class BitExplorer:
    """The widget: type a value, or flip bits of it in one format, and see it in all formats.

    `value` is what the table shows; `code` and `fmt` are the bits under the buttons. Displays itself as the
    last expression of a cell; front ends without widgets show the static table.
    """

    def __init__(self, value: str | float = "0.1", flip: str = "fp16", chosen: Any = None) -> None:
        import ipywidgets as w

        self.formats = _choose(chosen)
        self.fmt = Format.parse(flip)
        self.value, self.code = read_value(value), 0
        wide = w.Layout(width="260px")
        label = {"description_width": "90px"}
        self.text = w.Text(str(value), description="Value", continuous_update=False, layout=wide, style=label)
        self.text.tooltip = "Type a number such as 0.1, 1.0001, 2^-14, inf or nan, then press Enter"
        self.format = w.Dropdown(
            options=[f.name for f in self.formats],
            value=self.fmt.name,
            description="Flip bits in",
            layout=wide,
            style=label,
        )
        self.format.tooltip = "The format whose bits the buttons below flip"
        self.smaller = w.Button(description="◀ code − 1", tooltip="Previous code: the neighbour nearer to zero")
        self.larger = w.Button(description="code + 1 ▶", tooltip="Next code: the neighbour farther from zero")
        self.bits: list[Any] = []
        self._built: Format | None = None
        self.flips = w.HBox(layout=w.Layout(flex_flow="row wrap"))
        self.formula, self.table, self.message = w.HTML(), w.HTML(), w.HTML()
        controls = w.HBox([self.text, self.format, self.smaller, self.larger], layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([controls, self.message, self.flips, self.formula, self.table])
        self.text.observe(self._typed, "value")
        self.format.observe(self._chosen, "value")
        self.smaller.on_click(lambda _: self._set_code(self.code - 1))
        self.larger.on_click(lambda _: self._set_code(self.code + 1))
        self._set_value(self.value)

    def _typed(self, change: dict[str, Any]) -> None:
        try:
            value = read_value(change["new"])
        except LabError as error:
            self.message.value = f'<span role="alert"><b>{html.escape(str(error))}</b></span>'
            return
        # repr tells -0.0 from 0.0 and makes every NaN the same: a NaN's other bits survive its own echo
        if repr(value) != repr(self.value):
            self._set_value(value)
        self.message.value = ""

    def _chosen(self, change: dict[str, Any]) -> None:
        self.fmt = Format.parse(change["new"])
        self._set_value(self.value)

    def _set_value(self, value: float) -> None:
        self.value = value
        has_code = not (math.isnan(value) and self.fmt.nan_code is None)
        self.code = int(nf.encode(value if has_code else 0.0, self.fmt))
        self._paint()

    def _set_code(self, code: int) -> None:
        self.code = code % 2**self.fmt.bits
        self.value = float(nf.decode(self.code, self.fmt))
        self._paint()
        self.text.value = repr(self.value)  # after the value: _typed then sees nothing new

    def _flip(self, bit: int) -> None:
        self._set_code(self.code ^ 1 << bit)

    def _paint(self) -> None:
        if self._built is not self.fmt:
            self._build_buttons()
        for bit, button in enumerate(self.bits):
            button.description = str(self.code >> bit & 1)
        meaning = nf.describe(self.code, self.fmt)
        if math.isnan(self.value) and self.fmt.nan_code is None:
            meaning = "no code for NaN; the buttons start from zero"
        self.formula.value = f"<code>{self.fmt.name}: {html.escape(meaning)}</code>"
        self.table.value = bits_html(self.value, self.formats, _caption(self.value))

    def _build_buttons(self) -> None:
        """One button for each bit, in three captioned groups; kept while only their digits change."""
        import ipywidgets as w

        self.bits = [None] * self.fmt.bits
        groups = []
        for part, high, low in _spans(self.fmt):
            buttons = []
            for bit in range(high, low - 1, -1):
                button = w.Button(
                    tooltip=_bit_name(self.fmt, bit), layout=w.Layout(width="26px", padding="0", margin="1px")
                )
                button.style.button_color = f"rgba({TINTS[part]},.3)"
                button.on_click(lambda _, bit=bit: self._flip(bit))
                self.bits[bit] = button
                buttons.append(button)
            line = f"border-bottom:3px {LINES[part]} rgb({TINTS[part]})"
            caption = w.HTML(f'<span style="{line}">{part}</span>', layout=w.Layout(margin="0 4px"))
            line_up = w.HBox(buttons, layout=w.Layout(flex_flow="row wrap"))
            groups.append(w.VBox([caption, line_up], layout=w.Layout(margin="0 8px 0 0")))
        self.flips.children = groups
        self._built = self.fmt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        caption = _caption(self.value)
        static = {
            "text/html": bits_html(self.value, self.formats, caption),
            "text/plain": bits_text(self.value, self.formats, caption),
        }
        return {**self.box._repr_mimebundle_(), **static}


def bit_explorer(value: str | float = "0.1", flip: str = "fp16", chosen: Any = None) -> BitExplorer:
    """The bit explorer, starting at `value`, with buttons for the bits of the format `flip`."""
    return BitExplorer(value, flip, chosen)


def _spans(fmt: Format) -> list[tuple[str, int, int]]:
    """(part, highest bit, lowest bit) of sign, exponent and mantissa."""
    m, top = fmt.mantissa_bits, fmt.bits - 1
    return [("sign", top, top), ("exponent", top - 1, m), *([("mantissa", m - 1, 0)] if m else [])]


def _bit_name(fmt: Format, bit: int) -> str:
    if bit == fmt.bits - 1:
        return "sign bit: 1 means negative"
    if bit >= fmt.mantissa_bits:
        return f"exponent bit: adds {2 ** (bit - fmt.mantissa_bits)} to the exponent field"
    return f"mantissa bit: worth 1/{2 ** (fmt.mantissa_bits - bit)} of the leading power of two"
