"""Fast rounding against the exact one of labkit.numerics.formats, and what dice may and may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.numerics.formats import FORMATS, round_to, values
from labkit.numerics.rounding import round_nearest, round_stochastic

NAMES = ("bf16", "fp16", "tf32")


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, with -0.0 unlike 0.0 and any NaN like any other."""
    bits = [torch.where(x.isnan(), torch.nan, x).view(torch.int32) for x in (a, b)]
    return torch.equal(*bits)


def held(name: str) -> torch.Tensor:
    """Every finite number of a format, sorted; of tf32's half a million, those of some of its powers of two."""
    if name != "tf32":
        every = values(name)
        return torch.from_numpy(np.unique(every[np.isfinite(every)])).float()
    mantissas = torch.arange(1024).double() / 1024
    powers = [(1 + mantissas) * 2.0**e for e in (-126, -125, -1, 0, 1, 14, 126, 127)]
    positive = torch.cat([mantissas * 2.0**-126, *powers]).float()
    return torch.cat([-positive, positive]).unique()


def neighbourhood(name: str) -> torch.Tensor:
    """The numbers of a format, the midpoints between them, and the fp32 numbers next to each, with both ends."""
    exact = held(name).double()
    fmt = FORMATS[name]
    end = fmt.max + 2.0 ** (fmt.max_exponent - fmt.mantissa_bits - 1)
    points = torch.cat([exact, (exact[1:] + exact[:-1]) / 2, torch.tensor([end, -end, 0.0, -0.0])]).float()
    inf = torch.tensor(torch.inf)
    special = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, 3.4028234663852886e38, -3.4028234663852886e38, 1e-45, -1e-45]
    )
    return torch.cat([points, torch.nextafter(points, inf), torch.nextafter(points, -inf), special])


@pytest.mark.parametrize("name", NAMES)
def test_to_nearest_equals_the_exact_rounding_at_every_number_midpoint_and_neighbour(name):
    x = neighbourhood(name)
    assert same_bits(round_nearest(x, name), round_to(x, name))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_every_16_bit_code_stays_what_it_is(name):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = codes.view(FORMATS[name].torch_dtype).float()
    assert same_bits(round_nearest(x, name), x)
    assert same_bits(round_stochastic(x, name, dice()), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_one_whatever_bits_it_is_made_of(name):
    """Cut as a number would be, 0x7F800001 turned into infinity and 0x7FFFFFFF into -0."""
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1, 0x7FC00000], dtype=torch.int64).int()
    x = bits.view(torch.float32)
    assert x.isnan().all()
    assert round_nearest(x, name).isnan().all() and round_stochastic(x, name, dice()).isnan().all()


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_to_nearest_equals_the_exact_rounding_on_any_numbers(name, numbers):
    x = torch.tensor(numbers)
    assert same_bits(round_nearest(x, name), round_to(x, name))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (4, 6)])
def test_shape_layout_and_dtype(shape):
    x = torch.randn(shape, generator=dice())
    for name in (*NAMES, "fp32"):
        for found in (round_nearest(x.t() if x.dim() == 2 else x, name), round_stochastic(x, name, dice())):
            assert found.dtype == torch.float32
            assert found.shape in (x.shape, x.t().shape if x.dim() == 2 else x.shape)
        if x.dim() == 2 and x.numel():  # a view that is not contiguous
            assert torch.equal(round_nearest(x.t(), name), round_nearest(x, name).t())
        assert round_nearest(x.half(), name).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_dice_choose_one_of_the_two_neighbours_and_leave_exact_numbers_alone(name):
    x = neighbourhood(name)
    down, up = (round_to(x, name, "toward_zero"), round_to(x, name, "stochastic", seed=0))
    assert same_bits(round_stochastic(held(name), name, dice()), held(name))
    for seed in range(4):
        found = round_stochastic(x, name, dice(seed))
        finite = x.isfinite()
        assert same_bits(found[~finite], x[~finite])
        assert torch.equal(found.signbit(), x.signbit())
        away = _away_from_zero(down[finite], name)
        low, high = down[finite].abs(), away.abs()
        exact = low == x[finite].abs()
        assert torch.equal(found[finite][exact], x[finite][exact])
        moved = found[finite][~exact].abs()
        assert bool(((moved == low[~exact]) | (moved == high[~exact])).all())
        # The exact stochastic rounding of the other file has the same two to choose from.
        other = up[finite][~exact].abs()
        assert bool(((other == low[~exact]) | (other == high[~exact])).all())


def _away_from_zero(down: torch.Tensor, name: str) -> torch.Tensor:
    """The next number of the format beyond `down`, in fp64's exact arithmetic; infinity beyond the largest."""
    fmt, size = FORMATS[name], down.double().abs()
    exponent = (torch.frexp(size).exponent - 1).clamp(min=fmt.min_exponent)
    exponent = torch.where(size == 0, fmt.min_exponent, exponent)
    above = size + torch.ldexp(torch.ones_like(size), exponent - fmt.mantissa_bits)
    return torch.where(above > fmt.max, torch.inf, above).float()


CASES = {
    "bf16": (1.0 + 2**-9, -3.14159, 2.0**-126 * 1.3, -(2.0**-133) * 2.25, 2.0**127 * 1.337, 1e-20),
    "fp16": (1.0 + 2**-13, -3.14159, 2.0**-14 * 0.7001, -(2.0**-24) * 0.25, 65500.0, 2.0**-24 * 7.6),
    "tf32": (1.0 + 2**-12, -3.14159, 2.0**-126 * 1.0003, -(2.0**-136) * 0.75, 2.0**127 * 1.3371, 1e-20),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_expectation_is_the_number_itself(name):
    """Up with the probability that is cut off: at 100,000 throws within five standard errors."""
    throws = 100_000
    for seed, number in enumerate(CASES[name]):
        x = torch.tensor(number)
        found = round_stochastic(x.expand(throws), name, dice(seed)).double()
        low, high = found.abs().min(), found.abs().max()
        assert low < x.double().abs() < high, "the dice fell on one side only"
        share = float((x.double().abs() - low) / (high - low))
        error = (share * (1 - share) / throws) ** 0.5
        assert float((found.abs() == high).double().mean()) == pytest.approx(share, abs=5 * error), number


@pytest.mark.parametrize("name", NAMES)
def test_between_the_largest_number_and_the_next_power_of_two_dice_may_give_infinity(name):
    fmt = FORMATS[name]
    gap = 2.0 ** (fmt.max_exponent - fmt.mantissa_bits)
    inside = torch.full((4000,), fmt.max + 0.25 * gap)
    found = round_stochastic(torch.cat([inside, -inside]), name, dice())
    assert set(found.abs().tolist()) == {fmt.max, torch.inf}
    assert 0.2 < found.isinf().double().mean() < 0.3 and torch.equal(found.signbit().sum(), torch.tensor(4000))
    if name == "fp16":
        assert round_stochastic(torch.tensor([65536.0, 1e30, -1e30]), name, dice()).isinf().all()


def test_the_draws_come_from_the_generator_and_advance_it():
    x = torch.randn(1000, generator=dice(3))
    generator = dice(1)
    first, second = (round_stochastic(x, "bf16", generator) for _ in range(2))
    assert torch.equal(first, round_stochastic(x, "bf16", dice(1))) and not torch.equal(first, second)
    state = torch.get_rng_state()
    round_stochastic(x, "bf16", dice(1))
    assert torch.equal(state, torch.get_rng_state())


def test_small_steps_add_up_with_dice_and_vanish_without():
    weight, step = torch.ones(2000), 2.0**-12  # a sixteenth of bf16's gap at 1
    plain, thrown, generator = weight.clone(), weight.clone(), dice()
    for _ in range(64):
        plain = round_nearest(plain + step, "bf16")
        thrown = round_stochastic(thrown + step, "bf16", generator)
    assert torch.equal(plain, weight)
    assert thrown.double().mean().item() == pytest.approx(1 + 64 * step, abs=5e-4)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp4", "e3m4", torch.float8_e5m2, "float17"])
def test_formats_without_a_fast_way_are_refused(name):
    for call in (round_nearest, lambda x, fmt: round_stochastic(x, fmt, dice())):
        with pytest.raises(LabError, match="There is no"):
            call(torch.ones(2), name)


def test_torchs_names_and_dtypes_are_understood():
    x = torch.randn(50, generator=dice())
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert torch.equal(round_nearest(x, dtype), round_nearest(x, name))
        assert torch.equal(round_nearest(x, str(dtype)), x.to(dtype).float())
