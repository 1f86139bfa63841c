"""Broken and edited notebooks of the small lab, each with what grading it has to give."""

from __future__ import annotations

import json
from typing import Any

import nbformat

from .submissions import RIGHT, WRONG, Case, notebook


def _cell(released: Any, grade_id: str) -> Any:
    return next(c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def _soften(released: Any) -> None:
    for grade_id in ("ex1-mean-test", "ex1-mean-hidden"):
        _cell(released, grade_id).source = "assert True"


def _remove(released: Any) -> None:
    released.cells = [c for c in released.cells if not c.metadata.get("nbgrader", {}).get("locked")]


def _raise_points(released: Any) -> None:
    for cell in released.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.metadata.nbgrader.points = 1000


def _twice(released: Any) -> None:
    copy = nbformat.from_dict(_cell(released, "ex1-mean"))
    copy.source = f"def mean(values):\n    {RIGHT}"
    released.cells.append(copy)


def _invent_outputs(released: Any) -> None:
    for cell in released.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]


def _other_kernel(released: Any) -> None:
    released.metadata.kernelspec = {"name": "ir", "display_name": "R", "language": "R"}


def _strip_metadata(released: Any) -> None:
    for cell in released.cells:
        cell.metadata = nbformat.from_dict({})
        cell.pop("id", None)


def _surrogate(released: Any) -> None:
    _cell(released, "ex1-mean").source += "\n    # \ud800"


def _version_3() -> bytes:
    return json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": []}]}).encode()


def _version_9() -> bytes:
    return json.dumps({**json.loads(notebook()), "nbformat": 9}).encode()


def _odd_cells() -> bytes:
    data = json.loads(notebook())
    odd: list[Any] = [None, 7, "x", {"cell_type": 3}, {"cell_type": "code", "source": {"a": 1}, "metadata": []}]
    odd += [
        {"cell_type": "code", "source": ["a", 1]},
        {"cell_type": "code", "source": "1", "metadata": {"nbgrader": 5}},
    ]
    data["cells"] = odd + data["cells"]
    return json.dumps(data).encode()


BROKEN = {
    "empty": Case(b"", 0, "an empty file"),
    "white space": Case(b" \n", 0, "an empty file"),
    "not JSON": Case(b"dear teacher,", 0, "not JSON"),
    "not UTF-8": Case(b"\xff\xfe\x00\x01", 0, "not JSON"),
    "nested without end": Case(b"[" * 200_000, 0, "not JSON"),
    "a list": Case(b"[1, 2]", 0, "no list of cells"),
    "nbformat 3": Case(_version_3(), 0, "nbformat 3"),
    "nbformat 9": Case(_version_9(), 3),
    "cells of odd types": Case(_odd_cells(), 3),
    "too large": Case(b" " * 20_000_001 + b"{}", 0, "20 MB"),
    "too much source": Case(notebook(extra="x = '" + "a" * 200_001 + "'"), 0, "characters of code"),
    "another kernel": Case(notebook(change=_other_kernel), 3),
    "no metadata": Case(notebook(change=_strip_metadata), 3, "No answer cell was found for ex1-mean"),
    "a lone surrogate": Case(notebook().replace(b"    return sum", b"    # \\\\ud800\\n    return sum", 1), 3),
    "softened tests": Case(notebook(WRONG, change=_soften), 0, "ex1-mean-test was changed"),
    "removed tests": Case(notebook(WRONG, change=_remove), 0),
    "removed tests, right": Case(notebook(change=_remove), 3),
    "raised points": Case(notebook(change=_raise_points), 3),
    "an id twice": Case(notebook(WRONG, change=_twice), 0, "more than once"),
    "invented outputs": Case(notebook(WRONG, change=_invent_outputs), 0),
    "not Python": Case(notebook("return ("), 0, "SyntaxError"),
    "null bytes": Case(notebook("x = '\x00'\n" + RIGHT), 0, "null bytes"),
}
