"""Training runs side by side on one GPU, for tables that need many of them.

A step of a small model keeps a GPU waiting for launches most of its time, so that several processes share one GPU with
little loss. What a run learns does not depend on its neighbours; how long it takes does. So a table takes accuracies
and losses from runs side by side, and times, energy and peaks from a run alone, before any worker is started.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import TypeVar

Case = TypeVar("Case")
Result = TypeVar("Result")
MOST = 8
CORES_A_WORKER = 2


def clear(device: str) -> None:
    """Give back what earlier runs left behind, so that the next one's peak is its own.

    A model, its optimizer and its schedule refer to each other in circles, which only the collector takes apart.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def alone(work: Callable[[Case], Result], case: Case) -> Result:
    """`work` on one case, the second time: what is timed should not be what a first time takes.

    A batch of a length that a process has not met yet waits until kernels for it are chosen and loaded, which on a GPU
    takes longer than the step itself; the second run meets the same batches.
    """
    work(case)
    return work(case)


def side_by_side(work: Callable[[Case], Result], cases: Sequence[Case], device: str) -> Iterator[Result]:
    """`work` on each case, results in the order of the cases, each as soon as it and those before it are done.

    On a GPU in up to MOST processes at once; on a CPU, which one run fills, one after another in this process.

    Args:
        work: a function at the top of a module; it and its cases and results must pickle.
        device: where the runs compute, "cuda" or another.
    """
    if device != "cuda" or min(_most(), len(cases)) <= 1:
        yield from map(work, cases)
        return
    pool = _pool()
    try:
        yield from pool.map(work, cases)
    except BaseException:
        _pool.cache_clear()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


@cache
def _pool() -> ProcessPoolExecutor:
    """Processes that stay from one call to the next: loading torch and a model takes as long as some runs.

    They are spawned, since a forked child cannot use CUDA, and only as many as there are cases.
    """
    return ProcessPoolExecutor(_most(), mp_context=multiprocessing.get_context("spawn"))


def _most() -> int:
    return max(1, min(MOST, (os.cpu_count() or 1) // CORES_A_WORKER))
