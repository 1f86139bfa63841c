"""The process that runs a lab's cells. It reads jobs from its input and reports each cell as a JSON line.

In:  {"cells": [[label, code], …], "graded": {label: points}, "answers": [label, …], "extra": [module, …]} then one
     line per variant,
     {"variant": name, "codes": {label: code}, "skip": [label, …]}, the last the cells that end as in the lab itself.
Out: {"variant", "cell", "event": "start"}, {"variant", "cell", "event": "end", "points", "error", "stdout"},
     and for each variant {"variant", "event": "done"} or {"variant", "event": "died", "code"}.

Several variants branch off one run of the lab's own cells: where a variant's first change stands the process forks,
and the copy runs the variant and ends. Nothing that an answer does to Python, to torch or to the lab's objects can
reach another answer, because it happens in the copy. Before that the lab runs once in full, so that no copy has to
import what the lab imports late. A fork copies only the thread that calls it, so where there is another (a GPU's,
OpenMP's), and where the system cannot fork, variants run one after the other in this process.

A cell that raises does not stop the cells after it, as under nbgrader's autograder. Points follow nbgrader's
`determine_grade`: an error or anything on stderr gives 0, a number as the last expression gives that many
points, anything else gives all. Answers run in the part of Python in which they are marked (`labkit.grading.subset`).
This is no sandbox: run only code that you would run yourself.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import json
import linecache
import mmap
import os
import random
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from labkit.grading.guards import Guards
from labkit.grading.subset import OutsideError, guarded, outside, problems, without_magics

MAX_TEXT = 4000


Job = dict[str, Any]
Results = dict[str, dict[str, Any]]  # by label


class _Answers:
    """How answers run: in the part of Python in which they are marked.

    Args:
        labels: of the cells that hold answers.
        extra: modules beyond the usual that they may import.
    """

    def __init__(self, labels: list[str], extra: list[str]) -> None:
        self.names = {f"<{label}>" for label in labels}
        self.guards = Guards(extra, self.names.__contains__)
        self.builtins = self.guards.builtins()

    def execute(self, label: str, code: str, namespace: dict[str, Any]) -> Any:
        """Run a cell as `execute` does."""
        name = f"<{label}>"
        namespace["__builtins__"] = self.builtins
        if name not in self.names:
            return execute(name, code, namespace)
        code = without_magics(code)
        if found := problems(code):
            raise OutsideError(outside(found))
        self.guards.at_cell = True
        try:
            return execute(name, code, namespace, change=guarded)
        finally:
            self.guards.at_cell = False


def main() -> None:
    """Serve the jobs on standard input until it closes."""
    report, lines = private_streams()
    head = json.loads(lines.readline())
    head["answers"] = _Answers(head["answers"], head["extra"])
    jobs = [json.loads(line) for line in lines]
    results: Results = {}
    for job in _branch(report, head, jobs, results) if len(jobs) > 1 else jobs:
        _reset()
        namespace, known = _world(), [label for label in job["skip"] if label in results]
        _send_results(report, job, known, results)
        for label, code in head["cells"]:
            if label not in known:
                _run_for(report, head, job, (label, code), namespace)
        _send(report, job["variant"], "", event="done")


def _branch(report: TextIO, head: dict[str, Any], jobs: list[Job], results: Results) -> list[Job]:
    """Run the lab's own cells, and each job in a copy of this process from its first change on.

    Args:
        results: filled with those of the lab's own cells.

    Returns:
        the jobs that could not run in a copy.
    """
    changed, left = [job for job in jobs if job["codes"]], []
    same = [job for job in jobs if not job["codes"]]
    for _ in _own_cells(report, head, same or jobs, _world(), results):
        pass
    for job in same:
        _send_results(report, job, [label for label, _ in head["cells"]], results)
        _send(report, job["variant"], "", event="done")
    namespace = _world()
    for place, (label, _) in enumerate(_own_cells(report, head, changed, namespace, results) if changed else ()):
        for job in [job for job in changed if label in job["codes"]]:
            changed.remove(job)
            if _is_alone():
                _run_in_a_copy(report, head, job, place, namespace, results)
            else:
                left.append(job)
        if not changed:
            break
    return left


def _own_cells(
    report: TextIO, head: dict[str, Any], waiting: list[Job], namespace: dict[str, Any], results: Results
) -> Iterator[list[str]]:
    """Give each of the lab's own cells, and run it afterwards; the first job that still waits answers for it."""
    _reset()
    for label, code in head["cells"]:
        yield [label, code]
        _send(report, waiting[0]["variant"], label, event="start")
        results[label] = _run(label, code, namespace, head)


def _world() -> dict[str, Any]:
    """The global names of a notebook: those of `__main__`, where a lab that starts processes looks its functions up."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return vars(module)


def _is_alone() -> bool:
    """Whether this process may fork: it has one thread."""
    return sys.platform == "linux" and sum(1 for _ in Path("/proc/self/task").iterdir()) == 1


def _run_in_a_copy(
    report: TextIO, head: dict[str, Any], job: Job, place: int, namespace: dict[str, Any], results: Results
) -> None:
    """Run a job's cells from `place` on, except those to skip, in a copy of this process that ends with them."""
    behind = [label for label, _ in head["cells"][place:]]
    ended = mmap.mmap(-1, 1)  # shared with the copy
    gc.freeze()  # else the copy's first collection would write to, and so duplicate, all memory
    pid = os.fork()
    if not pid:
        skipped = [label for label in job["skip"] if label in behind]
        _send_results(report, job, [label for label, _ in head["cells"][:place]] + skipped, results)
        for cell in head["cells"][place:]:
            if cell[0] not in skipped:
                _run_for(report, head, job, cell, namespace)
        _send(report, job["variant"], "", event="done")
        ended[0] = 1
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ended[0]:
        _send(report, job["variant"], "", event="died", code=code)


def _send_results(report: TextIO, job: Job, labels: list[str], results: Results) -> None:
    for label in labels:
        _send(report, job["variant"], label, event="end", **results[label])


def _run_for(report: TextIO, head: dict[str, Any], job: Job, cell: Sequence[str], namespace: dict[str, Any]) -> None:
    """Run one cell of a job, with the job's code if it has one for it."""
    label, code = cell
    _send(report, job["variant"], label, event="start")
    result = _run(label, job["codes"].get(label, code), namespace, head)
    _send(report, job["variant"], label, event="end", **result)


def private_streams() -> tuple[TextIO, TextIO]:
    """Keep the pipes for this module: what a cell writes to or reads from must not touch them."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    jobs = os.fdopen(os.dup(0), "r", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return report, jobs


def _send(report: TextIO, variant: str, cell: str, **fields: Any) -> None:
    report.write(json.dumps({"variant": variant, "cell": cell, **fields}) + "\n")
    report.flush()


def _reset() -> None:
    """What one variant may have changed for the next in the same process: the seeds, torch's defaults, open figures."""
    random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _run(label: str, code: str, namespace: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    max_points = head["graded"].get(label)
    out, err, error, value = io.StringIO(), io.StringIO(), "", None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            value = head["answers"].execute(label, code, namespace)
        except BaseException as problem:  # a cell that calls sys.exit must not end the run either
            error = describe(problem)
    if not error and max_points is not None and err.getvalue():
        error = f"wrote to stderr, which nbgrader counts as a failure: {err.getvalue().strip()}"
    points = 0.0 if error else points_of(value, max_points)
    return {"points": points, "error": error[:MAX_TEXT], "stdout": out.getvalue()[:MAX_TEXT]}


def execute(
    name: str,
    code: str,
    namespace: dict[str, Any],
    shown: bool = True,
    change: Callable[[ast.Module], ast.Module] | None = None,
) -> Any:
    """Run a cell, or what `change` makes of it, and return the value of its last expression, as a notebook shows it."""
    if shown:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # for tracebacks, inspect
    tree = ast.parse(code, name)
    tree = change(tree) if change else tree
    last = tree.body[-1] if tree.body and not code.rstrip().endswith(";") else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        return None
    del tree.body[-1]
    exec(compile(tree, name, "exec", dont_inherit=True), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)


def points_of(value: Any, max_points: float | None) -> float:
    if max_points is None:
        return 0.0
    try:
        credit = float(repr(value))
    except ValueError:
        return max_points
    return min(credit, max_points) if credit >= 0 else max_points


def describe(problem: BaseException) -> str:
    """`AssertionError: the message`, and the innermost line of the lab when that is not the test itself."""
    text = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename.startswith("<")]
    frames = [f for f in frames if f.filename in linecache.cache]
    if frames and (len(frames) > 1 or not isinstance(problem, AssertionError)):
        last = frames[-1]
        text += f" (in {last.filename[1:-1]}, line {last.lineno}: {last.line})"
    return text


if __name__ == "__main__":
    main()
