"""A learner's first ten minutes in a real browser: `labkit lab 01`, run all, move the widget, Ctrl-C."""

from __future__ import annotations

import pytest

from labkit.paths import LESSONS

from .driver import JupyterServer, Notebook, browser, find_browser

LESSON = "01-floating-point"
WIDGET = ".jp-OutputArea-output .jupyter-widgets"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium, Chrome or Edge is installed"),
    pytest.mark.skipif(not (LESSONS / LESSON / "lesson.ipynb").exists(), reason="lesson 01 is not there yet"),
]


class BitExplorer:
    """The lesson's widget as its reader meets it: labels, tooltips, keys, and the table of formats."""

    def __init__(self, page):
        self.box = page.locator(WIDGET).filter(has=page.get_by_text("Flip bits in")).first
        self.box.scroll_into_view_if_needed()
        self.value = self.box.get_by_label("Value", exact=True)
        self.table = self.box.locator("table")

    def type(self, text):
        self.value.fill(text)
        self.value.press("Enter")

    def flip(self, tooltip, key="Space"):
        """Flip a bit by the keyboard: focus its button and press the key."""
        button = self.box.locator(f'button[title="{tooltip}"]')
        button.focus()
        button.press(key)

    def stored(self, fmt):
        """What the table says a format stores: its row's cells by column."""
        heads = [head.strip() for head in self.table.locator("thead th").all_inner_texts()]
        rows = self.table.locator("tbody tr").all()
        for row in rows:
            cells = [cell.strip() for cell in row.locator("th, td").all_inner_texts()]
            if cells[0] == fmt:
                return dict(zip(heads, cells, strict=True))
        raise AssertionError(f"the table has no row {fmt}")

    def expect(self, fmt, value, seconds=10):
        """Wait until the table shows `value` for a format; fail with what it shows instead."""
        for _ in range(seconds * 10):
            if self.stored(fmt)["value"] == value:
                return
            self.box.page.wait_for_timeout(100)
        raise AssertionError(f"{fmt} shows {self.stored(fmt)}, not the value {value}")


def explore(notebook):
    """Move the widget by typing and by the keyboard, and see the values change with it."""
    widget = BitExplorer(notebook.page)
    widget.type("1.0001")
    widget.expect("fp32", "1.00010002")
    widget.expect("fp16", "1")  # the lesson's question: the nearest fp16 number to 1.0001
    widget.flip("sign bit: 1 means negative")
    widget.expect("fp16", "-1")
    widget.expect("fp32", "-1")
    widget.flip("exponent bit: adds 1 to the exponent field", key="Enter")
    widget.expect("fp16", "-0.5")
    widget.type("65520")
    widget.expect("fp16", "inf")
    widget.expect("bf16", "65536")
    widget.type("two")
    widget.box.get_by_text("is not a number").wait_for()
    return widget


def test_lesson_01_in_jupyterlab(tmp_path):
    path = LESSONS / LESSON / "lesson.ipynb"
    before = path.read_bytes()
    with JupyterServer.labkit("01", tmp_path / "home") as server, browser() as chromium:
        notebook = Notebook(chromium, server)
        try:
            seconds = notebook.run_all()
            assert notebook.errors() == []
            counts = [cell["execution_count"] for cell in notebook.cells() if "".join(cell["source"]).strip()]
            assert counts == list(range(1, len(counts) + 1)), f"cells ran out of order: {counts}"
            explore(notebook)
            assert notebook.errors() == []
            assert seconds < 180, f"the lesson took {seconds:.0f} s"
        except BaseException:
            notebook.screenshot(tmp_path / "failed.png")
            print(f"what the page showed: {tmp_path / 'failed.png'}")
            raise
        assert server.stop() == [], "processes outlive `labkit lab`"
    assert path.read_bytes() == before, "looking at a lesson changed it"
    assert not (path.parent / ".ipynb_checkpoints").exists(), "checkpoints in the checkout"
