"""The tiny model's training text: written by SmolLM2, cleaned, freed of repeats and of every evaluation sentence."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from typing import TypeVar

from labkit.pretrain.prompts import Request, requests
from labkit.sentences import Rated, key, split, words

T = TypeVar("T")
# A page that the model carries on goes over into the next review; ours ends there.
NEXT_PAGE = re.compile(r"\n\s*(?:\w+ ?:|\d(?:\.\d)? out of|[-*#=_]{3})|<\|im_|```|https?:|www\.")
SENTENCE_END = re.compile(r"[.!?][\"')\u201d\u2019]*(?=\s|$)")
HELD_OUT = {"archive": 0.02, "written": 0.005}  # shares set aside to measure the loss on unseen text
SHORT = 4  # an evaluation sentence of fewer words counts as contained only where it is a whole sentence


@dataclass
class Corpus:
    """Documents, unseen ones by kind ("archive", "written"), how many of each sort, how many left out and why."""

    documents: list[str] = field(default_factory=list)
    held_out: dict[str, list[str]] = field(default_factory=lambda: {"archive": [], "written": []})
    kinds: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)


def tidy(request: Request, answer: str) -> str | None:
    """Make a document of an answer: its own page only, whole sentences only; None when too little is left."""
    end = NEXT_PAGE.search(answer)
    answer = answer[: end.start()] if end else answer
    ends = [m.end() for m in SENTENCE_END.finditer(answer)]
    answer = answer[: ends[-1]] if ends else ""
    if len(answer.split()) < 6 or (not answer.isprintable() and not answer.replace("\n", " ").isprintable()):
        return None
    glue = "" if not request.head or answer[:1] in " \n,.'!?;:" else " "
    text = request.head + glue + answer.rstrip() + request.tail
    text = re.sub(r"[ \t]+", " ", re.sub(r"\n{2,}", "\n", text)).strip()
    return text[0].upper() + text[1:]


class Contained:
    """Finds evaluation sentences inside other text, whatever the case and punctuation.

    A sentence of at least `SHORT` words is found anywhere as a run of words; a shorter one ("A joy.") only as a
    sentence of its own, since as a run of words it is ordinary English.
    """

    def __init__(self, sentences: Iterable[str]):
        self.runs: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        self.short: set[str] = set()
        for sentence in sentences:
            run = tuple(words(sentence))
            if len(run) < SHORT:
                self.short.add(key(sentence))
            else:
                self.runs.setdefault(run[:SHORT], []).append(run)

    def __call__(self, text: str) -> bool:
        found = words(text)
        for start in range(len(found) - SHORT + 1):
            for run in self.runs.get(tuple(found[start : start + SHORT]), ()):
                if tuple(found[start : start + len(run)]) == run:
                    return True
        return any(key(part) in self.short for part in re.split(r"[.!?\n]+", text) if part.strip())


def write(
    model, tokenizer, sentences: list[str], seconds: float, batch: int, seed: int
) -> Iterator[list[tuple[Request, str]]]:
    """Let SmolLM2 answer requests, `batch` at a time, until `seconds` have passed."""
    from labkit.pretrain.sampler import Sampler, Sampling

    prompt_len, new_tokens = 96, 80
    sampler = Sampler(model, batch, prompt_len, new_tokens, Sampling(temperature=0.95, min_p=0.08, repeat_cost=0.35))
    started, group = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        wanted = requests(batch, sentences, seed + group)
        group += 1
        ids = tokenizer([r.prompt for r in wanted], add_special_tokens=False)["input_ids"]
        rows = sampler([i[-prompt_len:] for i in ids], pad=tokenizer.eos_token_id).tolist()
        end = tokenizer.eos_token_id
        ends = (row.index(end) if end in row else len(row) for row in rows)
        answers = tokenizer.batch_decode([row[:last] for row, last in zip(rows, ends, strict=True)])
        yield list(zip(wanted, answers, strict=True))


def ahead(items: Iterator[T], room: int = 4) -> Iterator[T]:
    """Run an iterator in a thread of its own, `room` items ahead, so that the GPU writes while the CPU cleans."""
    queue: Queue = Queue(room)
    done = object()

    def produce() -> None:
        try:
            for item in items:
                queue.put(item)
            queue.put(done)
        except BaseException as error:
            queue.put(error)

    Thread(target=produce, daemon=True).start()
    while (item := queue.get()) is not done:
        if isinstance(item, BaseException):
            raise item
        yield item


def _aside(text: str, kind: str) -> bool:
    return int(key(text)[:8], 16) < HELD_OUT[kind] * 2**32


def collect(written: Iterable[tuple[Request, str]], rated: list[Rated], repeat: int = 2) -> Corpus:
    """Make the corpus: the archive's sentences `repeat` times, and what was written; no evaluation sentence.

    Args:
        written: requests and the model's answers.
        rated: the whole archive; its test and validation sentences are kept out.
        repeat: how often each archive sentence stands in the corpus, since real text is rare in it.
    """
    parts = split(rated)
    evaluation = [r.text for name in ("test", "validation") for r in parts[name]]
    banned = Contained(evaluation)
    corpus, seen = Corpus(), set()
    for sentence in rated:
        if banned(sentence.text):
            corpus.left_out["archive: evaluation"] += 1
        elif _aside(sentence.text, "archive"):
            corpus.held_out["archive"].append(sentence.text)
        else:
            corpus.documents += [sentence.text] * repeat
            corpus.kinds[f"archive: {sentence.source}"] += 1
    banned = Contained([*evaluation, *corpus.held_out["archive"]])
    for request, answer in written:
        text = tidy(request, answer)
        if text is None or key(text) in seen:
            corpus.left_out["too short" if text is None else "repeated"] += 1
        elif banned(text):
            corpus.left_out["written: evaluation"] += 1
        else:
            seen.add(key(text))
            (corpus.held_out["written"] if _aside(text, "written") else corpus.documents).append(text)
            corpus.kinds[f"written: {request.kind}"] += 1
    return corpus
