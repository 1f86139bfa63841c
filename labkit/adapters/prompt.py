"""Prompt tuning: trained embeddings in front of the text's (Lester, Al-Rfou & Constant 2021, arXiv:2104.08691).

    X ← [P; X]        X = embeddings of the text, [seq, width]        P of [length, width]

length · width values, the fewest of all methods here. They are prefix tuning's idea at the input alone: layers compute
the keys and values of these positions themselves. So every layer works on `length` positions more, in all its products
and not in attention only, and the gradient has to come down through the whole model.

The paper finds that P should start as embeddings of words, best as those of the classes' names; only for its largest
model, of 11 billion parameters, it does not matter, and there the method reaches full fine-tuning. `start`:

    "words"        the rows of a text, or of the first training prompts
    "vocabulary"   rows drawn at random (the paper draws from the 5,000 most common tokens, this and peft from all)
    "random"       N(0, 1), as in peft

With words the model answers at step 0 as it does with those words in front. Positions in front have no logits: what
the decoder returns has one row a token of the text, so that labels and logits need no change. (peft returns logits of
those positions too.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.adapters.in_front import InFront, cache_name, check_length, decoder_of, put_in_front, real_tokens
from labkit.adapters.method import Adapted
from labkit.errors import UnknownNameError
from labkit.tasks import Task

STARTS = ("words", "vocabulary", "random")


class Prompt(InFront):
    """Embeddings of `length` positions.

    Args:
        words: the model's embeddings, [vocabulary, width].

    Attributes:
        embedding: [length, width], fp32.
    """

    kind = "prompt"

    def __init__(self, words: Float[Tensor, "vocabulary width"], length: int):
        super().__init__(length)
        self.embedding = nn.Parameter(torch.randn(length, words.shape[1]).to(words.device))
        self._entered = False

    def enter(self, decoder: nn.Module, arguments: dict[str, Any]) -> None:
        """Put the embeddings in front, unless a cache holds what was made of them; the decoder counts positions."""
        arguments.pop("position_ids", None)
        cache = arguments.get(cache_name(decoder))
        self._entered = cache is None or not cache.get_seq_length()
        if not self._entered:
            return
        embedded = arguments.get("inputs_embeds")
        if embedded is None:
            words: Any = decoder.get_input_embeddings()  # type: ignore[operator]
            embedded = words(arguments.pop("input_ids"))
        own = self.embedding.to(embedded.dtype).expand(len(embedded), -1, -1)
        arguments["inputs_embeds"] = torch.cat([own, embedded], dim=1)

    def leave(self, decoder: nn.Module, output: Any) -> None:
        """Without the positions in front."""
        if self._entered:
            output.last_hidden_state = output.last_hidden_state[:, self.length :]


def attach_prompt(model: Any, length: int = 8, tokens: Int[Tensor, " length"] | None = None) -> Prompt:
    """Freeze a model, in place, and put a prompt in front of its input; `take_from_front` takes it off.

    Args:
        tokens: whose embeddings it starts from; None for a random start.

    Raises:
        LabError: for a length that fits no model, or a model that lacks what is needed. The model is then as it was.
    """
    decoder_of(model, Prompt.kind)
    check_length(model, length, Prompt.kind)
    words = model.get_input_embeddings().weight.detach()
    prompt = Prompt(words, length)
    if tokens is not None:
        with torch.no_grad():
            prompt.embedding.copy_(words[tokens.to(words.device)])
    put_in_front(model, prompt)
    return prompt


@dataclass
class PromptTuning(Adapted):
    """Trained embeddings in front of the text's.

    Attributes:
        length: positions in front; the paper takes 20 to 100.
        start: "words", "vocabulary" or "random".
        text: those words, again and again; empty: of the first training prompts.

    Raises:
        LabError: from `prepare`, for what does not fit the model, before any training.
    """

    learning_rate: float = 1e-1
    length: int = 8
    start: str = "words"
    text: str = ""
    name: str = "prompt"

    def adapt(self, model: nn.Module, task: Task) -> None:
        """A prompt in front of the model's input."""
        if self.start not in STARTS:
            raise UnknownNameError.among("start of a prompt", self.start, STARTS)
        decoder_of(model, Prompt.kind)
        check_length(model, self.length, Prompt.kind)
        language_model: Any = model
        tokens = None
        if self.start == "words":
            tokens = real_tokens(task, self.length, self.text)
        elif self.start == "vocabulary":
            tokens = torch.randint(0, len(language_model.get_input_embeddings().weight), (self.length,))
        attach_prompt(model, self.length, tokens)
