"""Training on several processes: real ranks and real collectives, NCCL on GPUs and gloo elsewhere.

`launch` starts the ranks from a notebook or a script, `%%ranks` runs a cell in each; the modules of `jobs` run by
either and, unchanged, by torchrun on one machine or several.
"""

from __future__ import annotations

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext labkit.parallel`: the cell magic `%%ranks`, and outputs that unfold by rank."""
    import importlib

    # IPython calls this from above, as a shell calls labkit.cli: what a notebook shows is a higher layer's business.
    importlib.import_module("labkit.show.ranks").register(shell)
