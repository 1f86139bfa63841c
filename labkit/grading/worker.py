"""The process that runs a lab's cells. It reads jobs from its input and reports each cell as a JSON line.

In:  {"cells": [[label, code], …], "graded": {label: points}} then one line per variant,
     {"variant": name, "codes": {label: code}}.
Out: {"variant", "cell", "event": "start"}, {"variant", "cell", "event": "end", "points", "error", "stdout"}.

A cell that raises does not stop the cells after it, as under nbgrader's autograder. Points follow nbgrader's
`determine_grade`: an error or anything on stderr gives 0, a number as the last expression gives that many
points, anything else gives all. This is no sandbox: run only code that you would run yourself.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import random
import sys
import traceback
from typing import Any, TextIO

MAX_TEXT = 4000


def main() -> None:
    """Serve the jobs on standard input until it closes."""
    report, jobs = _private_streams()
    head = json.loads(jobs.readline())
    for line in jobs:
        job = json.loads(line)
        _reset()
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for label, code in head["cells"]:
            code = job["codes"].get(label, code)
            _send(report, job["variant"], label, event="start")
            result = _run(label, code, namespace, head["graded"].get(label))
            _send(report, job["variant"], label, event="end", **result)
        _send(report, job["variant"], "", event="done")


def _private_streams() -> tuple[TextIO, TextIO]:
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
    """What one variant may have changed for the next: the seeds, torch's defaults, open figures."""
    random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _run(label: str, code: str, namespace: dict[str, Any], max_points: float | None) -> dict[str, Any]:
    out, err, error, value = io.StringIO(), io.StringIO(), "", None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            value = _execute(f"<{label}>", code, namespace)
        except BaseException as problem:  # a cell that calls sys.exit must not end the run either
            error = _describe(problem)
    if not error and max_points is not None and err.getvalue():
        error = f"wrote to stderr, which nbgrader counts as a failure: {err.getvalue().strip()}"
    points = 0.0 if error else _points(value, max_points)
    return {"points": points, "error": error[:MAX_TEXT], "stdout": out.getvalue()[:MAX_TEXT]}


def _execute(name: str, code: str, namespace: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last expression, as a notebook would show it."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # for tracebacks, inspect
    tree = ast.parse(code, name)
    last = tree.body[-1] if tree.body and not code.rstrip().endswith(";") else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), namespace)
        return None
    del tree.body[-1]
    exec(compile(tree, name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def _points(value: Any, max_points: float | None) -> float:
    if max_points is None:
        return 0.0
    try:
        credit = float(repr(value))
    except ValueError:
        return max_points
    return min(credit, max_points) if credit >= 0 else max_points


def _describe(problem: BaseException) -> str:
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
