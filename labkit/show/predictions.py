"""The learner's predictions: asked before a measurement, kept, and shown beside it afterwards.

Committing to a guess before seeing the answer is what makes the answer stick (Slamecka & Graf 1978, the generation
effect). Guesses stay on the learner's machine, in labkit's state folder.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import paths
from labkit.files import write_text
from labkit.show.display import note


def _file() -> Path:
    return paths.state_dir() / "predictions.json"


def _recorded() -> dict[str, float | str]:
    try:
        return json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _record(key: str, value: float | str) -> None:
    write_text(_file(), json.dumps(_recorded() | {key: value}, indent=1, sort_keys=True))


@dataclass(frozen=True)
class Prediction:
    """A question that the learner answers before the measurement.

    Attributes:
        key: names the question, `lesson/slug`.
        question: as asked.
        unit: of the answer.
    """

    key: str
    question: str
    unit: str = ""

    @property
    def value(self) -> float | str | None:
        """What the learner guessed, or None."""
        return _recorded().get(self.key)

    def compare(self, measured: float | str, digits: int = 3, how: str = "Measured") -> None:
        """Show the guess beside the measured value, or one that was found in another way, as `how` says."""
        shown = f"{measured:.{digits}g}" if isinstance(measured, float) else str(measured)
        unit = f" {self.unit}" if self.unit else ""
        guess = "no guess recorded" if self.value is None else f"you guessed {self.value}{unit}"
        note(f"{self.question} {how}: {shown}{unit} ({guess}).")


def predict(
    key: str,
    question: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: list[str] | None = None,
) -> Prediction:
    """Ask the learner for a guess and keep it. Without a front end it only prints the question.

    Args:
        key: `lesson/slug`; the guess is kept under it.
        question: one sentence that ends in a question mark.
        unit: of the answer.
        low, high: bounds of a numeric answer.
        choices: the answers to choose from, for a question that is not numeric.
    """
    from IPython.display import display

    prediction = Prediction(key, question, unit)
    bundle = _widget(prediction, low, high, choices)._repr_mimebundle_()
    # The twin is what paper, GitHub and HTML readers see in place of the widget.
    twin = question + (f" ({' / '.join(choices)})" if choices else "")
    page = f"<p><b>Your prediction.</b> {html.escape(twin)}</p>"
    display({**bundle, "text/plain": f"Your prediction. {twin}", "text/html": page}, raw=True)
    return prediction


def _widget(prediction: Prediction, low: float | None, high: float | None, choices: list[str] | None) -> Any:
    """The question, a box for the answer and a line that says what was recorded."""
    import ipywidgets as widgets

    label = widgets.HTML(f"<b>Your prediction.</b> {html.escape(prediction.question)}")
    known = prediction.value
    if choices:
        chosen = known if known in choices else None
        box = widgets.RadioButtons(options=choices, value=chosen, layout=widgets.Layout(width="auto"))
    else:
        least, most = -1e30 if low is None else low, 1e30 if high is None else high
        start = known if isinstance(known, int | float) and least <= known <= most else max(least, min(0.0, most))
        box = widgets.BoundedFloatText(value=start, min=least, max=most, description=prediction.unit)
    box.tooltip = prediction.question
    said = widgets.HTML()

    def keep(change: dict) -> None:
        _record(prediction.key, change["new"])
        said.value = f"Recorded: {change['new']} {prediction.unit}"

    box.observe(keep, names="value")
    return widgets.VBox([label, box, said])
