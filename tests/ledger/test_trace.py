"""A step followed: on real tensors as torch's MemTracker counts it, under fake ones as on real ones."""

import tracemalloc

import pytest
import torch
from decoders import llama, opt, wide_llama, wide_opt
from torch.distributed._tools.mem_tracker import MemTracker

from labkit.errors import LabError
from labkit.ledger import activations
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, predict, standing
from labkit.ledger.shapes import Architecture
from labkit.memory.step import Step, build, follow, trace

POLICIES = [
    {},
    {"weights": "bfloat16"},
    {"compute": "bfloat16"},
    {"weights": "bfloat16", "master": True},
    {"optimizer": "momentum"},
    {"train": "lora"},
    {"train": "nothing"},
]
PEAK = "peak"


def case_of(config, batch=2, seq_len=8, **options) -> Case:
    return Case(Architecture.of(config), batch, seq_len, device="cpu", **options)


@pytest.mark.parametrize("options", [{}, {"weights": "bfloat16"}, {"optimizer": "momentum"}], ids=str)
def test_the_same_peak_as_torchs_memtracker(options):
    config = wide_llama(2)
    ours = Step(case_of(config, **options), config, "cpu")
    ours.warm_up()
    peak = follow(ours, round_to=1).peak.total
    theirs = Step(case_of(config, **options), config, "cpu")
    theirs.warm_up()
    tracker = MemTracker()
    tracker.track_external(theirs.model, theirs.optimizer, theirs.tokens)
    with tracker:
        loss = theirs.forward()
        theirs.backward(loss)
        theirs.update()
    found = tracker.get_tracker_snapshot(PEAK)[torch.device("cpu")]["Total"]
    # It does not know the rotary embedding's buffers of frequencies twice.
    assert abs(peak - found) <= 0.002 * found


@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_a_configuration_stays_as_it_was_given(attention):
    config = llama(attention="eager" if attention == "flash" else "sdpa")
    before = config.to_json_string(use_diff=False), config._attn_implementation, config.dtype
    model = build(case_of(config, weights="bfloat16", attention=attention), config, "meta")
    assert (config.to_json_string(use_diff=False), config._attn_implementation, config.dtype) == before
    assert model.config.dtype == torch.bfloat16 and model.config._attn_implementation != config._attn_implementation


@pytest.mark.parametrize("options", POLICIES, ids=str)
@pytest.mark.parametrize("kind", [llama, opt])
def test_nothing_is_left_and_categories_are_what_the_formula_says(kind, options):
    config = kind(3)
    case = case_of(config, **options)
    seen = trace(case, config, round_to=1)
    start, end = seen.moments[0], seen.moments[-1]
    assert seen.moments[-1].bytes.get("gradients", 0) == 0
    known = {k: v for k, v in end.bytes.items() if k in ("weights", "master_weights", "optimizer_states")}
    assert known == {k: v for k, v in standing(case, 1).items() if k != "buffers"}
    assert end.total - sum(known.values()) == end.bytes["buffers"] and start.place == "start"
    if case.train != "nothing":
        update = max(m.bytes.get("gradients", 0) for m in seen.moments)
        assert update >= gradients(case, 1) - (0 if case.train == "lora" else 4 * config.vocab_size * 32)


@pytest.mark.parametrize("options", POLICIES, ids=str)
def test_a_hidden_state_as_wide_as_the_vocabulary_is_no_logits(options):
    square, other = llama(3, vocab_size=32), llama(3, vocab_size=40)
    found = []
    for config in (square, other):
        case = case_of(config, 2, 16, **options)  # as many tokens as the width: weights have the shape, too
        moments = trace(case, config, round_to=1).moments
        held = [moment.bytes.get("logits", 0) / (case.tokens * config.vocab_size) for moment in moments]
        found.append(
            [bytes_a_word for bytes_a_word, before in zip(held, [-1, *held], strict=False) if bytes_a_word != before]
        )
    assert found[0] == found[1] and max(found[0]) in (8, 10, 12) and found[0][0] == found[0][-1] == 0
    first = next(moment for moment in moments if moment.bytes.get("logits"))
    assert first.place == "forward" and first.bytes["logits"] == case.product * case.tokens * 40


def test_what_is_kept_is_what_the_formula_keeps():
    config = wide_opt(4)
    case = case_of(config)
    loss = [m for m in trace(case, config, round_to=1).moments if m.place == "forward"][-1]
    kept = sum(activations.total(activations.block(case, first=n == 0)) for n in range(4))
    kept += activations.total(activations.outside(case))
    # Token numbers and labels are there before the step; the logits are let go with the loss's last operation.
    numbers = 3 * 8 * case.tokens + 4
    assert abs(loss.bytes["activations"] + 4 * case.tokens * config.vocab_size - kept) <= 2 * numbers


@pytest.mark.parametrize("segments", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("options", POLICIES, ids=str)
@pytest.mark.parametrize("kind", [wide_llama, wide_opt])
def test_the_predicted_peak_is_the_traced_one(kind, options, segments):
    if segments and options.get("train") == "nothing":
        pytest.skip("nothing is kept that checkpointing could drop")
    config = kind()
    for batch, seq_len in ((1, 16), (4, 128)):
        case = case_of(config, batch, seq_len, segments=segments, **options)
        predicted, traced = predict(case).peak, trace(case, config).peak
        assert abs(predicted.total / traced.total - 1) < 0.05, (batch, seq_len, predicted, traced)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [llama, opt])
def test_every_part_of_a_tiny_batch_is_the_traced_one(kind, tied):
    """Where gradients decide: the head's own is there all through backward, and masters' come one tensor at a time."""
    config = kind(3, tied=tied)
    config.vocab_size, config.hidden_size, config.intermediate_size = 4096, 128, 352
    if kind is opt:
        config.word_embed_proj_dim, config.ffn_dim, config.max_position_embeddings = 128, 352, 64
    for options in ({}, {"weights": "bfloat16"}, {"weights": "bfloat16", "master": True}, {"optimizer": "sgd"}):
        case = case_of(config, 1, 8, **options)
        predicted, traced = predict(case, 1), trace(case, config, 1)
        for place in ("forward", "backward", "update"):
            formula, seen = predicted.highest(place), traced.highest(place)
            assert formula.total == pytest.approx(seen.total, rel=2e-3), (place, options, formula, seen)


def test_every_number_of_segments_of_a_deeper_stack():
    config = wide_llama(12)
    for segments in range(13):
        case = case_of(config, 16, 256, segments=segments)
        assert abs(predict(case).peak.total / trace(case, config).peak.total - 1) < 0.015, segments


def test_a_model_of_350_gigabytes_needs_none():
    config = wide_opt(96)
    config.hidden_size = config.word_embed_proj_dim = 12288
    config.ffn_dim, config.num_attention_heads, config.vocab_size = 49152, 96, 50272
    config.num_hidden_layers = 3  # of 96: the others are the same, and a test should be short
    case = case_of(config, 1, 128, weights="float16", train="nothing")
    tracemalloc.start()
    seen = trace(case, config)
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.peak.bytes["weights"] > 10e9 and allocated < 50e6
    whole = Architecture.of(config).__class__(**{**vars(Architecture.of(config)), "layers": 96, "positions": 2050})
    assert round(2 * whole.parameters / 1e9) == 349


def test_8_bit_adam_cannot_be_traced_and_says_so():
    config = llama()
    with pytest.raises(LabError, match="looks at its values"):
        trace(case_of(config, optimizer="adamw8bit"), config)


@pytest.mark.parametrize("segments", [0, 2, 6])
@pytest.mark.parametrize("options", POLICIES, ids=str)
@pytest.mark.parametrize("kind", [wide_llama, wide_opt])
def test_scores_that_are_written_out_decide_the_peak_of_long_sequences(kind, options, segments):
    if segments and options.get("train") == "nothing":
        pytest.skip("nothing is kept, and nothing computed again")
    config = kind()
    case = Case(Architecture.of(config), 2, 512, segments=segments, attention="eager", **options)
    assert trace(case, config).peak.total == pytest.approx(predict(case).peak.total, rel=0.05)


def test_a_gpu_keeps_the_scores_of_fp32_queries_that_share_keys_and_no_others():
    config = wide_llama()
    case = Case(Architecture.of(config), 4, 512)
    shared, lone = predict(case).peak.total, predict(case.with_(device="cpu")).peak.total
    assert shared - lone >= 0.9 * config.num_hidden_layers * 4 * case.arch.heads * case.tokens * case.seq_len
    assert trace(case, config).peak.total == pytest.approx(shared, rel=0.01)
    for same in (case.with_(weights="bfloat16"), case.with_(compute="bfloat16")):
        assert not same.keeps_scores
    assert not Case(Architecture.of(wide_opt()), 4, 512).keeps_scores
