"""What every test shares: few threads, scale tiny, the user's state left alone, GPU tests where a GPU is."""

from __future__ import annotations

import os
import re

import pytest

# Before anything imports torch: two cores are shared by the tests, the kernels and the ranks that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The suite needs no hub: an accidental call fails at once, where it would wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The suite checks the code, not the machine: the same sizes everywhere, unless the caller asks for others.
os.environ.setdefault("LABKIT_SCALE", "tiny")


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory):
    """Predictions and other state of the person who runs the tests are neither read nor changed.

    Set in the environment, so that kernels and subprocesses inherit it. The cache stays the user's own: what
    it holds is verified by hash, and fetching it again would cost minutes.
    """
    before = os.environ.get("LABKIT_STATE")
    os.environ["LABKIT_STATE"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        os.environ.pop("LABKIT_STATE", None)
    else:
        os.environ["LABKIT_STATE"] = before


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache with nothing in it, for tests of fetching; returns its path."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("LABKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def empty_state(tmp_path, monkeypatch):
    """A state folder with nothing in it, for tests of what is kept there; returns its path."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("LABKIT_STATE", str(folder))
    return folder


@pytest.fixture
def machine_scale(monkeypatch):
    """Let the machine choose the scale, as for a learner."""
    monkeypatch.delenv("LABKIT_SCALE", raising=False)


# Files whose tests share nothing, or nothing but a lesson's, and that would keep one process busy to the end.
APART = ("tests/notebooks/test_run.py",)
BY_LESSON = ("tests/mutants/test_mutants.py", "tests/grading/test_release.py")
_LESSON = re.compile(r"\[(\d\d)-")


def group_of(path: str, nodeid: str) -> str:
    """Which tests stay in one process, in order, where several run side by side: a file's; "" for none."""
    lesson = _LESSON.search(nodeid)
    if path in APART:
        return ""
    return f"{path}:{lesson[1]}" if path in BY_LESSON and lesson else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep groups together where several processes share the tests (pytest-xdist).

    Its own way, a mark on each test that becomes a part of the test's name, does nothing under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0], nodeid) or nodeid

    return ByGroup(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` where torch finds no CUDA device, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := _no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    return "needs a CUDA GPU: " + (f"torch (CUDA {built}) finds none here" if built else "this torch is built for CPU")
