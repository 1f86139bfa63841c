"""The driver itself, on a notebook of its own: it sees results, widgets and errors, and it cleans up."""

from __future__ import annotations

import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from .driver import JupyterServer, Notebook, browser, find_browser, free_port

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium, Chrome or Edge is installed"),
]

SLIDER = """import ipywidgets as widgets
slider, shown = widgets.IntSlider(3, description="steps"), widgets.HTML("3 squared is 9")
def repaint(change):
    shown.value = f"{change.new} squared is {change.new ** 2}"
slider.observe(repaint, "value")
widgets.VBox([slider, shown])"""


def test_run_all_widget_error_and_stop(tmp_path):
    cells = [new_code_cell("x = 6 * 7"), new_code_cell(SLIDER), new_code_cell("x"), new_code_cell("x / 0")]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
    nbformat.write(notebook, tmp_path / "own.ipynb")
    with JupyterServer.folder(tmp_path, "own.ipynb", tmp_path / "home") as server, browser() as chromium:
        opened = Notebook(chromium, server)
        opened.run_all()
        assert opened.errors() == ["ZeroDivisionError: division by zero"]
        assert opened.cells()[2]["outputs"][0]["data"]["text/plain"] == "42"
        handle = opened.page.get_by_role("slider")
        handle.focus()
        handle.press("ArrowRight")
        opened.page.get_by_text("4 squared is 16").wait_for()
        kernels = psutil.Process(server.process.pid).children(recursive=True)
        assert kernels, "a kernel runs while the notebook is open"
        assert server.stop() == []
        assert not any(p.is_running() for p in kernels)
    assert not (tmp_path / ".ipynb_checkpoints").exists()


def test_a_process_that_survives_ctrl_c_is_reported_and_killed(tmp_path):
    ignoring = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    stubborn = f"{ignoring}; print('up', flush=True); time.sleep(99)"
    server = JupyterServer([sys.executable, "-c", stubborn], free_port(), tmp_path, "none.ipynb")
    while "up" not in server.log.read_text():
        time.sleep(0.05)
    assert [stubborn in left for left in server.stop(seconds=0.5)] == [True]
    assert not psutil.pid_exists(server.process.pid)
