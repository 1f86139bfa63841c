"""The loss scalers against torch.amp.GradScaler: the same decisions and the same numbers, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.numerics.scaling import DynamicScaler, StaticScaler, library_trace, trace

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def as_torch(scaler: StaticScaler) -> torch.amp.GradScaler:
    """A GradScaler with the same rules; a static scale is one that grows never and backs off by 1."""
    theirs = torch.amp.GradScaler("cpu", init_scale=scaler.scale, growth_interval=2**31 - 1)
    if isinstance(scaler, DynamicScaler):
        theirs.set_growth_interval(scaler.growth_interval)
        theirs.set_growth_factor(scaler.growth_factor)
        theirs.set_backoff_factor(scaler.backoff_factor)
    else:
        theirs.set_backoff_factor(1.0)
    theirs.scale(torch.zeros(()))
    return theirs


def parameters(dtypes=DTYPES) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 5).to(dtype)) for dtype in dtypes]


def assert_same_step(scaler, theirs, ours, others, gradients) -> None:
    """One step of both on the same gradients: what was found, every gradient's bits, whether the weights moved."""
    for group in (ours, others):
        for parameter, gradient in zip(group, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
    mine, library = torch.optim.SGD(ours, lr=0.5), torch.optim.SGD(others, lr=0.5)
    found = scaler.unscale_(ours)
    theirs.unscale_(library)
    assert found == scaler.found_inf == any(bool(f) for f in theirs._found_inf_per_device(library).values())
    for a, b in zip(ours, others, strict=True):
        if b.grad is None:
            assert a.grad is None
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
    before = [p.detach().clone() for p in ours]
    assert scaler.step(mine.step) == (not found)
    theirs.step(library)
    if found:
        for a, b in zip(before, ours, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=0, equal_nan=True)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    scaler.update()
    theirs.update()
    assert scaler.scale == theirs.get_scale()


def gradients_with(bad: float | None, place: int, seed: int = 0, scale: float = 1.0):
    """One gradient a dtype, drawn anew; `bad` goes into the tensor that `place` picks."""
    draw = torch.Generator().manual_seed(seed)
    found = [(torch.randn(5, generator=draw) * scale).to(dtype) for dtype in DTYPES]
    if bad is not None:
        found[place % len(found)][place % 5] = bad
    return found


BAD = st.sampled_from([None, None, INF, -INF, NAN])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(BAD, min_size=1, max_size=30),
    st.floats(1.0, 64.0, exclude_min=True),
    st.floats(2.0**-20, 1.0, exclude_max=True),
    st.integers(1, 5),
    st.floats(2.0**-60, 2.0**127),
)
@example([None] * 12, 2.0, 0.5, 1, 2.0**120)  # grows to where fp32 ends
@example([NAN] * 12, 2.0, 2.0**-20, 1, 2.0**100)  # falls to zero
@example([INF] * 8 + [None, INF], 2.0, 2.0**-20, 1, 1.0)  # weights are ruined at zero, and a step is skipped then
@example([INF, None, None, NAN, None, None, None], 2.0, 0.5, 3, 2.0**16)
def test_a_dynamic_scale_takes_gradscalers_decisions_on_any_sequence(bads, growth, backoff, interval, start):
    scaler = DynamicScaler(start, growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
    theirs, ours, others = as_torch(scaler), parameters(), parameters()
    for step, bad in enumerate(bads):
        assert_same_step(scaler, theirs, ours, others, gradients_with(bad, step, seed=step))
        assert scaler.growth_tracker == theirs._get_growth_tracker()
    assert scaler.skipped + scaler.made == len(bads)
    assert scaler.skipped == sum(bad is not None for bad in bads)


@settings(max_examples=20, deadline=None)
@given(st.lists(BAD, min_size=1, max_size=8), st.floats(2.0**-40, 2.0**120))
def test_a_static_scale_stays_and_skips_all_the_same(bads, start):
    scaler = StaticScaler(start)
    held = scaler.scale
    theirs, ours, others = as_torch(scaler), parameters(), parameters()
    for step, bad in enumerate(bads):
        assert_same_step(scaler, theirs, ours, others, gradients_with(bad, step, seed=step))
        assert scaler.scale == held
    assert scaler.observed() == {
        "loss_scale": held, "found_inf": float(bads[-1] is not None), "skipped": sum(b is not None for b in bads),
    }  # fmt: skip


def test_growth_counts_good_steps_in_a_row_only():
    rows = trace(DynamicScaler(8.0, growth_interval=3), [False, False, True, False, False, False, False])
    assert [row["next_scale"] for row in rows] == [8, 8, 4, 4, 4, 8, 8]
    assert [row["stepped"] for row in rows] == [1, 1, 0, 1, 1, 1, 1]


def test_at_the_ends_of_fp32_the_scale_does_not_grow_to_infinity_and_may_fall_to_zero():
    high = DynamicScaler(2.0**127, growth_interval=1)
    high.update()
    assert (high.scale, high.growth_tracker) == (2.0**127, 0)
    high.found_inf = True
    high.update()
    assert high.scale == 2.0**126
    low = DynamicScaler(2.0**-149)
    low.found_inf = True
    low.update()
    assert low.scale == 0.0
    # As with GradScaler, nothing is found then, and the quotient ruins what it is asked to save.
    theirs, ours, others = as_torch(low), parameters(), parameters()
    assert_same_step(low, theirs, ours, others, gradients_with(None, 0))
    assert not any(bool(p.isfinite().any()) for p in ours)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 4), st.integers(-20, 100))
@example([False] * 60, 1, 16)  # steps of 1/S that a weight is too large to show
def test_the_traces_of_both_are_the_same_rows(overflows, interval, exponent):
    scaler = DynamicScaler(2.0**exponent, growth_interval=interval)
    library = library_trace(overflows, init_scale=2.0**exponent, growth_interval=interval)
    assert trace(scaler, overflows) == library
    assert [row["found_inf"] for row in library] == [float(o) for o in overflows]


@settings(max_examples=20, deadline=None)
@given(st.lists(BAD, min_size=1, max_size=9), st.lists(BAD, min_size=1, max_size=9), st.integers(1, 4))
def test_a_state_goes_to_gradscaler_and_comes_back(first, then, interval):
    scaler = DynamicScaler(2.0**10, growth_factor=4.0, backoff_factor=0.25, growth_interval=interval)
    theirs, ours, others = as_torch(scaler), parameters(), parameters()
    for step, bad in enumerate(first):
        assert_same_step(scaler, theirs, ours, others, gradients_with(bad, step, seed=step))
    fresh = torch.amp.GradScaler("cpu")
    fresh.load_state_dict(scaler.state_dict())
    fresh.scale(torch.zeros(()))
    again = DynamicScaler()
    again.load_state_dict(theirs.state_dict())
    assert theirs.state_dict() == fresh.state_dict()
    assert theirs.state_dict().items() <= again.state_dict().items()
    for step, bad in enumerate(then):
        assert_same_step(again, fresh, ours, others, gradients_with(bad, step, seed=99 + step))
        assert again.growth_tracker == fresh._get_growth_tracker()


@pytest.mark.parametrize("kind", [StaticScaler, DynamicScaler])
def test_its_own_state_brings_the_counts_back(kind):
    scaler = kind(4.0)
    trace(scaler, [True, False, False])
    again = kind(1.0)
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict()
    assert (again.skipped, again.made) == (1, 2)


def test_some_and_all_gradients_may_be_missing():
    """GradScaler skips what is missing too, and refuses a step without any; here there is nothing to find."""
    scaler = DynamicScaler(2.0**4)
    theirs, ours, others = as_torch(scaler), parameters(), parameters()
    some = [None, *gradients_with(NAN, 1)[1:]]
    assert_same_step(scaler, theirs, ours, others, some)
    assert scaler.scale == 8 and scaler.skipped == 1
    called: list[int] = []
    assert not scaler.unscale_(parameters())
    assert scaler.step(lambda: called.append(1)) and called == [1]
    bare = torch.optim.SGD(parameters(), lr=1.0)
    with pytest.raises(AssertionError, match="No inf checks"):
        theirs.step(bare)


@pytest.mark.parametrize("kind", [StaticScaler, DynamicScaler])
def test_a_second_division_in_one_step_is_refused_as_gradscaler_does(kind):
    scaler = kind(2.0**4)
    theirs, ours, others = as_torch(scaler), parameters(), parameters()
    library = torch.optim.SGD(others, lr=0.5)
    for _ in range(2):  # after update the next step may be unscaled again
        for group in (ours, others):
            for parameter, gradient in zip(group, gradients_with(None, 0), strict=True):
                parameter.grad = gradient.clone()
        scaler.unscale_(ours)
        theirs.unscale_(library)
        with pytest.raises(RuntimeError, match="already been called"):
            theirs.unscale_(library)
        with pytest.raises(LabError, match="unscaled already"):
            scaler.unscale_(ours)
        for a, b in zip(ours, others, strict=True):
            assert torch.equal(a.grad, b.grad)  # divided once
        scaler.update()  # a step that somebody else made or left out is over as well
        theirs.step(library)
        theirs.update()


@pytest.mark.parametrize("kind", [StaticScaler, DynamicScaler])
@pytest.mark.parametrize("bad", [None, INF])
def test_a_step_needs_gradients_that_were_unscaled_for_it(kind, bad):
    scaler, made = kind(2.0**4), []
    with pytest.raises(LabError, match="not been unscaled"):
        scaler.step(lambda: made.append(1))
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad or 1.0])
    scaler.unscale_([weight])
    scaler.step(lambda: made.append(1))
    with pytest.raises(LabError, match="not been unscaled"):  # a second time, with the same gradients
        scaler.step(lambda: made.append(1))
    scaler.update()
    with pytest.raises(LabError, match="not been unscaled"):  # nor does the next step go without
        scaler.step(lambda: made.append(1))
    assert made == [1] * (bad is None) and (scaler.made, scaler.skipped) == (len(made), 1 - len(made))


@pytest.mark.parametrize("scale", [2.0**16, 1000.0, 2.0**30, 2.0**-20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_unscaled_as_torchs_kernel_does(dtype, scale):
    """GradScaler refuses fp16 gradients; its kernel does not. 2^30 and 2^-20 have no reciprocal in fp16."""
    scaled = torch.tensor([1.0, 2.5, -3e4, 60000.0, 1e-7, 0.0]).to(dtype)
    inverse = torch.tensor(scale).double().reciprocal().float()
    torch._amp_foreach_non_finite_check_and_unscale_([expected := scaled.clone()], torch.zeros(()), inverse)
    weight = torch.nn.Parameter(torch.zeros(6, dtype=dtype))
    weight.grad = scaled.clone()
    assert not StaticScaler(scale).unscale_([weight])
    assert torch.equal(weight.grad, expected) and weight.grad.dtype == dtype


def test_unscaled_in_fp32_the_digits_come_back_that_fp16_loses():
    true = torch.tensor([3e-8, 1e-7, 2e-5, 0.3])
    errors = {}
    for dtype in (torch.float16, torch.float32):
        weight = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
        weight.grad = (true * 2.0**16).half().to(dtype)
        StaticScaler(2.0**16).unscale_([weight])
        errors[dtype] = (weight.grad.double() / true - 1).abs()
    assert (errors[torch.float32] < 2**-11).all()
    # fp16 has multiples of 2^-24 here: 3e-8 turns into 6e-8, and 1e-7 into 1.2e-7.
    assert (errors[torch.float16][:2] > 0.1).all()


def test_a_16_bit_loss_is_scaled_in_fp32_as_gradscaler_does():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        loss = torch.tensor(2.7, dtype=dtype, requires_grad=True)
        ours, theirs = StaticScaler(2.0**16).scale_loss(loss), torch.amp.GradScaler("cpu").scale(loss)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype and ours.isfinite()
        ours.backward()
        assert loss.grad.isfinite() == (dtype != torch.float16)  # 65536 is beyond fp16, for both


@pytest.mark.parametrize("scale", [0.0, -1.0, INF, NAN, 1e39, 1e-60])
def test_a_scale_that_fp32_cannot_hold_is_refused(scale):
    for kind in (StaticScaler, DynamicScaler):
        with pytest.raises(LabError, match="cannot be scaled"):
            kind(scale)


@pytest.mark.parametrize(
    "options",
    [{"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"backoff_factor": 0.0}, {"growth_interval": 0}],
    ids=lambda o: next(iter(o)),
)
def test_rules_that_lead_nowhere_are_refused(options):
    with pytest.raises(LabError, match="cannot follow"):
        DynamicScaler(**options)
