"""`labkit grade LAB` and `again`: once each, on after a stop, and what goes wrong is told."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import signal
import threading

import nbformat
import pytest

from labkit.commands.grade import again, grade
from labkit.errors import LabError
from labkit.grading.outcome import CellOutcome, Outcome
from labkit.grading.rebuild import rebuild
from labkit.grading.store import Store

from .small_course import NAME, handed_in, mark_by_hand, marks
from .small_lab import small_lab


class Engine:
    """In place of the sandbox: gives the points that an answer's comment names, and notes who ran."""

    def __init__(self):
        self.ran, self.tests, self.before = [], {}, lambda student, stop: None
        self.proved, self.reference = 0, 2.0

    def run_submission(self, lab, rebuilt, student, digest, limits, only="", trust=False, stop=None):
        answer = next(step.code for step in rebuilt.steps if step.kind == "answer")
        if "BEGIN SOLUTION" in answer:  # the lab's own
            self.proved += 1
            points = self.reference
        else:
            self.ran.append(student)
            self.before(student, stop)
            points = float(answer.rpartition("# ")[2] or 0)
        found = Outcome(student, lab.path.parent.name, digest, notes=list(rebuilt.notes))
        for step in rebuilt.steps:
            if step.kind == "test" and only in ("", step.exercise):
                self.tests[step.label] = step.code
                earned = min(points, step.points)
                error = "" if earned == step.points else "AssertionError: wrong"
                found.cells[step.label] = CellOutcome(0.0 if error else earned, step.points, error, error, ran=True)
        return found


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr("labkit.grading.supervise.run_submission", engine.run_submission)
    monkeypatch.setattr("labkit.grading.sandbox.ready", lambda trust=False: None)
    monkeypatch.setenv("COLUMNS", "200")
    return engine


@pytest.fixture
def folder(course, tmp_path):
    """Three submissions: all points, those of the visible test, none; returns (folder, hand in another)."""
    lab = course.lab(NAME)

    def hand_in(student, points, text="When sizes differ."):
        notebook = handed_in(lab, f"return 0  # {points}", text)
        path = tmp_path / "submissions" / student / "lab.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)

    for student, points in {"ada": 2, "bob": 1, "cyd": 0}.items():
        hand_in(student, points)
    return tmp_path / "submissions", hand_in


def table(course):
    with (course.root / "exports" / NAME / "grades.csv").open(newline="", encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def totals(course):
    """Points as they are, whether or not a person has still to mark a question."""
    return {student: row["so_far"] for student, row in table(course).items()}


def test_a_class_is_graded_once_and_what_is_new_again(course, folder, engine, capsys):
    path, hand_in = folder
    assert grade("1", path, course.root, workers=2, due="2020-01-01") == 0
    assert sorted(engine.ran) == ["ada", "bob", "cyd"]
    said = capsys.readouterr().out
    assert (
        "3 submissions" in said
        and "3 feedback pages" in said
        and "3 of 3 marks are not final" in said
        and "a question of ada, bob, cyd." in said
    )
    assert totals(course) == {"ada": "0", "bob": "0", "cyd": "0"}, "years late"
    assert grade("small", path, course.root, due="none") == 0
    assert len(engine.ran) == 3 and "3 of them graded before" in capsys.readouterr().out
    assert totals(course) == {"ada": "3", "bob": "1", "cyd": "0"}
    files = {p.name for p in (course.root / "exports" / NAME).iterdir()}
    assert files == {"grades.csv", "summary.html", "summary.png", "summary.svg"}
    page = (course.root / "exports" / NAME / "summary.html").read_text(encoding="utf-8")
    assert 'alt="Left, a histogram of 3 scores' in page and "The mean 44 %" in page and "<td" in page
    hand_in("bob", 2)
    hand_in("dan", 1)
    assert grade(NAME, path, course.root) == 0
    assert sorted(engine.ran[3:]) == ["bob", "dan"] and totals(course)["bob"] == "3"
    assert len(list((course.root / "received" / NAME / "bob").glob("*.ipynb"))) == 2
    mark_by_hand(course, "bob", "q2-means", 2.0)
    assert grade(NAME, None, course.root) == 0, "without a folder: what is there, with the marks as they are now"
    assert len(engine.ran) == 5 and totals(course)["bob"] == "5"
    assert "Means of means" in (course.root / "feedback" / "bob" / NAME / "lab.html").read_text(encoding="utf-8")


def test_what_was_stopped_goes_on_with_nothing_lost_or_run_twice(course, folder, engine, capsys):
    path, hand_in = folder
    for student in ("dan", "eli", "fay"):
        hand_in(student, 1)
    both, ended = threading.Barrier(2), []

    def before(student, stop):
        if student in ("cyd", "dan"):
            if both.wait(20) == 0:  # both are running
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(20), "the stop is not passed on"
            ended.append(student)
            raise KeyboardInterrupt

    engine.before = before
    with pytest.raises(KeyboardInterrupt):
        grade(NAME, path, course.root, workers=2)
    assert "2 of 6 submissions are done and kept. The same command goes on with the rest" in capsys.readouterr().out
    assert sorted(ended) == ["cyd", "dan"], "the command ends after what it started"
    first = list(engine.ran)
    assert sorted(first) == ["ada", "bob", "cyd", "dan"], "the others are not begun"
    assert not [t for t in threading.enumerate() if t.name.startswith("grade")]
    engine.before = lambda student, stop: None
    assert grade(NAME, path, course.root, workers=2) == 0
    assert sorted(engine.ran[4:]) == ["cyd", "dan", "eli", "fay"]
    assert totals(course) == {"ada": "3", "bob": "1", "cyd": "0", "dan": "1", "eli": "1", "fay": "1"}

    def stop_again(student, stop):
        raise KeyboardInterrupt

    engine.before = stop_again
    with pytest.raises(KeyboardInterrupt):
        again(NAME, "ex1", course.root)
    assert "The same command runs them for all again." in capsys.readouterr().out


def test_an_outcome_that_was_not_recorded_is_recorded_without_running(course, folder, engine):
    path, _ = folder
    grade(NAME, path, course.root)
    store = Store(course.root, course.lab(NAME))
    found = store.outcome("ada")
    found.cells["ex1-mean-hidden"].points, found.recorded = 1.5, False
    store.save(found)
    assert grade(NAME, path, course.root) == 0 and len(engine.ran) == 3
    assert totals(course)["ada"] == "2.5" and store.outcome("ada").recorded


def test_a_fault_of_ours_is_no_mark_and_no_silence(course, folder, engine, capsys):
    path, hand_in = folder

    def before(student, stop):
        if student == "bob":
            raise ZeroDivisionError("a fault\nof two lines")

    assert grade(NAME, path, course.root) == 0
    hand_in("bob", 2)
    engine.before = before
    capsys.readouterr()
    assert grade(NAME, path, course.root) == 1
    assert "bob could not be graded and has no mark: ZeroDivisionError: a fault of two lines" in capsys.readouterr().out
    assert totals(course) == {"ada": "3", "bob": "", "cyd": "0"}, "neither a zero nor the mark of the older hand-in"
    trace = course.root / "outcomes" / NAME / "bob.failed.txt"
    assert "Traceback" in trace.read_text(encoding="utf-8")
    engine.before = lambda student, stop: None
    assert grade(NAME, path, course.root) == 0 and totals(course)["bob"] == "3" and not trace.exists()


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
    Store(course.root, course.lab(NAME)).keep(rebuilt_submission("dan"))
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


def rebuilt_submission(student):
    from .small_course import submission

    return submission(student)


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
    Store(course.root, course.lab(NAME)).keep(rebuilt_submission("dan"))  # a run that was stopped before dan
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


def test_wrong_usage_is_one_sentence(course, folder, engine, tmp_path, monkeypatch):
    path, _ = folder
    wrong = {
        "There is no lab 'physics'": lambda: grade("physics", path, course.root),
        "nowhere is not a course folder.* --course COURSE_DIR": lambda: grade(NAME, path, tmp_path / "nowhere"),
        "is not in .*labkit grade init": lambda: grade("06", path, course.root),
        "0 workers grade nothing": lambda: grade(NAME, path, course.root, workers=0),
        "There is nothing to grade": lambda: grade(NAME, None, course.root),
        "is no date": lambda: grade(NAME, path, course.root, due="soon"),
        "above 0 seconds": lambda: grade(NAME, path, course.root, timeout=0),
        "No submission of 01-small is graded yet": lambda: again(NAME, "ex1", course.root),
        "There is no exercise 'ex9'.*ex1-mean": lambda: again(NAME, "ex9", course.root),
    }
    for message, command in wrong.items():
        with pytest.raises(LabError, match=message):
            command()
    assert not engine.ran

    def no_walls(trust=False):
        raise LabError("Submissions cannot be walled in here.", "Install bubblewrap.")

    monkeypatch.setattr("labkit.grading.sandbox.ready", no_walls)
    with pytest.raises(LabError, match="walled in"):
        grade(NAME, path, course.root)
    assert not (course.root / "received").exists(), "a command that cannot grade takes nothing in"


def test_a_mistyped_command_is_no_lab():
    from typer.testing import CliRunner

    from labkit.cli import app

    for word, meant in {"agian": "again", "inti": "init", "gain": "again"}.items():
        done = CliRunner().invoke(app, ["grade", word, "06", "ex2"])
        assert done.exit_code == 2 and f"There is no command or lab '{word}'. Did you mean '{meant}'?" in done.output
    done = CliRunner().invoke(app, ["grade", "lora", "--course", "nowhere"])
    assert "not a course folder" in done.output, "a lab's name is none of them"


def test_two_commands_do_not_grade_one_course(course, folder, engine):
    from filelock import FileLock

    with FileLock(course.root / ".grading.lock"), pytest.raises(LabError, match="Another command is grading"):
        grade(NAME, folder[0], course.root)
    assert grade(NAME, folder[0], course.root) == 0


def test_the_engine_is_given_what_rebuild_makes(course, folder):
    """The stand-in above must not drift from the real records."""
    lab = course.lab(NAME)
    who = rebuilt_submission("ada")
    assert [step.kind for step in rebuild(lab, who).steps] == ["own", "answer", "test", "test"]
