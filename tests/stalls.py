"""Does executing a notebook ever stall? By hand: python tests/stalls.py [NOTEBOOK …] [--runs 20] [--stock]

Executes each notebook --runs times with the executor of `labkit run`, or with nbclient as it comes
(--stock), and reports the slowest cell of each run. A cell that takes longer than --limit seconds counts as a
stall. Without a notebook it makes one of what is known to stall: tqdm, rich, Output widgets and interact.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError

CELLS = (
    "import matplotlib.pyplot as plt\nimport ipywidgets as widgets\nfrom IPython.display import display\n"
    "from tqdm.auto import tqdm",
    "from rich.progress import track\nfor _ in track(range(60), description='rich'):\n    sum(range(20000))",
    "for _ in tqdm(range(200)):\n    sum(range(2000))",
    "out = widgets.Output()\ndisplay(out)\nwith out:\n    for i in range(30):\n        print(i)\n"
    "out.clear_output()\nwith out:\n    print('again')",
    "@widgets.interact(x=(0, 10))\ndef square(x=3):\n    fig, ax = plt.subplots()\n    ax.plot([0, x])\n"
    "    plt.show()\n    return x * x",
    "slider = widgets.IntSlider(description='x')\nlabel = widgets.HTML()\n"
    "slider.observe(lambda change: setattr(label, 'value', str(change.new)), 'value')\n"
    "display(widgets.VBox([slider, label]))\nfor i in range(20):\n    slider.value = i",
    "fig, ax = plt.subplots()\nax.plot([1, 2, 3])\nfig",
    "for i in range(10):\n    with out:\n        print(i)\n    out.clear_output(wait=True)",
    "print('done')",
)


def make_notebook(folder: Path) -> Path:
    """The notebook that is known to stall, in `folder`."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    path = folder / "stalls.ipynb"
    nbformat.write(notebook, path)
    return path


def run_once(path: Path, stock: bool, limit: float) -> list[float]:
    """Seconds per code cell of one execution; a stalled cell ends the run with `limit`."""
    notebook = nbformat.read(path, as_version=4)
    if stock:
        return _run_stock(notebook, path, limit)
    from labkit.commands.execute import execute

    stamps: list[float] = []
    failure = execute(notebook, path.parent, limit, progress=lambda done, line: stamps.append(time.monotonic()))
    if failure and "still running" not in failure.error:
        sys.exit(f"{path}: cell {failure.cell} failed: {failure.error}")
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    return [*seconds, limit] if failure else seconds


def _run_stock(notebook: nbformat.NotebookNode, path: Path, limit: float) -> list[float]:
    client = NotebookClient(notebook, timeout=limit, kernel_name="python3")
    seconds: list[float] = []
    with client.setup_kernel(cwd=str(path.parent)):
        for index, cell in enumerate(notebook.cells):
            begin = time.monotonic()
            try:
                client.execute_cell(cell, index)
            except CellTimeoutError:
                return [*seconds, limit]
            seconds.append(time.monotonic() - begin)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds after which a cell counts as stalled")
    parser.add_argument("--stock", action="store_true", help="use nbclient as it comes, to compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = options.notebooks or [make_notebook(Path(folder))]
        stalls = 0
        for number in range(1, options.runs + 1):
            for path in paths:
                seconds = run_once(path, options.stock, options.limit)
                stalls += max(seconds) >= options.limit
                print(
                    f"run {number:2} {path.name}: {sum(seconds):.1f} s, slowest cell {max(seconds):.1f} s",
                    flush=True,
                )
    print(f"{stalls} stalls in {options.runs * len(paths)} executions")
    return 1 if stalls else 0


if __name__ == "__main__":
    sys.exit(main())
