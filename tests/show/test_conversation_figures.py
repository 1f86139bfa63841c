"""Pictures of conversations show the batch they are given; the chat box asks one model with and without adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit import models
from labkit.adapters.attach import attach, lora_layers
from labkit.adapters.lora import LoraSpec
from labkit.errors import LabError
from labkit.instructions import Instructions, Pair
from labkit.show import conversations
from labkit.show.chat import ChatBox, both

PAIRS = [Pair("Name a colour.", "Red."), Pair("What is a river?", "Water that flows."), Pair("Is it long?", "No.")]


@pytest.fixture(scope="module")
def task():
    return Instructions(models.tokenizer("tiny"), {"train": PAIRS, "test": PAIRS}, seq_len=64, packing=True)


def test_tokens_are_marked_as_they_are_learned(task, monkeypatch):
    shown = []
    monkeypatch.setattr(conversations, "_emit", lambda page, plain: shown.append((page, plain)))
    batch = next(task.batches(PAIRS[:1], 1))
    conversations.show_tokens(task.tokenizer, batch)
    [(page, plain)] = shown
    learned = task.encode(PAIRS[0])[1]
    assert page.count("text-decoration:underline") == len(learned) and f"the {len(learned)} that are learned" in plain
    assert page.count("<span") == batch.tokens and "[' Red']" in plain and "['<|endoftext|>']" in plain


def test_places_are_coloured_by_their_role(task):
    batches = {"one a row": next(task.batches(PAIRS, 3)), "packed": task.batch(PAIRS)}
    fig = conversations.rows_figure(batches)
    for axis, batch in zip(fig.axes, batches.values(), strict=True):
        picture = np.asarray(axis.images[0].get_array())
        assert (picture == 2).sum() == (batch.labels != -100).sum()
        assert (picture == 0).sum() == (batch.attention_mask == 0).sum()
        assert len(axis.lines) == len(PAIRS)  # a stroke for each conversation's beginning
    found = conversations.rows_finding(batches)
    assert found == f"Padding: {batches['one a row'].padding:.0%} one a row, {batches['packed'].padding:.0%} packed"
    with pytest.raises(LabError, match="nothing to draw"):
        conversations.rows_figure({})


def test_the_mask_is_the_one_that_the_model_gets(task):
    batch = task.batch(PAIRS)
    fig = conversations.mask_figure(batch)
    drawn = torch.tensor(np.asarray(fig.axes[0].images[0].get_array()))
    assert torch.equal(drawn.bool(), batch.blocks(torch.float32)[0, 0] == 0)
    sizes = conversations.lengths(batch, 0)
    assert sum(sizes) == batch.attention_mask[0].sum()
    assert len(sizes) == int((batch.position_ids[0][: sum(sizes)] == 0).sum())
    allowed = sum(n * (n + 1) / 2 for n in sizes) + int((batch.attention_mask[0] == 0).sum())
    width = batch.input_ids.shape[1]
    share = f"{allowed / (width * (width + 1) / 2):.0%} of a causal mask"
    told = f"Row 0, {len(sizes)} conversations: each sees itself alone,"
    assert conversations.mask_finding(batch) == f"{told}\n{share}"


def test_the_chat_box_asks_without_and_with_the_adapter(task):
    torch.manual_seed(0)
    model = models.load("tiny")
    plain = task.answer(model, PAIRS[0], 6)
    attach(model, LoraSpec(rank=4, lora_alpha=64, targets="all-linear"))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"])
    without, with_it = both(model, task, PAIRS[0], 6)
    assert without == plain != with_it and {layer.active for _, layer in lora_layers(model)} == {"default"}
    box = ChatBox(model, task, PAIRS[:2], most=6)
    bundle = box._repr_mimebundle_()
    assert box.rows[0] == {"asked": "Name a colour.", "wanted": "Red.", "before": plain, "after": with_it}
    assert "Name a colour." in bundle["text/html"] and "before" in bundle["text/plain"]
    box.text.value = "Is a whale a fish?"
    box.button.click()
    assert "Is a whale a fish?" in box.answers.value and not box.button.disabled
    assert box.ask("  ") == [] and "question first" in box.answers.value
    with pytest.raises(LabError, match="nothing to show"):
        ChatBox(model, task, [])
