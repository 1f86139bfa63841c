"""Shares, layers, histogram, window and lost updates against counting over explicitly rounded values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from micro import Small

from labkit.errors import LabError
from labkit.numerics import gradients as counted
from labkit.numerics.formats import FORMATS, round_to

ALL = tuple(FORMATS)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LISTS = st.lists(FLOATS, min_size=1, max_size=50)


def brute(x: torch.Tensor, fmt: str, scale: float = 1.0) -> tuple[int, int, int, int, int]:
    """Values, zeros, and how many become zero, are below normal but not lost, or leave the range: each one rounded."""
    values = (x.double() * scale).flatten().tolist()
    found = [(v, abs(float(round_to(v, fmt)))) for v in values if v]
    normal, fmt_max = FORMATS[fmt].smallest_normal, FORMATS[fmt].max
    return (
        len(found),
        len(values) - len(found),
        sum(r == 0 for _, r in found),
        sum(abs(v) < normal and r != 0 for v, r in found),
        sum(not r <= fmt_max for _, r in found),  # infinity, and E4M3's NaN
    )


def counts(shares: counted.RangeShares) -> tuple[int, ...]:
    parts = (shares.underflow, shares.subnormal, shares.overflow)
    return shares.values, shares.zeros, *(round(part * shares.values) for part in parts)


@pytest.mark.parametrize("fmt", ALL)
@settings(max_examples=40, deadline=None)
@given(LISTS, st.integers(-30, 30))
def test_shares_equal_a_count_of_rounded_values(fmt, numbers, power):
    x = torch.tensor(numbers)
    assert counts(counted.shares([x], fmt, 2.0**power)) == brute(x, fmt, 2.0**power)


def at_borders(fmt: str) -> torch.Tensor:
    """The three borders and the fp64 numbers next to each, of both signs."""
    found = FORMATS[fmt]
    gap = 2.0 ** (found.max_exponent - found.mantissa_bits)
    sub = found.smallest_subnormal
    places = [sub / 2, sub, found.smallest_normal - sub / 2, found.smallest_normal, found.max, found.max + gap / 2]
    x = torch.tensor([p for p in places], dtype=torch.float64)
    near = torch.cat([x, torch.nextafter(x, torch.tensor(math.inf).double()), torch.nextafter(x, x * 0)])
    return torch.cat([near, -near, torch.tensor([0.0, 1.0]).double()])


@pytest.mark.parametrize("fmt", ALL)
def test_borders_lie_exactly_where_rounding_puts_them(fmt):
    x = at_borders(fmt)
    assert counts(counted.shares([x], fmt)) == brute(x, fmt)
    low, normal, end = counted.borders(fmt)
    assert round_to(low, fmt) == 0 < round_to(math.nextafter(low, 1), fmt)
    assert round_to(normal, fmt) == normal == FORMATS[fmt].smallest_normal
    if math.isfinite(end):
        assert round_to(math.nextafter(end, 0), fmt) == FORMATS[fmt].max and not abs(round_to(end, fmt)) < math.inf
    else:
        assert FORMATS[fmt].specials == "finite" and round_to(1e30, fmt) == FORMATS[fmt].max


def test_the_figures_of_fp16():
    assert counted.borders("fp16") == (2.0**-25, 2.0**-14, 65520.0)
    x = torch.tensor([0.0, 2.0**-25, 1.01 * 2.0**-25, 1e-5, -1.0, 65519.0, -65520.0, 1e9])
    found = counted.shares([x], torch.float16)
    assert found == counted.RangeShares(7, 1, 1 / 7, 2 / 7, 2 / 7)


def test_shares_are_of_all_tensors_together_in_any_dtype():
    parts = [
        torch.tensor([[1e-8, 1.0]]),
        torch.tensor([0.0, 2.0]).bfloat16(),
        torch.tensor(1e-300, dtype=torch.float64),
        torch.empty(0),
    ]
    assert counted.shares(parts, "fp16") == counted.RangeShares(4, 1, 0.5, 0.0, 0.0)
    assert counted.shares(parts, "fp16", 2.0**16) == counted.RangeShares(4, 1, 0.25, 0.0, 0.5)
    assert counted.shares([torch.zeros(3)], "fp16") == counted.RangeShares(0, 3, 0.0, 0.0, 0.0)
    tied = torch.zeros(2, requires_grad=True)
    assert counted.shares([tied], "bf16").zeros == 2


def test_what_cannot_be_counted_is_said():
    for bad in (math.inf, -math.inf, math.nan):
        wrong = torch.tensor([1.0, bad])
        for call in (
            lambda: counted.shares([torch.ones(2), wrong], "fp16"),  # noqa: B023
            lambda: counted.magnitudes([wrong]),  # noqa: B023
            lambda: counted.histogram(wrong),  # noqa: B023
            lambda: counted.window(wrong, "fp16"),  # noqa: B023
            lambda: counted.lost_updates([(wrong, torch.ones(2))], "fp16"),  # noqa: B023
            lambda: counted.lost_updates([(torch.ones(2), wrong)], "fp16"),  # noqa: B023
        ):
            with pytest.raises(LabError, match="infinit"):
                call()
    for call in (
        lambda: counted.shares([], "fp16"),
        lambda: counted.shares([torch.empty(0)], "fp16"),
        lambda: counted.magnitudes([]),
        lambda: counted.magnitudes([torch.zeros(4)]),
        lambda: counted.histogram(torch.empty(0)),
        lambda: counted.window(torch.zeros(2), "fp16"),
        lambda: counted.by_layer(torch.nn.Linear(2, 2), "fp16"),
    ):
        with pytest.raises(LabError, match="no values"):
            call()
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(LabError, match="scaled by"):
            counted.shares([torch.ones(1)], "fp16", scale)
    with pytest.raises(LabError, match="fp17"):
        counted.shares([torch.ones(1)], "fp17")
    with pytest.raises(LabError, match="different from zero"):
        counted.lost_updates([(torch.ones(2), torch.zeros(2))], "fp16")
    with pytest.raises(LabError, match="infinite or NaN in fp16"):
        counted.lost_updates([(torch.tensor([1e5]), torch.ones(1))], "fp16")


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    made = Small()
    (made(torch.tensor([[1, 2, 3]])).square().mean() * 1e-5).backward()
    return made


@pytest.mark.parametrize(("fmt", "scale"), [("fp16", 1.0), ("fp16", 2.0**10), ("fp8_e4m3", 2.0**20), ("bf16", 1.0)])
def test_by_layer_equals_a_count_of_each_layers_own(model, fmt, scale):
    rows = counted.by_layer(model, fmt, scale)
    parts = {
        "embedding": "embed",
        "layer 0": "layers.0.",
        "layer 1": "layers.1.",
        "final norm": "norm",
        "head": "lm_head",
    }
    assert [row["layer"] for row in rows] == list(parts)
    for row in rows:
        own = [p.grad.flatten() for n, p in model.named_parameters() if n.startswith(parts[row["layer"]])]
        x = torch.cat(own)
        values, zeros, under, subnormal, over = brute(x, fmt, scale)
        assert (row["values"], row["zeros"]) == (values, zeros)
        found = [row[name] for name in ("underflow", "subnormal", "overflow")]
        assert found == pytest.approx([under / values, subnormal / values, over / values])
        sizes = sorted(v for v in x.abs().tolist() if v)
        assert row["median"] == pytest.approx(sizes[(len(sizes) - 1) // 2] * scale)
    assert sum(row["zeros"] for row in rows) >= 9  # three embedding rows were not looked up
    together = counted.shares(counted.gradients(model).values(), fmt, scale)
    assert sum(row["values"] for row in rows) == together.values
    assert sum(row["values"] * row["underflow"] for row in rows) == pytest.approx(together.values * together.underflow)


def test_gradients_are_those_that_the_model_holds(model):
    found = counted.gradients(model)
    assert "unused.weight" not in found and not any(g.requires_grad for g in found.values())
    assert found["lm_head.weight"].data_ptr() == model.lm_head.weight.grad.data_ptr()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "layer 11"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "final norm"),
    ],
)
def test_layers_are_named_from_their_parameters(name, layer):
    assert counted.layer_of(name) == layer


@settings(max_examples=60, deadline=None)
@given(LISTS)
@example([1.0, 2.0, math.nextafter(2.0, 0), -0.5, 0.0, 1e-45, 3.4028234663852886e38])
def test_the_histogram_counts_every_power_of_two(numbers):
    held = [abs(v) for v in torch.tensor(numbers).tolist() if v]
    if not held:
        return
    found = counted.histogram(torch.tensor(numbers))
    expected: dict[int, int] = {}
    for v in held:
        k = math.frexp(v)[1] - 1
        assert 2.0**k <= v < 2.0 ** (k + 1)
        expected[k] = expected.get(k, 0) + 1
    assert found == {k: n / len(held) for k, n in sorted(expected.items())} and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(2.0**-40, 2.0**20, width=32), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]),
)
@example([2.0**-25, 65504.0, 1.0], 0.0)
@example([math.nextafter(2.0**-25, 1.0), 65520.0], 0.0)
@example([464.0], 0.0)
@example([2.0**-10], 0.0)
def test_the_window_is_every_scale_that_loses_no_more(fmt, numbers, lose):
    x = torch.tensor(numbers)
    low, high = counted.window(x, fmt, lose)

    def fits(power: int) -> tuple[bool, bool]:
        found = counted.shares([x], fmt, 2.0**power)
        return round(found.underflow * found.values) / found.values <= lose, found.overflow == 0

    assert fits(low)[0] and not fits(low - 1)[0]
    assert fits(high)[1] and (high == counted.MOST or not fits(high + 1)[1])


def test_the_window_may_lose_exactly_the_share():
    x = torch.cat([torch.full((29,), 2.0**-40), torch.ones(71)])
    assert counted.window(x, "fp16", lose=0.29)[0] == counted.window(x[29:], "fp16", lose=0.0)[0]


def test_the_window_says_so_where_no_scale_fits():
    low, high = counted.window(torch.tensor([2.0**-40, 2.0**10]), "fp16", lose=0.0)
    assert (low, high) == (16, 5)


def test_a_sample_of_magnitudes_keeps_the_largest_and_can_be_drawn_again():
    x = torch.cat([torch.linspace(-1, 1, 2001), torch.tensor([-7.5, 0.0])])
    whole = counted.magnitudes([x[:1000], x[1000:].view(-1, 17)])
    assert torch.equal(whole.sort().values, x[x != 0].abs().sort().values)
    some = counted.magnitudes([x], limit=100)
    assert some.numel() == 100 and some.max() == 7.5 and bool(torch.isin(some, whole).all())
    assert torch.equal(some, counted.magnitudes([x], limit=100)) and not torch.equal(
        some, counted.magnitudes([x], limit=100, seed=1)
    )
