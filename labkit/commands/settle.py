"""The form in which an executed notebook is committed: outputs, and nothing that only a running kernel could use."""

from __future__ import annotations

from nbformat import NotebookNode

from labkit.show.display import WIDGET_VIEW


def settle(notebook: NotebookNode) -> NotebookNode:
    """Strip an executed notebook, in place, of widget state, timings and views of widgets.

    A stored view has no kernel to draw it, and JupyterLab shows an error where it stands. Where a widget has a
    static twin the twin stays; an output that is nothing but a view, such as a progress bar's, goes.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_static, cell.outputs) if output is not None]
    return notebook


def _static(output: NotebookNode) -> NotebookNode | None:
    data = output.get("data", {})
    if WIDGET_VIEW not in data:
        return output
    if "text/html" not in data:
        return None
    del data[WIDGET_VIEW]
    return output
