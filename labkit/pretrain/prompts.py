"""What SmolLM2-135M-Instruct is asked to write, so that the tiny model learns how people praise and pan films.

A model of this size follows a beginning better than an instruction, so a request is the beginning of a page that it
carries on. Five kinds, none of which uses a label of the archive:

- `review`: a viewer's review of a film, after a rating, a title and a first clause that praise or pan;
- `lines`: critics' one-line verdicts on one film, after three of ours;
- `continue`: a sentence of the archive's training part, to be continued in the same opinion: the tiny model learns
  which words follow real praise and real blame;
- `list`: a few sentences of the training part, whatever their opinion, carried on in the same terse style;
- `product`: a customer's review, so that the text is not only about films.

Where the request has an opinion, half of the documents end with it ("It was dull."). That is how the tiny model
learns that a verdict sums up what came before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from labkit.pretrain.vocabulary import (
    ASPECTS,
    BAD,
    BAD_FIRST,
    BAD_LINES,
    BAD_TITLES,
    GENRES,
    GOOD,
    GOOD_FIRST,
    GOOD_LINES,
    GOOD_TITLES,
    PRODUCTS,
    SUBJECTS,
)  # fmt: skip

CONTINUE = (
    "Film review from the weekend newspaper\n\n{text}",
    "The film critic's verdict\n\n{text} In short,",
)
SHARES = {"review": 0.5, "lines": 0.14, "continue": 0.12, "list": 0.1, "product": 0.14}


@dataclass(frozen=True)
class Request:
    """A prompt, and what belongs to the document besides the model's answer.

    Attributes:
        kind: one of `SHARES`.
        prompt: as the model reads it.
        head: text before the answer.
        tail: text after the answer.
    """

    kind: str
    prompt: str
    head: str = ""
    tail: str = ""


def _verdict(good: bool, draw: random.Random) -> str:
    return f" It was {draw.choice(GOOD if good else BAD)}." if draw.random() < 0.5 else ""


def _review(good: bool, draw: random.Random) -> Request:
    rating = draw.randint(8, 10) if good else draw.randint(1, 3)
    title = draw.choice(GOOD_TITLES if good else BAD_TITLES).format(aspect=draw.choice(ASPECTS))
    adjective = draw.choice(GOOD if good else BAD)
    slots = {"genre": draw.choice(GENRES), "subject": draw.choice(SUBJECTS), "aspect": draw.choice(ASPECTS)}
    first = draw.choice(GOOD_FIRST if good else BAD_FIRST).format(adjective=adjective, **slots)
    what = f"a {slots['genre']} about {slots['subject']}"
    prompt = f"Viewers' reviews of {what}\n\nRating: {rating}/10\nTitle: {title}\nReview: {first}"
    return Request("review", prompt, head=f"{title}\n{first}" if draw.random() < 0.5 else first)


def _product(good: bool, draw: random.Random) -> Request:
    stars = "5.0" if good else "1.0"
    adjective, thing = draw.choice(GOOD if good else BAD), draw.choice(PRODUCTS)
    first = draw.choice(("I bought this {t} and it is {a}.", "A {a} {t}.", "This {t} is {a}, because"))
    text = first.format(t=thing, a=adjective)
    return Request("product", f"Customer reviews: {thing}\n\n{stars} out of 5 stars\n{text}", head=text)


def request(kind: str, sentences: list[str], draw: random.Random) -> Request:
    """Draw a request of one kind; `sentences` are training sentences of the archive."""
    good = draw.random() < 0.5
    if kind == "continue":
        prompt = draw.choice(CONTINUE).format(text=draw.choice(sentences))
        return Request(kind, prompt, head=prompt.split("\n\n")[1])
    if kind == "list":
        shots = "\n".join(draw.sample(sentences, 4))
        return Request(kind, f"What critics say about new films, one line each:\n\n{shots}\n")
    if kind == "lines":
        shots = "\n".join(draw.sample(GOOD_LINES if good else BAD_LINES, 4))
        how = draw.choice(("loved", "praised", "admired") if good else ("hated", "panned", "disliked"))
        return Request(kind, f"The {draw.choice(GENRES)} that all critics {how}, in one line each:\n\n{shots}\n")
    made = (_review if kind == "review" else _product)(good, draw)
    return Request(kind, made.prompt, made.head, _verdict(good, draw))


def requests(count: int, sentences: list[str], seed: int) -> list[Request]:
    """Draw `count` requests in the shares above, in random order."""
    draw = random.Random(seed)
    kinds = draw.choices(list(SHARES), weights=list(SHARES.values()), k=count)
    return [request(kind, sentences, draw) for kind in kinds]
