"""Late submissions: a share of the score for every day begun, as a plugin of nbgrader's, and due dates.

nbgrader computes a penalty when tests are marked. A share of the score has to be computed again when a person has
marked a question since, or when the due date was moved: `reassess` does so, with nbgrader's own code.
"""

from __future__ import annotations

import logging
import math
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nbformat.v4 import new_notebook
from nbgrader.plugins import BasePlugin
from nbgrader.preprocessors import AssignLatePenalties
from traitlets import Float
from traitlets.config import Config

from labkit.errors import LabError
from labkit.grading.book import NOTEBOOK, Book

_DAY_S = 86400.0


class DailyPenalty(BasePlugin):
    """Takes a share of the score for each day begun after the due date and the minutes of grace.

    In `nbgrader_config.py`: `c.AssignLatePenalties.plugin_class = "labkit.grading.late.DailyPenalty"`, and
    `c.DailyPenalty.percent_per_day = 10`.
    """

    percent_per_day = Float(10.0, min=0.0, help="Percent of the score that each day begun costs.").tag(config=True)
    maximum_percent = Float(100.0, min=0.0, max=100.0, help="Percent of the score that lateness can cost.").tag(
        config=True
    )
    grace_minutes = Float(0.0, min=0.0, help="Minutes after the due date that cost nothing.").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        """Points to take off a score; None when it is not late. Days count from the end of the grace on."""
        days = self._days(total_seconds_late)
        if not days:
            return None
        return max(score, 0.0) * min(self.percent_per_day * days, self.maximum_percent) / 100

    def reason(self, total_seconds_late: float) -> str:
        """Why points are taken off, in one sentence for the student."""
        days = self._days(total_seconds_late)
        begun = f"{days} day{'' if days == 1 else 's'} begun after the due date"
        grace = f" and {self.grace_minutes:g} minutes of grace" if self.grace_minutes else ""
        most = f", {self.maximum_percent:g} % at most" if self.percent_per_day * days > self.maximum_percent else ""
        return f"{begun}{grace}, {self.percent_per_day:g} % of the points for each{most}."

    def _days(self, total_seconds_late: float) -> int:
        """Days begun after the grace."""
        return max(math.ceil((total_seconds_late - 60 * self.grace_minutes) / _DAY_S), 0)


def reason(config: Config, total_seconds_late: float) -> str:
    """Why a submission lost points by lateness, by the course's settings; '' where another plugin takes them."""
    step = AssignLatePenalties(config=config)
    step.init_plugin()
    return step.plugin_inst.reason(total_seconds_late) if isinstance(step.plugin_inst, DailyPenalty) else ""


def set_due(book: Book, lab: str, when: datetime | None) -> None:
    """Set a lab's due date: aware of its zone, or in UTC without one; None for no date. Penalties follow `reassess`."""
    if when is not None and when.tzinfo is not None:
        when = when.astimezone(UTC).replace(tzinfo=None)
    with book.gradebook() as gradebook:
        gradebook.update_or_create_assignment(lab, duedate=when)


def due(text: str) -> datetime | None:
    """The date that a teacher writes: `2026-12-01`, `2026-12-01 18:00`, `2026-12-01 18:00 Europe/Vienna`, or 'none'.

    A day without a time ends with the day. Without a zone it is this machine's.

    Raises:
        LabError: the text is no date, or names no zone.
    """
    if text.strip().lower() == "none":
        return None
    date = text.strip()
    if named := re.fullmatch(r"(.+) ([A-Za-z][\w+/-]*)", date):
        date = named[1].strip()
    try:
        zone = ZoneInfo(named[2]) if named else None
        when = datetime.fromisoformat(date)
    except (ValueError, ZoneInfoNotFoundError):
        example = "2026-12-01, '2026-12-01 18:00' or '2026-12-01 18:00 Europe/Vienna'"
        raise LabError(f"{text!r} is no date.", f"Write it as {example}.") from None
    if len(date) <= len("2026-12-01"):
        when = when.replace(hour=23, minute=59, second=59)
    return when.replace(tzinfo=zone) if zone else when.astimezone()


def reassess(book: Book, lab: str) -> None:
    """Compute the penalties of a lab's late submissions again, from scores and the due date as they are now."""
    with book.gradebook() as gradebook:
        late = [
            submission.student.id
            for submission in gradebook.assignment_submissions(lab)
            if submission.total_seconds_late > 0 or submission.late_submission_penalty
        ]
    logger = logging.Logger("nbgrader")
    logger.addHandler(logging.NullHandler())
    step = AssignLatePenalties(config=book.config, log=logger)
    for student in late:
        place = {"notebook": NOTEBOOK, "assignment": lab, "student": student, "db_url": book.url}
        step.preprocess(new_notebook(), {"nbgrader": place})
