"""What quantizing does to a model: perplexity and divergence against a loop over tokens, recipes, bits counted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from labkit import models
from labkit.errors import LabError, UnknownNameError
from labkit.ledger import storage_bytes
from labkit.numerics.quantize import Linear4bit
from labkit.numerics.quantize.evaluate import (
    RECIPES,
    Reading,
    bits_per_parameter,
    quantized,
    read_text,
    weight_bytes,
)
from labkit.numerics.quantize.int8 import Linear8bit
from labkit.scale import SCALES
from labkit.tasks import Example, Sentiment


@pytest.fixture(scope="module")
def task() -> Sentiment:
    task = Sentiment.load(SCALES["tiny"])
    task.test = [Example(text, 0) for text in ("Dull.", "A film that nobody needs, and long.", "Great!",
                                               "I laughed, I cried, I left.", "It is what it is")]  # fmt: skip
    return task


def micro(seed: int = 0, vocabulary: int = 8192) -> torch.nn.Module:
    """A Llama of one layer and 32 columns, with the tiny model's vocabulary and weights large enough to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                            num_attention_heads=2, max_position_embeddings=128, initializer_range=0.4)  # fmt: skip
        return LlamaForCausalLM(shape).eval()


@torch.no_grad()
def by_hand(model, task, reference=None) -> tuple[float, float, int]:
    """Loss, divergence and tokens, one sentence and one token at a time, in float64, without padding or batches."""
    loss, divergence, tokens = 0.0, 0.0, 0
    for example in task.test:
        ids = task.tokenizer(example.text, truncation=True, max_length=task.seq_len, return_tensors="pt")["input_ids"]
        for place in range(1, ids.shape[1]):
            q = model(ids[:, :place]).logits[0, -1].double().softmax(-1)
            loss -= float(q[ids[0, place]].log())
            tokens += 1
            if reference is not None:
                p = reference(ids[:, :place]).logits[0, -1].double().softmax(-1)
                divergence += float((p * (p / q).log()).sum())
    return loss / tokens, divergence / tokens, tokens


def test_loss_perplexity_and_divergence_equal_a_loop_over_tokens(task):
    before, after = micro(0), micro(1)
    loss, divergence, tokens = by_hand(after, task, before)
    assert divergence > 0.1, "the two models must differ for this to mean anything"
    found = read_text(after, task, reference=before)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(loss, rel=1e-5) and found.divergence == pytest.approx(divergence, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    backwards = read_text(before, task, reference=after).divergence
    assert backwards != pytest.approx(divergence, rel=1e-2), "the direction of a divergence matters"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_padding_and_the_batches_do_not_matter(task, batch_size):
    model, other = micro(0), micro(2)
    whole = read_text(model, task, batch_size=3, reference=other)
    found = read_text(model, task, batch_size=batch_size, reference=other)
    assert found.tokens == whole.tokens
    assert (found.loss, found.divergence) == pytest.approx((whole.loss, whole.divergence), rel=1e-5)


def test_long_sentences_are_cut_to_the_tasks_length(task):
    short = SimpleNamespace(tokenizer=task.tokenizer, seq_len=6, test=task.test)
    assert read_text(micro(), short).tokens == by_hand(micro(), short)[2] < read_text(micro(), task).tokens


def test_a_model_does_not_diverge_from_itself_and_without_a_reference_nothing_is_said(task):
    model = micro()
    assert read_text(model, task, reference=model).divergence == 0
    assert read_text(model, task).divergence is None
    model.train()
    read_text(model, task)
    assert not model.training, "dropout must be off while a model is read"


def test_a_text_without_a_second_token_is_refused(task):
    with pytest.raises(LabError, match="no token to predict"):
        read_text(micro(), task, [])


def test_a_loss_beyond_floats_is_an_infinite_perplexity():
    assert Reading(800.0, None, 1).perplexity == math.inf
    assert Reading(2.0, None, 1).perplexity == pytest.approx(math.e**2)


def test_every_recipe_replaces_the_layers_of_a_copy_and_nothing_else():
    model = micro()
    kept = {name: p.clone() for name, p in model.named_parameters()}
    for recipe in RECIPES:
        smaller = quantized(model, recipe)
        kinds = {type(m) for n, m in smaller.named_modules() if n.endswith("_proj")}
        assert kinds == {Linear8bit if "int8" in recipe else Linear4bit}, recipe
        assert type(smaller.lm_head) is torch.nn.Linear
        assert torch.equal(smaller.model.embed_tokens.weight, kept["model.embed_tokens.weight"])
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())


def test_recipes_are_what_their_names_say():
    model = micro()
    layer = {recipe: quantized(model, recipe).model.layers[0].mlp.up_proj for recipe in RECIPES}
    assert {r: (m.per, m.threshold) for r, m in layer.items() if "int8" in r} == {
        "int8-tensor": ("tensor", None), "int8-row": ("row", None), "llm.int8": ("row", 6.0),
    }  # fmt: skip
    books = {r: (m.weight.book.name, m.weight.offset is not None) for r, m in layer.items() if "int8" not in r}
    assert books == {
        "int4": ("int4", False), "fp4": ("fp4", False), "nf4": ("nf4", False), "nf4+dq": ("nf4", True),
    }  # fmt: skip
    assert {m.weight.block_size for r, m in layer.items() if "int8" not in r} == {64}


def test_an_unknown_recipe_is_named():
    with pytest.raises(UnknownNameError, match="'nf4'"):
        quantized(micro(), "nf")


@pytest.mark.parametrize("recipe", ["int8-row", "int4", "nf4", "nf4+dq"])
def test_bits_a_parameter_are_those_of_all_layers_together(recipe):
    """Rows have 32 columns, in the last matrix 48: the mean over layers would be another number."""
    shapes = [p.shape for name, p in micro().named_parameters() if "_proj" in name]
    count = sum(shape.numel() for shape in shapes)
    model = quantized(micro(), recipe)
    held = sum(storage_bytes(m.buffers()) for name, m in model.named_modules() if name.endswith("_proj"))
    assert bits_per_parameter(model) == pytest.approx(8 * held / count)
    by_formula = {"int8-row": 8 + 32 * sum(shape[0] for shape in shapes) / count, "int4": 4.5, "nf4": 4.5}
    assert bits_per_parameter(model) == pytest.approx(by_formula.get(recipe, 8 * held / count))


def test_a_model_without_quantized_layers_has_no_bits():
    with pytest.raises(LabError, match="No linear layer"):
        bits_per_parameter(micro())


def test_bytes_count_a_tied_head_once_and_the_codes_of_a_quantized_model():
    model = models.load("tiny")
    dense = sum(p.numel() for p in model.parameters())
    assert weight_bytes(model) == pytest.approx(4 * dense, abs=4096), "parameters, and a few bytes of rotary buffers"
    layers = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith("_proj"))
    small = weight_bytes(quantized(model, "nf4"))
    assert small == weight_bytes(model) - 4 * layers + layers // 2 + 4 * layers // 64


def test_fewer_bits_move_the_tiny_model_further(task):
    model = models.load("tiny")
    moved = {r: read_text(quantized(model, r), task, reference=model).divergence for r in ("llm.int8", "nf4", "int4")}
    assert 0 < moved["llm.int8"] < 0.1 * moved["nf4"] < 0.1 * moved["int4"]
