"""In-context learning: solved examples stand in the prompt, and nothing trains (Brown et al. 2020, arXiv:2005.14165).

    {text} It was great ⏎ {text} It was terrible ⏎ … {text} It was        k demonstrations, drawn once by a seed

No weight changes, but attention is over k times as many tokens, and their keys and values take memory: the table of
MeZO (Malladi et al. 2023, arXiv:2305.17333) has 6 GB for it where inference without demonstrations has 4, at 1.3B.
"""

from __future__ import annotations

import random

from labkit.errors import LabError
from labkit.tasks import Sentiment


class InContext(Sentiment):
    """A sentiment task whose prompts begin with solved examples of its training part, as many of each class.

    Args:
        task: that is asked with demonstrations.
        shots: k; 0 asks as the task itself.
        seed: of which examples, and in which order.
        seq_len: tokens a prompt may have, demonstrations included; None for what the task allows for each example.

    Raises:
        LabError: for more demonstrations than there are examples of a class.
    """

    def __init__(self, task: Sentiment, shots: int = 8, seed: int = 0, seq_len: int | None = None):
        vars(self).update(vars(task))
        self.template, self.labels, self.label_words = task.template, task.labels, task.label_words
        self.seq_len = (shots + 1) * task.seq_len if seq_len is None else seq_len
        self.name = f"{task.name}, {shots} shots"
        draw = random.Random(seed)
        chosen = []
        for label in range(len(self.labels)):
            own = [e for e in task.train if e.label == label]
            count = shots // len(self.labels) + (label < shots % len(self.labels))
            if count > len(own):
                cause = f"{count} demonstrations of {self.labels[label]!r} cannot be drawn from {len(own)} examples."
                raise LabError(cause, "Ask for fewer shots.")
            chosen += draw.sample(own, count)
        draw.shuffle(chosen)
        solved = (task.prompt(e.text) + self.label_words[e.label] + "\n" for e in chosen)
        self.demonstrations = "".join(solved)

    def prompt(self, text: str) -> str:
        """The solved examples, then the text as the task asks it."""
        return self.demonstrations + super().prompt(text)
