"""A small lessons folder and ways to run the command line on it, in this process and in another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat

PROSE = r"""# Alpha, the first

Inline $E = mc^2$, a price of \$5, a [link](https://example.org/page), and

$$\text{bytes} = \underbrace{2\Psi}_{\text{weights}} + \sum_{i=1}^{N} \frac{a_i}{b}$$

![a grey square](square.png)
"""
ALPHA = (
    "import os\nprint('scale', os.environ['LABKIT_SCALE'], 'in', os.path.basename(os.getcwd()))",
    "from tqdm.auto import tqdm\nfor _ in tqdm(range(50)):\n    pass",
    "import ipywidgets as widgets\nfrom IPython.display import HTML, Math, display\n"
    "out = widgets.Output()\ndisplay(widgets.IntSlider(description='bits'), out)\n"
    "with out:\n    print('captured by a widget')",
    'display(HTML(\'<figure><img alt="a curve that falls" src="data:image/png;base64,AAAA"></figure>\'))',
    "Math(r'\\sqrt{v_t}')",
)
# A cell that fails after one that started a process of its own, as lessons with ranks do.
BETA = ("x = 'fine'", "for i in range(3):\n    y = i / 0  # the culprit")
SLOW = (
    "import pathlib, subprocess, sys\nsleep = [sys.executable, '-c', 'import time; time.sleep(120)']\n"
    "child = subprocess.Popen(sleep, start_new_session=True)\n"
    "pathlib.Path('child.pid').write_text(str(child.pid))",
    "import time\ntime.sleep(120)",
)
DEAD = ("import os\nos._exit(3)",)


def make_lessons(root: Path) -> Path:
    """Lessons 01-alpha (works, has a lab), 02-beta (fails), 03-slow (hangs) and 04-dead (its kernel dies)."""
    for slug, cells in {"01-alpha": ALPHA, "02-beta": BETA, "03-slow": SLOW, "04-dead": DEAD}.items():
        folder = root / slug
        folder.mkdir(parents=True)
        write_notebook(folder / "lesson.ipynb", cells, PROSE if slug == "01-alpha" else "# A lesson")
    write_notebook(root / "01-alpha" / "lab.ipynb", ("print('lab')",), "# The lab")
    (root / "01-alpha" / "square.png").write_bytes(b"\x89PNG not really")
    (root / "notes").mkdir()
    return root


def write_notebook(path: Path, cells: tuple[str, ...], prose: str) -> None:
    """A notebook of one Markdown cell and code cells, with the kernel name that the course uses."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_markdown_cell(prose), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(notebook, path)


def start_labkit(lessons: Path, *arguments: str, **options) -> subprocess.Popen:
    """The command line in a process of its own, on another lessons folder."""
    script = (
        "import sys; from pathlib import Path; import labkit.commands.lab, labkit.lessons, labkit.probe\n"
        "labkit.probe.gpus = lambda: ([], [])  # spares importing torch, which none of these lessons needs\n"
        "labkit.lessons.LESSONS = Path(sys.argv.pop(1))\n"
        "labkit.commands.lab.ROOT = labkit.lessons.LESSONS.parent\n"
        "from labkit.cli import main; main()"
    )
    command = [sys.executable, "-c", script, str(lessons), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
