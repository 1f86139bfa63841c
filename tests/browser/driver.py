"""Drives real JupyterLab in a headless browser: start a server, open a notebook, run it, look, stop it.

    with JupyterServer.labkit("01", tmp_path) as server, browser() as chromium:
        notebook = Notebook(chromium, server)
        notebook.run_all()
        assert notebook.errors() == []

The server and the page are the learner's own: `labkit lab`, JupyterLab's menus, the keyboard. Only questions
that the page does not answer (has every cell run?) go to JupyterLab's model, `window.jupyterapp`, which
its option `expose_app_in_browser` offers. Settings, workspaces and checkpoints go to a temporary folder and
autosave is off, so that a test changes neither the notebook nor the user's own JupyterLab.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SETTLE_SECONDS = 2.5  # "Run All" clicked the moment the kernel turns idle is sometimes lost
_STARTED = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  window.labkitStarted = window.labkitEnded = 0;
  panel.sessionContext.iopubMessage.connect((_, message) => {
    if (message.header.msg_type === 'execute_input') window.labkitStarted += 1;
    const ofCell = message.parent_header.msg_type === 'execute_request';
    if (ofCell && message.content.execution_state === 'idle') window.labkitEnded += 1;
  });
}"""
_KERNEL = """() => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  return panel?.sessionContext?.session?.kernel?.status ?? 'none';
}"""
_CELLS = """() => {
  const model = window.jupyterapp.shell.currentWidget.content.model.toJSON();
  return model.cells.filter(cell => cell.cell_type === 'code');
}"""


def find_browser() -> str | None:
    """The path of an installed Chromium, Chrome or Edge, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator:
    """A headless browser (playwright.sync_api.Browser), closed at the end."""
    from playwright.sync_api import sync_playwright

    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=find_browser(),
            headless=True,
            args=["--no-sandbox"] if as_root else [],  # Chromium refuses its sandbox to root, as in containers
        )
        try:
            yield chromium
        finally:
            chromium.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class JupyterServer:
    """A JupyterLab server with settings of its own in `home`; a context manager."""

    def __init__(self, command: list[str], port: int, home: Path, page: str) -> None:
        self.port, self.page, self.token = port, page, secrets.token_hex(16)
        self.log = home / "server.log"
        self.processes: list[psutil.Process] = []
        environment = self._environment(home)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @classmethod
    def labkit(cls, lesson: str, home: Path, lab: bool = False) -> JupyterServer:
        """Start `labkit lab LESSON`, as a learner does."""
        from labkit.lessons import find
        from labkit.paths import ROOT

        port, found = free_port(), find(lesson)
        command = [
            sys.executable,
            "-c",
            "from labkit.cli import main; main()",
            "lab",
            lesson,
            "--no-browser",
            "--port",
            str(port),
        ]
        page = f"my-labs/{found.slug}/lab.ipynb" if lab else found.lesson.relative_to(ROOT).as_posix()
        return cls([*command, *(["--lab"] if lab else [])], port, home, page)

    @classmethod
    def folder(cls, root: Path, notebook: str, home: Path) -> JupyterServer:
        """Start plain JupyterLab on `root`, with a page for `notebook` in it."""
        port = free_port()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={root}"]
        command += [f"--ServerApp.port={port}", "--allow-root", "--ServerApp.answer_yes=True"]
        return cls(command, port, home, notebook)

    def _environment(self, home: Path) -> dict[str, str]:
        """The variables that keep JupyterLab's files in `home`, with its configuration written there."""
        config = {
            "LabApp": {"expose_app_in_browser": True},
            "FileCheckpoints": {"checkpoint_dir": str(home / "checkpoints")},
        }
        manager = home / "settings" / "@jupyterlab" / "docmanager-extension"
        for folder in (home / "config", manager):
            folder.mkdir(parents=True)
        (home / "config" / "jupyter_server_config.json").write_text(json.dumps(config))
        (manager / "plugin.jupyterlab-settings").write_text(json.dumps({"autosave": False}))
        return os.environ | {
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTER_TOKEN": self.token,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{self.page}?token={self.token}&reset"

    def wait(self, seconds: float = 60) -> None:
        """Wait until the server answers; raises RuntimeError with its log when it does not."""
        address = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self, seconds: float = 15) -> list[str]:
        """Stop the server as Ctrl-C does; returns the command lines of processes that outlived it.

        Those are killed, so that a failing test leaves nothing behind either.
        """
        if self.process.poll() is None:
            own = psutil.Process(self.process.pid)
            self.processes = [own, *own.children(recursive=True)]
            self.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        _, alive = psutil.wait_procs(self.processes, timeout=seconds)
        left = []
        for process in alive:
            try:
                left.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(timeout=10)
        return left

    def __enter__(self) -> JupyterServer:
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Notebook:
    """The server's notebook, open in a page of `chromium`; `page` is Playwright's own Page."""

    def __init__(self, chromium, server: JupyterServer, seconds: float = 90) -> None:
        self.page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(seconds * 1000)
        self.page.goto(server.url)
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self._wait(lambda: self.kernel() == "idle", seconds, "the kernel is not idle")

    def kernel(self) -> str:
        """The kernel's status: idle, busy, starting … or none."""
        return self.page.evaluate(_KERNEL)

    def cells(self) -> list[dict]:
        """The code cells as JupyterLab holds them (nbformat, as Python objects)."""
        return self.page.evaluate(_CELLS)

    def errors(self) -> list[str]:
        """The error outputs of all code cells."""
        outputs = [out for cell in self.cells() for out in cell["outputs"]]
        return [f"{out['ename']}: {out['evalue']}" for out in outputs if out["output_type"] == "error"]

    def run_all(self, seconds: float = 180) -> float:
        """Run > Run All Cells; wait until every cell has run or one failed. Returns the seconds taken."""
        expected = sum(bool("".join(cell["source"]).strip()) for cell in self.cells())
        self.page.wait_for_timeout(SETTLE_SECONDS * 1000)
        self.page.evaluate(_STARTED)
        began = time.monotonic()
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self._wait(lambda: self.started() > 0, 30, "Run All Cells started nothing")
        self._wait(lambda: self._over(expected), seconds, f"not all {expected} cells ran")
        return time.monotonic() - began

    def started(self) -> int:
        """How many cells the kernel has begun since `run_all`."""
        return self.page.evaluate("() => window.labkitStarted")

    def _over(self, expected: int) -> bool:
        # The kernel's own status does not tell: a widget's messages run in a thread beside the cells, and the kernel
        # says idle when one of those ends, while a cell is still running.
        over = self.started() >= expected or bool(self.errors())
        return over and self.page.evaluate("() => window.labkitEnded >= window.labkitStarted")

    def screenshot(self, path: Path, locator=None) -> None:
        """Save what the page shows, or only one element of it."""
        (locator or self.page).screenshot(path=str(path))

    def _wait(self, done, seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                raise TimeoutError(f"{what} after {seconds:.0f} s (kernel {self.kernel()})")
            self.page.wait_for_timeout(200)
