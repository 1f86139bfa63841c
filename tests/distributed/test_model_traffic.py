"""The formulas that compare ways to share a model, against each other and against counting."""

import pytest

from labkit import published
from labkit.errors import LabError, UnknownNameError
from labkit.ledger.shapes import Architecture
from labkit.parallel.model_traffic import WAYS, divided, sent_per_step, tokens_where_equal

LLAMA, TIED = (Architecture.of(published.config(name)) for name in ("llama-7b", "smollm2-135m"))


def test_one_rank_sends_nothing():
    for way in WAYS:
        assert sent_per_step(way, TIED, 1, 2, 16) == 0


def test_ddp_and_zero_send_by_parameter_the_others_by_token():
    for way in WAYS:
        small, large = (sent_per_step(way, LLAMA, 4, batch, 128) for batch in (1, 3))
        assert large == (small if way in ("ddp", "zero3") else 3 * small)
    assert sent_per_step("ddp", LLAMA, 4, 1, 1) == 2 * 2 * LLAMA.parameters * 3 / 4


def test_a_ring_of_every_activation_that_is_summed():
    stream, loss = 2 * 5 * 16 * LLAMA.hidden, 4 * 5 * 16
    assert sent_per_step("tensor", LLAMA, 8, 5, 16) == 2 * 7 / 8 * ((4 * LLAMA.layers + 2) * stream + 3 * loss)


def test_the_busiest_stage():
    stream, tied = 2 * 2 * 16 * TIED.hidden, 2 * TIED.vocab * TIED.hidden
    assert sent_per_step("pipeline", LLAMA, 2, 2, 16) == 2 * 2 * 16 * LLAMA.hidden
    assert sent_per_step("pipeline", LLAMA, 5, 2, 16) == 2 * sent_per_step("pipeline", LLAMA, 2, 2, 16)
    assert sent_per_step("pipeline", TIED, 4, 2, 16) == stream + tied > 2 * stream


def test_tensor_overtakes_ddp_at_about_three_widths_of_tokens():
    assert tokens_where_equal(LLAMA) == pytest.approx(3 * LLAMA.hidden, rel=0.05)


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownNameError):
        sent_per_step("zero2", LLAMA, 2, 1, 1)
    with pytest.raises(LabError, match="at least one"):
        sent_per_step("ddp", LLAMA, 0, 1, 1)


def test_one_cut_alone_sends_as_by_its_own_formula():
    for cuts, way in (((4, 1, 1), "tensor"), ((1, 2, 1), "pipeline"), ((1, 1, 4), "ddp")):
        sent = divided(LLAMA, *cuts, 8, 64)
        name = "data" if way == "ddp" else way
        ranks = max(cuts)
        assert sent.pop(name) == pytest.approx(sent_per_step(way, LLAMA, ranks, 8, 64))
        assert not any(sent.values())


def test_nested_cuts_share_layers_rows_and_parameters():
    sent = divided(LLAMA, 4, 2, 2, 8, 64)
    stream = 2 * 4 * 64 * LLAMA.hidden
    assert sent["pipeline"] == stream
    assert sent["tensor"] == 2 * 3 / 4 * ((4 * LLAMA.layers // 2 + 1) * stream + 3 * 4 * 4 * 64)
    assert sent["data"] == pytest.approx(sent_per_step("ddp", LLAMA, 2, 1, 1) / 8)


def test_cuts_that_do_not_divide_are_refused():
    for cuts in ((3, 1, 1), (1, 5, 1), (1, 1, 3), (0, 1, 1)):
        with pytest.raises(LabError, match="equal parts"):
            divided(LLAMA, *cuts, 8, 64)
