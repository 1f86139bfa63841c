"""Instructions as a task: what is learned, how rows are packed and that they see nothing of each other."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from labkit import models
from labkit.errors import LabError
from labkit.instructions import FOLDER, IGNORED, Instructions, Pair, pack, read
from labkit.methods import FullFineTuning
from labkit.training import evaluate, train

PAIRS = [
    Pair("Name a colour.", "Red."),
    Pair("Say whether the film is liked.", "It is liked.", "A great film."),
    Pair("Count to five, please.", "One, two, three, four, five."),
    Pair("What is a river?", "Water that flows to the sea."),
    Pair("Is it long?", "No."),
]
SIZES = {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256, "dropout": 0.0, "init_std": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, initializer_range=0.2),
    "opt": OPTConfig(**SIZES, **OPT),
}


@pytest.fixture(scope="module")
def tokenizer():
    return models.tokenizer("tiny")


def task(tokenizer, **options) -> Instructions:
    parts = {"train": PAIRS, "validation": PAIRS[:1], "test": PAIRS}
    return Instructions(tokenizer, parts, **{"seq_len": 64, **options})


def model(kind: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention).train()


def test_only_the_answer_and_its_end_are_learned(tokenizer):
    made = task(tokenizer).batch(PAIRS)
    for row, pair in enumerate(PAIRS):
        learned = made.labels[row] != IGNORED
        ids = made.input_ids[row]
        assert tokenizer.decode(ids[learned]) == f" {pair.answer}{tokenizer.eos_token}"
        before = tokenizer.decode(ids[(~learned) & made.attention_mask[row].bool()])
        assert pair.asked in before and before.endswith("Answer:") and pair.answer not in before
    assert made.tokens == int((made.input_ids != tokenizer.pad_token_id).sum()) + len(PAIRS)  # the end is the padding


def test_a_chat_template_is_used_where_there_is_one(tokenizer):
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made = task(chatty).batch(PAIRS[:1])
    assert chatty.decode(made.input_ids[0]) == f"<user>Name a colour.<assistant>Red.{chatty.eos_token}"


def test_a_long_question_loses_its_beginning_and_a_long_answer_is_refused(tokenizer):
    short = task(tokenizer, seq_len=12)
    prompt, answer = short.encode(Pair("word " * 40 + "What comes last?", "This."))
    assert len(prompt) + len(answer) == 12
    assert tokenizer.decode(prompt).endswith("last?\nAnswer:") and tokenizer.decode(answer).startswith(" This.")
    with pytest.raises(LabError, match=r"has 4\d tokens, and a row 12"):
        short.encode(Pair("Talk.", "word " * 40))
    with pytest.raises(LabError, match="at least one"):
        short.batch([])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_conversations_compute_what_they_compute_alone(tokenizer, kind, attention):
    apart, together = task(tokenizer), task(tokenizer, packing=True)
    network = model(kind, attention)
    packed = together.batch(PAIRS)
    assert packed.packed and len(packed.input_ids) < len(PAIRS) and packed.tokens == apart.batch(PAIRS).tokens
    logits, labels = together._answers(network, packed)
    found = {tuple(labels[r][labels[r] != IGNORED].tolist()): r for r in range(len(labels))}
    assert found
    for pair in PAIRS:
        alone, wanted = apart._answers(network, apart.batch([pair]))
        wanted = wanted[wanted != IGNORED]
        expected = alone[0, -len(wanted) :]
        row, at = _place(labels, wanted)
        assert torch.allclose(logits[row, at], expected, atol=1e-4), pair


def _place(labels, wanted):
    """Where the answer stands: the row, and its places."""
    for row in range(len(labels)):
        places = (labels[row] != IGNORED).nonzero().flatten()
        values = labels[row][places].tolist()
        for start in range(len(values) - len(wanted) + 1):
            if values[start : start + len(wanted)] == wanted.tolist():
                return row, places[start : start + len(wanted)]
    raise AssertionError("the answer is not there")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_packed_batch_has_the_loss_and_gradients_of_the_unpacked_one(tokenizer, kind):
    gradients, losses = [], []
    for packing in (False, True):
        network, own = model(kind), task(tokenizer, packing=packing)
        loss = own.loss(network, own.batch(PAIRS))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("mistake", ["positions run on", "a mask of padding", "no order"])
def test_without_the_blocks_the_check_above_would_fail(tokenizer, mistake):
    own, network = task(tokenizer, packing=True), model("llama")
    batch = own.batch(PAIRS)
    right = own.loss(network, batch)
    places, mask = batch.position_ids, batch.blocks(torch.float32)
    if mistake == "positions run on":
        places, mask = torch.arange(places.shape[1]).expand_as(places), None
    elif mistake == "a mask of padding":
        mask = batch.attention_mask
    else:
        mask = torch.maximum(mask, mask.transpose(2, 3))
    given = {"position_ids": places, "attention_mask": mask}
    wrong = network(input_ids=batch.input_ids, use_cache=False, **given).logits
    loss = F.cross_entropy(wrong[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert abs(loss - right) > 1e-3


def test_rows_in_16_bits_are_packed_too(tokenizer):
    network = model("llama").to(torch.bfloat16)
    losses = [own.loss(network, own.batch(PAIRS)) for own in (task(tokenizer), task(tokenizer, packing=True))]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        own = task(tokenizer, packing=True)
        assert own.loss(model("llama"), own.batch(PAIRS)).isfinite()


def test_packing_fills_rows_and_loses_nothing():
    draw = random.Random(0)
    for _ in range(20):
        sizes = [draw.randint(1, 50) for _ in range(40)]
        rows = pack(sizes, 64)
        assert sorted(i for row in rows for i in row) == list(range(40))
        assert all(sum(sizes[i] for i in row) <= 64 for row in rows)
        assert len(rows) <= math.ceil(11 / 9 * math.ceil(sum(sizes) / 64)) + 1
        assert rows == pack(sizes, 64)
    assert [sum(row) for row in ([(6, 5, 4, 3)[i] for i in row] for row in pack([6, 5, 4, 3], 17))] == [9, 9]


def test_scores_are_means_over_conversations(tokenizer):
    own, network = task(tokenizer), model("llama").eval()
    found = evaluate(network, own, batch_size=2)
    single = [own.score(network, own.batch([pair])) for pair in PAIRS]
    assert found["accuracy"] == pytest.approx(sum(right for right, _ in single) / len(PAIRS))
    assert found["loss"] == pytest.approx(sum(loss for _, loss in single) / len(PAIRS), rel=1e-5)
    with pytest.raises(LabError, match="no score"):
        own.score(network, task(tokenizer, packing=True).batch(PAIRS))


def test_it_trains_in_the_one_loop_and_answers_what_it_has_learned(tokenizer):
    network, own = models.load("tiny"), task(tokenizer, packing=True)
    own.test = PAIRS[:2]
    run = train(network, own, FullFineTuning(learning_rate=2e-3), steps=25, batch_size=5, progress=False)
    assert run.losses[-1] < 0.2 * run.losses[0] and run.tokens > 0
    assert own.answer(network, PAIRS[0]) == "Red."
    assert run.evaluations[-1]["accuracy"] > 0.9


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _threes(pair: Pair) -> set[tuple[str, ...]]:
    words = _words(pair.asked)
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_the_courses_pairs_are_many_varied_and_held_apart():
    """No instruction is a near copy of another, in the same part or in the other one."""
    kept, held = read(FOLDER / "train.jsonl"), read(FOLDER / "held-out.jsonl")
    assert len(kept) >= 600 and len(held) >= 100
    kinds = {pair.kind for pair in kept}
    assert len(kinds) >= 20 and kinds == {pair.kind for pair in held}
    pairs = [*kept, *held]
    threes = [_threes(pair) for pair in pairs]
    for one, two in combinations(range(len(pairs)), 2):
        shared = len(threes[one] & threes[two])
        assert 2 * shared < len(threes[one] | threes[two]), (pairs[one].asked, pairs[two].asked)
    assert Counter(pair.answer for pair in pairs if len(pair.answer.split()) > 3).most_common(1)[0][1] <= 2
    for pair in pairs:
        assert pair.text.isascii() and 1 <= len(pair.answer.split()) <= 60 and pair.kind


def test_the_courses_pairs_fit_and_packing_saves_most_of_the_padding(tokenizer):
    own = Instructions.load(model="tiny")
    assert all(len(own.encode(pair)[0]) + len(own.encode(pair)[1]) <= own.seq_len for pair in own.train + own.test)
    apart, packed = own._rows(own.train[:64], False), own._rows(own.train[:64], True)
    assert packed.tokens == apart.tokens and packed.padding < 0.1 < apart.padding
    assert not {p.asked for p in own.train} & {p.asked for p in own.test}


@pytest.mark.parametrize("packing", [False, True])
def test_micro_batches_and_ranks_share_it_as_any_other_batch(tokenizer, packing):
    from labkit.memory.accumulation import Accumulated, counted, micro_batches
    from labkit.parallel.data import shard_batch

    own = task(tokenizer, packing=packing)
    batch = own.batch(PAIRS)
    parts = list(micro_batches(batch, 1))
    assert {type(part) for part in parts} == {type(batch)} and sum(counted(p.labels) for p in parts) == counted(
        batch.labels
    )
    network = model("llama").eval()
    whole = own.loss(network, batch)
    shares = [shard_batch(batch, rank, 2) for rank in (0, 1)]
    mean = sum(own.loss(network, s.batch).item() * s.weight for s in shares) / 2
    assert mean == pytest.approx(whole.item(), rel=1e-5)
    options = {"steps": 3, "batch_size": 5, "progress": False}
    losses = [
        train(model("llama"), own, method, **options).losses
        for method in (FullFineTuning(), Accumulated(micro_batch_size=1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_damaged_file_is_told(tmp_path):
    with pytest.raises(LabError, match=r"missing.jsonl cannot be read.*git checkout"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "answr": "b"}\n')
    with pytest.raises(LabError, match=r"bad.jsonl cannot be read"):
        read(tmp_path / "bad.jsonl")
