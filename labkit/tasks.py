"""Text turned into batches, with a prompt, a label set and a metric.

Classification is done as language modelling (Schick & Schütze 2021, arXiv:2001.07676; the form that MeZO uses,
Malladi et al. 2023, arXiv:2305.17333): the sentence goes into a template, and the class whose label word is the
likelier next token is the answer. So one model, one head and one loss serve pretraining, zero-shot use and fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from labkit import paths
from labkit.errors import LabError
from labkit.scale import Scale
from labkit.sentences import Rated, read_archive, read_shipped, split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """A text and its class (an index into the task's labels)."""

    text: str
    label: int


@dataclass(frozen=True)
class Batch:
    """Token ids padded on the left, so that every row's last token stands in the last column.

    Attributes:
        input_ids: token ids.
        attention_mask: 1 for real tokens, 0 for padding.
        labels: class of each row.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    labels: Int[Tensor, " batch"]

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(t.to(device) for t in (self.input_ids, self.attention_mask, self.labels)))

    @property
    def tokens(self) -> int:
        """Real tokens, without padding."""
        return int(self.attention_mask.sum())


class Task(Protocol):
    """What `train` and `evaluate` need to know of a task."""

    name: str
    train: list[Example]
    test: list[Example]

    def batch(self, examples: list[Example]) -> Batch:
        """Make one batch of examples."""

    def batches(self, examples: list[Example], size: int) -> Iterator[Batch]:
        """Cut examples into batches, in order."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of a batch, in nats."""

    def score(self, model: torch.nn.Module, batch: Batch) -> tuple[int, float]:
        """How many rows of the batch the model gets right, and the sum of their losses in nats."""


class Sentiment:
    """Is a film sentence positive or negative? Real review snippets that people rated (see `labkit.sentences`).

    Args:
        tokenizer: of the model that is asked.
        parts: rated sentences as train, validation and test.
        seq_len: tokens a prompt may have; longer ones lose their beginning.
    """

    name = "sentiment"
    labels = ("negative", "positive")
    label_words = (" terrible", " great")
    template = "{text} It was"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, parts: dict[str, list[Rated]], seq_len: int = 64):
        self.tokenizer, self.seq_len = tokenizer, seq_len
        examples = {k: [Example(r.text, int(r.rating > 0)) for r in part] for k, part in parts.items()}
        self.train, self.validation, self.test = (examples[k] for k in ("train", "validation", "test"))
        self.label_ids = torch.tensor([self._first_token(word) for word in self.label_words])
        if len(set(self.label_ids.tolist())) < len(self.labels):
            raise LabError(
                f"This tokenizer begins all of {self.label_words} with the same token.",
                "Set Sentiment.label_words to words that differ in their first token.",
            )

    @classmethod
    def load(cls, scale: Scale | None = None, model: str | None = None) -> Sentiment:
        """The task at a scale: its training size, its test size, the tokenizer of its model (or of `model`).

        Up to 1,000 training sentences come from the repository; more are fetched with the archive.
        """
        from labkit import assets, models

        scale = scale or Scale.here()
        shipped = paths.DATA / "sentiment"
        parts = read_shipped(shipped)
        if scale.train_size > len(parts["train"]):
            parts = split(read_archive(assets.get("vader-archive")))
        parts["train"] = parts["train"][: scale.train_size]
        parts["test"] = parts["test"][: scale.eval_size]
        return cls(models.tokenizer(model or scale.model), parts, scale.seq_len)

    def _first_token(self, word: str) -> int:
        return self.tokenizer(word, add_special_tokens=False)["input_ids"][0]

    def prompt(self, text: str) -> str:
        """The text as the model reads it."""
        return self.template.format(text=text)

    def batch(self, examples: list[Example]) -> Batch:
        """Tokenize examples into one batch.

        Raises:
            LabError: when there are none.
        """
        if not examples:
            raise LabError("A batch needs at least one example.", "Check the slice of the data that you took.")
        ids = self.tokenizer(
            [self.prompt(e.text) for e in examples],
            padding=True, truncation=True, max_length=self.seq_len, return_tensors="pt",
        )  # fmt: skip
        labels = torch.tensor([e.label for e in examples])
        return Batch(ids["input_ids"], ids["attention_mask"], labels)

    def batches(self, examples: list[Example], size: int) -> Iterator[Batch]:
        """Cut examples into batches of `size`, in order; the last may be smaller."""
        return (self.batch(examples[i : i + size]) for i in range(0, len(examples), size))

    def class_logits(self, model: torch.nn.Module, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Scores of the classes: the label words' logits at the last token.

        A model whose head has one output a class (a linear probe) gives the scores directly.
        """
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False
        )
        logits = output.logits[:, -1].float()
        return logits if logits.shape[-1] == len(self.labels) else logits[:, self.label_ids.to(logits.device)]

    def loss(self, model: torch.nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy over the classes, in nats; ln 2 = 0.693 is guessing."""
        return F.cross_entropy(self.class_logits(model, batch), batch.labels)

    def score(self, model: torch.nn.Module, batch: Batch) -> tuple[int, float]:
        """How many rows the model gets right, and the sum of their cross-entropies in nats."""
        logits = self.class_logits(model, batch)
        hits = (logits.argmax(-1) == batch.labels).sum()
        return int(hits), F.cross_entropy(logits, batch.labels, reduction="sum").item()
