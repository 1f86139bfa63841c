"""Every way in which ranks can fail ends the launch with a sentence that names rank and cause, and no process.

The faults run side by side, since most of each is waiting; the tests then look at what came of them.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faults
import pytest
from leftovers import gone, marked

from labkit.errors import LabError
from labkit.parallel.launch import RankError, launch
from labkit.parallel.output import Silent

pytestmark = pytest.mark.usefixtures("without_gpus")

NOT_THERE = types.ModuleType("not_there")  # importable here alone
exec("def f():\n    return 1", NOT_THERE.__dict__)

CASES = {
    "raises": (faults.raises, 3, (1,), {}),
    "killed": (faults.killed, 3, (1, signal.SIGKILL), {}),
    "terminated": (faults.killed, 2, (1, signal.SIGTERM), {}),
    "crashes": (faults.killed, 2, (1, signal.SIGSEGV), {}),
    "exits": (faults.exits, 2, (1, 3), {}),
    "never comes": (faults.never_comes, 3, (1,), {"stall_s": 6}),
    "loops": (faults.loops, 2, (1,), {"timeout_s": 25}),
    "leaves early": (faults.leaves_early, 2, (0,), {}),
    "sizes": (faults.shapes, 2, ("all_reduce", [4, 6]), {}),
    "silently wrong": (faults.shapes, 2, ("broadcast", [4, 6]), {}),
    "checked": (faults.shapes, 2, ("broadcast", [4, 6], 300.0), {"check": True}),
    "operations": (faults.different_operations, 2, (), {"stall_s": 6}),
    "result": (faults.unpicklable, 2, (1,), {}),
    "deaf": (faults.deaf, 2, (1,), {}),
    "no module": (NOT_THERE.f, 2, (), {}),
    "no GPUs": (faults.raises, 99, (0,), {"device": "cuda"}),
}


class Listening(Silent):
    """Keeps what a launch tells at its failure."""

    def failed(self, rank, traceback, others):
        self.told = (rank, traceback, others)


def _outcome(case):
    function, ranks, args, options = case
    sink, begun = Listening(), time.monotonic()
    try:
        launch(function, ranks, *args, show=sink, **options)
    except LabError as error:
        return error, sink, time.monotonic() - begun
    pytest.fail("the launch did not fail")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """Other tests launch ranks at the same time, and have folders of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("ranks")))
        yield Path(tempfile.gettempdir())


@pytest.fixture(scope="module")
def outcomes(own_folder):
    sys.modules["not_there"] = NOT_THERE
    with marked() as mark, ThreadPoolExecutor(5) as pool:
        futures = {name: pool.submit(_outcome, case) for name, case in CASES.items()}
        done = {name: future.result() for name, future in futures.items()}
        done["left"] = gone(mark, 2.0)
    done["files"] = set(own_folder.glob("labkit-ranks-*"))
    del sys.modules["not_there"]
    return done


@pytest.mark.parametrize(
    ("name", "rank", "words"),
    [
        ("raises", 1, ["Rank 1 raised ValueError: no such batch on 1."]),
        ("killed", 1, ["Rank 1 was killed by SIGKILL.", "memory"]),
        ("terminated", 1, ["Rank 1 was killed by SIGTERM."]),
        ("crashes", 1, ["Rank 1 crashed with SIGSEGV."]),
        ("exits", 1, ["Rank 1 ended with exit status 3 before it returned a result."]),
        (
            "never comes",
            1,
            ["ranks 0 and 2 wait in all_reduce", "in reduce_ones", "rank 1, which never got there", "in never_comes"],
        ),
        ("loops", 1, ["after 25 s", "rank 0 waits in all_reduce", "rank 1, which never got there", "in loops"]),
        ("leaves early", 1, ["Rank 1 waited in a collective that rank 0, which had returned, did not call."]),
        ("checked", None, ["rank 0 called broadcast on [4]", "rank 1 called broadcast on [6]"]),
        ("silently wrong", None, ["rank 0 called broadcast of [4] Float", "rank 1 called broadcast of [6] Float"]),
        ("operations", None, ["rank 0 called all_reduce", "rank 1 called broadcast"]),
        ("result", 1, ["Rank 1 computed a result that cannot be sent back", "_thread.lock"]),
        ("deaf", 1, ["Rank 1 raised KeyError: 'gone'."]),
        ("no module", None, ["could not load the function", "No module named 'not_there'"]),
        ("no GPUs", None, ["99 ranks need 99 GPUs", "none"]),
    ],
)
def test_a_fault_is_told_in_a_sentence(outcomes, name, rank, words):
    error, _, _ = outcomes[name]
    assert isinstance(error, RankError)
    assert [word for word in words if word not in str(error)] == [], str(error)
    assert rank is None or error.rank == rank
    assert "\n" not in error.cause and error.cause.endswith(".") and error.remedy.endswith(".")


def test_tensors_of_different_sizes_are_found_whoever_notices_first(outcomes):
    """gloo aborts one rank, which one is chance; no comparison with DETAIL ran before."""
    error, _, _ = outcomes["sizes"]
    assert "bytes where it expected" in error.cause or "[4] Float" in error.cause, error
    assert "rank" in error.cause.lower()


def test_each_ends_within_seconds(outcomes):
    """Twenty after the fault, and what importing torch takes on a busy machine."""
    slow = {name: round(outcomes[name][2]) for name in CASES if outcomes[name][2] > 60}
    assert slow == {}


@pytest.mark.parametrize("name", ["raises", "never comes", "deaf", "leaves early", "loops"])
def test_the_rank_to_blame_shows_its_traceback_first(outcomes, name):
    error, sink, _ = outcomes[name]
    rank, traceback, _ = sink.told
    assert (rank, traceback) == (error.rank, error.traceback)
    assert "faults.py" in traceback and "(most recent call last)" in traceback
    assert "labkit/parallel/worker.py" not in traceback and "supervisor.py" not in traceback


def test_where_the_others_waited_is_told_too(outcomes):
    error, _, _ = outcomes["never comes"]
    assert set(error.others) == {0, 2} and all("in all_reduce" in stack for stack in error.others.values())


def test_nothing_is_left_of_any_of_them(outcomes):
    assert outcomes["left"] == [] and outcomes["files"] == set()


def test_what_cannot_be_sent_is_refused_before_any_process_starts(tmp_path):
    def inner():
        return 1

    with marked() as mark:
        for function, args, words in [
            (inner, (), "was defined inside another"),
            (lambda: 1, (), "was defined inside another"),
            (faults.raises, ((tmp_path / "x").open("w"),), "Argument 1 of raises cannot be sent"),
        ]:
            with pytest.raises(LabError, match=words):
                launch(function, 2, *args)
        with pytest.raises(LabError, match="0 ranks"):
            launch(faults.reduce_ones, 0)
        assert gone(mark, 0.0) == []
