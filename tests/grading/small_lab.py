"""A small lab in the course's format, for the tests of its reader, its checker and its grader."""

from __future__ import annotations

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

STATEMENT = """## Exercise 1: The mean
●○○ · 10 minutes · 3 points

Write the mean of a list.

<details><summary>Hint</summary>

Divide the sum by the count.

</details>"""

SOLUTION = """def mean(values):
    ### BEGIN SOLUTION
    total = sum(values)
    return total / len(values)
    ### END SOLUTION"""

VISIBLE = 'assert mean([1, 3]) == 2, "the mean of 1 and 3 is 2"\nprint("visible tests passed")'

HIDDEN = """# Hidden tests run when the lab is graded.
### BEGIN HIDDEN TESTS
assert mean([2, 2, 5]) == 3, "the count is not always 2"
### END HIDDEN TESTS"""

QUESTION = """## Question 2: Means of means
●○○ · 5 minutes · 2 points

When does the mean of means mislead?"""


def meta(grade_id, *, grade=False, solution=False, locked=False, points=None):
    """A cell's metadata with nbgrader's part in it."""
    out = {
        "grade_id": grade_id,
        "grade": grade,
        "solution": solution,
        "locked": locked,
        "schema_version": 3,
        "task": False,
    }
    return {"nbgrader": out | ({"points": points} if points is not None else {})}


def small_lab() -> nbformat.NotebookNode:
    """One exercise of 3 points and one question of 2, with nothing wrong."""
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [
        new_code_cell("import math", id="setup"),
        new_markdown_cell(STATEMENT, id="statement"),
        new_code_cell(SOLUTION, id="solution", metadata=meta("ex1-mean", solution=True)),
        new_code_cell(VISIBLE, id="visible", metadata=meta("ex1-mean-test", grade=True, locked=True, points=1)),
        new_code_cell(HIDDEN, id="hidden", metadata=meta("ex1-mean-hidden", grade=True, locked=True, points=2)),
        new_markdown_cell(QUESTION, id="question"),
        new_markdown_cell(
            "When the groups differ in size.",
            id="answer",
            metadata=meta("q2-means", grade=True, solution=True, points=2),
        ),
    ]
    return notebook
