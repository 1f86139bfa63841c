"""Rated sentences: films, products, newspaper opinions and tweets, each with people's mean rating in -4…4.

Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM 2014; the files in vaderSentiment's source package (MIT). The film sentences are the nearest relative of
SST-2, since both come from the same review snippets.

The split is fixed: a sentence's place follows from the SHA-256 of its words, so it does not depend on file order,
on Python's version or on a seed. Two sentences with the same words are one sentence.
"""

from __future__ import annotations

import hashlib
import html
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

FILES = {
    "film": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}
TEST, VALIDATION = 1500, 500


@dataclass(frozen=True)
class Rated:
    """One sentence with its mean rating (-4 very negative … 4 very positive) and where it is from."""

    text: str
    rating: float
    source: str


def words(text: str) -> list[str]:
    """The words that decide whether two sentences are the same: lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def key(text: str) -> str:
    """SHA-256 of a sentence's words, in hex."""
    return hashlib.sha256(" ".join(words(text)).encode()).hexdigest()


def clean(text: str) -> str:
    """Undo HTML entities and the archive's doubled quotes; fold white space."""
    return re.sub(r"\s+", " ", html.unescape(text).replace("''", '"')).strip()


def read_archive(archive: Path) -> list[Rated]:
    """Read all four files of the archive, without repeated sentences, in file order."""
    seen: set[str] = set()
    rated: list[Rated] = []
    with tarfile.open(archive) as tar:
        for source, name in FILES.items():
            member = tar.extractfile(f"hutto_ICWSM_2014/{name}")
            assert member is not None
            for line in member.read().decode("utf-8", errors="replace").splitlines():
                columns = line.split("\t")
                if len(columns) != 3 or not words(columns[2]) or key(columns[2]) in seen:
                    continue
                seen.add(key(columns[2]))
                rated.append(Rated(clean(columns[2]), float(columns[1]), source))
    return rated


def labelled(rated: list[Rated], source: str = "film") -> list[Rated]:
    """The sentences that people agree on: rated beyond ±1, ordered by their words' hash."""
    return sorted((r for r in rated if r.source == source and abs(r.rating) > 1), key=lambda r: key(r.text))


def split(rated: list[Rated]) -> dict[str, list[Rated]]:
    """Split the film sentences into test (1,500), validation (500), classes equal in both, and train (the rest).

    The classes take turns, so that any even-length beginning of a part is balanced, for as long as both last.
    """
    sides = [[r for r in labelled(rated) if (r.rating > 0) == positive] for positive in (False, True)]
    parts: dict[str, list[Rated]] = {}
    bounds: dict[str, tuple[int, int | None]] = {
        "test": (0, TEST // 2),
        "validation": (TEST // 2, (TEST + VALIDATION) // 2),
    }
    bounds["train"] = ((TEST + VALIDATION) // 2, None)
    for name, (first, last) in bounds.items():
        negative, positive = (side[first:last] for side in sides)
        paired = min(len(negative), len(positive))
        parts[name] = [r for pair in zip(negative, positive, strict=False) for r in pair]
        parts[name] += negative[paired:] + positive[paired:]
    return parts


def write_shipped(rated: list[Rated], folder: Path, train: int = 1000) -> None:
    """Write the part of the split that the repository carries: test, validation, `train` training sentences."""
    parts = split(rated)
    parts["train"] = parts["train"][:train]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = [f"{r.rating:.4f}\t{r.text}\n" for r in part]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")


def read_shipped(folder: Path) -> dict[str, list[Rated]]:
    """Read what `write_shipped` wrote: a rating, a tab, a sentence on each line."""
    parts: dict[str, list[Rated]] = {}
    for name in ("train", "validation", "test"):
        lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        columns = (line.split("\t") for line in lines)
        parts[name] = [Rated(text, float(rating), "film") for rating, text in columns]
    return parts
