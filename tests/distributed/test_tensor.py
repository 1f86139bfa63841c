"""Tensor parallelism: the whole model's numbers, torch's bits, and the bytes and messages of the formulas."""

import pytest
from tensor_peers import everything
from tensor_runs import BATCH, SEQ

from labkit.parallel.launch import launch
from labkit.parallel.tensor_llama import bytes_per_rank, traffic

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def ranks():
    return launch(everything, 4, timeout_s=300.0)


def test_loss_gradients_and_adamw_are_the_whole_models(ranks):
    for rank in ranks:
        found = rank["whole_model"]
        for shape in ("tied", "untied", "biased"):
            for run in (found, rank["pairs"]):
                assert max(run[shape].values()) < ROUNDING, (shape, run[shape])
        assert found["there and back"] and found["joined"] and found["one weight"]


def test_what_is_whole_on_every_rank_stays_equal_to_the_bit(ranks):
    for rank in ranks:
        assert rank["whole_model"]["norms stay equal"] and rank["whole_model"]["loss is equal"]


def test_a_forgotten_sum_and_a_bias_on_every_rank_are_found(ranks):
    for rank in ranks:
        found = rank["whole_model"]
        assert min(found["no g"]["loss"], found["no g"]["gradients"]) > 0.01
        # Without f even the loss of the first step is right: only gradients tell.
        assert found["no f"]["loss"] < ROUNDING and found["no f"]["gradients"] > 0.1
        assert min(found["bias on every rank"].values()) > 0.01


@pytest.mark.parametrize("ranks_a_model", [4, 2])
def test_a_rank_holds_the_bytes_and_sends_the_messages_of_the_formula(ranks, ranks_a_model):
    for rank in ranks:
        run = rank["bytes_and_messages"] if ranks_a_model == 4 else rank["pairs"]["bytes"]
        for shape in ("tied", "untied"):
            found, architecture = run[shape], run["shapes"][shape]
            formula = bytes_per_rank(architecture, ranks_a_model)
            assert found["weights"] == found["gradients"] == sum(formula.values()), shape
            assert found["moments"] == 2 * sum(formula.values())
            assert formula["cut"] * ranks_a_model + formula["whole"] == 4 * architecture.parameters
            expected = traffic(architecture, BATCH, SEQ)
            assert (found["forward"], found["backward"], found["others"]) == (expected.forward, expected.backward, [])
            assert found["logits"] == (BATCH, SEQ, 32 // ranks_a_model)


def test_generation_with_a_cache_and_gathered_logits(ranks):
    for rank in ranks:
        found = rank["generation"]
        assert found.pop("answers") and max(found.values()) < ROUNDING


def test_the_loss_of_cut_logits_needs_three_values_a_token(ranks):
    for rank in ranks:
        for scale in (1.0, 1e4):
            loss, gradient, messages = rank["loss_alone"][scale]
            assert loss < 1e-6 and gradient < 1e-6 and messages == [40, 80], (scale, rank["loss_alone"])
        assert "outside the vocabulary of 32" in rank["loss_alone"]["outside"]


def test_a_pair_of_layers_is_torchs_to_the_bit_and_to_the_byte(ranks):
    for rank in ranks:
        plain, biased = rank["torchs_pair"], rank["torchs_pair_with_bias"]
        assert max(plain["errors"]) == 0 and max(biased["errors"]) < ROUNDING
        for found in (plain, biased):
            assert found["sizes"] == found["torch's"] and len(found["sizes"][1]) == 2


def test_the_model_is_torchs_and_sends_less_than_a_plan_without_f_for_each_block(ranks):
    for rank in ranks:
        for found in rank["torchs_model"].values():
            assert max(found["loss"], found["gradients"]) < ROUNDING
            ours, theirs = found["bytes"]
            assert ours == theirs
        # q, k, v, gate and up each sum a gradient of their common input; and one for the head.
        assert len(rank["torchs_model"][False]["backward"]) == 2 * 5 + 1
        assert len(rank["torchs_model"][True]["backward"]) == 2 * 2 + 1


@pytest.mark.parametrize(
    "what, says",
    [
        ("query heads", "query heads cannot be divided"),
        ("key heads", "key and value heads cannot be divided"),
        ("vocabulary", "resize_token_embeddings(pad_to_multiple_of="),
        ("width", "of 47 cannot be cut"),
        ("dropout", "attention_dropout to 0"),
        ("twice", "cut already"),
        ("other weights", "different weights"),
        ("no llama", "LlamaForCausalLM"),
        ("subclass", "A Bilinear cannot be cut"),
    ],
)
def test_what_cannot_be_cut_is_refused(ranks, what, says):
    for rank in ranks:
        assert says in rank["refusals"][what] and rank["refusals"]["untouched"]
