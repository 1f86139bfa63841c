"""Students' copies: only of labs that work, with nothing that students must not see; a course; checking one's own."""

from __future__ import annotations

import nbformat
import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.grading import course, release
from labkit.grading.book import Book
from labkit.grading.lab import Lab
from labkit.grading.leaks import leaks
from labkit.grading.release import copy_for_students, own_copy
from labkit.lessons import LessonFolder

from .small_lab import SOLUTION, VISIBLE, small_lab


def lesson(folder, slug="01-small", change=None):
    notebook = small_lab()
    if change:
        change(notebook)
    (folder / slug).mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / slug / "lab.ipynb")
    return LessonFolder(slug, folder / slug)


def called(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.output


def test_a_copy_holds_no_secret_and_cannot_be_edited_where_it_tests(tmp_path):
    written = release.release([lesson(tmp_path / "lessons")], tmp_path / "out")
    assert written == [tmp_path / "out" / "01-small" / "lab.ipynb"]
    copy = nbformat.read(written[0], as_version=4)
    text = nbformat.writes(copy)
    assert "return total" not in text and "the count is not always 2" not in text and "groups differ" not in text
    assert "raise NotImplementedError()" in text and VISIBLE.splitlines()[1] in "\n".join(c.source for c in copy.cells)
    tests = [c for c in copy.cells if c.metadata.get("nbgrader", {}).get("locked")]
    assert len(tests) == 2 and all(not c.metadata.editable and not c.metadata.deletable for c in tests)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def _wrong_solution(notebook):
    notebook.cells[2].source = SOLUTION.replace("len(values)", "2")


def _passes_anyway(notebook):
    notebook.cells[3].source = "assert True, 'this looks at nothing that was written'"


def _bare_name(notebook):
    lines = ["try:", "    mean([1, 3])", "except NotImplementedError:", "    no_such_name"]
    notebook.cells[3].source = "\n".join([*lines, "assert mean([1, 3]) == 2, 'the mean of 1 and 3 is 2'"])


def _breaks_elsewhere(notebook):
    notebook.cells[0].source = "import no_such_module"


def _no_message(notebook):
    notebook.cells[3].source = "assert mean([1, 3]) == 2"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_wrong_solution, "with its solutions, ex1-mean-hidden fails: AssertionError: the count is not always 2"),
        (_passes_anyway, "as students get it, the visible test ex1-mean-test passes"),
        (_bare_name, "ex1-mean-test fails with a bare NameError"),
        (_breaks_elsewhere, "with its solutions, cell-0 fails: ModuleNotFoundError"),
        (_no_message, "ex1-mean-test: the assert on line 1 has no message for the student"),
    ],
)
def test_a_lab_that_does_not_work_is_refused_with_its_cell_and_nothing_is_written(tmp_path, change, told):
    good, bad = lesson(tmp_path / "lessons"), lesson(tmp_path / "lessons", "02-bad", change)
    with pytest.raises(LabError) as refused:
        release.release([good, bad], tmp_path / "out")
    assert told in str(refused.value) and "02-bad" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_leak_stops_the_release(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "copy_for_students", lambda lab: nbformat.writes(lab.notebook))
    with pytest.raises(LabError, match="would show: ### BEGIN SOLUTION"):
        release.release([lesson(tmp_path / "lessons")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_leaks_is_found_in_notebooks_outputs_and_pages():
    notebook = small_lab()
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="the answer is forty-two\n")]
    lab = Lab.from_notebook(notebook)
    assert leaks(lab, copy_for_students(lab)) == []
    secrets = {
        "return total / len(values)": "a line of the solution",
        'assert mean([2, 2, 5]) == 3, "the count is not always 2"': "a hidden test",
        "When the groups differ in size.": "the answer to a question",
        "the answer is forty-two": "what a solution printed",
    }
    for line, what in secrets.items():
        cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=f"a\n  {line}\nb")])
        shown = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
        words = "</span> <span>".join(line.replace("&", "&amp;").replace("<", "&lt;").split())
        page = f"<html><script>0</script><body><pre><span>{words}</span></pre></body></html>"
        assert leaks(lab, shown) == leaks(lab, page) == [line], what
        assert leaks(lab, shown, own=f"    {line}  # mine") == [], "what a student wrote is no leak"
    assert leaks(lab, "### END SOLUTION") == ["### END SOLUTION"]
    assert leaks(lab, VISIBLE) == []
    formula = "<html><math><mi>return</mi> <mi>total</mi> <mo>/</mo> <mi>len(values)</mi></math></html>"
    assert leaks(lab, formula) == []
    notebook.cells[1].source += "\nYou may `return total /\nlen(values)` if you like."
    public = Lab.from_notebook(notebook)
    assert leaks(public, "return total / len(values)") == [], "a page joins what two lines of a task say"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    lessons = [lesson(root / "lessons"), lesson(root / "lessons", "02-other")]
    return root, lessons, course.init(root / "course", lessons)


def test_a_course_is_made_once_and_follows_its_lessons(made):
    root, lessons, first = made
    assert (first.new, first.updated, first.kept, first.same) == (["01-small", "02-other"], [], [], [])
    with Book(root / "course").gradebook() as gradebook:
        gradebook.update_or_create_student("ada")
        gradebook.add_submission("01-small", "ada")
    again = course.init(root / "course", lessons)
    assert (again.new, again.same) == ([], ["01-small", "02-other"])

    def mended(notebook):
        notebook.cells[4].source = notebook.cells[4].source.replace("== 3", "== 3.0")

    mine = root / "course" / "source" / "02-other" / "lab.ipynb"
    mine.write_text(mine.read_text().replace("the mean of 1 and 3 is 2", "one and three make two"))
    changed = [lesson(root / "lessons", slug, mended) for slug in ("01-small", "02-other")]
    third = course.init(root / "course", changed)
    assert (third.updated, third.kept) == (["01-small"], ["02-other"])
    assert "one and three" in mine.read_text()
    with Book(root / "course").gradebook() as gradebook:
        assert [s.student.id for s in gradebook.assignment_submissions("01-small")] == ["ada"]
        source = gradebook.find_source_cell("ex1-mean-hidden", "lab", "01-small").source
    assert "== 3.0" in source


def test_a_folder_with_something_else_is_no_course(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(LabError, match="something else than a course"):
        course.init(tmp_path, [])
    code, text = called("grade", "init", tmp_path)
    assert code == 2 and "Name an empty or a new folder" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_checking_ones_own_lab(tmp_path):
    path = tmp_path / "lab.ipynb"
    copy = copy_for_students(Lab.from_notebook(small_lab()))
    path.write_text(copy)
    code, text = called("check", path)
    assert code == 1 and "NotImplementedError" in text and "1 visible test failed." in text
    path.write_text(copy.replace("raise NotImplementedError()", "return 2"))
    code, text = called("check", path)
    assert code == 0 and "The mean: the visible tests pass" in text
    assert "Hidden tests remain: they decide 2 points, and run when your lab is graded." in text


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "There is no file"), ("dear teacher", "is not a notebook"), ('{"cells": []}', "is no")],
)
def test_what_cannot_be_checked_is_said(tmp_path, text, told):
    path = tmp_path / "lab.ipynb"
    if text is not None:
        path.write_text(text)
    code, said = called("check", path)
    assert code == 2 and told in said.replace("\n", " ")


def test_the_learners_copy_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "MY_LABS", tmp_path / "mine")
    path = own_copy(lesson(tmp_path / "lessons"))
    assert leaks(Lab.from_notebook(small_lab()), path.read_text()) == []
    path.write_text("half done")
    assert own_copy(lesson(tmp_path / "lessons")).read_text() == "half done"
