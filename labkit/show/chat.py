"""A chat box over one model with an adapter: what it answers without the adapter, and with it, side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import torch

from labkit.adapters.attach import DEFAULT, use
from labkit.errors import LabError
from labkit.instructions import Instructions, Pair
from labkit.show.conversations import answers_table
from labkit.show.display import _plain_table, html_table

BEFORE, AFTER = "before", "after"


def both(model: torch.nn.Module, task: Instructions, pair: Pair, most: int = 32, adapter: str = DEFAULT) -> list[str]:
    """The model's answers without its adapter and with it; the adapter is active afterwards."""
    try:
        without = task.answer(use(model, ""), pair, most)
    finally:
        use(model, adapter)
    return [without, task.answer(model, pair, most)]


class ChatBox:
    """A text field and a button; below, the answers before and after. The answers of some questions are its twin.

    Args:
        model: with an adapter, as `labkit.adapters` puts it on.
        task: how a question is written down for the model.
        recorded: questions whose answers are computed now, for paper.
        most: tokens of an answer at most.

    Raises:
        LabError: without a recorded question.
    """

    def __init__(self, model: torch.nn.Module, task: Instructions, recorded: Sequence[Pair], most: int = 32) -> None:
        import ipywidgets as w

        if not recorded:
            raise LabError("The chat box has nothing to show on paper.", "Give at least one question.")
        self.model, self.task, self.most = model, task, most
        pairs = [both(model, task, pair, most) for pair in recorded]
        self.rows = answers_table(recorded, dict(zip((BEFORE, AFTER), zip(*pairs, strict=True), strict=True)))
        self.text = w.Text(value=recorded[0].instruction, description="ask", layout=w.Layout(width="90%"))
        self.button = w.Button(description="Answer", tooltip="Ask the model without and with its adapter")
        self.answers = w.HTML(self._page(recorded[0].instruction, pairs[0]))
        self.button.on_click(lambda _button: self.ask(self.text.value))
        self.box = w.VBox([self.text, self.button, self.answers])

    def ask(self, question: str) -> list[str]:
        """Answer a question in both columns; an empty one is told so."""
        if not question.strip():
            self.answers.value = '<p role="alert">Write a question first.</p>'
            return []
        self.button.disabled = True
        try:
            found = both(self.model, self.task, Pair(question.strip(), ""), self.most)
        finally:
            self.button.disabled = False
        self.answers.value = self._page(question, found)
        return found

    def _page(self, question: str, found: Sequence[str]) -> str:
        table = html_table([BEFORE, AFTER], [[text or "(nothing)" for text in found]], [False, False], "")
        return f"<p>{html.escape(question)}</p>{table}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        heads = list(self.rows[0])
        body, numeric = [list(row.values()) for row in self.rows], [False] * len(heads)
        caption = "Answers before and after"
        twin = {
            "text/html": html_table(heads, body, numeric, caption),
            "text/plain": _plain_table(heads, body, numeric, caption),
        }
        return {**self.box._repr_mimebundle_(), **twin}
