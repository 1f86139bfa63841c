"""Inside a rank of `%%ranks`: the cell itself."""

from __future__ import annotations

import ast
import linecache
import sys
from typing import Any

FILENAME = "<the cell>"


def run_cell(source: str, variables: dict[str, Any]) -> Any:
    """Run a cell in the rank's module `__main__`, with `variables` in it; the value of its last expression."""
    import torch
    import torch.distributed as dist

    from labkit.parallel.group import device
    from labkit.parallel.progress import report

    space = sys.modules["__main__"].__dict__
    space.update(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device(), dist=dist, torch=torch)
    space.update(progress=report, **variables)
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    tree = ast.parse(source, FILENAME)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, FILENAME, "exec"), space)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), FILENAME, "eval"), space)
