"""Students' copies of labs, and the proof that a lab can be handed out.

Before a copy is written the lab runs twice: with its solutions, where every test passes, and as a student receives it,
where every visible test fails and says what to do. Then the copy is searched for what students must not see.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from labkit.errors import LabError, LessonError
from labkit.files import write_text
from labkit.grading.check import check_format
from labkit.grading.lab import Lab
from labkit.grading.leaks import leaks
from labkit.grading.score import Score, grade_all, stubs
from labkit.lessons import LessonFolder
from labkit.paths import MY_LABS


def release(lessons: list[LessonFolder], out: Path, progress: Callable[[str], None] = lambda slug: None) -> list[Path]:
    """Write students' copies, `out/SLUG/lab.ipynb`; all of them, or none.

    Args:
        lessons: those whose labs are released.
        out: a folder, made if missing; what else is in it stays.
        progress: called with each lab's slug before it is run.

    Raises:
        LabError: a lab cannot be handed out (with the cell), or `out` cannot be written.
    """
    copies = {}
    for lesson in lessons:
        if not lesson.lab.is_file():
            raise LabError(f"Lesson {lesson.slug} has no lab.", "Leave it out.")
        progress(lesson.slug)
        lab = Lab.read(lesson.lab)
        if found := [*check_format(lab), *problems(lab)]:
            raise LabError(f"The lab {lesson.slug} cannot be handed out: {found[0]}", "Mend it in lessons/, run again.")
        copies[lesson.slug] = copy_for_students(lab)
        if leaked := leaks(lab, copies[lesson.slug]):
            raise LabError(
                f"The student's copy of {lesson.slug} would show: {leaked[0]}",
                "Put it into a solution or hidden region.",
            )
    return _write(copies, out)


def copy_for_students(lab: Lab) -> str:
    """The text of a lab's notebook as students get it: stubs, visible tests, nothing that has run."""
    notebook = lab.stub()
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks:
            cell.metadata["deletable"] = False
        if marks.get("locked"):
            cell.metadata["editable"] = False
    return nbformat.writes(notebook) + "\n"


def own_copy(lesson: LessonFolder) -> Path:
    """The learner's copy of a lesson's lab, made if missing; one that is there stays as it is.

    Raises:
        LabError: the lesson has no lab, or the copy cannot be written.
    """
    if not lesson.lab.is_file():
        raise LessonError(f"Lesson {lesson.slug} has no lab.", f"Open the lesson: labkit lab {lesson.slug}.")
    path = MY_LABS / lesson.slug / "lab.ipynb"
    if not path.exists():
        try:
            write_text(path, copy_for_students(Lab.read(lesson.lab)))
        except OSError as error:
            raise LabError(f"{path} cannot be written ({error.strerror or error}).", "Check the folder.") from error
    return path


def problems(lab: Lab) -> list[str]:
    """Why a lab cannot be handed out, a sentence each with the cell named; [] when it can."""
    graded = grade_all(lab, {"solutions": {}, "stubs": stubs(lab)})
    return [*_with_solutions(lab, graded["solutions"]), *_with_stubs(lab, graded["stubs"])]


def _with_solutions(lab: Lab, score: Score) -> Iterator[str]:
    for label, error in score.errors.items():
        yield f"with its solutions, {label} fails: {error}"
    for label in score.lost:
        if label not in score.errors:
            yield f"with its solutions, {label} gives {score.cells[label].points:g} of its points"


def _with_stubs(lab: Lab, score: Score) -> Iterator[str]:
    for exercise in lab.exercises:
        for cell in exercise.visible_tests:
            found = score.cells[cell.grade_id]
            name = found.error.partition(":")[0].partition(" ")[0]
            if not found.error:
                yield f"as students get it, the visible test {cell.grade_id} passes"
            elif name not in ("AssertionError", "NotImplementedError", "LabError"):
                yield f"as students get it, {cell.grade_id} fails with a bare {found.error}"


def _write(copies: dict[str, str], out: Path) -> list[Path]:
    """Write all copies beside each other first, so that a full disk leaves the old ones whole."""
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _folder_in(out) as folder:
            for slug, text in copies.items():
                (folder / slug).mkdir()
                (folder / slug / "lab.ipynb").write_text(text, encoding="utf-8")
            for slug in copies:
                (out / slug).mkdir(exist_ok=True)
                written.append((folder / slug / "lab.ipynb").replace(out / slug / "lab.ipynb"))
    except OSError as error:
        told = error.strerror or error
        raise LabError(f"The copies cannot be written to {out} ({told}).", "Choose another folder.") from error
    return written


@contextlib.contextmanager
def _folder_in(out: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".release-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
