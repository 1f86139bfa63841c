"""labkit.numerics.formats against torch and numpy, bit for bit, and against the properties of rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit.numerics import formats
from labkit.numerics.formats import FORMATS, Format

TORCH = {name: fmt.torch_dtype for name, fmt in FORMATS.items() if fmt.torch_dtype is not None}
SMALL = [name for name in TORCH if name != "fp32"]
INTEGER = {8: (torch.uint8, 0xFF), 16: (torch.int16, 0xFFFF), 32: (torch.int32, 0xFFFFFFFF)}
# torch saturates E4M3FN from 2.12 on (pytorch pull request 178817) and wrote NaN before
TORCH_SATURATES_E4M3 = bool(torch.tensor([1e9]).to(torch.float8_e4m3fn).float().isfinite())

fp32_patterns = arrays(np.uint32, st.integers(1, 64), elements=st.integers(0, 2**32 - 1))


def torch_codes(tensor: torch.Tensor) -> np.ndarray:
    integer, mask = INTEGER[tensor.element_size() * 8]
    return tensor.view(integer).numpy().astype(np.int64) & mask


def all_codes(name: str) -> tuple[np.ndarray, torch.Tensor]:
    """Every code of a format of at most 16 bits, and torch's tensor with the same bits."""
    bits = FORMATS[name].bits
    codes = np.arange(2**bits)
    storage = codes.astype(np.uint8 if bits == 8 else np.uint16).view(np.uint8 if bits == 8 else np.int16)
    return codes, torch.from_numpy(storage).view(TORCH[name])


def assert_same_bits(mine: np.ndarray, theirs: np.ndarray) -> None:
    """Equal float32 arrays with -0.0 apart from 0.0 and NaN equal to NaN."""
    mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs))
    number = ~np.isnan(mine)
    np.testing.assert_array_equal(mine[number].view(np.uint32), theirs[number].view(np.uint32))


@pytest.mark.parametrize("name", SMALL)
def test_decode_equals_torch_on_every_code(name):
    codes, tensor = all_codes(name)
    assert_same_bits(formats.decode(codes, name), tensor.float().numpy())


@pytest.mark.parametrize("name", SMALL)
def test_encode_returns_every_code_that_is_a_number(name):
    codes, tensor = all_codes(name)
    number = ~torch.isnan(tensor.float()).numpy()
    np.testing.assert_array_equal(formats.encode(tensor.float().numpy(), name)[number], codes[number])
    np.testing.assert_array_equal(formats.encode(tensor.float().numpy()[number], name, "toward_zero"), codes[number])


@given(fp32_patterns)
def test_fp32_decode_equals_numpys_view_of_the_bits(patterns):
    with np.errstate(invalid="ignore"):
        assert_same_bits(formats.decode(patterns.astype(np.int64), "fp32"), patterns.view(np.float32))


@settings(max_examples=300)
@given(patterns=fp32_patterns, name=st.sampled_from(SMALL))
def test_rounding_fp32_equals_torch(patterns, name):
    x = patterns.view(np.float32)
    theirs = torch.from_numpy(x.copy()).to(TORCH[name])
    saturate = name == "fp8_e4m3" and TORCH_SATURATES_E4M3
    mine = formats.encode(x, name, saturate=saturate)
    number = ~np.isnan(x) & ~torch.isnan(theirs.float()).numpy()
    np.testing.assert_array_equal(mine[number], torch_codes(theirs)[number])
    assert_same_bits(formats.decode(mine, name), theirs.float().numpy())


@pytest.mark.parametrize("name", SMALL)
def test_every_midpoint_and_its_neighbours_equal_torch(name):
    """Ties, and the float32 next to each tie on both sides, up to beyond the largest value."""
    value = formats.values(name)
    ulp = formats.spacing(FORMATS[name].max, name)
    middle = np.append((value[:-1] + value[1:]) / 2, FORMATS[name].max + ulp / 2).astype(np.float32)
    x = np.concatenate([middle, np.nextafter(middle, np.float32("inf")), np.nextafter(middle, np.float32("-inf"))])
    saturate = name == "fp8_e4m3" and TORCH_SATURATES_E4M3
    theirs = torch.from_numpy(x).to(TORCH[name]).float().numpy()
    assert_same_bits(formats.round_to(x, name, saturate=saturate), theirs)


def test_float64_to_fp16_equals_numpy_without_double_rounding():
    """1 + 2^-11 + 2^-40 lies above the tie; through fp32 it would land on it and go to the even 1.0."""
    x = 1 + 2.0**-11 + 2.0**-40
    assert formats.round_to(x, "fp16") == float(np.float16(x)) == 1 + 2.0**-10
    assert formats.round_to(np.float32(x), "fp16") == 1.0


@given(st.floats(width=64, allow_nan=False))
def test_any_float64_to_fp32_and_fp16_equals_numpy(x):
    with np.errstate(over="ignore"):
        assert_same_bits(formats.round_to(np.array([x]), "fp32"), np.array([x]).astype(np.float32))
        assert_same_bits(formats.round_to(np.array([x]), "fp16"), np.array([x]).astype(np.float16))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fp16", np.inf), ("bf16", np.inf), ("fp8_e5m2", np.inf), ("fp8_e4m3", np.nan), ("fp4_e2m1", 6.0)],
)
def test_overflow_by_policy_and_saturation(name, expected):
    fmt = FORMATS[name]
    tie = fmt.max + formats.spacing(fmt.max, fmt) / 2
    beyond = np.array([np.nextafter(tie, np.inf), 1e39, np.inf])
    np.testing.assert_array_equal(formats.round_to(beyond, fmt), expected)
    np.testing.assert_array_equal(formats.round_to(-beyond, fmt), -expected)
    np.testing.assert_array_equal(formats.round_to(beyond, fmt, saturate=True), fmt.max)
    np.testing.assert_array_equal(formats.round_to(beyond[:2], fmt, "toward_zero"), fmt.max)
    assert formats.round_to(np.nextafter(tie, 0), fmt) == fmt.max


def test_the_tie_above_448_goes_to_the_even_code():
    assert formats.round_to(464.0, "fp8_e4m3") == 448  # 448 is code 0x7e; 480 would be 0x7f, the NaN
    assert np.isnan(formats.round_to(464.01, "fp8_e4m3"))


def test_tf32_is_fp32_with_13_mantissa_bits_fewer():
    assert (formats.tf32.bits, formats.tf32.storage_bits) == (19, 32)
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    cut = (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    np.testing.assert_array_equal(formats.round_to(x, "tf32", "toward_zero"), cut)
    assert formats.tf32.max == (2 - 2.0**-10) * 2.0**127


def test_fp4_values_are_the_fifteen_of_the_mx_specification():
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(formats.values("fp4_e2m1"), [-v for v in positive[:0:-1]] + positive)


@pytest.mark.parametrize("name", [*SMALL, "fp4_e2m1", "e3m4", "e3m2finite", "e4m3fn", "e2m3b5fn", "e1m2finite"])
def test_values_counts_and_neighbours(name):
    fmt = Format.parse(name)
    value = formats.values(fmt)
    assert len(value) == fmt.finite_values == len(np.unique(value))
    assert value[-1] == fmt.max and value[len(value) // 2 + 1] == fmt.smallest_subnormal
    assert np.all(np.diff(value) > 0)
    positive = value[len(value) // 2 :]
    np.testing.assert_array_equal(np.diff(positive), formats.spacing(positive[:-1], fmt))
    np.testing.assert_array_equal(formats.round_to(value, fmt), value)


@given(st.floats(-70000, 70000), st.sampled_from(["fp16", "bf16", "fp8_e5m2", "tf32", "e3m4", "fp4_e2m1"]))
def test_nearest_is_never_farther_than_any_neighbour(x, name):
    fmt = Format.parse(name)
    if abs(x) > fmt.max:
        return
    near, cut = formats.round_to(x, fmt), formats.round_to(x, fmt, "toward_zero")
    gap = formats.spacing(x, fmt)
    assert abs(near - x) <= gap / 2
    assert abs(cut) <= abs(x) < abs(cut) + gap


@given(x=st.floats(-400, 400), seed=st.integers(0, 1000), name=st.sampled_from(["fp16", "fp8_e4m3", "bf16"]))
def test_stochastic_rounding_takes_one_of_the_two_neighbours(x, seed, name):
    out = formats.round_to(np.full(20, x), name, "stochastic", seed=seed)
    cut = formats.round_to(x, name, "toward_zero")
    assert set(np.abs(out)) <= {abs(cut), abs(cut) + formats.spacing(x, name)}


@pytest.mark.parametrize("x", [1.0001, -0.3, 3e-8, 2049.25, 6.2e-5])
def test_stochastic_rounding_is_unbiased(x):
    n = 200_000
    out = formats.round_to(np.full(n, x), "fp16", "stochastic", seed=3)
    gap = formats.spacing(x, "fp16")
    fraction = abs(x) / gap % 1
    four_sigma = 4 * gap * np.sqrt(fraction * (1 - fraction) / n)
    assert abs(out.mean() - x) <= four_sigma
    # the test can tell: nearest rounding misses the same mark
    assert abs(formats.round_to(x, "fp16") - x) > four_sigma


@pytest.mark.parametrize("name", [*SMALL, "fp4_e2m1"])
def test_stochastic_rounding_never_moves_a_value_of_the_format(name):
    value = formats.values(name)
    for seed in range(5):
        np.testing.assert_array_equal(formats.round_to(value, name, "stochastic", seed=seed), value)


def test_stochastic_rounding_repeats_with_its_seed_and_shares_a_generator():
    x = np.linspace(0, 1, 1000)
    first, again, other = (formats.encode(x, "fp8_e5m2", "stochastic", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(formats.encode(x, "fp8_e5m2", "stochastic", seed=rng), first)
    assert (formats.encode(x, "fp8_e5m2", "stochastic", seed=rng) != first).any()


def test_shapes_kinds_and_devices_are_kept():
    tensor = torch.tensor([[0.1, -0.0], [1e6, float("nan")]], dtype=torch.bfloat16)
    codes = formats.encode(tensor, "fp16")
    assert codes.shape == (2, 2) and codes.dtype == torch.int64
    rounded = formats.round_to(tensor, "fp16")
    assert rounded.dtype == torch.float32 and torch.signbit(rounded[0, 1])
    assert torch.isinf(rounded[1, 0]) and torch.isnan(rounded[1, 1])
    assert formats.round_to(np.float64(0.1), "fp16").dtype == np.float64
    assert formats.round_to(np.array([0.1], np.float32), "fp16").dtype == np.float32
    assert formats.round_to(np.array([1e-300]), "e10m5").dtype == np.float64
    assert formats.encode(np.zeros((0, 3)), "fp16").shape == (0, 3)
    assert formats.encode([1, 2], "fp16").tolist() == [0x3C00, 0x4000]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0, "zero"),
        (0x8000, "zero"),
        (1, "subnormal"),
        (0x3C00, "normal"),
        (0x7C00, "infinity"),
        (0xFC01, "NaN"),
    ],
)
def test_fields_name_the_kind(code, kind):
    part = formats.fields(code, "fp16")
    assert part.kind == kind
    assert part.code == part.sign << 15 | part.exponent << 10 | part.mantissa
    assert part.bits.replace(" ", "") == f"{code:016b}"


def test_describe_is_the_formula_with_its_numbers():
    assert formats.describe(0x3E00, "fp16") == "0 01111 1000000000 = +2^(15 - 15) · (1 + 512/1024) = 1.5 (normal)"
    assert formats.describe(0x8001, "fp16").endswith(f"-2^(1 - 15) · (0 + 1/1024) = {-(2.0**-24)!r} (subnormal)")
    assert formats.describe(0x7F, "fp8_e4m3") == "0 1111 111 = +NaN"
