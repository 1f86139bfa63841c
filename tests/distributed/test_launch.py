"""A launch that goes well: what ranks get, what comes back, how functions of a notebook or script travel."""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs
import torch
from leftovers import gone, marked

from labkit import probe
from labkit.parallel import carry, diagnose
from labkit.parallel.folder import Folder
from labkit.parallel.launch import launch
from labkit.parallel.output import Silent, Terminal
from labkit.parallel.stacks import Position

pytestmark = pytest.mark.usefixtures("without_gpus")


class Listening(Silent):
    def __init__(self):
        self.texts, self.bars, self.times = {}, [], []

    def text(self, rank, text):
        self.texts[rank] = self.texts.get(rank, "") + text
        self.times.append(time.monotonic())

    def progress(self, done, total):
        self.bars.append((done, total))


@pytest.fixture(scope="module")
def three():
    """Three ranks, in a process that is itself a rank of something and whose usual port is taken."""
    taken = socket.create_server(("127.0.0.1", 0))
    foreign = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": str(taken.getsockname()[1]), "RANK": "7"}
    foreign |= {"WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "other", "OMP_NUM_THREADS": "2"}
    sink = Listening()
    with pytest.MonkeyPatch.context() as patch, taken, marked() as mark:
        for name, value in foreign.items():
            patch.setenv(name, value)
        results = launch(runs.who, 3, "hello", show=sink)
        left = gone(mark, 1.0)
    return results, sink, left, foreign


def test_results_come_in_the_order_of_ranks_and_every_rank_is_set_up(three):
    results, _, _, foreign = three
    threads = max(1, probe.cores() // 3)
    assert [result["rank"] for result in results] == [result["local"] for result in results] == [0, 1, 2]
    for result in results:
        assert result["ranks"] == 3 and result["elastic"] and result["threads"] == (str(threads), threads)
        assert torch.equal(result["sum"], torch.full((3,), 6.0))
        assert torch.equal(result["random"], results[0]["random"])
        assert (result["backend"], result["device"].type) in (("gloo", "cpu"), ("nccl", "cuda"))
        assert result["port"] != foreign["MASTER_PORT"] and result["cwd"] == str(Path.cwd())
    assert len({result["pid"] for result in results}) == 3
    # Not this process's own children: what happens to it cannot leave them alone.
    assert len({result["parent"] for result in results}) == 1 and results[0]["parent"] != os.getpid()


def test_what_ranks_write_arrives_by_rank(three):
    _, sink, _, _ = three
    for rank in range(3):
        assert sink.texts[rank] == f"hello from {rank}\nto stderr\nno newline"


def test_the_bar_counts_the_steps_of_all_ranks(three):
    _, sink, _, _ = three
    assert sink.bars[0] == (0, 3) and sink.bars[-1] == (9, 9)
    assert all(done <= total for done, total in sink.bars)


def test_nothing_stays(three):
    assert three[2] == []


def test_tensors_return_without_the_rest_of_their_storage():
    [(view, parameter, [first, second])] = launch(runs.big, 1, 1_000_000, show=False)
    assert view.tolist() == [0.0, 1.0] and view.untyped_storage().nbytes() == 8
    assert isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad
    assert first is second and len(first) == 1_000_000


def test_output_is_passed_on_while_the_ranks_run():
    sink = Listening()
    launch(runs.writes_slowly, 1, show=sink)
    assert sink.texts[0].splitlines() == [f"line {number}" for number in range(8)]
    assert sink.times[-1] - sink.times[0] > 1.5 and len(sink.times) > 4


def test_launches_at_the_same_time_do_not_meet():
    results = {}

    def work(word):
        results[word] = launch(runs.who, 2, word, show=False)

    threads = [threading.Thread(target=work, args=(word,)) for word in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["a"][0]["port"] != results["b"][0]["port"]
    assert [result["sum"].tolist() for word in "ab" for result in results[word]] == [[3.0] * 3] * 4


SCRIPT = """
import dataclasses
import torch.distributed as dist
import torch as t
from math import sqrt as root
from labkit.parallel.launch import launch

STEP = 4.0

@dataclasses.dataclass
class Point:
    x: float
    y: object = None

    def length(self):
        return root(self.x)

ORIGIN = Point(STEP)

def helper(value, times=STEP):
    return Point(value.x * times * dist.get_rank(), ORIGIN)

def work(point, also):
    assert also is not point and also.length() == 3
    return helper(point), t.ones(2) * ORIGIN.x

if __name__ == "__main__":
    points = launch(work, 2, Point(2.0), Point(9.0))
    assert all(type(point) is Point for point, _ in points)
    assert [point.x for point, _ in points] == [0.0, 8.0] and points[0][1].tolist() == [4.0, 4.0]
    print("fine", points[1][0])
"""


def test_functions_and_classes_of_a_script_travel_with_what_they_need(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fine Point(x=8.0, y=Point(x=4.0, y=None))\n")


def test_only_what_is_needed_travels(monkeypatch):
    """The notebook's other variables stay: among them what cannot be sent, and gigabytes."""
    main = sys.modules["__main__"]
    exec("def f():\n    return a\n", main.__dict__)
    monkeypatch.setattr(carry, "_source", lambda value, name: "def f():\n    return a\n")
    main.__dict__.update(a=1, big=threading.Lock())
    try:
        steps = carry.pickle.loads(carry.pack(main.__dict__["f"], ()))
    finally:
        for name in ("f", "a", "big"):
            del main.__dict__[name]
    assert [(kind, name) for kind, name, _ in steps] == [("data", "a"), ("source", "f"), ("data", "")]


def test_a_terminal_gets_whole_lines_with_the_rank_before_each(capsys):
    sink = Terminal(2)
    sink.text(0, "one\ntw")
    sink.text(1, "10%\r50%\r100%\n")
    sink.text(0, "o\nthree")
    sink.failed(1, "Traceback:\n  here", {})
    sink.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == ["[rank 0] one", "[rank 1] 100%", "[rank 0] two", "[rank 0] three"]
    assert err.splitlines() == ["[rank 1] Traceback:", "[rank 1]   here"]


def test_the_supervisor_needs_no_name_of_this_machine_and_no_fixed_port():
    """`hello`, as a user would launch it."""
    from labkit.parallel.jobs.hello import hello

    reports = launch(hello, 2, 0.5, show=False)
    assert [report["sum"] for report in reports] == [3.0, 3.0]
    assert all(report["gb_per_s"] > 0 and re.match(r"cpu|cuda:\d", report["device"]) for report in reports)


def test_ranks_that_never_met_are_started_once_more(monkeypatch):
    """Nothing of the function has run then, so running it is not running it twice."""
    tries = []

    def attempt(packed, settings, show):
        tries.append(settings["ranks"])
        if len(tries) % 3:
            raise module.NeverMetError("Both wait.", "Run it again.")
        return ["done"]

    module = importlib.import_module("labkit.parallel.launch")
    monkeypatch.setattr(module, "_attempt", attempt)
    with pytest.raises(module.NeverMetError):
        module.launch(runs.who, 2)
    assert tries == [2, 2] and module.launch(runs.who, 2) == ["done"] and len(tries) == 3


@pytest.mark.parametrize("second, met", [("init_process_group", False), ("all_reduce", True), ("", True)])
def test_only_ranks_that_all_wait_for_the_group_have_never_met(tmp_path, monkeypatch, second, met):
    places = {0: Position(None, "init_process_group", "a"), 1: Position(None, second, "b")}
    monkeypatch.setattr(diagnose, "where", lambda folder, rank: places[rank])
    assert diagnose.hanging(Folder(tmp_path), 2, "now").met is met
