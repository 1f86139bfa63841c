"""No process outlives its launch, however the process that launched ended, and whatever the ranks started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import faults
import psutil
import pytest
from leftovers import appears, bearing, gone, marked

from labkit.parallel.launch import RankError, launch

pytestmark = pytest.mark.usefixtures("without_gpus")

HERE = Path(__file__).parent
CODE = "import sys, pathlib, work; from labkit.parallel.launch import launch\n"
CODE += "launch(work.for_ever, 2, pathlib.Path(sys.argv[1]), sys.argv[2], show=False)"


def script(folder, how=""):
    """A process that launches two ranks; returned when both are at work."""
    places = {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "TMPDIR": str(folder.parent)}
    environment = {**os.environ, **places}
    command = [sys.executable, "-c", CODE, str(folder), how]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def supervisor_of(process, mark):
    found = [p for p in bearing(mark) if p.ppid() == process.pid]
    [supervisor] = [p for p in found if "labkit.parallel.supervisor" in p.cmdline()]
    return supervisor


def at_work(folder):
    return lambda _: all((folder / str(rank)).exists() for rank in range(2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ranks_end_with_the_process_that_launched_them(tmp_path, number):
    with marked() as mark:
        process = script(tmp_path)
        appears(mark, at_work(tmp_path))
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert process.returncode != 0
        assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
        assert gone(mark, 10.0) == []


def test_a_launch_is_ended_while_torch_is_still_being_imported(tmp_path):
    with marked() as mark:
        process = script(tmp_path)
        appears(mark, lambda found: any("labkit.parallel.supervisor" in p.cmdline() for p in found))
        process.kill()
        process.communicate()
        assert gone(mark, 10.0) == [] and not list(tmp_path.iterdir())


def test_ranks_end_with_their_supervisor_and_the_launch_says_so(tmp_path):
    """They, and what they have started."""
    with marked() as mark:
        process = script(tmp_path, "child")
        appears(mark, at_work(tmp_path))
        supervisor_of(process, mark).kill()
        _, said = process.communicate(timeout=20)
        assert "The process that supervises the ranks was killed." in said
        assert gone(mark, 10.0) == []


def test_ranks_end_when_launch_and_supervisor_are_killed_at_once(tmp_path):
    """Nobody is left to end them but the system; torch asks it for an interrupt, which a rank may ignore."""
    with marked() as mark:
        process = script(tmp_path, "deaf")
        appears(mark, at_work(tmp_path))
        process.send_signal(signal.SIGSTOP)
        supervisor_of(process, mark).kill()
        process.kill()
        process.communicate()
        assert gone(mark, 10.0) == []


def test_what_a_rank_leaves_running_ends_with_the_launch_and_nothing_else(tmp_path):
    """An orphan, whose parent is gone, and a neighbour that this launch did not start."""
    neighbour = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with marked() as mark:
            launch(faults.leaves_processes, 2, tmp_path, show=False)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
            assert gone(mark, 1.0) == []
        assert psutil.Process(neighbour.pid).is_running() and neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def test_a_rank_that_is_stopped_does_not_answer(tmp_path):
    """SIGSTOP: the others wait for it, and it cannot say where it is."""
    with marked() as mark, pytest.raises(RankError, match="rank 1, which never got there, does not answer"):
        launch(faults.killed, 2, 1, signal.SIGSTOP, stall_s=4, show=False)
    assert gone(mark, 1.0) == []
