"""Tables of lesson 10's trainings with the error that a finite test part leaves, and when a difference is a finding.

A share p found on n sentences has the standard error √(p (1 - p) / n); of the difference of two shares the squares of
both are summed. (On the same sentences the true error is somewhat smaller, since hard sentences are hard for both.) It
says how far another test part would move the number, and nothing of how far another *training* would: that is what a
second seed is for. So a difference counts here where it is larger than two standard errors, and larger than the
difference of two seeds where that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from labkit.errors import LabError
from labkit.run import Run
from labkit.show.display import table

UNITS = {"accuracy": "%", "±": "points", "loss": "nats"}


def standard_error(share: float, count: int) -> float:
    """Of a share found on `count` sentences; a share itself.

    Raises:
        LabError: for what is no share, or no sentences.
    """
    if not 0 <= share <= 1 or count < 1:
        raise LabError(f"{share!r} of {count!r} sentences is no share.", "Give a number from 0 to 1, and a count.")
    return math.sqrt(share * (1 - share) / count)


def difference(one: float, other: float, count: int) -> tuple[float, float]:
    """One share less the other and twice the standard error of that, in points."""
    error = math.hypot(standard_error(one, count), standard_error(other, count))
    return 100 * (one - other), 200 * error


def apart(one: float, other: float, count: int, seeds: float = 0.0) -> bool:
    """Whether two accuracies differ by more than two standard errors and more than `seeds` points."""
    found, most = difference(one, other, count)
    return abs(found) > max(most, seeds)


def verdict(one: float, other: float, count: int, seeds: float = 0.0) -> str:
    """The difference in words: points, what it would have to exceed, and whether it does."""
    found, most = difference(one, other, count)
    said = "a finding" if apart(one, other, count, seeds) else "no finding"
    among = f", two seeds {seeds:.1f}" if seeds else ""
    return f"{found:+.1f} points (two standard errors {most:.1f}{among}): {said}"


def rows(runs: Mapping[str, Run], count: int, rates: bool = False) -> list[dict[str, Any]]:
    """A row for each run: values that train, its rate where asked, accuracy, its standard error, and the loss."""
    return [
        {"run": name, "values": f"{run.trainable_params:,}"}
        | ({"rate": f"{run.config['learning_rate']:.2g}"} if rates else {})
        | accuracy(run.evaluations[-1], count)
        for name, run in runs.items()
    ]


def accuracy(found: Mapping[str, float], count: int) -> dict[str, float]:
    """An evaluation's columns: accuracy in %, its standard error in points, the loss."""
    error = standard_error(found["accuracy"], count)
    return {
        "accuracy": round(100 * found["accuracy"], 1),
        "±": round(100 * error, 1),
        "loss": round(found["loss"], 3),
    }


def runs_table(runs: Mapping[str, Run], count: int, caption: str, rates: bool = False) -> None:
    """Display `rows`; ± is one standard error of the accuracy on `count` sentences."""
    table(rows(runs, count, rates), UNITS, caption)
