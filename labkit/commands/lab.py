"""`labkit lab`: opens JupyterLab on a lesson."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from labkit.lessons import LessonFolder, find
from labkit.paths import ROOT

# Holds labconfig/default_setting_overrides.json: no pop-up asking for news over the first lesson.
CONFIG = Path(__file__).resolve().parent / "jupyter"


def arguments(name: str, lab: bool, browser: bool, port: int | None) -> list[str]:
    """JupyterLab's command-line arguments to open lesson `name`, or the learner's copy of its lab, made if missing.

    Raises UnknownNameError for a wrong name, LessonError for a lesson without a lab.
    """
    lesson = find(name)
    place = (_own_lab(lesson) if lab else lesson.lesson).relative_to(ROOT).as_posix()
    found = [
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/{place}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--ServerApp.answer_yes=True",  # one Ctrl-C stops the server and its kernels, without a question
        "--Application.log_level=ERROR",  # the address is printed as critical, so it stays
    ]
    if not browser:
        found.append("--no-browser")
    if port is not None:
        found.append(f"--ServerApp.port={port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # Jupyter refuses root, which containers run as
        found.append("--allow-root")
    return found


def _own_lab(lesson: LessonFolder) -> Path:
    from labkit.grading.release import own_copy

    return own_copy(lesson)


def lab(name: str, lab_notebook: bool, browser: bool, port: int | None) -> None:
    """Serve JupyterLab in this process until Ctrl-C."""
    from labkit.commands.terminal import console

    chosen = arguments(name, lab_notebook, browser, port)
    paths = [str(CONFIG), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(paths)
    console().print(f"Opening JupyterLab on lesson {find(name).slug}. Stop it here with Ctrl-C.")

    from jupyterlab.labapp import LabApp

    if os.name == "posix":
        # Jupyter takes Ctrl-C in hand only in a terminal; elsewhere it would stop without ending its kernels.
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    LabApp.launch_instance(argv=chosen)
