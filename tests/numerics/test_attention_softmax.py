"""The softmax variants: equal where nothing overflows, and broken exactly where the arithmetic says."""

from __future__ import annotations

import math

import pytest
import torch

from labkit import models
from labkit.errors import LabError, UnknownNameError
from labkit.numerics import attention_softmax as att


def drawn(size=1.0, d=16, seq=24, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(2, 3, seq, d, generator=generator) * s).to(dtype) for s in (size, size, 1.0))


@pytest.mark.parametrize("alpha", [1.0, 7.0, 64.0])
def test_all_softmaxes_agree_in_float64(alpha):
    q, k, _ = drawn()
    wanted = torch.softmax(q @ k.mT / 4, -1)
    scores, small = att.attention_scores(q, k), att.attention_scores(q, k, alpha)
    torch.testing.assert_close(small * alpha, scores)
    torch.testing.assert_close(small, att.attention_scores(q, k, alpha, divide="scores"))
    for got in (att.naive_softmax(scores), att.shifted_softmax(scores), att.relaxed_softmax(small, alpha)):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(att.fp32_softmax(small, alpha), wanted, rtol=1e-5, atol=1e-7)


def test_naive_breaks_where_exp_leaves_fp16():
    below, above = torch.tensor([[11.0, 0.0], [11.1, 0.0]], dtype=torch.float16)
    assert att.naive_softmax(below).isfinite().all() and att.naive_softmax(above).isnan().any()
    assert math.log(att.FP16_MAX) == pytest.approx(11.09, abs=0.01)
    assert att.shifted_softmax(above).isfinite().all()


def test_shift_and_fp32_cannot_mend_a_score_that_is_infinite_already():
    scores = torch.tensor([[math.inf, 1.0]], dtype=torch.float16)
    assert att.shifted_softmax(scores).isnan().any() and att.fp32_softmax(scores).isnan().any()


def test_minus_infinity_is_harmless_while_one_score_of_the_row_is_finite():
    scores = torch.tensor([[-math.inf, 1.0, 1.0], [-math.inf] * 3], dtype=torch.float16)
    for softmax in (att.shifted_softmax, att.fp32_softmax, lambda s: att.relaxed_softmax(s, 2.0)):
        got = softmax(scores)
        assert got[0].tolist() == [0, 0.5, 0.5] and got[1].isnan().all()


@pytest.mark.parametrize("name", ["shifted", "fp32", "line 1", "line 2"])
def test_a_first_token_whose_only_score_is_too_low_is_lost(name):
    q, k, v = torch.full((1, 1, 4), 300.0), torch.full((1, 1, 4), -300.0), torch.ones(1, 1, 4)
    assert att.damage(name, q, k, v).lost == 1 and att.damage(name, q, k, v, 8.0).lost == (name in ("shifted", "fp32"))


def test_the_sum_overflows_before_the_powers_do_and_looks_like_a_result():
    for count, below, above in ((2, 10.39, 10.4), (4, 9.7, 9.71)):
        fine, gone = (att.naive_softmax(torch.full((count,), x, dtype=torch.float16)) for x in (below, above))
        assert fine.sum() == 1 and gone.tolist() == [0] * count
    crowd = [torch.zeros(count, dtype=torch.float16) for count in (65519, 65520)]
    assert [bool(att.shifted_softmax(scores).any()) for scores in crowd] == [True, False]
    assert att.fp32_softmax(crowd[1]).double().sum() == pytest.approx(1, abs=0.01)


def test_damage_counts_rows_that_do_not_sum_to_one():
    q, k = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    q[..., 0], k[..., 0] = 5.0, 4.2  # every score is 10.5: the second row has two of them
    found = att.damage("naive", q, k, torch.ones(1, 2, 4))
    assert (found.lost, found.unsummed) == (0, 0.5) and found.error > 0.5
    assert att.damage("shifted", q, k, torch.ones(1, 2, 4)).unsummed == 0
    assert att.damage(att.LIBRARY, q, k, torch.ones(1, 2, 4)).unsummed is None


def test_the_error_is_kept_back_where_rows_are_lost():
    q, k, v = drawn(300.0, d=32, seq=40)
    broken, fine = att.damage("fp32", q, k, v), att.damage("line 2", q, k, v, 64.0)
    assert broken.lost > 0 and math.isfinite(broken.error) and broken.whole_error is None
    assert fine.lost == 0 and fine.whole_error == fine.error


def test_eager_attention_stores_the_bare_product():
    """As transformers' own function does, which is run here in fp16 on the same tensors."""
    from types import SimpleNamespace

    from transformers.models.llama import modeling_llama

    q, k, v = (t.to(torch.float16) for t in drawn(60.0, d=32, seq=40))
    later = torch.full((40, 40), torch.finfo(torch.float16).min, dtype=torch.float16).triu(1)
    module = SimpleNamespace(num_key_value_groups=1, training=False)
    theirs, _ = modeling_llama.eager_attention_forward(module, q, k, v, later, scaling=32**-0.5)
    lost = 1 - theirs.isfinite().all(-1).double().mean().item()
    found = att.damage(att.EAGER, q, k, v)
    assert 0 < lost < 1 and found.lost == pytest.approx(lost)
    assert att.damage("fp32", q, k, v).lost == 0


def test_scores_overflow_where_the_quotient_passes_the_largest_number():
    q, k = torch.tensor([[300.0]], dtype=torch.float16), torch.tensor([[219.0]], dtype=torch.float16)
    assert att.attention_scores(q, k).isinf().all()  # 65700
    assert att.attention_scores(q, k, alpha=2).isfinite().all()
    assert att.attention_scores(q, k, alpha=2, divide="scores").isinf().all()  # too late


def test_the_relaxed_product_only_passes_the_range_downwards():
    scores = torch.tensor([[-60000.0, 0.0, 3.0]], dtype=torch.float16)
    got = att.relaxed_softmax(scores, 512.0)
    assert got.tolist() == [[0, 0, 1]]


def test_dtype_stays():
    scores = torch.randn(2, 4).half()
    for softmax in (att.naive_softmax, att.shifted_softmax, att.fp32_softmax, lambda s: att.relaxed_softmax(s, 8.0)):
        assert softmax(scores).dtype == torch.float16


def test_damage_counts_scores_rows_and_error():
    q, k, v = drawn(300.0, d=32, seq=40)
    plain, late = att.damage("fp32", q, k, v), att.damage("line 2, divided late", q, k, v, 64.0)
    assert 0 < plain.overflow < 1 and 0 < plain.lost < 1
    assert late.overflow > plain.overflow  # the undivided product is larger by sqrt(d)
    for name in ("line 1", "line 2"):
        assert att.damage(name, q, k, v, 64.0).overflow == att.damage(name, q, k, v, 64.0).lost == 0
    library = att.damage(att.LIBRARY, q, k, v)
    assert library.overflow is None and library.lost == 0


def test_damage_against_a_count_by_hand():
    q, k, v = drawn(300.0, d=32, seq=40)
    half = (q.half() / math.sqrt(32)) @ k.half().mT
    over = sum(
        bool(half[i, j, r, c].isinf()) for i in (0, 1) for j in (0, 1, 2) for r in range(40) for c in range(r + 1)
    )
    assert over > 0 and att.damage("shifted", q, k, v).overflow == pytest.approx(over / (6 * 820))


@pytest.mark.parametrize("name", ["shifted", "line 1", "line 2", "fp32", att.LIBRARY])
def test_small_scores_are_right_to_fp16_precision(name):
    assert att.damage(name, *drawn(), alpha=16.0).error < 2e-3


def test_real_queries_and_keys_give_the_models_own_attention():
    model = models.load("tiny")
    tokens = models.tokenizer("tiny")("A fine film, and a long one.", return_tensors="pt")["input_ids"]
    caught = att.attention_inputs(model, input_ids=tokens)
    assert len(caught) == 8 and all(t.shape == (1, 8, tokens.shape[1], 32) for t in caught[0])
    model.set_attn_implementation("eager")
    theirs = model(input_ids=tokens, output_attentions=True).attentions
    for (q, k, _), weights in zip(caught, theirs, strict=True):
        later = torch.ones_like(weights, dtype=torch.bool).triu(1)
        scores = att.attention_scores(q, k).masked_fill(later, -torch.inf)
        torch.testing.assert_close(att.shifted_softmax(scores), weights, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = models.load("tiny")
    before = model.config._attn_implementation
    with pytest.raises(TypeError):
        att.attention_inputs(model, input_ids="no tokens")
    assert model.config._attn_implementation == before


def test_bad_requests_are_refused():
    q, k, v = drawn()
    with pytest.raises(LabError, match="not positive"):
        att.attention_scores(q, k, 0)
    with pytest.raises(UnknownNameError, match="line 1"):
        att.damage("line1", q, k, v)
    with pytest.raises(UnknownNameError, match="query"):
        att.attention_scores(q, k, divide="key")
