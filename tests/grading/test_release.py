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
from labkit.grading.lab import CODE_STUB
from labkit.grading.leaks import leaks, secrets_of
from labkit.grading.outcome import Submission
from labkit.grading.rebuild import rebuild
from labkit.grading.release import copy_for_students
from labkit.grading.sandbox import Limits
from labkit.grading.supervise import run_submission
from labkit.paths import LESSONS

from .small_lab import small_lab
from .test_hostile import walled

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


@pytest.mark.parametrize("name", LABS)
def test_the_release_holds_no_solution_and_no_hidden_test(course, name):
    lab = Lab.read(LESSONS / name / "lab.ipynb")
    released = release(course, name, lab.notebook)
    assert len(secrets_of(lab)) > 20, "the lab has nothing to hide: the test would pass on anything"
    assert leaks(lab, nbformat.writes(lab.notebook))
    assert leaks(lab, nbformat.writes(released)) == []
    assert leaks(lab, copy_for_students(lab)) == []
    assert not [out for cell in released.cells for out in cell.get("outputs", [])], "a solution's results would show"


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
def test_in_the_sandbox_the_reference_earns_full_points(name):
    """The course's own answers, handed in as a student would, earn every point that tests give, and raise no doubt."""
    lab = Lab.read(LESSONS / name / "lab.ipynb")
    first, *others = lab.exercises  # the first stays a stub
    copy = nbformat.reads(copy_for_students(lab), as_version=4)
    for cell in copy.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id in {item.id for item in others}:
            cell.source = lab.exercise(grade_id).solution.source
    rebuilt = rebuild(lab, Submission("ada", raw=nbformat.writes(copy).encode()))
    outcome = run_submission(lab, rebuilt, "ada", "digest", Limits(cell_s=180, total_s=900), trust=not walled())
    given = {label: cell.points for label, cell in outcome.cells.items() if cell.max_points}
    lost = {cell.grade_id: 0 for cell in first.tests}
    assert given == {c.grade_id: c.points for c in lab.graded_cells} | lost
    assert outcome.notes == [] and outcome.restarts == 0


def test_sources_are_not_changed(tmp_path):
    """Releasing works on copies: the lab in lessons/ stays the teacher's."""
    assert LABS
    shutil.copy(LESSONS / LABS[0] / "lab.ipynb", tmp_path / "before.ipynb")
    lab = Lab.read(LESSONS / LABS[0] / "lab.ipynb")
    lab.stub()
    assert lab.notebook == nbformat.read(tmp_path / "before.ipynb", as_version=4)
