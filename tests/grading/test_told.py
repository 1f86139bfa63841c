"""What a hidden test hands to an answer does not come back to the student, whatever carries it."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from labkit.grading.lab import Lab
from labkit.grading.rebuild import rebuild
from labkit.grading.sandbox import Limits
from labkit.grading.supervise import run_submission

from .small_lab import meta, small_lab
from .submissions import notebook, submission
from .test_hostile import needs_walls

SECRETS = ("2, 2, 5", "2,2,5", "225", "2 2 5")  # what the hidden test gives to the answer
CARRIERS = {
    "an error's text": "raise ValueError(values)",
    "an assertion's text": "assert False, values",
    "a class's name": "raise type(''.join(map(str, values)), (Exception,), {})",
    "a class's name, in pieces": "t = type\nraise t('x' + ''.join(map(str, values)), (Exception,), {})",
    "the value": "return Text(','.join(map(str, values)))",
    "the value's text": "return Shown()",
    "a name that is missing": "raise NameError(''.join(map(str, values)), name=''.join(map(str, values)))",
    "a later cell": "return 0",
    "a number": "return int(''.join(map(str, values)))",
    "a note": "e = ValueError(1)\ne.add_note(str(values))\nraise e",
}
BEFORE = """
kept = []
class Text(str): pass
class Shown:
    def __repr__(self): return ','.join(map(str, kept[1]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The hidden test quotes what it was given, and a visible test comes behind it."""
    plain = small_lab()
    plain.cells[4].source = plain.cells[4].source.replace(
        '"the count is not always 2"', 'f"the count is not always 2: {mean([2, 2, 5])!r} is not 3"'
    )
    later = new_code_cell("assert mean([1]) == kept_of(1), f'the mean of 1 is {mean([1])}'", id="later")
    later.metadata = nbformat.from_dict(meta("ex1-mean-later", grade=True, locked=True, points=1))
    plain.cells.insert(5, later)
    return Lab.from_notebook(plain, tmp_path_factory.mktemp("told") / "lab.ipynb")


@needs_walls
@pytest.mark.parametrize("carrier", CARRIERS)
def test_nothing_of_a_hidden_test_is_shown(lab, carrier):
    answer = "kept.append(values)\n" + CARRIERS[carrier]
    data = json.loads(notebook(answer, before=BEFORE))
    later = {"cell_type": "code", "metadata": {}, "source": "print(kept)\nraise ValueError(kept)"}
    data["cells"].append(later)
    rebuilt = rebuild(lab, submission(json.dumps(data).encode()))
    outcome = run_submission(lab, rebuilt, "mallory", "digest", Limits(cell_s=5, total_s=60))
    told = " ".join([*outcome.notes, *(cell.shown for cell in outcome.cells.values())]).replace("ex1-mean", "")
    assert not any(secret in told for secret in SECRETS), told
    assert "A hidden test: " in told
    errors = " ".join(cell.error for cell in outcome.cells.values())
    assert any(secret in errors for secret in (*SECRETS, "three arguments")), "the teacher sees all"


@needs_walls
def test_the_words_of_a_message_are_shown_without_its_values(lab):
    outcome = run_submission(lab, rebuild(lab, submission(notebook("return 2"))), "a", "digest", Limits())
    assert outcome.cells["ex1-mean-hidden"].shown == "A hidden test: the count is not always 2: … is not 3"
    assert outcome.cells["ex1-mean-hidden"].error.endswith("the count is not always 2: 2 is not 3")
    assert outcome.cells["ex1-mean-later"].shown == "name 'kept_of' is not defined. Is it defined in its cell?"
