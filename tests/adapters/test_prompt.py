"""Prompt tuning: peft's logits, gradients and generation; a start from words is those words in front."""

from __future__ import annotations

import copy

import pytest
import torch
from neighbours import KINDS, TASK, base, check_training, loss, padded, peft_twin, trained
from peft import PromptTuningConfig

from labkit.adapters.in_front import take_from_front
from labkit.adapters.prefix import fold_prefix
from labkit.adapters.prompt import PromptTuning, attach_prompt
from labkit.errors import LabError
from labkit.memory.checkpointed import checkpointed
from labkit.scale import Scale
from labkit.tasks import Sentiment

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),  # peft's name for the cache
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]
PADDED, LENGTH = padded(), 4
MASK = PADDED["attention_mask"]


def twins(kind: str):
    """Our model and peft's, with the same prompt."""
    model = base(kind)
    theirs = peft_twin(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH))
    encoder = theirs.prompt_encoder["default"]
    prompt = attach_prompt(model, LENGTH)
    with torch.no_grad():
        prompt.embedding.copy_(encoder.embedding.weight)
    return model, prompt, theirs, encoder


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_peft_s(kind):
    model, prompt, theirs, encoder = twins(kind)
    ours, expected = (each(**PADDED, use_cache=False).logits for each in (model, theirs))
    assert ours.shape[1] == 7 and torch.equal(ours, expected[:, LENGTH:])
    for output in (ours, expected[:, LENGTH:]):
        loss(output, MASK).backward()
    assert prompt.embedding.grad.abs().max() > 0
    assert torch.equal(prompt.embedding.grad, encoder.embedding.weight.grad)
    counts = [sum(p.numel() for p in trained(each).values()) for each in (model, theirs)]
    assert counts == [LENGTH * 32] * 2
    ids = PADDED["input_ids"]
    assert torch.equal(model(input_ids=ids).logits, theirs(input_ids=ids).logits[:, LENGTH:])
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_meet_the_logits_of_their_own_tokens(kind):
    model, _, theirs, _ = twins(kind)
    labels = PADDED["input_ids"].masked_fill(MASK == 0, -100)
    labels[:, 0] = -100  # peft has the prompt's last position predict the first token, which no other model does
    ours, expected = (each(**PADDED, labels=labels, use_cache=False).loss for each in (model, theirs))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_s_call_is_peft_s(kind):
    model, _, theirs, _ = twins(kind)
    batch = TASK.batch(TASK.test[:6])
    assert (batch.attention_mask == 0).any()
    assert torch.equal(TASK.class_logits(model, batch), TASK.class_logits(theirs, batch))
    assert TASK.score(model, batch) == TASK.score(theirs, batch)


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
    attach_prompt(model, LENGTH, words)
    assert torch.equal(model(**PADDED).logits, expected)


def test_starts_are_rows_of_the_vocabulary_a_text_s_or_none():
    task = Sentiment.load(Scale.here(name="tiny"))
    config = copy.deepcopy(base("llama").config)
    config.vocab_size = len(task.tokenizer)
    with torch.random.fork_rng():
        model = type(base("llama"))(config)
    rows = model.get_input_embeddings().weight.detach()
    ids = task.tokenizer(" terrible great", add_special_tokens=False)["input_ids"]
    found = {}
    for start, text in (("words", " terrible great"), ("words", ""), ("vocabulary", ""), ("random", "")):
        PromptTuning(length=5, start=start, text=text).adapt(model, task)
        found[start, bool(text)] = trained(model)["in_front.embedding"].detach()
        take_from_front(model)
    assert torch.equal(found["words", True], rows[(ids * 5)[:5]])
    batch = task.batch(task.train[:1])
    assert torch.equal(found["words", False], rows[batch.input_ids[batch.attention_mask.bool()][:5]])
    for own in found["vocabulary", False]:
        assert (rows == own).all(1).any()
    assert not any((rows == own).all(1).any() for own in found["random", False])
    with pytest.raises(LabError, match="no words"):
        PromptTuning(text="").adapt(model, _empty(task))


def _empty(task: Sentiment) -> Sentiment:
    task.train = []
    return task


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_off_whole_and_works_in_checkpointed_layers(kind):
    model = base(kind)
    before, names = model(**PADDED).logits, list(model.state_dict())
    prompt = attach_prompt(model, LENGTH)
    with pytest.raises(LabError, match="prompt already"):
        attach_prompt(model, LENGTH)
    with pytest.raises(LabError, match="no prefix"):
        fold_prefix(model)
    gradients = []
    for segments in (0, 2):
        prompt.embedding.grad = None
        if segments:
            with checkpointed(model, segments):
                output = model(**PADDED, use_cache=False).logits
        else:
            output = model(**PADDED, use_cache=False).logits
        loss(output, MASK).backward()
        gradients.append(prompt.embedding.grad)
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)
    assert torch.equal(take_from_front(model)(**PADDED).logits, before) and list(model.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["", "bfloat16"])
def test_training_holds_what_the_formula_says(kind, weights):
    check_training(PromptTuning(length=5, learning_rate=1e-2), kind, 5 * 32, weights)


def test_what_does_not_fit_is_refused_before_anything_changes():
    model = base("opt")
    for wrong in ({"length": 0}, {"length": -1}, {"length": 64}, {"start": "text"}, {"text": "no tokenizer"}):
        with pytest.raises(LabError):
            PromptTuning(**wrong).adapt(model, TASK)
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "in_front")
    with pytest.raises(LabError, match="needs a decoder"):
        PromptTuning().adapt(torch.nn.Linear(2, 2), TASK)
