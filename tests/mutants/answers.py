"""Wrong answers made of a lab's own solutions."""

from __future__ import annotations

from labkit.grading import Lab
from labkit.grading.lab import region
from labkit.paths import LESSONS


class Answers:
    """Makes mutants of one lab, named by its folder."""

    def __init__(self, lab: str):
        self._lab = Lab.read(LESSONS / lab / "lab.ipynb")

    def right(self, exercise: str) -> str:
        """The body of the solution."""
        solution = self._lab.exercise(exercise).solution
        assert solution is not None
        return region(solution.source)

    def wrong(self, exercise: str, tests: tuple[str, ...], why: str, *changes: str, code: str = "") -> dict:
        """A wrong answer that `tests` reject: `code`, or the solution with pieces replaced (old, new, old, new …)."""
        answer = code or self.right(exercise)
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            # A piece that is not there would leave the right answer in place.
            assert answer.count(old) == 1, f"{old!r} occurs {answer.count(old)} times in the solution of {exercise}"
            answer = answer.replace(old, new)
        return {"exercise": exercise, "code": answer, "loses": [f"{exercise}-{test}" for test in tests], "why": why}
