"""The look of a feedback page, and the cleaning of what students wrote."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

import bleach
from nbconvert.filters.markdown_mistune import MarkdownWithMath

from labkit.show.page import Renderer

_TAGS = {
    *("a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "del", "details", "div", "dl", "dt", "em"),
    *("figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "ol", "p"),
    *("pre", "s", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th"),
    *("thead", "tr", "u", "ul"),
}
_PLAIN = {"align", "alt", "class", "colspan", "height", "id", "open", "rowspan", "scope", "start", "title", "width"}
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml)[;,]")
_FORMULA = re.compile(r"⟦(\d+)⟧")
_MATHML = "http://www.w3.org/1998/Math/MathML"
_MATH_TAGS = {
    *("math", "menclose", "mfenced", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom", "mroot", "mrow"),
    *("mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover"),
}
_NO_MATH_ATTRIBUTE = re.compile(r"on|href$|src$|style$|action", re.IGNORECASE)
# A browser that obeys runs no script of this page and fetches nothing, whatever slipped through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOST_TAGS, _MOST_TEXT = 1000, 10_000  # tags and characters; of an answer, more is shown as it was typed

TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- macro heading(cell) -%}
{%- set marks = cell.metadata.nbgrader -%}
<div class="panel-heading">
{%- if marks.solution %}<span>Your answer</span>{% else %}<span>Test <code>{{ marks.grade_id | e }}</code></span>
{%- endif %}
<span class="pull-right">
{%- if marks.grade and marks.waits %}waits for your teacher (of {{ '%g' | format(marks.points | float) }}){% endif -%}
{%- if marks.grade and not marks.waits %}{{ '%g' | format(marks.score | float | round(2)) }} of
{{ '%g' | format(marks.points | float) }}{% endif %} <a href="#top">(top)</a></span></div>
{%- endmacro -%}
{%- macro nothing(cell) -%}
{%- if cell.metadata.labkit_nothing %}<p class="nothing">Nothing was handed in for this: the cell is as it was handed
out.</p>{% endif -%}
{%- endmacro -%}
{%- macro comment(cell) -%}
{%- if cell.metadata.nbgrader.solution and cell.metadata.nbgrader.comment -%}
<div class="panel-footer"><b>Comments:</b> {{ cell.metadata.nbgrader.comment | markdown2html }}</div>
{%- endif -%}
{%- endmacro -%}
{%- macro is_marked(cell) -%}
{%- if 'nbgrader' in cell.metadata and (cell.metadata.nbgrader.solution or cell.metadata.nbgrader.grade) -%}
yes{%- endif -%}
{%- endmacro -%}
{%- block header -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="POLICY">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>{{ resources.nbgrader.notebook | e }}: {{ resources.nbgrader.student | e }}</title>
{% for css in resources.inlining.css -%}<style>{{ css }}</style>{% endfor %}
<style>
body { font-family: sans-serif; line-height: 1.4; max-width: 60rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.25em 0.8em; text-align: left; border-bottom: 1px solid #ccc; }
td.points, th.points { text-align: right; }
tr.total { font-weight: bold; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 0.6em; margin: 0.3em 0; }
div.cell { margin: 0.8em 0; }
div.prompt { display: none; }
.nbgrader_cell { border-left: 4px solid #0072B2; padding-left: 0.8em; }
.panel-heading { color: #444; font-size: 0.9em; }
.pull-right { float: right; }
.panel-footer { background: #fff6e0; padding: 0.4em 0.8em; }
.output_error pre { background: #fdecea; border-left: 4px solid #D55E00; }
.nothing { background: #fff6e0; padding: 0.4em 0.8em; margin: 0.3em 0; }
img { max-width: 100%; height: auto; }
math[display="block"] { margin: 0.8em 0; }
.anchor-link { display: none; }
</style>
</head>
{%- endblock header -%}
{%- block markdowncell scoped -%}
<div class="cell">
{%- if is_marked(cell) %}<div class="nbgrader_cell">{{ heading(cell) }}{{ cell.source | markdown2html }}
{{- nothing(cell) }}{{ comment(cell) }}</div>
{%- else %}{{ cell.source | markdown2html }}{% endif -%}
</div>
{%- endblock markdowncell -%}
{%- block input -%}
{%- if is_marked(cell) %}<div class="nbgrader_cell">{{ heading(cell) }}{{ cell.source | highlight_code }}
{{- nothing(cell) }}{{ comment(cell) }}</div>
{%- else %}{{ cell.source | highlight_code }}{% endif -%}
{%- endblock input -%}
{%- block body_header -%}{%- endblock -%}
{%- block body_footer -%}{%- endblock -%}
{%- block body -%}
<body>
<a id="top"></a>
<main>
{%- set waiting = resources.labkit.exercises | selectattr('points', 'none') | map(attribute='title') | list -%}
<h1>{{ resources.nbgrader.notebook | e }}</h1>
<p><strong>{{ '%g' | format(resources.nbgrader.score | float | round(2)) }} of
{{ '%g' | format(resources.nbgrader.max_score | float | round(2)) }} points</strong>
{% if waiting %}so far {% endif %}for
{% if resources.labkit.name %}{{ resources.labkit.name | e }} ({{ resources.nbgrader.student | e }})
{%- else %}{{ resources.nbgrader.student | e }}{% endif %}</p>
{%- if waiting %}
<p>The marks are not final: {{ waiting | join(', ') | e }} {{ 'waits' if waiting | length == 1 else 'wait' }} for your
teacher.</p>
{%- endif %}
<p>{% if resources.labkit.received %}Handed in {{ resources.labkit.received | e }}
{%- else %}When it was handed in is not known{% endif %}
{%- if resources.labkit.due %}, due {{ resources.labkit.due | e }}{% endif %}.</p>
<table>
<thead><tr><th scope="col">exercise</th><th scope="col" class="points">points</th>
<th scope="col" class="points">of</th></tr></thead>
<tbody>
{%- for row in resources.labkit.exercises %}
<tr><th scope="row">{{ row.title | e }}</th><td class="points">
{%- if row.points is none %}waits for your teacher{% else %}{{ '%g' | format(row.points | round(2)) }}{% endif -%}
</td><td class="points">{{ '%g' | format(row.most) }}</td></tr>
{%- endfor %}
{%- if resources.nbgrader.late_penalty > 0 %}
<tr><th scope="row">handed in late
{%- if resources.labkit.late %}: {{ resources.labkit.late | e }}{% endif %}</th><td class="points">
−{{ '%g' | format(resources.nbgrader.late_penalty | float | round(2)) }}</td><td></td></tr>
{%- endif %}
<tr class="total"><th scope="row">total</th>
<td class="points">{{ '%g' | format(resources.nbgrader.score | float | round(2)) }}</td>
<td class="points">{{ '%g' | format(resources.nbgrader.max_score | float | round(2)) }}</td></tr>
</tbody></table>
{%- if resources.labkit.notes %}
<h2>What was odd about the notebook</h2>
<ul>{% for note in resources.labkit.notes %}<li>{{ note | e }}</li>{% endfor %}</ul>
{%- endif %}
<p>Hidden tests are not shown; where one failed, its own message is. What cells print is shown up to the first hidden
test; what is printed after it is not.</p>
<hr>
{{ super.super() }}
</main>
</body>
{%- endblock body -%}
""".replace("POLICY", _POLICY)


class _Placeholders(Renderer):
    """Renders Markdown with a mark in place of each formula: MathML would not survive the cleaning."""

    def __init__(self, folder: str | None) -> None:
        super().__init__(escape=False, embed_images=folder is not None, path=folder or "")
        self.formulas: list[str] = []

    def _keep(self, formula: str, tex: str) -> str:
        self.formulas.append(_checked(formula) or f"<code>{html.escape(tex.strip())}</code>")
        return f"⟦{len(self.formulas) - 1}⟧"

    def block_math(self, body: str) -> str:
        return self._keep(super().block_math(body), body)

    def inline_math(self, body: str) -> str:
        return self._keep(super().inline_math(body), body)

    def latex_environment(self, name: str, body: str) -> str:
        return self._keep(super().latex_environment(name, body), body)


def _checked(formula: str) -> str:
    """MathML written anew, '' if there is anything else in it: latex2mathml passes on markup in `\\text{…}`."""
    try:
        tree = ElementTree.fromstring(formula)
    except ElementTree.ParseError:
        return ""
    for element in tree.iter():
        space, _, tag = str(element.tag).rpartition("}")
        if space != f"{{{_MATHML}" or tag not in _MATH_TAGS or any(map(_NO_MATH_ATTRIBUTE.match, element.attrib)):
            return ""
        element.tag = tag
    tree.set("xmlns", _MATHML)
    return ElementTree.tostring(tree, encoding="unicode")


def clean_html(markdown: str, folder: str | None) -> str:
    """Markdown as HTML without scripts, styles and whatever a browser would fetch.

    Args:
        folder: where images lie that the text shows; None for text that may show no file.
    """
    if folder is None and (markdown.count("<") > _MOST_TAGS or len(markdown) > _MOST_TEXT):
        return f"<pre>{html.escape(markdown)}</pre>"  # the parsers' time grows with the square
    renderer = _Placeholders(folder)
    rendered = MarkdownWithMath(renderer=renderer).render(markdown)
    clean = bleach.clean(rendered, tags=_TAGS, attributes=_allowed, protocols=["http", "https", "mailto", "data"])
    count = len(renderer.formulas)
    return _FORMULA.sub(lambda m: renderer.formulas[int(m[1])] if int(m[1]) < count else m[0], clean)


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return tag == "img" and _IMAGE.match(value) is not None
    if name == "href":
        return tag == "a" and not value.strip().lower().startswith("data:")
    return name in _PLAIN
