"""nbgrader itself releases and marks the labs: nothing leaks, and its points are the quick grader's."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.grading import Lab, check_format, grade
from labkit.grading.lab import (
    BEGIN_HIDDEN,
    BEGIN_SOLUTION,
    CODE_STUB,
    END_HIDDEN,
    END_SOLUTION,
    region,
    replace_regions,
)
from labkit.paths import LESSONS

from .small_lab import small_lab

LABS = sorted(p.parent.name for p in LESSONS.glob("*/lab.ipynb"))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """An nbgrader course in a temporary folder: one for all labs, because its database takes seconds to make."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    root = tmp_path_factory.mktemp("course")
    config = Config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = f"sqlite:///{root / 'gradebook.db'}"
    config.Execute.timeout = 120
    with pytest.MonkeyPatch.context() as patch:
        # nbgrader starts `alembic` by name, which finds it only in an activated environment.
        patch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
        yield NbGraderAPI(config=config), root


def release(course, name, source):
    """Generate the student's version with nbgrader, unless another test has; returns it."""
    api, root = course
    if (root / "source" / name).exists():
        assert nbformat.read(root / "source" / name / "lab.ipynb", as_version=4) == source
        return nbformat.read(root / "release" / name / "lab.ipynb", as_version=4)
    (root / "source" / name).mkdir(parents=True)
    nbformat.write(source, root / "source" / name / "lab.ipynb")
    result = api.generate_assignment(name, force=True)
    assert result["success"], result["log"][-3000:]
    return nbformat.read(root / "release" / name / "lab.ipynb", as_version=4)


def code_lines(text):
    """Lines that say something: not blank, not a comment, not so short that they stand anywhere."""
    lines = (line.strip() for line in text.split("\n"))
    return {line for line in lines if len(line) > 12 and not line.startswith("#")}


def public_part(cell):
    """What a student may see of a cell."""
    if cell.type == "markdown":
        return "" if cell.solution else cell.source
    kept = replace_regions(cell.source, BEGIN_SOLUTION, END_SOLUTION, "")
    return replace_regions(kept, BEGIN_HIDDEN, END_HIDDEN, "")


@pytest.mark.parametrize("name", LABS)
def test_the_release_holds_no_solution_and_no_hidden_test(course, name):
    lab = Lab.read(LESSONS / name / "lab.ipynb")
    released = release(course, name, lab.notebook)
    text = "\n".join(cell.source for cell in released.cells)
    outputs = [out for cell in released.cells for out in cell.get("outputs", [])]
    public = {line for cell in lab.cells for line in code_lines(public_part(cell))}
    shown = "\n".join(public)
    hidden = {line for cell in lab.cells if cell.type == "code" for line in code_lines(cell.source)}
    # A hidden test's call may stand in the visible `def`: what the student may see anyway is no leak.
    hidden = {line for line in hidden if line not in shown}
    answers = {
        line for cell in lab.cells if cell.type == "markdown" and cell.solution for line in code_lines(cell.source)
    }
    assert hidden and answers, "the lab has nothing to hide: the test would pass on anything"
    for line in hidden | answers:
        assert line not in text, f"released to students: {line}"
    for marker in (BEGIN_SOLUTION, END_SOLUTION, BEGIN_HIDDEN, END_HIDDEN):
        assert marker not in text
    assert not outputs, "outputs of the solution would show its results"


@pytest.mark.parametrize("name", LABS)
def test_our_stub_is_nbgraders(course, name):
    lab = Lab.read(LESSONS / name / "lab.ipynb")
    released = release(course, name, lab.notebook)
    assert [c.source for c in lab.stub().cells] == [c.source for c in released.cells]
    tests = [c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade") and c.cell_type == "code"]
    assert all(c.metadata["editable"] is False and c.metadata["deletable"] is False for c in tests)


def hand_in(course, name, answers, source):
    """Release a lab, hand it in with `answers` (id -> code), autograde it; returns {grade_id: points}."""
    api, root = course
    notebook = release(course, name, source)
    for cell in notebook.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id in answers:
            indented = re.sub(r"(?m)^(?=.)", "    ", answers[grade_id].strip("\n"))
            stub = re.sub(r"(?m)^", "    ", CODE_STUB)
            assert stub in cell.source
            cell.source = cell.source.replace(stub, indented)
    folder = root / "submitted" / "ada" / name
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / "lab.ipynb")
    result = api.autograde(name, "ada")
    assert result["success"], result["log"][-3000:]
    with api.gradebook as gradebook:
        grades = gradebook.find_submission_notebook("lab", name, "ada").grades
        return {g.cell.name: g.auto_score for g in grades if g.cell.cell_type == "code"}


def test_nbgrader_and_the_quick_grader_agree(course):
    notebook = small_lab()
    notebook.cells[4].source += "\n1.5 if mean([4]) == 4 else 0.5"  # partial credit
    answers = {"ex1-mean": "return sum(values) / len(values) if len(values) > 1 else 0"}
    lab = Lab.from_notebook(notebook)
    assert check_format(lab) == []
    ours = {name: cell.points for name, cell in grade(lab, answers).cells.items()}
    assert ours == {"ex1-mean-test": 1, "ex1-mean-hidden": 0.5}
    assert hand_in(course, "small", answers, notebook) == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", LABS)
def test_nbgrader_gives_the_reference_full_points(course, name):
    """The course's own answers, handed in as a student would, earn every point that tests give."""
    lab = Lab.read(LESSONS / name / "lab.ipynb")
    answers = {e.id: region(e.solution.source) for e in lab.exercises[1:]}  # the first stays a stub
    first = {cell.grade_id: 0 for cell in lab.exercises[0].tests}
    given = hand_in(course, name, answers, lab.notebook)
    assert given == {c.grade_id: c.points for c in lab.graded_cells} | first


def test_sources_are_not_changed(tmp_path):
    """Releasing works on copies: the lab in lessons/ stays the teacher's."""
    assert LABS
    shutil.copy(LESSONS / LABS[0] / "lab.ipynb", tmp_path / "before.ipynb")
    lab = Lab.read(LESSONS / LABS[0] / "lab.ipynb")
    lab.stub()
    assert lab.notebook == nbformat.read(tmp_path / "before.ipynb", as_version=4)
