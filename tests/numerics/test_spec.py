"""labkit.numerics.spec: the figures of each format against torch.finfo, names, patterns, and errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from labkit.errors import LabError, UnknownNameError
from labkit.numerics import formats
from labkit.numerics.formats import FORMATS, Format, FormatError

TORCH = {name: fmt.torch_dtype for name, fmt in FORMATS.items() if fmt.torch_dtype is not None}
INTEGER = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def test_all_five_torch_dtypes_are_found():
    """An empty TORCH would make the comparison below pass with nothing compared."""
    assert sorted(TORCH) == ["bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"]


@pytest.mark.parametrize("name", TORCH)
def test_derived_figures_equal_torch_finfo(name):
    info, fmt = torch.finfo(TORCH[name]), FORMATS[name]
    assert (fmt.bits, fmt.max, fmt.eps) == (info.bits, info.max, info.eps)
    assert fmt.smallest_normal == info.smallest_normal
    # the next code after zero is torch's smallest subnormal
    assert fmt.smallest_subnormal == torch.tensor([1], dtype=INTEGER[fmt.bits]).view(TORCH[name]).double().item()


def test_parse_names_dtypes_and_patterns():
    assert Format.parse(torch.float16) is formats.fp16
    assert Format.parse("torch.float8_e4m3fn") is formats.fp8_e4m3
    assert Format.parse(" BFloat16 ") is formats.bf16
    assert Format.parse("e4m3").max == 240  # IEEE: the top exponent is given away to inf and NaN
    assert Format.parse("e4m3fn").max == 448
    custom = Format.parse("e3m4b5fn")
    assert (custom.exponent_bits, custom.mantissa_bits, custom.bias, custom.specials) == (3, 4, 5, "fn")
    assert custom.torch_dtype is None and formats.tf32.torch_dtype is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Format.parse("fp17"), "fp16"),
        (lambda: Format.parse("bfloat"), "bfloat16"),
        (lambda: Format.parse("e1m3"), "2 to 10 exponent bits"),
        (lambda: Format.parse("e11m20"), "2 to 10 exponent bits"),
        (lambda: Format.parse("e8m24"), "at most 32 bits"),
        (lambda: Format.parse("e5m2b2000"), "bias"),
        (lambda: Format("odd", 5, 2, specials="posit"), "ieee, fn, finite"),
        (lambda: formats.decode(256, "fp8_e5m2"), "Code 256"),
        (lambda: formats.decode([3, -1], "fp8_e5m2"), "Code -1"),
        (lambda: formats.decode(1.5, "fp16"), "encode()"),
        (lambda: formats.fields(2**16, "fp16"), "0 to 65535"),
        (lambda: formats.encode(float("nan"), "fp4"), "no code for NaN"),
        (lambda: formats.encode(1.0, "fp16", "up"), "nearest, toward_zero, stochastic"),
        (lambda: formats.encode(1.0, "fp16", "stochastic"), "seed=0"),
        (lambda: formats.encode(2**53 + 1, "fp32"), "2^53"),
        (lambda: formats.encode("1.0", "fp32"), "real numbers"),
        (lambda: formats.values("fp32"), "16 bits or fewer"),
    ],
)
def test_errors_say_what_is_wrong_and_the_remedy(call, says):
    with pytest.raises(LabError, match=says.replace("(", r"\(").replace(")", r"\)").replace("^", r"\^")) as error:
        call()
    assert error.value.remedy
    assert isinstance(error.value, (FormatError, UnknownNameError))


def test_importing_the_formats_does_not_import_torch():
    code = "import labkit.numerics.formats, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
