"""Hostile and broken submissions get what they earned, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from labkit.errors import LabError
from labkit.grading import sandbox, supervise
from labkit.grading.lab import Lab
from labkit.grading.rebuild import rebuild
from labkit.grading.sandbox import Limits, ready
from labkit.grading.supervise import run_submission
from labkit.paths import LESSONS, ROOT

from .broken import BROKEN
from .hostile import HOSTILE, TENSORS
from .small_lab import small_lab
from .submissions import RIGHT, notebook, submission

LIMITS = Limits(cell_s=3, total_s=60, memory_gib=1, file_mib=64, open_files=64, threads=64)


def walled() -> bool:
    try:
        ready()
    except LabError:
        return False
    return True


needs_walls = pytest.mark.skipif(not walled(), reason="bubblewrap does not run here")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab.from_notebook(small_lab(), tmp_path_factory.mktemp("small") / "lab.ipynb")


def graded(lab, raw, **more):
    return run_submission(lab, rebuild(lab, submission(raw)), "mallory", "digest", LIMITS, **more)


@contextlib.contextmanager
def all_of_python():
    """Answers run in all of Python, so that what stands behind the smaller one is tried."""
    plain = supervise._job
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervise, "_job", lambda step, shared: plain(step, shared) | {"unguarded": True})
        yield


@pytest.fixture(scope="module")
def outcomes(lab):
    """All cases in all of Python, two at a time."""
    os.environ["LABKIT_SECRET"] = "the teacher's"
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    files = _files()
    with all_of_python(), ThreadPoolExecutor(2) as pool:
        found = dict(zip(HOSTILE, pool.map(lambda case: graded(lab, case.raw), HOSTILE.values()), strict=True))
    del os.environ["LABKIT_SECRET"]
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    return found, left, _files() - files


def _files() -> set[str]:
    return {
        p.name for folder in ("/tmp", "/dev/shm") for p in Path(folder).glob("*") if not p.name.startswith("pytest")
    }


@needs_walls
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_submission_gets_what_it_earned(outcomes, name):
    case, outcome = HOSTILE[name], outcomes[0][name]
    told = " ".join([*outcome.notes, *(cell.error for cell in outcome.cells.values())])
    assert (outcome.points, outcome.restarts) == (case.points, case.restarts), told
    assert case.says in told
    assert len(told) < 20_000 and all(len(cell.stdout) <= 4000 for cell in outcome.cells.values())


@needs_walls
def test_what_answers_are_written_in_leaves_nothing_to_gain(lab):
    """The same as the grader runs it: never more points, no other process needed, and a sentence that says why."""
    quick = {name: case for name, case in HOSTILE.items() if not case.restarts}
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(quick, pool.map(lambda case: graded(lab, case.raw), quick.values()), strict=True))
    for name, case in quick.items():
        told = [cell.error for cell in found[name].cells.values()]
        most = 1 if "return 2" in case.raw.decode() else case.points  # the visible test asks for a mean that is 2
        assert found[name].points <= max(most, case.points) and not found[name].restarts, f"{name}: {told}"
        assert found[name].points == 3 or any(told), name


@needs_walls
@pytest.mark.parametrize("unguarded", [True, False])
def test_tensors_cannot_be_faked(tmp_path, unguarded):
    plain = small_lab()
    plain.cells[0].source = "import torch"
    plain.cells[3].source = "assert torch.equal(mean(torch.tensor([1.0, 3.0])), torch.tensor(2.0)), 'the mean is 2'"
    plain.cells[4].source = plain.cells[4].source.replace(
        "mean([2, 2, 5]) == 3", "torch.equal(mean(torch.tensor([2.0, 2.0, 5.0])), torch.tensor(3.0))"
    )
    lab = Lab.from_notebook(plain, tmp_path / "lab.ipynb")
    with all_of_python() if unguarded else contextlib.nullcontext(), ThreadPoolExecutor(2) as pool:
        found = dict(zip(TENSORS, pool.map(lambda case: graded(lab, case.raw), TENSORS.values()), strict=True))
    for name, case in TENSORS.items():
        told = " ".join([*found[name].notes, *(cell.error for cell in found[name].cells.values())])
        assert found[name].points == case.points and (case.says in told or not unguarded), f"{name}: {told}"


@needs_walls
def test_no_process_and_no_file_is_left(outcomes):
    assert outcomes[1] == []
    # Other tests launch ranks at the same time; a submission's own have walls around them.
    assert not {name for name in outcomes[2] if name.startswith("labkit") and not name.startswith("labkit-ranks-")}
    assert (ROOT / "pyproject.toml").is_file() and (LESSONS / "00-start-here" / "lab.ipynb").is_file()


@needs_walls
def test_a_hidden_test_is_not_shown_to_the_student(lab):
    outcome = graded(lab, notebook("raise ValueError(repr(values))"))
    hidden = outcome.cells["ex1-mean-hidden"]
    assert "[2, 2, 5]" in hidden.error
    assert hidden.shown == "A hidden test: ValueError in your cell ex1-mean, line 3: raise ValueError(repr(values))"
    told = graded(lab, notebook("return 2")).cells["ex1-mean-hidden"].shown
    assert told == "A hidden test: the count is not always 2"


@needs_walls
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_marked_for_what_can_be_read(lab, name):
    case = BROKEN[name]
    outcome = graded(lab, case.raw)
    told = " ".join([*outcome.notes, *(cell.error for cell in outcome.cells.values())])
    assert (outcome.points, outcome.restarts) == (case.points, case.restarts), told
    assert case.says in told


@needs_walls
def test_there_is_no_network(lab):
    """Neither to the world nor to a server on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        answer = f"""
import socket
for where in (("127.0.0.1", {port}), ("192.0.2.1", 80)):
    try: socket.create_connection(where, timeout=1)
    except OSError: continue
    raise RuntimeError(f"connected to {{where}}")
{RIGHT}"""
        with all_of_python():
            assert graded(lab, notebook(answer)).points == 3
        with pytest.raises(TimeoutError):
            server.accept()


@needs_walls
def test_files_of_the_class_do_not_exist_inside(lab, tmp_path):
    secret = tmp_path / "gradebook.db"
    secret.write_text("marks")
    paths = [str(secret), str(LESSONS), str(ROOT / "tests"), str(ROOT / "README.md"), str(Path.home() / ".ssh")]
    answer = f"import os; assert not any(map(os.path.exists, {paths!r})); {RIGHT}"
    with all_of_python():
        assert graded(lab, notebook(answer)).points == 3


@needs_walls
def test_only_one_exercise_is_tested_again(lab):
    tests = {"ex1-mean-test", "ex1-mean-hidden"}
    assert tests <= set(graded(lab, notebook(), only="ex1-mean").cells)
    assert not tests & set(graded(lab, notebook(), only="ex9-other").cells)


@needs_walls
def test_a_run_can_be_stopped(lab):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(KeyboardInterrupt):
        graded(lab, notebook("while True: pass"), stop=stop)
    assert not [p for p in psutil.Process().children(recursive=True) if "cell_runner" in " ".join(p.cmdline())]


def test_without_walls_grading_refuses_unless_it_is_trusted(lab, monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox._problem.cache_clear()
    with pytest.raises(LabError, match=r"there is no bwrap\. Install bubblewrap"):
        ready()
    ready(trust=True)
    sandbox._problem.cache_clear()


def test_a_trusted_run_gives_the_same_marks_and_cleans_up(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests launch ranks at the same time
    assert graded(lab, notebook(), trust=True).points == 3
    assert graded(lab, notebook("return 2"), trust=True).points == 1
    assert graded(lab, notebook("while True: pass"), trust=True).points == 0
    assert not list(tmp_path.glob("labkit*"))


@pytest.mark.parametrize("limits", [{"cell_s": 0}, {"total_s": -1}, {"memory_gib": 0.5}])
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(LabError):
        Limits(**limits)
