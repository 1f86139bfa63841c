"""The formgrader opens in JupyterLab on a course that labkit made, without anything switched on by hand."""

from __future__ import annotations

import nbformat
import pytest
from grading.small_lab import small_lab

from labkit.grading.course import init
from labkit.lessons import LessonFolder

from .driver import JupyterServer, browser, find_browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium, Chrome or Edge is installed"),
]


def test_the_formgrader_opens_on_a_course(tmp_path, monkeypatch):
    lesson = LessonFolder("01-small", tmp_path / "lessons" / "01-small")
    lesson.folder.mkdir(parents=True)
    nbformat.write(small_lab(), lesson.lab)
    init(tmp_path / "course", [lesson])
    monkeypatch.chdir(tmp_path / "course")  # nbgrader reads the settings of the folder where the server was started
    page_of = "source/01-small/lab.ipynb"
    with JupyterServer.folder(tmp_path / "course", page_of, tmp_path / "home") as server, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(server.url)
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        page.get_by_role("menuitem", name="Nbgrader", exact=True).click()
        page.get_by_role("menuitem", name="Formgrader", exact=True).click()
        row = page.frame_locator("iframe").locator("tr", has_text="01-small")
        row.wait_for()
        assert "draft" in row.inner_text() or "release" in row.inner_text()
