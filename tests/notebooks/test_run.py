"""Every notebook runs from top to bottom, and its cells tagged `nbval-check-output` give what was committed.

Each runs in a pytest of its own with nbval: the notebook's failure is one failure here, with the cell and the
difference in it, and a kernel that hangs is ended by the cell's time-out, at the latest by the process's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from .test_structure import NAMES, NOTEBOOKS

CELL_SECONDS = 180  # a cell takes at most 20 s on two free cores, but two notebooks with four ranks each may share them
NOTEBOOK_SECONDS = 900
SANITIZE = Path(__file__).with_name("sanitize.cfg")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run(*paths, cell_seconds=CELL_SECONDS, most_failures=2):
    """Run notebooks through nbval in one process; returns its exit status and what it printed, as text."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "nbval.plugin", "-p", "no:cacheprovider"]
    command += ["--color=no", "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={cell_seconds}"]
    command += [
        "-c",
        os.devnull,
        f"--rootdir={paths[0].parent}",
        f"--nbval-sanitize-with={SANITIZE}",
        f"--maxfail={most_failures}",
        *map(str, paths),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # nbval alone: the other plugins take seconds to import
    done = subprocess.run(command, capture_output=True, text=True, timeout=NOTEBOOK_SECONDS, env=environment)
    return done.returncode, _COLOURS.sub("", done.stdout[-8000:] + done.stderr[-2000:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebook_runs(path):
    status, printed = run(path)
    assert status == 0, f"{path.parent.name}/{path.name}\n{printed}"


def write_notebook(path, source, committed, tags):
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    cell = new_code_cell(source, id="only", execution_count=1, metadata={"tags": tags})
    cell.outputs = [new_output("stream", name="stdout", text=committed)]
    notebook.cells = [cell]
    nbformat.write(notebook, path)
    return path


def test_the_runner_tells_right_from_wrong(tmp_path):
    """A changed tagged output, an error, a cell that hangs fail; an untagged output may change."""
    check = ["nbval-check-output"]
    cells = {
        "same": ("print(2)", "2\n", check),
        "different": ("print(2)", "3\n", check),
        "styled": ("print('<td style=\"color:red\">2</td>')", '<td style="color:blue">2</td>\n', check),
        "free": ("print(2)", "3\n", []),
        "raises": ("1 / 0", "2\n", []),
        "hangs": ("import time; time.sleep(100)", "", []),
    }
    paths = [write_notebook(tmp_path / f"{name}.ipynb", *cell) for name, cell in cells.items()]
    status, printed = run(*paths, cell_seconds=2, most_failures=10)
    assert status == 1
    assert set(re.findall(r"FAILED (?:.*/)?(\w+)\.ipynb", printed)) == {"different", "raises", "hangs"}, printed
    assert "3 passed" in printed
