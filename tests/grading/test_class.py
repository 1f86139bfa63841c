"""A class from the command line with real sandboxes: killed half-way, gone on, and nobody pays for another's attack."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from .small_course import NAME
from .submissions import WRONG, notebook
from .test_hostile import needs_walls

HONEST = [f"honest{n}" for n in range(5)]
MARKS = {name: "3" for name in HONEST} | {"half": "1", "kills": "0", "loops": "0", "text": "0", "wrong": "0"}


@pytest.fixture
def handed_in(tmp_path):
    raw = {name: notebook() for name in HONEST} | {
        "half": notebook("return 2"),
        "kills": notebook("import os; os.kill(-1, 9); os.kill(os.getpid(), 9)"),
        "loops": notebook("while True: pass"),
        "text": b"dear teacher,",
        "wrong": notebook(WRONG),
    }
    for name, data in raw.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "lab.ipynb").write_bytes(data)
    return tmp_path / "in"


def started(course, handed_in):
    line = ["grade", NAME, "--submissions", handed_in, "--course", course.root, "--workers", "2", "--timeout", "3"]
    code = "from labkit.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def alive(processes):
    """Those that still run: who is dead and not yet reaped does not."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@needs_walls
def test_a_class_killed_half_way_goes_on(course, handed_in):
    outcomes = course.root / "outcomes" / NAME
    first = started(course, handed_in)
    while first.poll() is None and len(list(outcomes.glob("*.json"))) < 3:
        time.sleep(0.05)
    family = psutil.Process(first.pid).children(recursive=True)
    assert family, "no sandbox was running"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = {path: path.read_bytes() for path in outcomes.glob("*.json") if json.loads(path.read_bytes())["recorded"]}
    until = time.monotonic() + 10
    while left := alive(family):
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.1)
    assert 0 < len(list(outcomes.glob("*.json"))) < len(MARKS)

    second = started(course, handed_in)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    with (course.root / "exports" / NAME / "grades.csv").open(newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {name: row["so_far"] for name, row in rows.items()} == MARKS
    assert "not JSON" in rows["text"]["notes"]
    assert all(path.read_bytes() == data for path, data in done.items()), "what was recorded was graded again"
    assert all((course.root / "feedback" / name / NAME / "lab.html").is_file() for name in MARKS)
