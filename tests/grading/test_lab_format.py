"""Reading a lab, and the checker of its format: nothing in a right lab, each fault in a wrong one."""

from __future__ import annotations

import pytest

from labkit.grading import Lab, check_format
from labkit.grading.lab import region, replace_regions

from .small_lab import meta, small_lab


def change(cell_id, old=None, new="", **nbgrader):
    """A fault: `old` replaced by `new` in the source of a cell, and its nbgrader metadata updated."""

    def apply(notebook):
        cell = next(c for c in notebook.cells if c.id == cell_id)
        if old is not None:
            assert old in cell.source
            cell.source = cell.source.replace(old, new)
        cell.metadata["nbgrader"] = cell.metadata.get("nbgrader", {}) | nbgrader

    return apply


def drop(cell_id):
    def apply(notebook):
        notebook.cells = [c for c in notebook.cells if c.id != cell_id]

    return apply


def swap(first, second):
    def apply(notebook):
        ids = [c.id for c in notebook.cells]
        i, j = ids.index(first), ids.index(second)
        notebook.cells[i], notebook.cells[j] = notebook.cells[j], notebook.cells[i]

    return apply


FAULTS = {
    "no hint": (change("statement", "<summary>Hint", "<summary>More"), "no hint"),
    "empty hint": (change("statement", "Divide the sum by the count.", ""), "no hint"),
    "no minutes": (change("statement", " · 10 minutes"), "difficulty"),
    "no difficulty": (change("statement", "●○○ · "), "difficulty"),
    "no points line": (change("statement", " · 3 points"), "difficulty"),
    "difficulty none": (change("statement", "●○○", "○○○"), "difficulty"),
    "other points": (change("statement", "3 points", "4 points"), "states 4 points, its cells give 3"),
    "no markers": (
        change("solution", "    ### BEGIN SOLUTION\n", ""),
        "not closed",
    ),
    "no solution region": (
        change("solution", "### BEGIN SOLUTION", "# begin"),
        "one region, it has 0",
    ),
    "two regions": (
        change("solution", "    total", "    ### END SOLUTION\n    ### BEGIN SOLUTION\n    total"),
        "one region, it has 2",
    ),
    "empty region": (
        change("solution", "    total = sum(values)\n    return total / len(values)\n", ""),
        "region is empty",
    ),
    "region at top level": (
        change("solution", "def mean(values):", "if True:"),
        "outside a function",
    ),
    "no visible test": (drop("visible"), "no visible test"),
    "test not directly below": (swap("visible", "hidden"), "no visible test cell directly under"),
    "only a comment to see": (
        change("visible", 'assert mean([1, 3]) == 2, "the mean of 1 and 3 is 2"\nprint', "# print"),
        "no visible test",
    ),
    "no hidden tests": (drop("hidden"), "no hidden tests"),
    "hidden region open": (change("hidden", "### END HIDDEN TESTS"), "not closed"),
    "hidden in solution": (
        change("solution", "### END SOLUTION", "### END SOLUTION\n### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS"),
        "would reach students",
    ),
    "solution in test": (
        change("visible", "print", "### BEGIN SOLUTION\n### END SOLUTION\nprint"),
        "would reach students",
    ),
    "duplicate id": (change("hidden", grade_id="ex1-mean-test"), "occurs 2 times"),
    "invalid id": (change("visible", grade_id="ex1-mean-Test 1"), "lower-case words"),
    "foreign id": (change("visible", grade_id="other-test"), "must begin with 'ex1-mean-'"),
    "old schema": (change("visible", schema_version=2), "schema_version is 2"),
    "zero points": (change("visible", points=0), "points above 0"),
    "negative points": (change("visible", points=-1), "points above 0"),
    "unlocked test": (change("visible", locked=False), "is not locked"),
    "incomplete metadata": (change("visible", locked=None), "lacks locked"),
    "silent assert": (change("visible", ', "the mean of 1 and 3 is 2"'), "no message for the student"),
    "not Python": (change("setup", "import math", "import"), "is not Python"),
    "magic": (change("setup", "import math", "%matplotlib inline", **meta("setup")["nbgrader"]), "magics"),
    "no question": (drop("question"), "no question"),
    "no answer cell": (drop("answer"), "no Markdown answer cell"),
    "no exercise": (change("statement", "## Exercise 1: The mean", "## The mean"), "the lab has no exercise"),
    "stray test": (change("statement", "## Exercise 1: The mean", "## The mean"), "outside every exercise"),
}


def test_a_right_lab_has_no_fault():
    assert check_format(Lab.from_notebook(small_lab())) == []


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found(name):
    fault, message = FAULTS[name]
    notebook = small_lab()
    fault(notebook)
    found = check_format(Lab.from_notebook(notebook))
    assert any(message in problem for problem in found), found


def test_what_is_read():
    lab = Lab.from_notebook(small_lab())
    (exercise,), (question,) = lab.exercises, lab.questions
    assert (exercise.id, exercise.title, exercise.difficulty) == ("ex1-mean", "The mean", 1)
    assert (exercise.minutes, exercise.points, exercise.stated_points) == (10, 3, 3)
    assert exercise.hint == "Divide the sum by the count."
    assert [c.grade_id for c in exercise.visible_tests] == ["ex1-mean-test"]
    assert [c.grade_id for c in exercise.hidden_tests] == ["ex1-mean-hidden"]
    assert (question.id, question.points, question.manual) == ("q2-means", 2, True)
    assert (lab.points, lab.auto_points, lab.manual_points, lab.minutes) == (5, 3, 2, 15)


def test_an_unknown_exercise_is_named():
    with pytest.raises(KeyError, match="it has ex1-mean"):
        Lab.from_notebook(small_lab()).sources({"ex9": "pass"})


def test_an_answer_is_indented_like_the_region_it_replaces():
    lab = Lab.from_notebook(small_lab())
    code = dict(lab.sources({"ex1-mean": "        n = len(values)\n        return sum(values) / n\n"}))["ex1-mean"]
    assert code == "def mean(values):\n    n = len(values)\n    return sum(values) / n"


def test_regions():
    source = "a\n  # BEGIN\n  b\n\n    c\n  # END\nd"
    assert region(source, "BEGIN", "END") == "b\n\n  c"
    assert replace_regions(source, "BEGIN", "END", None) == "a\nd"
    assert replace_regions(source, "BEGIN", "END", "x\n\ny") == "a\n  x\n\n  y\nd"
    assert region("a", "BEGIN", "END") == ""
