"""`labkit run`: what it writes, what failing, hanging and dying lessons do, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import nbformat
import psutil
import pytest
from checkouts import make_lessons, start_labkit, write_notebook
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LessonError
from labkit.show import page


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """A lessons folder with one lesson that works and three that do not."""
    root = make_lessons(tmp_path / "lessons")
    monkeypatch.setattr("labkit.lessons.LESSONS", root)
    monkeypatch.setenv("COLUMNS", "200")
    return root


def run(*arguments):
    done = CliRunner().invoke(app, ["run", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.output


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_lesson_becomes_a_notebook_and_a_page_that_needs_no_network(lessons, tmp_path):
    code, text = run("alpha", "--out", tmp_path / "out", "--labs", "--scale", "tiny")
    assert code == 0 and "✓ 01-alpha" in text and "✓ 01-alpha-lab" in text
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["01-alpha-lab.html", "01-alpha-lab.ipynb", "01-alpha.html", "01-alpha.ipynb"]
    notebook = nbformat.read(tmp_path / "out" / "01-alpha.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code_cells] == [1, 2, 3, 4, 5]
    assert code_cells[0].outputs[0].text == "scale tiny in 01-alpha\n"

    html = (tmp_path / "out" / "01-alpha.html").read_text(encoding="utf-8")
    assert "<title>Alpha, the first</title>" in html and '<html lang="en">' in html
    assert "<script" not in html and not page.REMOTE.search(html)
    assert html.count("<math") == 3 and "$" not in re.sub(r"\$5", "", _body(html)), "every formula is MathML"
    assert 'alt="a curve that falls"' in html and 'alt="a grey square"' in html
    assert "square.png" not in html, "the image is inside the page"
    assert "captured by a widget" in html and "IntSlider(" not in html
    assert '<a href="https://example.org/page"' in html, "links may lead elsewhere"


def _body(html: str) -> str:
    """The page without style sheets and formulas' own labels."""
    return re.sub(r"<style.*?</style>|aria-label=\"[^\"]*\"", "", html, flags=re.DOTALL)


def test_a_failing_cell_is_shown_and_the_next_lesson_still_runs(lessons, tmp_path):
    code, text = run("02", "01", "--out", tmp_path / "out")
    assert code == 1
    assert "02-beta failed in code cell 2" in text
    assert "y = i / 0  # the culprit" in text and "ZeroDivisionError: division by zero" in text
    assert "✓ 01-alpha" in text
    failed = tmp_path / "out" / "02-beta.failed.ipynb"
    assert "ZeroDivisionError" in failed.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "02-beta.html").exists()
    # Mended, it takes the failed copy away.
    write_notebook(lessons / "02-beta" / "lesson.ipynb", ("1 + 1",), "# Mended")
    assert run("02", "--out", tmp_path / "out")[0] == 0 and not failed.exists()


def test_a_cell_that_takes_too_long_ends_with_all_it_started(lessons, tmp_path):
    begin = time.monotonic()
    code, text = run("slow", "--timeout", "3", "--out", tmp_path / "out")
    assert code == 1 and "still running after 3 s" in text and "--timeout" in text
    assert time.monotonic() - begin < 30
    child = int((lessons / "03-slow" / "child.pid").read_text())
    wait_for(lambda: not alive(child), 5)


def test_a_kernel_that_dies_is_reported_at_once(lessons, tmp_path):
    begin = time.monotonic()
    code, text = run("dead", "--out", tmp_path / "out")
    assert code == 1 and "the kernel died" in text and "os._exit(3)" in text
    assert time.monotonic() - begin < 30


@pytest.mark.skipif(os.name != "posix", reason="sends signals to one process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_every_process_and_leaves_nothing_half_written(lessons, tmp_path, name):
    number = getattr(signal, name)
    out = tmp_path / "out"
    # Under nohup SIGHUP is ignored, and children inherit that; in a terminal it is not.
    ordinary = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)} if name == "SIGHUP" else {}
    process = start_labkit(lessons, "run", "03-slow", "--out", str(out), **ordinary)
    note = lessons / "03-slow" / "child.pid"
    try:
        wait_for(lambda: note.exists() and note.read_text().isdigit())
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert int(note.read_text()) in started and len(started) >= 2, "the kernel and what its cell started"
        process.send_signal(number)
        text, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in text
    wait_for(lambda: not any(alive(pid) for pid in started), 5)
    assert not out.exists() or list(out.iterdir()) == []


def test_a_signal_before_the_kernel_is_up_ends_too(lessons, tmp_path):
    if os.name != "posix":
        pytest.skip("sends signals to one process")
    process = start_labkit(lessons, "run", "03-slow", "--out", str(tmp_path / "out"))
    try:
        wait_for(lambda: psutil.Process(process.pid).children())
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    wait_for(lambda: not any(alive(pid) for pid in started), 5)


def test_a_page_that_cannot_be_made_does_not_take_the_executed_notebook_along(lessons, tmp_path, monkeypatch):
    def refuse(*_):
        raise LessonError("The page would load something.", "Mend it.")

    monkeypatch.setattr("labkit.show.page.page", refuse)
    run("alpha", "--out", tmp_path / "out", "--scale", "tiny")
    assert any(cell.get("outputs") for cell in nbformat.read(next(tmp_path.glob("out/*.ipynb")), 4).cells)
    assert not list(tmp_path.glob("out/*.html"))


def test_other_child_processes_are_left_alone(lessons, tmp_path):
    import subprocess
    import sys

    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run("02", "--out", tmp_path / "out")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_broken_notebook_and_an_unwritable_folder_are_one_sentence_each(lessons, tmp_path):
    (lessons / "02-beta" / "lesson.ipynb").write_text("{ not a notebook")
    code, text = run("02", "--out", tmp_path / "out")
    assert code == 2 and "cannot be read as a notebook" in text and "Traceback" not in text
    (tmp_path / "file").write_text("")
    code, text = run("01", "--out", tmp_path / "file" / "out")
    assert code == 2 and "Could not write" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "html",
    [
        '<img alt="x" src="https://example.org/x.png">',
        "<script src=//example.org/x.js></script>",
        '<link rel="stylesheet" href="http://example.org/x.css">',
        "<style>@import url(https://example.org/x.css)</style>",
        '<div style="background: url(https://example.org/x.png)">x</div>',
    ],
)
def test_a_page_that_would_load_something_is_refused(tmp_path, html):
    notebook = nbformat.v4.new_notebook()
    output = nbformat.v4.new_output("display_data", {"text/html": html})
    notebook.cells = [nbformat.v4.new_code_cell("show()", outputs=[output])]
    with pytest.raises(LessonError, match=r"example\.org"):
        page.page(notebook, "a page", tmp_path)


def test_a_formula_that_cannot_be_converted_stays_readable():
    assert page.mathml("x_1").startswith("<math") and "<msub>" in page.mathml("x_1")
    broken = page.mathml(r"\frac{1}{")
    assert "<math" in broken or r"\frac{1}{" in broken
    assert page.mathml("a < b").count("<math") == 1 and 'aria-label="a &lt; b"' in page.mathml("a < b")


def test_a_hint_to_unfold_stays_folded(tmp_path):
    hint = "<details><summary>Hint</summary>\n\nShift *first*: $x_1$.\n\n</details>\n\nAfter the hint."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(hint)])
    html = page.page(notebook, "a page", tmp_path)
    assert re.search(r"<details><summary>Hint</summary>.*<em>first</em>.*<math.*</details>.*After the hint", html, re.S)
    assert html.count("</details>") == 1


def test_update_stores_outputs_without_what_only_a_kernel_could_draw(lessons, tmp_path):
    lesson = lessons / "05-widget" / "lesson.ipynb"
    lesson.parent.mkdir()
    source = (
        "from IPython.display import display\n"
        "view = {'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}}\n"
        "display(view, raw=True)\n"
        "display({**view, 'text/html': '<p>twin</p>'}, raw=True)"
    )
    write_notebook(lesson, (source,), "# Widget")
    before = lesson.read_bytes()
    assert run("05", "--out", tmp_path / "out")[0] == 0 and lesson.read_bytes() == before
    assert run("05", "--out", tmp_path / "out", "--update")[0] == 0
    stored = nbformat.read(lesson, as_version=4)
    (cell,) = [c for c in stored.cells if c.cell_type == "code"]
    assert [dict(output.data) for output in cell.outputs] == [{"text/html": "<p>twin</p>"}]
    assert "execution" not in cell.metadata and "widgets" not in stored.metadata
