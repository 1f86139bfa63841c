"""The lessons of the checkout: folders lessons/NN-slug with lesson.ipynb and lab.ipynb."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LessonError, UnknownNameError
from labkit.paths import LESSONS

_SLUG = re.compile(r"(\d\d)-[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class LessonFolder:
    """One lesson's folder; `slug` is its name, such as '01-floating-point'."""

    slug: str
    folder: Path

    @property
    def lesson(self) -> Path:
        return self.folder / "lesson.ipynb"

    @property
    def lab(self) -> Path:
        return self.folder / "lab.ipynb"

    @property
    def title(self) -> str:
        """The first heading of the lesson's notebook, or the slug in words."""
        try:
            cells = json.loads(self.lesson.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError):
            cells = []
        for cell in cells:
            if cell["cell_type"] == "markdown" and (found := re.search(r"^# +(.+)$", "".join(cell["source"]), re.M)):
                return found[1].strip()
        return self.slug[3:].replace("-", " ")


def all_lessons(root: Path | None = None) -> list[LessonFolder]:
    """Every lesson that has a notebook, in order. Raises LessonError without a checkout to look in."""
    root = root or LESSONS
    if not root.is_dir():
        raise LessonError(
            f"There is no folder {root}: labkit is installed without the course.",
            "Clone the repository and install it from there with: python -m pip install -e .",
        )
    folders = (path for path in sorted(root.iterdir()) if _SLUG.fullmatch(path.name))
    return [LessonFolder(path.name, path) for path in folders if (path / "lesson.ipynb").is_file()]


def find(name: str, root: Path | None = None) -> LessonFolder:
    """The lesson that a learner means by '1', '01', 'floating-point', '01-floating-point' or its folder.

    Raises UnknownNameError, which suggests the nearest lesson.
    """
    lessons = all_lessons(root)
    wanted = name.strip().rstrip("/\\").replace("\\", "/").removesuffix(".ipynb").removesuffix("/lesson")
    wanted = wanted.rsplit("/", 1)[-1].lower()
    for lesson in lessons:
        number, words = lesson.slug[:2], lesson.slug[3:]
        if wanted in (lesson.slug, words, number) or (wanted.isdigit() and int(wanted) == int(number)):
            return lesson
    raise UnknownNameError.among("lesson", name, [lesson.slug for lesson in lessons])
