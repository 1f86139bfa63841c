"""Sentences, their split, and the tiny model that must never have seen the evaluation part."""

import json

import pytest
import torch

from labkit import assets, models, paths
from labkit.errors import LabError
from labkit.pretrain.corpus import Contained, collect, tidy
from labkit.pretrain.prompts import Request, requests
from labkit.scale import SCALES
from labkit.sentences import Rated, clean, key, read_archive, read_shipped, split, words
from labkit.tasks import Example, Sentiment

SHIPPED = paths.DATA / "sentiment"


@pytest.fixture(scope="module")
def parts():
    return read_shipped(SHIPPED)


@pytest.fixture(scope="module")
def archive():
    try:
        return read_archive(assets.get("vader-archive"))
    except LabError as error:
        pytest.skip(f"the archive cannot be had here: {error}")


def test_shipped_parts_are_disjoint_balanced_and_sized(parts):
    assert {k: len(v) for k, v in parts.items()} == {"train": 1000, "validation": 500, "test": 1500}
    keys = [key(r.text) for part in parts.values() for r in part]
    assert len(set(keys)) == len(keys)
    for part in parts.values():
        assert sum(r.rating > 0 for r in part) * 2 == len(part)
        assert all(abs(r.rating) > 1 for r in part)


def test_shipped_parts_are_the_archive_s(parts, archive):
    again = split(archive)
    for name, part in parts.items():
        assert [r.text for r in part] == [r.text for r in again[name]][: len(part)]


def test_clean_undoes_entities_and_doubled_quotes():
    assert clean(" ''Sweet &amp; sour''  film ") == '"Sweet & sour" film'
    assert words("It's a JOY.") == ["it", "s", "a", "joy"] and key("A joy!") == key("a  Joy")


def test_contained_finds_sentences_whatever_their_case_and_place():
    banned = Contained(["A dull, lifeless film.", "A joy."])
    assert banned("He said: a dull lifeless FILM it was")
    assert banned("Well made. A joy! Go.") and not banned("It is a joy to watch.")
    assert not banned("a dull but lively film")


def test_no_evaluation_sentence_reaches_the_corpus(archive):
    """Planted in every way, an evaluation sentence stays out: as archive text, as an answer, inside one."""
    parts = split(archive)
    planted = [r.text for name in ("test", "validation") for r in parts[name]][::40]
    request = Request("review", "prompt")
    written = [(request, f"I read this today. {text}\nAnd I agree with all of it.") for text in planted]
    corpus = collect([*written, (request, "I laughed a lot and I would go and see it again.")], archive, repeat=1)
    banned = Contained(r.text for name in ("test", "validation") for r in parts[name])
    everything = corpus.documents + corpus.held_out["archive"] + corpus.held_out["written"]
    assert not any(banned(text) for text in everything)
    assert corpus.kinds["written: review"] == 1
    assert corpus.left_out["archive: evaluation"] >= 2000 and corpus.left_out["written: evaluation"] == len(planted)
    assert not set(corpus.held_out["archive"]) & set(corpus.documents)


def test_requests_use_training_sentences_only_and_the_answer_s_own_page(parts):
    ours = [f"A training sentence of ours, number {n}." for n in range(9)]
    asked = requests(300, ours, seed=1)
    assert {r.kind for r in asked} == {"review", "lines", "continue", "list", "product"}
    assert asked == requests(300, ours, seed=1)
    test_texts = {r.text for r in parts["test"]}
    assert not any(text in r.prompt for r in asked for text in test_texts)
    answer = " is good and it moves along quickly. It en\nRating: 2/10\nTitle: no"
    assert tidy(Request("review", "", "the film", " It was fine."), answer) == (
        "The film is good and it moves along quickly. It was fine."
    )
    assert tidy(Request("review", ""), "Too short.") is None


def test_the_training_record_says_what_the_model_read():
    facts = json.loads((models.TINY / "training.json").read_text(encoding="utf-8"))
    assert facts["left_out"]["archive: evaluation"] >= 2000
    first, last = facts["curve"][0], facts["curve"][-1]
    assert last["held_out_archive"] < 0.75 * first["held_out_archive"] and facts["tokens"] > 10_000_000
    assert last["held_out_archive"] < 1.1 * min(point["held_out_archive"] for point in facts["curve"])


def test_batches_pad_on_the_left_and_keep_the_end_of_long_texts():
    task = Sentiment.load(SCALES["tiny"])
    batch = task.batch([Example("Dull.", 0), Example("word " * 200, 1)])
    assert batch.input_ids.shape == (2, 64) and batch.attention_mask[:, -1].tolist() == [1, 1]
    assert task.tokenizer.decode(batch.input_ids[1]).endswith(" It was")
    assert batch.tokens == batch.attention_mask.sum()
    with pytest.raises(LabError, match="at least one"):
        task.batch([])


def test_padding_changes_no_score():
    task, model = Sentiment.load(SCALES["tiny"]), models.load("tiny")
    examples = [Example("Dull.", 0), Example("A long and winding sentence about a film that I liked.", 1)]
    with torch.no_grad():
        together = task.class_logits(model, task.batch(examples))
        alone = torch.cat([task.class_logits(model, task.batch([e])) for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_rated_sentences_are_read_from_a_mirror_too(archive):
    assert len(archive) > 23_000 and {r.source for r in archive} == {"film", "product", "news", "tweet"}
    assert all(isinstance(r, Rated) and -4 <= r.rating <= 4 for r in archive)
