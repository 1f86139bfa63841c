"""Prefix tuning: peft's logits, gradients and generation; a start from words is those words in front."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from neighbours import KINDS, TASK, base, check_training, loss, padded, peft_twin, trained
from peft import PrefixTuningConfig
from transformers import StaticCache

from labkit.adapters.in_front import cache_name, take_from_front
from labkit.adapters.prefix import PrefixTuning, attach_prefix, fold_prefix
from labkit.errors import LabError
from labkit.memory.checkpointed import checkpointed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),  # peft's name for the cache
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]
PADDED, LENGTH = padded(), 4
MASK = PADDED["attention_mask"]
HEADS = {"llama": 2, "opt": 4}  # of keys and values


def twins(kind: str, projection: int = 0):
    """Our model and peft's, with the same prefix."""
    model = base(kind)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        prefix_projection=bool(projection),
        encoder_hidden_size=projection or None,
    )
    theirs = peft_twin(model, config)
    encoder = theirs.prompt_encoder["default"]
    prefix = attach_prefix(model, LENGTH, projection)
    with torch.no_grad():
        prefix.embedding.copy_(encoder.embedding.weight)
    if projection:
        prefix.transform.load_state_dict(encoder.transform.state_dict())
    return model, prefix, theirs, encoder


@pytest.mark.parametrize("projection", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_peft_s(kind, projection):
    model, prefix, theirs, encoder = twins(kind, projection)
    counts = [sum(p.numel() for p in trained(each).values()) for each in (model, theirs)]
    assert counts[0] == counts[1]
    for positions in (None, (MASK.cumsum(1) - 1).clamp(min=0)):
        calls = {**PADDED, "position_ids": positions, "use_cache": False}
        ours, expected = model(**calls).logits, theirs(**calls).logits
        assert torch.equal(ours, expected)
        for output in (ours, expected):
            loss(output, MASK).backward()
    assert prefix.embedding.grad.abs().max() > 0
    if not projection:
        assert torch.equal(prefix.embedding.grad, encoder.embedding.weight.grad)
    for mine, other in zip(prefix.parameters(), encoder.parameters(), strict=True):  # peft runs the MLP on every row
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)
    ids = PADDED["input_ids"]  # without a mask, and with embeddings
    assert torch.equal(model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    embedded = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_s_call_is_peft_s(kind):
    model, _, theirs, _ = twins(kind)
    batch = TASK.batch(TASK.test[:6])
    assert (batch.attention_mask == 0).any()
    assert torch.equal(TASK.class_logits(model, batch), TASK.class_logits(theirs, batch))
    assert TASK.score(model, batch) == TASK.score(theirs, batch)
    assert TASK.class_logits(model, batch).shape == (6, 2)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_peft_s_and_needs_no_cache(kind, options):
    model, _, theirs, _ = twins(kind)
    settings = {"max_new_tokens": 9, "do_sample": False, **options}
    for asked in (PADDED, {"input_ids": PADDED["input_ids"][2:]}):
        made = model.generate(**asked, **settings)
        assert torch.equal(made, theirs.generate(**asked, **settings))
        assert torch.equal(made, model.generate(**asked, **settings, use_cache=False))
        assert not torch.equal(made, take_from_front(copy.deepcopy(model)).generate(**asked, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_from_words_is_those_words_in_front(kind):
    model, words = base(kind), torch.tensor([9, 3, 17, 40])
    whole = {name: torch.cat([front.expand(3, -1), PADDED[name]], 1) for name, front in
             (("input_ids", words), ("attention_mask", torch.ones(LENGTH, dtype=torch.long)))}  # fmt: skip
    expected = model(**whole).logits[:, LENGTH:]
    attach_prefix(model.train(), LENGTH, tokens=words)
    assert model.training and all(module.training for module in model.modules())
    torch.testing.assert_close(model.eval()(**PADDED).logits, expected)

    method = PrefixTuning(length=5, start="words")
    first = base(kind)
    method.prepare(first, TASK, 3)
    prompts = TASK.batch(TASK.train[:2])
    read = prompts.input_ids[prompts.attention_mask.bool()][:5]
    wanted = attach_prefix(base(kind), 5, tokens=read).embedding
    assert torch.equal(trained(first)["in_front.embedding"], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_drops_the_mlp_and_changes_no_answer(kind):
    model = base(kind)
    prefix = attach_prefix(model, LENGTH, projection=6)
    before = model(**PADDED).logits
    assert fold_prefix(model) is prefix and list(trained(model)) == ["in_front.embedding"]
    assert torch.equal(model(**PADDED).logits, before)
    assert prefix.embedding.numel() == 2 * 3 * LENGTH * HEADS[kind] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_off_whole_and_copies_with_its_model(kind):
    model = base(kind)
    before, names = model(**PADDED).logits, list(model.state_dict())
    prefix = attach_prefix(model, LENGTH)
    with pytest.raises(LabError, match="prefix already"):
        attach_prefix(model, LENGTH)
    prefixed = model(**PADDED).logits
    assert not torch.equal(prefixed, before)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        prefix.embedding.zero_()
    assert torch.equal(twin(**PADDED).logits, prefixed) and not torch.equal(model(**PADDED).logits, prefixed)
    assert torch.equal(take_from_front(model)(**PADDED).logits, before)
    assert list(model.state_dict()) == names and torch.equal(twin(**PADDED).logits, prefixed)
    with pytest.raises(LabError, match="Nothing is in front"):
        take_from_front(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection,weights", [(0, ""), (6, ""), (0, "bfloat16")])
def test_training_holds_what_the_formula_says(kind, projection, weights):
    width = HEADS[kind] * 8
    count = 2 * 3 * 5 * width
    if projection:
        count = 5 * width + (width + 1) * projection + (projection + 1) * 2 * 3 * width
    start = "random" if projection else "words"
    check_training(PrefixTuning(length=5, projection=projection, start=start), kind, count, weights)


def test_under_autocast_the_loss_is_near_that_of_fp32():
    losses = []
    for dtype in ("float32", "bfloat16"):
        method = PrefixTuning(length=5, compute_dtype=dtype)
        method.prepare(base("llama").train(), TASK, 3)
        losses.append(method.step(TASK.batch(TASK.train[:8])).item())
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def test_what_does_not_fit_is_refused_before_anything_changes():
    model = base("opt")
    wrong = {"length": (0, -1, 64, 2.0), "projection": (-1, 6), "start": ("text",), "text": ("no tokenizer",)}
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(LabError):
                PrefixTuning(**{field: value}).adapt(model, TASK)
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "in_front")
    with pytest.raises(LabError, match="needs a decoder"):
        PrefixTuning().adapt(torch.nn.Linear(2, 2), TASK)
    lacking = base("llama")
    lacking.config = SimpleNamespace(hidden_size=32, num_hidden_layers=3, max_position_embeddings=64)
    with pytest.raises(LabError, match="num_attention_heads"):
        attach_prefix(lacking, LENGTH)


def test_what_would_lose_the_prefix_in_silence_is_refused():
    model = base("llama").train()
    attach_prefix(model, LENGTH)
    with pytest.raises(LabError), checkpointed(model, 2):
        model(**PADDED, use_cache=False)
    with pytest.raises(LabError, match="StaticCache"):
        cache = {cache_name(model.get_decoder()): StaticCache(config=model.config, max_cache_len=32)}
        model(**PADDED, **cache)
    model.gradient_checkpointing_enable()
    with pytest.raises(LabError, match="gradient checkpointing"):
        model(**PADDED, use_cache=False)
