"""The quick grader: points, errors, and cells that hang, die, print or leave something behind."""

from __future__ import annotations

import math
import os
import sys
import time

import nbformat
import pytest

from labkit.grading import Lab, grade, grade_all, stubs
from labkit.grading.needed import affected_cells, needed_cells

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


def lab_with(helpers):
    """The small lab whose own first cell has functions that answers may call."""
    notebook = small_lab()
    notebook.cells[0].source = helpers
    return Lab.from_notebook(notebook)


def test_a_dying_process_costs_only_its_answer():
    lab = lab_with("import os\ndef leave():\n    os._exit(7)")
    scores = grade_all(lab, {"dies": {EX: "leave()"}, "reference": {}})
    assert "exit code 7" in scores["dies"].cells["ex1-mean-test"].error
    assert scores["reference"].points == 3


def test_a_lab_that_dies_when_it_runs_again_costs_those_that_still_wait(tmp_path):
    notebook = small_lab()
    marker = f"__import__('pathlib').Path({str(tmp_path / 'marker')!r})"
    notebook.cells[0].source = f"import os\n{marker}.exists() and os._exit(3)\n{marker}.touch()"
    scores = grade_all(Lab.from_notebook(notebook), {"reference": {}, "one": {EX: "return 1"}, "two": {EX: "return 2"}})
    assert [score.points for score in scores.values()] == [3, 0, 0]
    assert all("exit code 3" in scores[name].errors["cell-0"] for name in ("one", "two"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_processes_that_an_answer_starts_end_with_it(tmp_path):
    pid_file = tmp_path / "pid"
    lab = lab_with(
        "import subprocess, sys, time\n"
        "def start():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(600)"
    )
    grade(lab, {EX: "start()"}, seconds=2)
    pid = int(pid_file.read_text())
    for _ in range(50):
        if not _alive(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} outlived the grader")


def _alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"


FORKS = sys.platform == "linux"


@pytest.mark.parametrize("another_thread", [False, True], ids=["in copies", "one after the other"])
def test_variants_do_not_see_each_other(another_thread):
    """A name, a seed or a default that one answer sets must not reach the next, in copies of a process or in one."""
    notebook = small_lab()
    leak = "def leak():\n    math.pi = 3\n    globals()['leaked'] = 1"
    notebook.cells[0].source = (THREAD if another_thread else "") + f"import math, os, torch\n{leak}"
    notebook.cells[3].source = (
        "assert 'leaked' not in globals(), 'a name leaked'\n"
        "assert torch.ones(1).dtype == torch.float32, 'the default dtype leaked'\n"
        "print(os.getpid(), math.pi, torch.rand(1).item())"
    )
    leaks = "torch.set_default_dtype(torch.float64); torch.manual_seed(5); leak(); "
    variants = {name: {EX: leaks + f"return {name}"} for name in ("1", "2", "3")}
    scores = grade_all(Lab.from_notebook(notebook), {"reference": {}, **variants})
    assert scores["reference"].points == 3
    assert [scores[name].points for name in variants] == [1, 1, 3]
    processes, pies, draws = zip(*(scores[n].stdout["ex1-mean-test"].split() for n in variants), strict=True)
    assert len(set(draws)) == 1, "the seed leaked"
    copies = FORKS and not another_thread
    assert len(set(processes)) == (3 if copies else 1)
    # What one process cannot undo, a copy never sees.
    assert pies[2] == (str(math.pi) if copies else "3")


def test_only_cells_that_read_a_change_run_anew():
    """By names, through functions in any order; a loop's variables of the same name in two cells join nothing."""
    cells = {
        "helper": "def calls(v):\n    return mean(v)",
        "other helper": "def product(v):\n    return math.prod(v)",
        EX: "def mean(v):\n    return sum(v)",
        f"{EX}-test": "for got in [mean([1])]:\n    assert got == 1\nsize = 3",
        "through": "x = calls([4])",
        "far": "assert x == 4",
        "in a function": "def check(got=None):\n    with open(x) as file:\n        return file",
        "same variable": "for got in [1, 2]:\n    print(got)\nwith product as y:\n    print(y)",
        "rebinds": "total = 4\nprint(total, [got for got in range(3)])",
        "before": "size = 0",
        "adds": "size += 1",
    }
    apart = {"other helper", "same variable", "rebinds"}
    assert affected_cells(cells.items(), {EX: "def mean(v):\n    return 0"}) == {*cells} - apart
    assert affected_cells(cells.items(), {"rebinds": "mean = 3"}) >= {"helper", "through", "rebinds"}
    assert affected_cells(cells.items(), {"before": "size = 1"}) == {"before", f"{EX}-test", "adds"} | {EX}
    loop = {**cells, "after the loop": "print(got)"}
    assert "after the loop" in affected_cells(loop.items(), {EX: ""}), "the test's loop may have left it"


def test_results_of_unaffected_cells_are_the_labs_own(lab):
    """They come from one run for all variants; a wrong answer still loses what its own tests give."""
    notebook = small_lab()
    notebook.cells[5:5] = [
        nbformat.v4.new_code_cell("import os\nprint(os.getpid())", metadata=meta("ex2-test", grade=True, points=2))
    ]
    variants = {"reference": {}, "one": {EX: "return 2"}, "two": {EX: "1 / 0"}}
    apart = grade_all(Lab.from_notebook(notebook), variants)
    once = grade_all(Lab.from_notebook(notebook), variants, only_affected=variants)
    assert [score.points for score in once.values()] == [score.points for score in apart.values()] == [5, 3, 2]
    assert len({score.stdout["ex2-test"] for score in apart.values()}) == (3 if FORKS else 1)
    assert len({score.stdout["ex2-test"] for score in once.values()}) == 1


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


def test_a_labs_functions_can_be_sent_to_other_processes():
    """Its names are those of __main__, and the sources of its cells are to be found, as in a notebook."""
    source = "from labkit.parallel.carry import pack\nclass Mine: pass\ndef call(): return Mine()\n"
    lab = with_test(f"{source}assert b'class Mine' in pack(call, ())\nassert __import__('__main__').Mine is Mine")
    assert grade(lab).errors == {}
