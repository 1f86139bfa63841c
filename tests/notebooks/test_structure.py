"""Every committed notebook keeps the rules of `structure`, and every rule catches what it is there for."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.grading import Lab, check_format
from labkit.paths import LESSONS

from .structure import MAX_BYTES, WIDGET_VIEW, complaints

NOTEBOOKS = sorted(p for p in LESSONS.glob("*/*.ipynb") if not p.parent.name.startswith("."))
NAMES = [f"{p.parent.name}/{p.stem}" for p in NOTEBOOKS]
LABS = [p for p in NOTEBOOKS if p.stem == "lab"]


def test_every_lesson_has_a_lesson_and_a_lab():
    folders = {p.parent for p in NOTEBOOKS}
    assert folders, "no notebook under lessons/"
    for folder in folders:
        assert {p.name for p in NOTEBOOKS if p.parent == folder} == {"lesson.ipynb", "lab.ipynb"}, folder.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_notebook(path):
    assert complaints(path) == []


@pytest.mark.parametrize("path", LABS, ids=[p.parent.name for p in LABS])
def test_lab_format(path):
    lab = Lab.read(path)
    assert check_format(lab) == []
    assert 3 <= len(lab.exercises) <= 6
    assert 60 <= lab.minutes <= 90, f"a lab takes 60 to 90 minutes, this one {lab.minutes}"


def display(**data):
    return new_output("display_data", data={k.replace("_", "/", 1): v for k, v in data.items()})


def html(text):
    return display(text_html=text)


def good():
    """A small notebook with nothing to complain about."""
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    start = new_code_cell("import labkit\nlesson = labkit.start('00-test')", id="start", execution_count=1)
    result = new_code_cell("1 + 1", id="result", execution_count=2, metadata={"tags": ["nbval-check-output"]})
    result.outputs = [new_output("execute_result", data={"text/plain": "2"}, execution_count=2)]
    notebook.cells = [new_markdown_cell("# Title", id="title"), start, result]
    return notebook


def cell(**changes):
    def apply(notebook):
        for name, value in changes.items():
            setattr(notebook.cells[2], name, value)

    return apply


def output(*outputs):
    return cell(outputs=list(outputs))


def metadata(**changes):
    return lambda notebook: notebook.metadata.update(changes)


def markdown(text):
    return lambda notebook: setattr(notebook.cells[0], "source", text)


def first(source):
    return lambda notebook: setattr(notebook.cells[1], "source", source)


FAULTS = {
    "too big": (markdown("x" * MAX_BYTES), "the limit is 500000"),
    "old format": (lambda n: n.update(nbformat_minor=4), "4.5 is the first"),
    "other kernel": (metadata(kernelspec={"name": "venv", "display_name": "v"}), "called python3"),
    "widget state": (metadata(widgets={}), "widget state"),
    "nothing checked": (cell(metadata={}), "nbval-check-output"),
    "not run": (cell(execution_count=None), "not run from top"),
    "run twice": (cell(execution_count=5), "not run from top"),
    "no outputs": (output(), "no cell has an output"),
    "error": (output(new_output("error", ename="E", evalue="v", traceback=[])), "an error, E: v"),
    "stderr": (output(new_output("stream", name="stderr", text="warning")), "stderr"),
    "png": (output(display(image_png="aGk=", text_plain="x")), "no alternative text"),
    "bare widget": (output(new_output("display_data", data={WIDGET_VIEW: {}})), "static text/html twin"),
    "img without alt": (output(html('<img src="x">')), "<img> without alt"),
    "img with empty alt": (output(html('<img src="x" alt=" ">')), "<img> without alt"),
    "svg without title": (output(html("<svg><path/></svg>")), "<svg> without"),
    "markdown image": (markdown("![](x.png)"), "Markdown image"),
    "html in markdown": (markdown("<img src='x'>"), "<img> without alt"),
    "home path": (output(new_output("stream", text="in /home/ada/labkit")), "/home/ada"),
    "temporary path": (cell(source="open('/tmp/x')"), "/tmp/x"),
    "windows path": (output(new_output("stream", text="C:\\Users\\ada")), "absolute path"),
    "long cell": (cell(source="x = 1\n" * 15), "15 lines"),
    "asks for cuda": (cell(source="torch.cuda.is_available()"), "lesson.scale"),
    "plt.show": (cell(source="plt.show()"), "drops the alternative text"),
    "other lesson": (first("import labkit\nlabkit.start('01-other')"), "labkit.start('00-test')"),
    "no start": (first("import labkit"), "labkit.start('00-test')"),
    "magic first": (first("%matplotlib inline"), "labkit.start('00-test')"),
}


def written(notebook, folder):
    path = folder / "00-test" / "lesson.ipynb"
    path.parent.mkdir()
    path.write_text(nbformat.writes(notebook, version=nbformat.NO_CONVERT), encoding="utf-8")
    return path


def test_a_good_notebook_has_no_complaint(tmp_path):
    assert complaints(written(good(), tmp_path)) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name, tmp_path):
    fault, message = FAULTS[name]
    notebook = good()
    fault(notebook)
    found = complaints(written(notebook, tmp_path))
    assert any(message in problem for problem in found), found


def test_pictures_that_speak_pass(tmp_path):
    notebook = good()
    notebook.cells[2].outputs = [
        html('<img src="data:image/png;base64,/tmp/abc/opt/xyz" alt="A line that falls from 5 to 2.">'),
        html("<svg><title>Bits</title></svg><svg aria-label='Bits'></svg><svg aria-hidden='true'></svg>"),
    ]
    assert complaints(written(notebook, tmp_path)) == []
