"""`labkit grade` when something has changed: the tests, the export, or what was handed in."""

from __future__ import annotations

import copy
import json
import shutil

import nbformat
import pytest

from labkit.commands.grade import again, grade
from labkit.errors import LabError
from labkit.grading.outcome import CellOutcome
from labkit.grading.store import Store

from .small_course import NAME, mark_by_hand, marks, submission
from .small_lab import small_lab
from .stand_in import table, totals


def change_hidden_test(course, old, new, index=4):
    path = course.root / "source" / NAME / "lab.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert old in notebook.cells[index].source
    notebook.cells[index].source = notebook.cells[index].source.replace(old, new)
    nbformat.write(notebook, path)


def test_one_exercise_is_graded_again_for_all_and_all_else_stays(course, folder, engine, capsys):
    path, _ = folder
    grade(NAME, path, course.root)
    mark_by_hand(course, "ada", "q2-means", 1.0, "good")
    change_hidden_test(course, "[2, 2, 5]", "[2, 2, 2, 6]")
    store = Store(course.root, course.lab(NAME))
    kept = {s: copy.deepcopy(store.outcome(s)) for s in ("ada", "bob")}
    kept["bob"].cells["extra"] = CellOutcome(stdout="kept")
    kept["bob"].notes = ["In ex1-mean-hidden: old.", "Stays."]
    store.save(kept["bob"])
    assert again(NAME, "ex1", course.root, workers=1) == 0
    assert sorted(engine.ran[3:]) == ["ada", "bob", "cyd"] and "[2, 2, 2, 6]" in engine.tests["ex1-mean-hidden"]
    assert marks(course, "ada")["q2-means"] == (None, 1.0, False) and totals(course)["ada"] == "4"
    bob = store.outcome("bob")
    assert bob.cells["extra"].stdout == "kept" and bob.notes == ["Stays."] and bob.recorded
    assert "[2, 2, 2, 6]" in (course.root / "autograded" / "ada" / NAME / "lab.ipynb").read_text(encoding="utf-8")
    grade(NAME, path, course.root)
    assert len(engine.ran) == 6, "the rest of the lab is as it was: nothing is left to grade"
    # A change elsewhere in the lab is not forgotten by grading one exercise again.
    change_hidden_test(course, "import math", "import math, os", index=0)
    again(NAME, "ex1-mean", course.root)
    grade(NAME, path, course.root)
    assert len(engine.ran) == 12
    Store(course.root, course.lab(NAME)).keep(submission("dan"))
    capsys.readouterr()
    again(NAME, "ex1", course.root)
    assert "Not graded yet, and without a mark: dan." in capsys.readouterr().out and totals(course)["dan"] == ""


@pytest.mark.parametrize("command", ["again", "grade"])
def test_broken_tests_are_refused_before_a_mark_is_touched(course, folder, engine, command):
    path, _ = folder
    grade(NAME, path, course.root)
    assert engine.proved == 1
    everything = snapshot(course)
    run = {"again": lambda: again(NAME, "ex1", course.root), "grade": lambda: grade(NAME, path, course.root)}[command]
    change_hidden_test(course, "assert mean([2, 2, 5]) == 3", "assert mean([2, 2, 5]) == (3")
    with pytest.raises(LabError, match=r"ex1-mean-hidden, line 3, is not Python .*all marks are as they were"):
        run()
    change_hidden_test(course, "== (3", "== 4")
    engine.reference = 1.0  # what the sandbox would say of the solution
    with pytest.raises(LabError, match="ex1-mean-hidden takes points from the lab's own solution: AssertionError"):
        run()
    assert len(engine.ran) == 3 and snapshot(course) == everything
    change_hidden_test(course, "== 4", "== 3.0")
    engine.reference = 2.0
    assert run() == 0 and len(engine.ran) == 6 and totals(course) == {"ada": "3", "bob": "1", "cyd": "0"}


def test_a_lab_proves_itself_once(course, folder, engine):
    path, _ = folder
    grade(NAME, path, course.root)
    grade(NAME, path, course.root)
    assert engine.proved == 1, "a lab that is as it was need not prove itself again"


def snapshot(course):
    """Everything that a refusal leaves alone."""
    kept = ("exports", "feedback", "outcomes", "received", "autograded", "submitted", "release")
    files = {p: p.read_bytes() for name in kept for p in (course.root / name).rglob("*") if p.is_file()}
    return files, {student: marks(course, student) for student in ("ada", "bob", "cyd")}


def test_a_changed_lab_grades_all_again(course, folder, engine):
    path, _ = folder
    grade(NAME, path, course.root)
    change_hidden_test(course, "[2, 2, 5]", "[1, 2, 6]")
    grade(NAME, path, course.root)
    assert len(engine.ran) == 6
    notebook = json.loads((course.root / "source" / NAME / "lab.ipynb").read_text(encoding="utf-8"))
    notebook["metadata"]["saved"] = "again"
    (course.root / "source" / NAME / "lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    grade(NAME, path, course.root)
    assert len(engine.ran) == 6, "saving the lab anew changes nothing that marks"


def test_who_is_not_in_a_newer_export_is_named(course, folder, engine, capsys):
    path, _ = folder
    grade(NAME, path, course.root)
    Store(course.root, course.lab(NAME)).keep(submission("dan"))  # a run that was stopped before dan
    capsys.readouterr()
    shutil.rmtree(path / "ada")
    grade(NAME, path, course.root)
    said = capsys.readouterr().out
    assert "Not in this export, though received before: ada, dan." in said
    assert f"Not graded yet, and without a mark: dan. Grade them: labkit grade {NAME} --course" in said
    assert totals(course)["ada"] == "3" and "older tests" not in said


def test_who_was_marked_by_older_tests_is_named(course, folder, engine, capsys):
    path, _ = folder
    grade(NAME, path, course.root)
    change_hidden_test(course, "[2, 2, 5]", "[1, 2, 6]")
    for student in ("ada", "bob"):
        shutil.rmtree(path / student)
    capsys.readouterr()
    grade(NAME, path, course.root)
    said = capsys.readouterr().out
    assert "source/ was changed since, so these are graded again: cyd." in said
    assert "Marked by older tests, from before source/ was changed: ada, bob. Mark all by the same tests:" in said
    notes = {student: row["notes"] for student, row in table(course).items()}
    assert [s for s, told in notes.items() if "older tests" in told] == ["ada", "bob"] and len(engine.ran) == 4
    grade(NAME, None, course.root)
    said = capsys.readouterr().out
    assert sorted(engine.ran[4:]) == ["ada", "bob"] and "graded again: ada, bob." in said and "by older" not in said
    change_hidden_test(course, "import math", "import math, os", index=0)
    again(NAME, "ex1", course.root)
    assert "Marked by older tests" in capsys.readouterr().out, "the rest of the lab was changed, too"


def test_another_labs_notebook_is_named_as_such(course, folder, engine, capsys):
    """Also where the labs share an exercise's name, and not where somebody pasted another lab below this one."""
    path, _ = folder
    other = small_lab()
    for cell in other.cells[3:]:
        if "nbgrader" in cell.metadata:
            cell.metadata["nbgrader"]["grade_id"] = f"lab3-{cell.metadata.nbgrader.grade_id}"
    (course.root / "source" / "03-other").mkdir()
    nbformat.write(other, course.root / "source" / "03-other" / "lab.ipynb")
    other.cells[2].source = "def mean(values):\n    return 0  # 2"
    nbformat.write(other, path / "bob" / "lab.ipynb")
    both = nbformat.read(path / "ada" / "lab.ipynb", as_version=4)
    both.cells += other.cells[3:] * 3
    (path / "ada" / "lab.ipynb").write_text(json.dumps(both), encoding="utf-8")
    grade(NAME, path, course.root)
    assert table(course)["bob"]["notes"] == "This is lab 03, and lab 01 was asked."
    assert totals(course) == {"ada": "3", "bob": "0", "cyd": "0"}
    assert "! bob handed in another lab: This is lab 03" in capsys.readouterr().out


def test_a_page_that_would_show_a_secret_is_withheld_and_the_class_has_its_own(course, folder, engine, capsys):
    path, _ = folder
    grade(NAME, path, course.root)
    store = Store(course.root, course.lab(NAME))
    found = store.outcome("bob")
    found.cells["ex1-mean-hidden"].shown = 'assert mean([2, 2, 5]) == 3, "the count is not always 2"'
    store.save(found)
    capsys.readouterr()
    assert grade(NAME, path, course.root) == 1
    said = capsys.readouterr().out
    assert "The page of bob is withheld: it would show" in said and "2 feedback pages" in said
    assert totals(course) == {"ada": "3", "bob": "1", "cyd": "0"}
