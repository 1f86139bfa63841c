"""Penalties by the day through nbgrader's own converter, and again when marks or dates change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from labkit.errors import LabError
from labkit.grading.book import Book
from labkit.grading.late import DailyPenalty, due, reassess, set_due
from labkit.grading.record import record

from .small_course import NAME, handed_in, mark_by_hand, outcome, submission

DUE = datetime(2026, 12, 1, 18, 0)


def penalty(book, student):
    with book.gradebook() as gradebook:
        return gradebook.find_submission(NAME, student).late_submission_penalty


@pytest.mark.parametrize(
    ("late", "expected"),
    [(1, 1), (86400, 1), (86401, 2), (3 * 86400, 3), (30 * 86400, 10)],
)
def test_each_day_begun_costs_its_share_up_to_all(late, expected):
    assert DailyPenalty(percent_per_day=10).late_submission_penalty("ada", 10.0, late) == pytest.approx(expected)


def test_grace_and_maximum():
    plugin = DailyPenalty(percent_per_day=30, grace_minutes=10, maximum_percent=50)
    assert plugin.late_submission_penalty("ada", 8.0, 600) is None
    assert plugin.late_submission_penalty("ada", 8.0, 601) == pytest.approx(2.4)
    assert plugin.late_submission_penalty("ada", 8.0, 86400 + 600) == pytest.approx(2.4), "days count after the grace"
    assert plugin.late_submission_penalty("ada", 8.0, 5 * 86400) == pytest.approx(4.0)
    assert plugin.late_submission_penalty("ada", -1.0, 5 * 86400) == 0


def test_the_reason_says_what_the_penalty_computed():
    plugin = DailyPenalty(percent_per_day=30, grace_minutes=10, maximum_percent=50)
    assert plugin.reason(601) == "1 day begun after the due date and 10 minutes of grace, 30 % of the points for each."
    assert plugin.reason(2 * 86400).startswith("2 days begun") and plugin.reason(2 * 86400).endswith(", 50 % at most.")


def test_the_gradebook_has_the_penalty_and_follows_marks_and_dates(course):
    lab = course.lab(NAME)
    set_due(course, NAME, DUE)
    for student, hours in {"early": -1, "late": 25, "never": 24 * 40, "undated": None}.items():
        when = None if hours is None else (DUE + timedelta(hours=hours)).isoformat()
        record(course, submission(student, received=when), outcome(student), handed_in(lab))
    # 25 % a day of 3 points: nothing, two days, more than all
    assert [penalty(course, s) for s in ("early", "late", "never", "undated")] == [0, 1.5, 3, 0]
    mark_by_hand(course, "late", "q2-means", 2.0)
    reassess(course, NAME)
    assert penalty(course, "late") == 2.5, "a share of the score counts what a person gave later"
    set_due(course, NAME, (DUE + timedelta(hours=3)).replace(tzinfo=timezone(timedelta(hours=2))))  # 19:00 in UTC
    reassess(course, NAME)
    assert [penalty(course, s) for s in ("late", "never")] == [1.25, 3]
    set_due(course, NAME, None)
    reassess(course, NAME)
    assert [penalty(course, s) for s in ("late", "never")] == [0, 0]


def test_settings_of_the_course_count(course):
    path = course.root / "nbgrader_config.py"
    path.write_text(path.read_text() + "c.DailyPenalty.grace_minutes = 120\n")
    book = Book(course.root)
    set_due(book, NAME, DUE)
    for student, minutes in {"within": 119, "after": 121}.items():
        when = (DUE + timedelta(minutes=minutes)).isoformat()
        record(book, submission(student, received=when), outcome(student), handed_in(book.lab(NAME)))
    assert [penalty(book, s) for s in ("within", "after")] == [0, 0.75]


def test_dates_as_teachers_write_them():
    assert due("2026-12-01T18:00+02:00") == datetime(2026, 12, 1, 16, 0, tzinfo=UTC)
    assert due("2026-12-01 18:00").replace(tzinfo=None) == DUE and due("2026-12-01 18:00").tzinfo is not None
    assert due("2026-12-01").replace(tzinfo=None) == datetime(2026, 12, 1, 23, 59, 59)
    assert due("2026-07-01 18:00 Europe/Vienna") == datetime(2026, 7, 1, 16, 0, tzinfo=UTC)
    assert due("2026-12-01 UTC") == datetime(2026, 12, 1, 23, 59, 59, tzinfo=UTC)
    assert due("none") is None
    for wrong in ("next week", "2026-12-01 18:00 Mars/Olympus", "2026-13-01", "Europe/Vienna"):
        with pytest.raises(LabError, match=f"'{wrong}' is no date"):
            due(wrong)
