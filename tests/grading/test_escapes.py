"""Every way out that was found once stays closed, behind the walls, and says why."""

from __future__ import annotations

import pytest

from labkit.grading.lab import Lab
from labkit.grading.rebuild import rebuild
from labkit.grading.sandbox import Limits
from labkit.grading.supervise import run_submission

from .escapes import ESCAPES
from .small_lab import small_lab
from .submissions import WRONG, notebook, submission
from .test_hostile import needs_walls


@needs_walls
@pytest.mark.parametrize("name", ESCAPES)
def test_a_way_out_is_closed(tmp_path, name):
    lab = Lab.from_notebook(small_lab(), tmp_path / "lab.ipynb")
    rebuilt = rebuild(lab, submission(notebook(WRONG, before=ESCAPES[name])))
    outcome = run_submission(lab, rebuilt, "mallory", "digest", Limits(cell_s=20, total_s=60))
    assert outcome.points == 0 and not outcome.restarts
    assert outcome.cells["ex1-mean"].error, "the answer's cell ran to its end"
