"""An nbgrader course, opened once: its settings, its gradebook, and its converters run in this process.

nbgrader's own commands start a process each, read the settings again and print a log. Here a converter runs on the
settings that were read once, and what it logs is shown only where it fails.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError, UnknownNameError
from labkit.grading.lab import Cell, Lab

if TYPE_CHECKING:
    from nbgrader.api import Gradebook
    from nbgrader.converters.base import BaseConverter

NOTEBOOK = "lab"  # the name under which nbgrader keeps each lab's one notebook
_SETTINGS = "nbgrader_config.py"
_SIGNAL = 128  # what a signal adds to its number in an exit code
_LOCKED_S = 60  # seconds that a change of the database waits for another program's


class Book:
    """A course folder as `labkit grade init` makes it.

    Attributes:
        root: the folder, absolute.
        config: its `nbgrader_config.py`, with the root and the database's place filled in.
        url: of the database.
    """

    def __init__(self, folder: Path) -> None:
        """Read the course's settings.

        Raises:
            LabError: the folder is no course, its settings fail, or nbgrader is not installed.
        """
        self.root = Path(folder).resolve()
        if not (self.root / _SETTINGS).is_file() or not (self.root / "source").is_dir():
            raise LabError(
                f"{self.root} is not a course folder.",
                f"Name the course's folder with --course COURSE_DIR, or make one: labkit grade init {folder}",
            )
        self.config = _settings(self.root)
        # nbgrader starts `alembic` by name when it makes a database, and an environment need not be activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._courses = nbgrader_courses()(config=self.config)
        self._courses.db_url = self.url = _patient(self._courses.db_url)

    @property
    def labs(self) -> list[str]:
        """Names of the labs in the course."""
        return sorted(path.parent.name for path in (self.root / "source").glob(f"*/{NOTEBOOK}.ipynb"))

    def find(self, name: str) -> str:
        """The lab that a teacher means by '6', '06', 'data-parallel' or '06-data-parallel'.

        Raises:
            LabError: the course does not have it.
        """
        wanted = name.strip().rstrip("/").lower()
        for lab in self.labs:
            number, _, words = lab.partition("-")
            if wanted in (lab, number, words) or (wanted.isdigit() and number.isdigit() and int(wanted) == int(number)):
                return lab
        if lesson := _lesson_with_lab(name):
            raise LabError(f"The lab {lesson} is not in {self.root}.", f"Add it: labkit grade init {self.root}")
        raise UnknownNameError.among("lab", name, self.labs)

    def lab(self, name: str) -> Lab:
        """The course's own version of a lab, with its solutions and hidden tests."""
        path = self.root / "source" / name / f"{NOTEBOOK}.ipynb"
        try:
            return Lab.read(path)
        except Exception as error:  # nbformat has no common base error
            raise LabError(f"{path} cannot be read as a notebook ({error}).", "Mend it, or init the course.") from error

    def others(self, name: str) -> dict[str, set[str]]:
        """The grade_ids of the course's other labs, by the labs' names; one that cannot be read is left out."""
        found = {}
        for other in self.labs:
            if other != name:
                with contextlib.suppress(LabError):
                    found[other] = {cell.grade_id for cell in self.lab(other).cells if cell.grade_id}
        return found

    @contextlib.contextmanager
    def gradebook(self) -> Iterator[Gradebook]:
        """The database, open."""
        from nbgrader.api import Gradebook

        with _quiet(), Gradebook(self.url, self._courses.course_id) as gradebook:
            yield gradebook

    def let_go(self) -> None:
        """Close what an interrupted command has left open: a change that was begun locks the database for others."""
        from sqlalchemy.orm import close_all_sessions

        close_all_sessions()

    def converter(self, kind: type[BaseConverter], lab: str, student: str = "*") -> BaseConverter:
        """One of nbgrader's converters, or a kind of ours, set to a lab and a student (all by default)."""
        self._courses.assignment_id, self._courses.student_id, self._courses.notebook_id = lab, student, NOTEBOOK
        converter = kind(coursedir=self._courses, config=self.config)
        converter.force = True
        return converter

    def admits(self, lab: Lab) -> bool:
        """Whether the gradebook can take this version of a lab: once one was handed in, no cell may come or go."""
        from nbgrader.api import MissingEntry

        with self.gradebook() as gradebook:
            try:
                notebook = gradebook.find_notebook(NOTEBOOK, lab.path.parent.name)
            except MissingEntry:
                return True
            groups = notebook.grade_cells, notebook.solution_cells, notebook.source_cells
            marked = [{cell.name for cell in group} for group in groups]
            return not notebook.submissions or marked == [
                {cell.grade_id for cell in lab.cells if cell.grade},
                {cell.grade_id for cell in lab.cells if cell.solution},
                {cell.grade_id for cell in _kept(lab)},
            ]

    def refresh(self, lab: Lab) -> None:
        """Bring the gradebook's copy of a lab up to date with the course's source, where that was changed since.

        Raises:
            LabError: cells were added or removed though submissions are marked, or nbgrader refuses the lab.
        """
        from nbgrader.api import MissingEntry
        from nbgrader.converters import GenerateAssignment

        name = lab.path.parent.name
        if not self.admits(lab):  # nbgrader would say so only after it has deleted the students' copy
            raise LabError(
                f"Cells were added to or removed from {name} in source/, but submissions with the old ones are marked.",
                "Give them back: sources and points of cells may change, their number may not.",
            )
        with self.gradebook() as gradebook:
            try:
                notebook = gradebook.find_notebook(NOTEBOOK, name)
                points = {cell.name: cell.max_score for cell in notebook.grade_cells}
                known = {cell.name: (cell.source, points.get(cell.name)) for cell in notebook.source_cells}
            except MissingEntry:
                known = {}
        # Of an answer nbgrader keeps the stub; only its id and points say whether it is the same.
        cells = {c.grade_id: (known.get(c.grade_id, ("",))[0] if c.solution else c.source, c) for c in _kept(lab)}
        if known != {name: (source, c.points if c.grade else None) for name, (source, c) in cells.items()}:
            run(self.converter(GenerateAssignment, name, "."))


def _kept(lab: Lab) -> list[Cell]:
    """The cells that the gradebook keeps."""
    return [cell for cell in lab.cells if cell.grade or cell.solution or cell.locked]


def run(converter: BaseConverter) -> None:
    """Start a converter; its log is shown where it fails.

    Raises:
        LabError: with the last thing that nbgrader said.
    """
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.Logger("nbgrader")
    logger.addHandler(handler)
    converter.log = logger
    here = Path.cwd()
    try:
        with _quiet():
            converter.start()
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > _SIGNAL:
            raise  # a signal that ends this command, not nbgrader's own end
        told = [line for line in log.getvalue().splitlines() if line.strip()]
        cause = next((line for line in reversed(told) if _is_error(line)), str(error))
        raise LabError(
            f"nbgrader failed: {cause.strip()}", "Mend what it names, then run the command again."
        ) from error
    finally:
        os.chdir(here)


def _is_error(line: str) -> bool:
    """Whether a line of a log is the end of a traceback: `KeyError: …`."""
    head = line.split(":")[0]
    return ":" in line and head[:1].isupper() and head.replace(".", "").isidentifier()


def _patient(url: str) -> str:
    """A database that another program changes is waited for: the formgrader may be open, and SQLite waits 5 s."""
    return f"{url}?timeout={_LOCKED_S}" if url.startswith("sqlite:///") and "?" not in url else url


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # SQLAlchemy warns of the order in which nbgrader adds submissions; nothing is lost by it.
        warnings.filterwarnings("ignore", message=".*not in session, add operation.*")
        yield


def _settings(root: Path) -> Any:
    from traitlets.config import PyFileConfigLoader

    try:
        config = PyFileConfigLoader(_SETTINGS, path=str(root)).load_config()
    except Exception as error:  # the file is a program
        raise LabError(f"{root / _SETTINGS} fails: {error}", "Mend it, then run the command again.") from error
    config.CourseDirectory.root = str(root)
    if str(config.CourseDirectory.get("db_url", "")).startswith("sqlite:///"):
        place = str(config.CourseDirectory.db_url).removeprefix("sqlite:///")
        config.CourseDirectory.db_url = f"sqlite:///{root / place}"  # an absolute place stays as it is
    return config


def nbgrader_courses() -> Any:
    """nbgrader's class of courses; LabError where it is not installed."""
    try:
        from nbgrader.coursedir import CourseDirectory
    except ImportError as error:
        raise LabError("nbgrader is not installed.", 'Run: python -m pip install -e ".[teach]"') from error
    return CourseDirectory


def _lesson_with_lab(name: str) -> str:
    from labkit.lessons import find

    try:
        lesson = find(name)
    except LabError:
        return ""
    return lesson.slug if lesson.lab.is_file() else ""
