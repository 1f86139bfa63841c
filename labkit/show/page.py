"""A notebook as one HTML file that needs no network: formulas as MathML, images inside, no scripts.

nbconvert's own page loads MathJax, require.js and widget renderers from elsewhere, which leaves raw formulas
and empty boxes where there is no network. Browsers render MathML themselves (Chromium since 109).
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from labkit.errors import LessonError
from labkit.show.display import WIDGET_VIEW

SCRIPT = "application/javascript"
# What would make a browser fetch something: a source or a style sheet elsewhere, an import in CSS. A link
# (<a href>) only leads somewhere when it is clicked.
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|track|input)\b[^>]*?\b(?:src|data|srcset|poster)\s*="""
    r"""\s*["']?\s*(?:https?:)?//[^"'\s>]+|<link\b[^>]*?\bhref\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|\burl\(\s*["']?(?:https?:)?//[^"')\s]+""",
    re.IGNORECASE,
)
_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
body.jp-Notebook { max-width: 60rem; margin: 0 auto; padding: 1rem; }
math { font-size: 1.1em; }
math[display="block"] { margin: 0.8em 0; }
img, figure { max-width: 100%; height: auto; }
/* A page and its print show all of a long line; there is no bar to scroll on paper. */
.jp-InputArea-editor .highlight pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
{%- endblock -%}
{%- block data_latex scoped -%}
<div class="jp-RenderedLatex jp-OutputArea-output">{{ output.data['text/latex'] | formulas }}</div>
{%- endblock -%}
"""


def mathml(tex: str, display: str = "inline") -> str:
    """LaTeX without its delimiters as a <math> element; as marked-up source where it cannot be converted."""
    from latex2mathml.converter import convert

    try:
        element = convert(tex.strip(), display=display)
    except Exception:  # the converter has no common base error, and a page with one raw formula is still a page
        return f'<code class="formula">{html.escape(tex.strip())}</code>'
    # The source serves screen readers that know TeX, and whoever copies the formula.
    return element.replace("<math ", f'<math aria-label="{html.escape(tex.strip(), quote=True)}" ', 1)


class Renderer(IPythonRenderer):
    """nbconvert's Markdown renderer with formulas turned into MathML."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def block_html(self, html: str) -> str:
        """A stretch of HTML as it stands: nbconvert parses it and closes its open tags.

        A hint's `<details>` begins in one stretch and ends in another, with Markdown between; closed early, it
        hides nothing.
        """
        return super().block_html(html) if "<img" in html.lower() else f"{html}\n"


class PageExporter(HTMLExporter):
    """nbconvert's HTML exporter, made to load nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(extra_loaders=[DictLoader({"page.html.j2": _TEMPLATE})], **options)
        self.template_file = "page.html.j2"
        self.embed_images = True
        self.sanitize_html = False
        self.register_filter("formulas", formulas)

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown to HTML, with images of the notebook's folder and attachments inside."""
        cell = context.get("cell", {})
        renderer = Renderer(
            escape=False,
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            attachments=cell.get("attachments", {}),
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def formulas(text: str) -> str:
    """A text/latex output as MathML; what is outside its delimiters stays text."""
    pieces = re.split(r"\$\$(.+?)\$\$|\$(.+?)\$", text, flags=re.DOTALL)
    parts = []
    for position, piece in enumerate(pieces):
        if piece:
            kind = position % 3
            parts.append(html.escape(piece) if kind == 0 else mathml(piece, "block" if kind == 1 else "inline"))
    return "".join(parts)


def page(notebook: NotebookNode, title: str, folder: Path) -> str:
    """`notebook` as a self-contained HTML page; images are looked up in `folder`.

    Raises LessonError naming the first thing in it that a browser would have to fetch.
    """
    still = _without_live_outputs(notebook)
    still.metadata["title"] = title
    resources = {"metadata": {"name": title, "path": str(folder)}, "language_code": "en"}
    text, _ = PageExporter().from_notebook_node(still, resources=resources)
    if remote := REMOTE.search(text):
        raise LessonError(
            f"The page of {title!r} would load something from the network: {remote[0][:120]}",
            "Put the file beside the notebook, or write the figure into the output itself.",
        )
    return text


def _without_live_outputs(notebook: NotebookNode) -> NotebookNode:
    """A copy in which each widget is its static twin (its HTML, image or text) and no output is a script."""
    copy = NotebookNode(notebook.copy())
    copy.metadata = NotebookNode({k: v for k, v in notebook.metadata.items() if k != "widgets"})
    copy.cells = [NotebookNode(cell) for cell in notebook.cells]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs = [still for output in cell.outputs if (still := _still(output)) is not None]
    return copy


def _still(output: NotebookNode) -> NotebookNode | None:
    if "data" not in output or not {WIDGET_VIEW, SCRIPT} & output.data.keys():
        return output
    data = {kind: value for kind, value in output.data.items() if kind not in (WIDGET_VIEW, SCRIPT)}
    # A widget's text/plain is its Python repr, which tells a reader nothing; any richer twin is its fallback.
    if WIDGET_VIEW in output.data and data.keys() <= {"text/plain"}:
        return None
    return NotebookNode(output, data=NotebookNode(data)) if data else None
