"""What a committed notebook must look like: each check returns its complaints, one sentence each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbformat import NotebookNode

MAX_BYTES = 500_000
MAX_LINES = 14
MAX_GRADED_LINES = 24  # a solution or test cell: it cannot be split without splitting its points
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

_DATA_URI = re.compile(r"data:[a-z]+/[-+.a-z]+;base64,[A-Za-z0-9+/=\s]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/])(/(?:home|root|Users|tmp|opt|work|mnt|usr|var|private)/[\w.-]+)|([A-Z]:\\\\?\w+)")
_MARKDOWN_IMAGE = re.compile(r"!\[\s*\]\(")


def complaints(path: Path) -> list[str]:
    """Everything that is wrong with the notebook at `path` (lessons/NN-slug/lesson.ipynb or lab.ipynb)."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    found = list(_file(path, notebook))
    for check in (_execution, _outputs, _pictures, _paths, _sources, _start):
        found += check(path, notebook)
    return found


def _name(cell: NotebookNode) -> str:
    return f"cell {cell.get('id', '?')}"


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _texts(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    """(MIME type, text) of everything that a code cell has put out."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield "text/plain", output.text
        for mime, value in output.get("data", {}).items():
            yield mime, value if isinstance(value, str) else str(value)


def _file(path: Path, notebook: NotebookNode) -> Iterator[str]:
    if path.stat().st_size >= MAX_BYTES:
        yield f"{path.stat().st_size} bytes, the limit is {MAX_BYTES}"
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        yield f"nbformat {notebook.nbformat}.{notebook.nbformat_minor}: 4.5 is the first with cell ids"
        return
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not valid: {error}"
    ids = [cell.id for cell in notebook.cells]
    yield from (f"the id {i} occurs {ids.count(i)} times" for i in sorted(set(ids)) if ids.count(i) > 1)
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel must be called python3, the name that every installation has"
    if "widgets" in notebook.metadata:
        yield "widget state in the metadata: clear it, widgets have a static twin"
    if path.name == "lesson.ipynb" and not any(
        "nbval-check-output" in cell.metadata.get("tags", []) for cell in _code_cells(notebook)
    ):
        yield "no cell is tagged nbval-check-output: tag the exact results"


def _execution(path: Path, notebook: NotebookNode) -> Iterator[str]:
    cells = [cell for cell in _code_cells(notebook) if cell.source.strip()]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield f"not run from top to bottom in a fresh kernel: the execution counts are {counts}"
    if not any(cell.outputs for cell in cells):
        yield "no cell has an output"


def _outputs(path: Path, notebook: NotebookNode) -> Iterator[str]:
    for cell in _code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{_name(cell)}: an error, {output.ename}: {output.evalue}"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"{_name(cell)}: output on stderr: {output.text[:80]!r}"
            data = output.get("data", {})
            if any(mime.startswith("image/") for mime in data):
                yield f"{_name(cell)}: an image output has no alternative text: use labkit.show.figure"
            if WIDGET_VIEW in data and "text/html" not in data:
                yield f"{_name(cell)}: a widget without a static text/html twin"
            elif WIDGET_VIEW in data:
                yield f"{_name(cell)}: a stored view of a widget: store the notebook with labkit run --update"


class _Pictures(HTMLParser):
    """Collects the pictures that a reader who cannot see gets nothing from."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: list[str] = []
        self._svg: str | None = None  # an <svg> without a label that may still get a <title>

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: (value or "").strip() for name, value in attrs}
        hidden = given.get("aria-hidden") == "true"
        labelled = bool(given.get("aria-label") or given.get("aria-labelledby"))
        if tag == "img" and not given.get("alt"):
            self.silent.append("<img> without alt")
        elif tag == "svg" and not (hidden or labelled):
            self._svg = "<svg> without aria-label or <title>"
        elif tag == "title":
            self._svg = None

    def handle_endtag(self, tag: str) -> None:
        if tag == "svg" and self._svg:
            self.silent.append(self._svg)
            self._svg = None


def _pictures(path: Path, notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        pages = [text for mime, text in _texts(cell) if mime in ("text/html", "image/svg+xml")]
        if cell.cell_type == "markdown":
            pages.append(cell.source)
            if _MARKDOWN_IMAGE.search(cell.source):
                yield f"{_name(cell)}: a Markdown image without alternative text"
        for page in pages:
            parser = _Pictures()
            parser.feed(page)
            yield from (f"{_name(cell)}: {problem}" for problem in parser.silent)


def _paths(path: Path, notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        for text in [cell.source, *(text for _, text in _texts(cell))]:
            if match := _ABSOLUTE.search(_DATA_URI.sub("", text)):
                yield f"{_name(cell)}: an absolute path, {match.group(0)}"


def _sources(path: Path, notebook: NotebookNode) -> Iterator[str]:
    for cell in _code_cells(notebook):
        lines = len(cell.source.strip("\n").split("\n"))
        limit = MAX_GRADED_LINES if "nbgrader" in cell.metadata else MAX_LINES
        if lines > limit:
            yield f"{_name(cell)}: {lines} lines, the limit is {limit}: longer code belongs in labkit"
        if "cuda.is_available" in cell.source:
            yield f"{_name(cell)}: asks for a GPU itself: sizes and devices come from lesson.scale"
        if re.search(r"\bplt\.show\(", cell.source):
            yield f"{_name(cell)}: plt.show drops the alternative text: use labkit.show.figure"


def _start(path: Path, notebook: NotebookNode) -> Iterator[str]:
    """The first code cell calls labkit.start with the name of the lesson's own folder."""
    first = next(iter(_code_cells(notebook)), None)
    calls = [] if first is None else [n for n in ast.walk(_parse(first.source)) if isinstance(n, ast.Call)]
    slugs = [ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func) == "labkit.start" and c.args]
    if slugs != [path.parent.name]:
        yield f"the first code cell must call labkit.start({path.parent.name!r}), once"


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a magic: then it does not call labkit.start either
        return ast.Module([], [])
