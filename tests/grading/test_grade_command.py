"""`labkit grade LAB` and `again`: once each, on after a stop, and what goes wrong is told."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from nbgrader.api import Gradebook, Student

from labkit.commands.grade import again, grade
from labkit.errors import LabError
from labkit.grading.rebuild import rebuild
from labkit.grading.store import Store

from .small_course import NAME, mark_by_hand, submission
from .stand_in import totals


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
            if both.wait(120) == 0:  # both are running
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(120), "the stop is not passed on"
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


def test_a_stop_amid_a_record_leaves_the_gradebook_free(course, folder, engine, monkeypatch):
    from labkit.grading import record as recording

    path, _ = folder
    left, whole = [], recording.record

    def cut_off(book, submission, *found):
        left.append(Gradebook(book.url))
        left[0].add_student(f"half of {submission.student}")
        left[0].db.add(Student(id="begun and not committed"))
        left[0].db.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "record", cut_off)
    with pytest.raises(KeyboardInterrupt):
        grade(NAME, path, course.root)
    monkeypatch.setattr(recording, "record", whole)
    assert grade(NAME, path, course.root) == 0
    assert totals(course) == {"ada": "3", "bob": "1", "cyd": "0"}


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
    who = submission("ada")
    assert [step.kind for step in rebuild(lab, who).steps] == ["own", "answer", "test", "test"]
