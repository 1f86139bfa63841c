"""Runs side by side: every result, in the order of the cases, in processes on a GPU only; errors come through."""

from __future__ import annotations

import math
import os

import pytest

from labkit.bench import workers


@pytest.fixture(autouse=True)
def _no_processes_left():
    yield
    if workers._pool.cache_info().currsize:
        workers._pool().shutdown()
        workers._pool.cache_clear()


def test_alone_takes_the_second_result():
    made = iter(["first", "second", "third"])
    assert workers.alone(lambda case: (case, next(made)), "case") == ("case", "second")


def test_on_a_cpu_one_after_another_in_this_process():
    began = []
    results = workers.side_by_side(lambda case: began.append(case) or case * 2, [3, 1, 2], "cpu")
    assert next(results) == 6
    assert began == [3]  # nothing is computed before it is asked for
    assert list(results) == [2, 4]


def test_for_a_gpu_in_processes_and_in_order(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2 * workers.CORES_A_WORKER)
    cases = [float(n) for n in range(9)]
    assert list(workers.side_by_side(math.sqrt, cases, "cuda")) == [math.sqrt(n) for n in cases]
    pool = workers._pool()
    assert list(workers.side_by_side(math.sqrt, cases[:3], "cuda")) == [math.sqrt(n) for n in cases[:3]]
    assert workers._pool() is pool, "the same processes, which have loaded what they need"


def test_an_error_in_a_worker_ends_the_table(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2 * workers.CORES_A_WORKER)
    results = workers.side_by_side(math.sqrt, [4.0, -1.0, 9.0], "cuda")
    assert next(results) == 2.0
    with pytest.raises(ValueError):
        next(results)
