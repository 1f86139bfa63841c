"""A lab that marks its own solutions wrong marks nobody."""

from __future__ import annotations

import pytest

from labkit.errors import LabError
from labkit.grading.lab import Lab
from labkit.grading.reference import prove
from labkit.grading.sandbox import Limits

from .small_lab import small_lab
from .test_hostile import needs_walls

LIMITS = Limits(cell_s=10, total_s=60)


def lab_with(place, old, new):
    notebook = small_lab()
    assert old in notebook.cells[place].source
    notebook.cells[place].source = notebook.cells[place].source.replace(old, new)
    return Lab.from_notebook(notebook, "01-small/lab.ipynb")


@needs_walls
def test_right_and_wrong_tests_and_solutions():
    prove(lab_with(0, "math", "math"), LIMITS)
    wrong = {
        r"01-small .*ex1-mean-hidden takes points .* AssertionError: the count": (4, "== 3", "== 4"),
        "ex1-mean-test takes points .* NameError": (3, "mean([1", "means([1"),
        "ex1-mean-hidden takes points .*it gives 0.5 of 2": (4, "### END HIDDEN TESTS", "### END HIDDEN TESTS\n0.5"),
        "ex1-mean-test takes points .*ZeroDivisionError": (2, "return total / len", "return 1 / 0 / len"),
    }
    for message, change in wrong.items():
        with pytest.raises(LabError, match=message):
            prove(lab_with(*change), LIMITS)


def test_what_is_not_python_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr("labkit.grading.supervise.run_submission", lambda *_: pytest.fail("it ran"))
    for change, message in {
        (0, "import math", "%matplotlib inline"): "cell 1, line 1, is not Python",
        (2, "return total", "return (total"): "ex1-mean, line 4",
        (4, "== 3,", "== 3,,"): "ex1-mean-hidden, line 3",
    }.items():
        with pytest.raises(LabError, match=message):
            prove(lab_with(*change), LIMITS)
