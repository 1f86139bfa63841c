"""Second moments and the updates that rounding takes away, against counting with the exact rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import Small

from labkit.numerics import gradients as counted
from labkit.numerics.formats import FORMATS, round_to
from labkit.numerics.rounding import round_nearest

ALL = tuple(FORMATS)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LISTS = st.lists(FLOATS, min_size=1, max_size=50)


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    made = Small()
    (made(torch.tensor([[1, 2, 3]])).square().mean() * 1e-5).backward()
    return made


def test_second_moments_are_what_a_first_step_of_adam_writes(model):
    parameters = [p for p in model.parameters() if p.grad is not None]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    expected = counted.second_moments([p.grad for p in parameters], beta2=0.98)
    optimizer.step()
    for parameter, moment in zip(parameters, expected, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], moment)


def test_adamw_updates_are_what_the_moments_ask_for(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters()], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    optimizer.step()
    parameters = [p for p in model.parameters() if p.grad is not None]
    found = counted.adamw_updates(optimizer)
    assert len(found) == len(parameters)  # what has no gradient has no state, and no update
    for (weight, update), parameter in zip(found, parameters, strict=True):
        assert torch.equal(weight, parameter)
        state = optimizer.state[parameter]
        m, v = state["exp_avg"].double() / (1 - 0.9), state["exp_avg_sq"].double() / (1 - 0.95)
        expected = -1e-2 * (m / (v.sqrt() + 1e-8) + 0.1 * weight.double())
        torch.testing.assert_close(update.double(), expected, rtol=1e-4, atol=1e-9)
    before = [p.detach().clone() for p in parameters]
    fresh = torch.optim.AdamW([p for p in model.parameters()], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    fresh.step()
    for parameter, old, (_, update) in zip(parameters, before, counted.adamw_updates(fresh), strict=True):
        # torch shrinks the weight first, so that decay reads the old weight and the formula the new one.
        torch.testing.assert_close(parameter - old, update, rtol=2e-2, atol=2e-5)


def lost(weights, updates, fmt: str) -> tuple[int, int]:
    """How many updates are lost of how many, value by value with the exact rounding."""
    pairs = [(float(round_to(w, fmt)), u) for w, u in zip(weights.tolist(), updates.tolist(), strict=True) if u]
    sums = [(w, float(torch.tensor(w) + torch.tensor(u))) for w, u in pairs]
    return sum(float(round_to(s, fmt)) == w for w, s in sums), len(pairs)


SIZES = st.floats(2.0**-20, 8.0, width=32)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "tf32", "fp32"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SIZES, st.floats(-0.015625, 0.015625, width=32)), min_size=1, max_size=40))
def test_lost_updates_equal_a_count_with_the_exact_rounding(fmt, pairs):
    weights, updates = torch.tensor(pairs).t()
    count, total = lost(weights, updates, fmt)
    if total:
        assert counted.lost_updates([(weights, updates)], fmt) == pytest.approx(count / total)


@pytest.mark.parametrize(("fmt", "bits"), [("fp16", 10), ("bf16", 7), ("tf32", 10)])
def test_half_a_gap_is_lost_where_the_weights_code_is_even_and_no_more(fmt, bits):
    even, odd = 1.0, 1.0 + 2.0**-bits
    half = 2.0 ** -(bits + 1)
    more = half * (1 + 2.0**-10)
    below_one = [(even, -half / 2, 1), (even, -half * 0.51, 0)]  # the gap there is half as wide
    cases = [(even, half, 1), (even, more, 0), (odd, half, 0), (odd, -half, 0), (odd, half * 0.999, 1), *below_one]
    for weight, update, expected in cases:
        pair = (torch.tensor([weight]), torch.tensor([update]))
        assert counted.lost_updates([pair], fmt) == expected, (weight, update)


def test_shrinking_updates_lose_more_and_dice_lose_as_many_by_chance():
    draw = torch.Generator().manual_seed(0)
    weights, updates = 1 + 0.9 * torch.rand(20_000, generator=draw), torch.full((20_000,), 2.0**-10)
    pairs = [(weights[:5000], updates[:5000]), (weights[5000:], updates[5000:])]
    assert counted.lost_updates(pairs, "fp16") == 0
    assert counted.lost_updates(pairs, "fp16", shrink=0.25) == 1
    # A quarter of a gap: up once in four, and so three in four stay, whose sum is right all the same.
    thrown = counted.lost_updates(pairs, "fp16", shrink=0.25, generator=torch.Generator().manual_seed(1))
    assert thrown == pytest.approx(0.75, abs=0.02)
    again = counted.lost_updates(pairs, "fp16", shrink=0.25, generator=torch.Generator().manual_seed(1))
    assert again == thrown


def test_updates_of_nothing_are_not_counted():
    pairs = [(torch.ones(4), torch.tensor([0.0, 0.0, 1.0, 1e-9]))]
    assert counted.lost_updates(pairs, "bf16") == 0.5
    assert counted.lost_updates([(round_nearest(torch.tensor([0.1]), "bf16"), torch.tensor([0.1]))], "bf16") == 0
