"""One course with the small lab for all tests of the gradebook: its database takes seconds to make."""

from __future__ import annotations

import shutil

import pytest

from labkit.grading.book import Book

from .small_course import make_course
from .small_lab import small_lab
from .stand_in import engine, folder  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def pristine_course(tmp_path_factory):
    """Never changed; `course` copies it."""
    return make_course(tmp_path_factory.mktemp("pristine"), small_lab()).root


@pytest.fixture
def course(pristine_course, tmp_path):
    """A course of the test's own, without submissions."""
    return Book(shutil.copytree(pristine_course, tmp_path / "course"))
