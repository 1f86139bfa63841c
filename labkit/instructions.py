"""Instruction following: questions with answers, as a chat model reads them, with a loss on the answers alone.

A conversation is one text, made by the model's own chat template; of its tokens only the answer's are learned (Ouyang
et al. 2022, arXiv:2203.02155, call it supervised fine-tuning). With labels y and -100 elsewhere

    loss = - Σ log p(y_t | what stands before t) / number of answer tokens in the batch

Rows of a batch have different lengths, and padding is computed for nothing. Packing puts several conversations into one
row (Krell et al. 2021, arXiv:2107.02027). They must not see each other: positions start at 0 for each, and attention is
causal within each only. transformers makes such a mask itself where position ids start again, for Llama but not for
OPT (5.24), so that the mask is given here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from labkit import paths
from labkit.errors import LabError
from labkit.scale import Scale
from labkit.tasks import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = paths.DATA / "instructions"
IGNORED = -100
QUESTION, ANSWER = "Question: {}\n", "Answer:"
VALIDATION = 60  # of the training part, where a part to choose by is asked for
SEQ_LEN = 192


@dataclass(frozen=True)
class Pair:
    """An instruction, what it is about (often empty), and the answer; `kind` says what sort of instruction."""

    instruction: str
    answer: str
    input: str = ""
    kind: str = ""

    @property
    def text(self) -> str:
        """All of it, as one text."""
        return f"{self.asked} {self.answer}"

    @property
    def asked(self) -> str:
        """What the model is asked: the instruction, and below it the input."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction


@dataclass(frozen=True)
class Conversations(Batch):
    """Rows of one conversation each, padded on the right.

    Attributes:
        labels: [rows, seq], the token ids, -100 for what is not learned.
        position_ids: of each token within its conversation; 0 for padding.
    """

    position_ids: Int[Tensor, "rows seq"]
    packed: ClassVar[bool] = False

    def to(self, device: str | torch.device) -> Conversations:
        """The same on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def blocks(self, dtype: torch.dtype) -> Float[Tensor, "rows 1 seq seq"]:
        """What is added to the scores of attention: 0 within a conversation and back in time, else the dtype's lowest.

        A place of padding is a conversation of its own, and sees itself.
        """
        number = (self.position_ids == 0).cumsum(1)
        same = number[:, :, None] == number[:, None, :]
        seen = same & torch.ones_like(same[0]).tril()
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.tokens / self.attention_mask.numel()


@dataclass(frozen=True)
class Packed(Conversations):
    """Rows of several conversations, which must not see each other."""

    packed: ClassVar[bool] = True


class Instructions:
    """Instructions and their answers, as a task.

    Args:
        tokenizer: of the model that is asked; its chat template is used, or a plain one where it has none.
        parts: pairs as "train", "validation" and "test".
        seq_len: tokens a row may have; a longer question loses its beginning.
        packing: put several conversations of a batch into one row in training.
    """

    name = "instructions"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        parts: dict[str, list[Pair]],
        seq_len: int = SEQ_LEN,
        packing: bool = False,
    ):
        self.tokenizer, self.seq_len, self.packing = tokenizer, seq_len, packing
        self.train, self.validation, self.test = (parts.get(k, []) for k in ("train", "validation", "test"))

    @classmethod
    def load(cls, scale: Scale | None = None, model: str | None = None, packing: bool = False) -> Instructions:
        """The course's own pairs, with the tokenizer of a scale's model (or of `model`); the held-out ones test."""
        from labkit import models

        scale = scale or Scale.here()
        train, test = (read(FOLDER / f"{part}.jsonl") for part in ("train", "held-out"))
        parts = {"train": train, "validation": train[:VALIDATION], "test": test}
        return cls(models.tokenizer(model or scale.model), parts, packing=packing)

    def prompt(self, pair: Pair) -> str:
        """What the model reads before it answers."""
        if not self.tokenizer.chat_template:
            return QUESTION.format(pair.asked) + ANSWER
        asked = [{"role": "user", "content": pair.asked}]
        return str(self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))

    def encode(self, pair: Pair) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the answer with the token that ends it.

        Raises:
            LabError: for an answer that does not fit into `seq_len` with any of its prompt.
        """
        space = "" if self.tokenizer.chat_template else " "
        words: Any = self.tokenizer
        answer = words(space + pair.answer, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
        prompt = words(self.prompt(pair), add_special_tokens=False)["input_ids"]
        room = self.seq_len - len(answer)
        if room < 1:
            cause = f"The answer {pair.answer[:40]!r}… has {len(answer)} tokens, and a row {self.seq_len}."
            raise LabError(cause, "Shorten it, or give a larger seq_len.")
        return prompt[-room:], answer

    def batch(self, examples: Sequence[Pair]) -> Conversations:
        """Tokenize pairs into rows: packed if the task packs.

        Raises:
            LabError: when there are none.
        """
        return self._rows(examples, self.packing)

    def batches(self, examples: Sequence[Pair], size: int) -> Iterator[Conversations]:
        """Cut pairs into batches of `size`, one conversation a row, in order; the last may be smaller."""
        return (self._rows(examples[i : i + size], False) for i in range(0, len(examples), size))

    def _rows(self, examples: Sequence[Pair], packed: bool) -> Conversations:
        if not examples:
            raise LabError("A batch needs at least one example.", "Check the slice of the data that you took.")
        encoded = [self.encode(pair) for pair in examples]
        sizes = [len(prompt) + len(answer) for prompt, answer in encoded]
        rows = pack(sizes, self.seq_len) if packed else [[i] for i in range(len(encoded))]
        width = max(sum(sizes[i] for i in row) for row in rows)
        ids, places, real = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        ids.fill_(self.tokenizer.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            at = 0
            for prompt, answer in (encoded[i] for i in row):
                end, begin = at + len(prompt) + len(answer), at + len(prompt)
                ids[number, at:end] = torch.tensor(prompt + answer)
                labels[number, begin:end] = ids[number, begin:end]
                places[number, at:end] = torch.arange(end - at)
                real[number, at:end] = 1
                at = end
        return (Packed if packed else Conversations)(ids, real, labels, places)

    def _answers(self, model: torch.nn.Module, batch: Conversations) -> tuple[Tensor, Tensor]:
        """Logits in fp32 at the places before answer tokens, [rows, seq - 1, words], and the labels there."""
        given: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.packed:
            dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
            given |= {"position_ids": batch.position_ids, "attention_mask": batch.blocks(dtype)}
        else:
            given["attention_mask"] = batch.attention_mask
        return model(**given).logits[:, :-1].float(), batch.labels[:, 1:]

    def loss(self, model: torch.nn.Module, batch: Conversations) -> Float[Tensor, ""]:
        """Mean cross-entropy over the batch's answer tokens, in nats."""
        logits, labels = self._answers(model, batch)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def score(self, model: torch.nn.Module, batch: Conversations) -> tuple[float, float]:
        """Sums over conversations: the share of answer tokens that were the likeliest, and the mean loss of a token."""
        if batch.packed:
            raise LabError("A row of several conversations has no score.", "Score what `batches` gives.")
        logits, labels = self._answers(model, batch)
        asked = labels != IGNORED
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(1)
        right = ((logits.argmax(-1) == labels) & asked).sum(1)
        count = asked.sum(1)
        return float((right / count).sum()), float((losses / count).sum())

    @torch.inference_mode()
    def answer(self, model: Any, pair: Pair, max_new_tokens: int = 64) -> str:
        """What the model answers, word by likeliest word, up to its end token."""
        ids = self.tokenizer(self.prompt(pair), add_special_tokens=False, return_tensors="pt").to(model.device)
        training = model.training
        made = model.eval().generate(
            **ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
        )
        model.train(training)
        return str(self.tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Which conversations share a row of `room` tokens: the longest first, each into the first row that has room.

    First-fit decreasing needs at most 11/9 of the fewest rows, and one (Johnson 1973). The rows are then made as narrow
    as their number allows, or the last one would be mostly padding.
    """
    rows = _first_fit(sizes, room)
    narrowest = max(-(-sum(sizes) // len(rows)), max(sizes))
    return next(found for width in range(narrowest, room + 1) if len(found := _first_fit(sizes, width)) <= len(rows))


def _first_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = next((row for row, free in enumerate(left) if free >= sizes[index]), None)
        if fitting is None:
            rows.append([index])
            left.append(room - sizes[index])
        else:
            rows[fitting].append(index)
            left[fitting] -= sizes[index]
    return rows


def read(path: Path) -> list[Pair]:
    """Pairs from a file of JSON lines.

    Raises:
        LabError: where it is missing or damaged.
    """
    try:
        return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        cause = f"The instructions in {path.name} cannot be read ({error})."
        raise LabError(cause, "Restore them with: git checkout data/instructions.") from error
