"""The quick grader: points, errors, and cells that hang, die, print or leave something behind."""

from __future__ import annotations

import os
import time

import nbformat
import pytest

from labkit.grading import Lab, grade, grade_all, stubs
from labkit.grading.needed import needed_cells

from .small_lab import meta, small_lab

EX = "ex1-mean"


@pytest.fixture
def lab():
    return Lab.from_notebook(small_lab())


def with_test(source, points=1):
    """A lab whose visible test cell holds `source`."""
    notebook = small_lab()
    notebook.cells[3].source = source
    notebook.cells[3].metadata["nbgrader"]["points"] = points
    return Lab.from_notebook(notebook)


def test_reference_stub_and_a_half_right_answer(lab):
    scores = grade_all(lab, {"reference": {}, "stub": stubs(lab), "half": {EX: "return sum(values) / 2"}})
    assert list(scores) == ["reference", "stub", "half"]
    assert scores["reference"].points == scores["reference"].max_points == 3
    assert scores["reference"].stdout["ex1-mean-test"] == "visible tests passed\n"
    assert scores["stub"].points == 0
    assert scores["stub"].lost == ("ex1-mean-test", "ex1-mean-hidden")
    assert scores["stub"].cells["ex1-mean-test"].error == (
        "NotImplementedError (in ex1-mean, line 3: raise NotImplementedError())"
    )
    assert scores["half"].lost == ("ex1-mean-hidden",)
    assert scores["half"].cells["ex1-mean-hidden"].error == "AssertionError: the count is not always 2"
    assert "1 of 3 points" in str(scores["half"])


def test_a_raising_cell_does_not_stop_those_after_it(lab):
    score = grade(lab, {EX: "1 / 0"})
    assert score.lost == ("ex1-mean-test", "ex1-mean-hidden")
    assert "ZeroDivisionError" in score.cells["ex1-mean-hidden"].error


def test_exits_interrupts_and_syntax_errors_are_errors(lab):
    codes = ["import sys; sys.exit(0)", "raise KeyboardInterrupt", "x = (", "raise BaseException"]
    for code, score in grade_all(lab, {code: {EX: code} for code in codes}).items():
        assert score.points == 0, code
        assert score.cells["ex1-mean-hidden"].error, code


def test_a_hanging_answer_costs_only_itself(lab):
    started = time.monotonic()
    scores = grade_all(lab, {"hang": {EX: "while True: pass"}, "reference": {}}, seconds=1)
    assert scores["hang"].points == 0
    assert "took more than 1 s" in scores["hang"].cells["ex1-mean-test"].error
    assert scores["hang"].cells["ex1-mean-hidden"].error == "was not reached"
    assert scores["reference"].points == 3
    assert time.monotonic() - started < 20


def test_a_dying_process_costs_only_its_answer(lab):
    scores = grade_all(lab, {"dies": {EX: "import os; os._exit(7)"}, "reference": {}})
    assert "exit code 7" in scores["dies"].cells["ex1-mean-test"].error
    assert scores["reference"].points == 3


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_processes_that_an_answer_starts_end_with_it(lab, tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    grade(lab, {EX: code}, seconds=2)
    pid = int(pid_file.read_text())
    for _ in range(50):
        if not _alive(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} outlived the grader")


def _alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_variants_do_not_see_each_other(lab):
    """A name, a seed or a default that one answer sets must not reach the next."""
    notebook = small_lab()
    notebook.cells[0].source = "import torch\nx = torch.rand(1).item()"
    notebook.cells[3].source = (
        "assert 'leak' not in globals(), 'a name leaked'\n"
        "assert torch.ones(1).dtype == torch.float32, 'the default dtype leaked'\n"
        "torch.manual_seed(0)\nassert x == torch.rand(1).item(), 'the seed leaked'"
    )
    notebook.cells[4].source += "\nglobals()['leak'] = 1; torch.set_default_dtype(torch.float64)"
    scores = grade_all(Lab.from_notebook(notebook), {"first": {}, "second": {}})
    assert scores["second"].points == 3, str(scores["second"])


def test_output_on_stderr_costs_points_as_under_nbgrader():
    score = grade(with_test("import sys; print('note', file=sys.stderr)"))
    assert score.lost == ("ex1-mean-test",)
    assert "stderr" in score.cells["ex1-mean-test"].error


def test_partial_credit_follows_nbgrader():
    """A number is the credit, anything else is all (nbgrader refuses more than all: here it is capped)."""
    expected = {"2.5": 2.5, "0": 0, "4.0": 4, "9": 4, "-1": 4, "'text'": 4, "None": 4}
    scores = grade_all(with_test("mean([])", points=4), {value: {EX: f"return {value}"} for value in expected})
    assert {value: score.cells["ex1-mean-test"].points for value, score in scores.items()} == expected
    assert grade(with_test("2;", points=4)).points == 6, "a semicolon hides the number"


def test_output_beside_python_does_not_disturb_the_report():
    code = "import os; os.write(1, b'raw bytes'); os.system('echo shell'); print('fine')"
    score = grade(with_test(code))
    assert score.points == 3
    assert score.stdout["ex1-mean-test"] == "fine\n"


def test_classes_and_sources_of_answers_can_be_inspected():
    notebook = small_lab()
    notebook.cells[
        3
    ].source = "import inspect\nassert 'total' in inspect.getsource(mean), 'the source of the answer cannot be read'"
    assert grade(Lab.from_notebook(notebook)).points == 3


def test_workers_share_the_variants(lab):
    variants = {str(i): {EX: f"return {i}"} for i in range(5)}
    scores = grade_all(lab, variants, workers=2)
    assert list(scores) == list(variants)
    assert [s.points for s in scores.values()] == [0, 0, 1, 2, 0]


def test_metadata_of_the_small_lab_is_nbgraders_own():
    from nbgrader.nbgraderformat import MetadataValidator

    MetadataValidator().validate_nb(small_lab())
    assert meta("a")["nbgrader"]["schema_version"] == MetadataValidator.schema_version


def test_cells_without_points_can_be_left_out():
    """What a graded cell reads, through other cells and inside functions, is kept; the rest is not run."""
    notebook = small_lab()
    extra = {
        "unused": "import json\nraise RuntimeError('this cell need not run')",
        "constant": "base = 1",
        "helper": "def shifted(v):\n    return [x + base - 1 for x in v]",
        "local": "v = x = 0\nraise RuntimeError('only locals of others have these names')",
    }
    cells = [nbformat.v4.new_code_cell(code, id=name) for name, code in extra.items()]
    notebook.cells[1:1] = cells
    notebook.cells[-1:-1] = [nbformat.v4.new_code_cell("raise RuntimeError('after the last graded cell')")]
    answers = {EX: "return sum(shifted(values)) / len(values)"}
    notebook.cells[6].source = notebook.cells[6].source.replace("sum(values)", "sum(shifted(values))")
    lab = Lab.from_notebook(notebook)
    assert needed_cells(lab) == ["cell-2", "cell-3", EX, f"{EX}-test", f"{EX}-hidden"]
    score = grade_all(lab, {"answer": answers}, only_needed=True)["answer"]
    assert (score.points, score.errors) == (3, {})
    assert len(grade(lab, answers).errors) == 3, "without only_needed every cell runs"
