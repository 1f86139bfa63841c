"""`%%ranks` in a real kernel: results, outputs, errors, and no process after an interrupt, a restart or a kill."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from leftovers import appears, bearing, gone, marked
from nbformat.v4 import new_code_cell, new_notebook
from notebook import Kernel

from labkit.commands.execute import execute
from labkit.commands.settle import settle

pytestmark = pytest.mark.usefixtures("without_gpus")

WORK = """%%ranks 2 --send folder
import os, pathlib, time
pathlib.Path(folder, str(rank)).write_text(str(os.getpid()))
while True:
    dist.all_reduce(torch.ones(2))
    time.sleep(0.05)
"""


@pytest.fixture
def kernel(tmp_path):
    with marked() as mark:
        opened = Kernel(tmp_path)
        opened.mark = mark
        try:
            yield opened
        finally:
            opened.close()
            assert gone(mark) == []


def ranks_work(kernel, folder):
    """Run two ranks until both are at work; the message's id and the processes that must end."""
    before = {process.pid for process in bearing(kernel.mark)}
    message = kernel.begin(f"folder = {str(folder)!r}\n") and kernel.begin(WORK)
    appears(kernel.mark, lambda _: all((folder / str(rank)).exists() for rank in range(2)))
    pids = {process.pid for process in bearing(kernel.mark)} - before
    assert {int((folder / str(rank)).read_text()) for rank in range(2)} < pids, "supervisor and two ranks"
    return message, pids


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_a_cell_runs_on_every_rank_and_its_values_come_back(kernel):
    assert "torch" not in kernel.run("import sys; 'torch' if 'torch' in sys.modules else 'none'")["value"]
    kernel.run(
        "class Box:\n    def __init__(self, x): self.x = x\n\ndef double(x):\n    return x * two\n\ntwo, x = 2, 5"
    )
    told = kernel.run(
        "%%ranks 2 --send x,double,Box --name boxes\n"
        "print('working', rank)\n"
        "t = torch.full((2,), double(float(x)) + rank, device=device)\n"
        "dist.all_reduce(t)\n"
        "Box(t[0].item() + world_size)"
    )
    assert told["error"] is None, told
    assert kernel.run("[type(b) is Box and b.x for b in boxes]")["value"] == "[23.0, 23.0]"
    page = told["shown"][-1]["text/html"]
    assert len(told["shown"]) == 1 and page.count("<details") == 2
    assert "Rank 1: 1 line</summary>" in page and "working 1" in page
    assert "working 0" in told["shown"][-1]["text/plain"]
    assert kernel.run("%%ranks 1\nworld_size;")["value"] is None
    assert kernel.run("results")["value"] == "[1]"


def test_a_class_of_a_cell_without_a_place_in_the_history_is_sent(kernel):
    """So nbval runs a notebook's cells."""
    cell = "class Bag:\n    size = 3\n\nclass Sack(Bag):\n    'Known by no function of its own.'"
    assert kernel.end(kernel.client.execute(cell, store_history=False))["error"] is None
    told = kernel.run("%%ranks 1 --send Sack --name sizes\nSack().size")
    assert told["error"] is None and told["value"] == "[3]", told


def test_errors_of_a_cell_name_the_rank_the_cause_and_the_line(kernel):
    told = kernel.run("%%ranks 2\nx = 1\nif rank == 1:\n    raise ValueError('<odd>')\ndist.barrier()")
    assert told["error"]["ename"] == "RankError" and "Rank 1 raised ValueError: <odd>." in told["error"]["evalue"]
    page = told["shown"][-1]["text/html"]
    assert page.startswith("<details open><summary>Rank 1 failed here</summary>")
    assert "&lt;the cell&gt;&quot;, line 3" in page and "raise ValueError(&#x27;&lt;odd&gt;&#x27;)" in page
    for cell, words in [
        ("%%ranks\n1", "required"),
        ("%%ranks 2 --send nothing\n1", "has no 'nothing'"),
        ("%%ranks 2 --what\n1", "--what"),
        ("%%ranks 2\n1 +", "invalid syntax"),
        ("%%ranks 2 --device cuda:7\n1", "cuda:7"),
    ]:
        assert words in kernel.run(cell)["error"]["evalue"], cell
    assert kernel.run("1 + 1")["value"] == "2"


def test_an_interrupt_ends_the_ranks_and_the_notebook_goes_on(kernel, tmp_path):
    message, pids = ranks_work(kernel, tmp_path)
    kernel.manager.interrupt_kernel()
    assert kernel.end(message)["error"]["ename"] == "KeyboardInterrupt"
    assert alive(pids) == []
    assert kernel.run("%%ranks 1\nrank")["value"] == "[0]"


@pytest.mark.parametrize("end", ["restart", "kill", "terminate"])
def test_no_rank_survives_its_kernel(kernel, tmp_path, end):
    _, pids = ranks_work(kernel, tmp_path)
    if end == "restart":
        kernel.manager.restart_kernel(now=True)
    else:
        [kernel_pid] = [p.pid for p in bearing(kernel.mark) if p.ppid() == os.getpid()]
        os.kill(kernel_pid, signal.SIGKILL if end == "kill" else signal.SIGTERM)
    appears(kernel.mark, lambda _: not alive(pids), 10.0)


def test_an_executed_notebook_keeps_the_sections_of_its_ranks(tmp_path):
    """As `labkit run` executes and stores it."""
    cells = ["%load_ext labkit.parallel", "%%ranks 2\nprint('here', rank)\nrank * 10", "results"]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    assert execute(notebook, tmp_path, 120) is None
    outputs = settle(notebook).cells[1].outputs
    assert [output.output_type for output in outputs] == ["display_data", "execute_result"]
    assert "here 1" in outputs[0].data["text/html"] and "Rank 1: 1 line\nhere 1" in outputs[0].data["text/plain"]
    assert outputs[1].data["text/plain"] == notebook.cells[2].outputs[0].data["text/plain"] == "[0, 10]"
