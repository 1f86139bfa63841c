"""Does a file for students hold what they must not see: solutions, hidden tests, what solutions printed?

Compared are lines that say something, wherever they stand in the file: in a cell, in an output, in the text of a page.
A line that students see anyway, because the lab's public part has it too, is no leak.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from labkit.grading.lab import (
    BEGIN_HIDDEN,
    BEGIN_SOLUTION,
    END_HIDDEN,
    END_SOLUTION,
    Cell,
    Lab,
    replace_regions,
)

MARKERS = (BEGIN_SOLUTION, END_SOLUTION, BEGIN_HIDDEN, END_HIDDEN)
_SHORTEST = 12  # characters: `return total` stands anywhere
# A formula may say what a solution writes as code.
_BLOCK = re.compile(r"<(script|style|math)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")


def leaks(lab: Lab, text: str, own: str = "") -> list[str]:
    """The lab's secret lines that `text` holds, each once; [] when it holds none.

    Args:
        lab: the lab with its solutions and hidden tests.
        text: a notebook's JSON, a page's HTML, or any text.
        own: what the student wrote: a right answer may well be the solution's own line.
    """
    seen = readable(text)
    secret = secrets_of(lab)
    mine, squeezed = _squeezed(own), _squeezed(seen)
    found = [marker for marker in MARKERS if marker in seen and _squeezed(marker) not in mine]
    return found + sorted(line for line in secret if _squeezed(line) in squeezed and _squeezed(line) not in mine)


def secrets_of(lab: Lab) -> set[str]:
    """Lines of solutions, of hidden tests, of answers to questions, and of what these printed, that are not public."""
    # Whole and in order: a sentence that goes on in the next line is one line on a page.
    shown = _squeezed("\n".join(public_part(cell) for cell in lab.cells))
    hidden: set[str] = set()
    for cell, raw in zip(lab.cells, lab.notebook.cells, strict=True):
        if cell.type == "code" or cell.solution:
            hidden.update(lines(cell.source))
        if cell.solution or cell.has_hidden_tests:
            hidden.update(line for text in output_texts(raw) for line in lines(text))
    return {line for line in hidden if _squeezed(line) not in shown}


def lines(text: str) -> set[str]:
    """Lines that say something: not blank, not a comment, not so short that they stand anywhere."""
    found = (line.strip() for line in text.split("\n"))
    return {line for line in found if len(line) > _SHORTEST and not line.startswith("#")}


def public_part(cell: Cell) -> str:
    """What a student may see of a cell."""
    if cell.type == "markdown":
        return "" if cell.solution else cell.source
    kept = replace_regions(cell.source, BEGIN_SOLUTION, END_SOLUTION, "")
    return replace_regions(kept, BEGIN_HIDDEN, END_HIDDEN, "")


def output_texts(cell: Any) -> Iterator[str]:
    """The texts of a notebook cell's outputs."""
    for output in cell.get("outputs", ()):
        yield str(output.get("text", ""))
        yield str(output.get("evalue", ""))
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield data if isinstance(data, str) else "".join(data)


def readable(text: str) -> str:
    """The text that a reader of a notebook or a page has before them."""
    try:
        data = json.loads(text)
    except ValueError:
        pass
    else:
        return "\n".join(_strings(data))
    if "<html" in text[:2000].lower():
        return html.unescape(_TAG.sub("", _BLOCK.sub("", text)))
    return text


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            yield "".join(value)
        else:
            for item in value:
                yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def _squeezed(text: str) -> str:
    """Without white space: pages break and indent lines as they like."""
    return "".join(text.split())
