"""Table `formats`: range and precision of every number format of lesson 01, computed from its description.

The rows follow from exponent bits, mantissa bits, bias and special values alone (labkit.numerics.spec), so
they are the same on every machine; tests/bench/test_formats.py compares them with torch.finfo. The lecture
(Stanford CS224N, lecture 12, 2024) prints torch.finfo of fp16 and fp32's epsilon, and gives fp16's range
as "2e-14 to 2e15", which means 2^-14 to 2^15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.numerics.spec import FORMATS

if TYPE_CHECKING:
    from labkit.scale import Scale

TITLE = "Range and precision of the floating-point formats of deep learning"
UNITS = {"bits": "bit", "exponent_bits": "bit", "mantissa_bits": "bit"}

_SOURCE = "Stanford CS224N, lecture 12 (2024)"
PUBLISHED = [
    {
        "format": "fp16",
        "max": 65504.0,
        "smallest_normal": 6.10352e-05,
        "eps": 0.000976562,
        "resolution": 0.001,
        "source": f"{_SOURCE}, torch.finfo(torch.float16) as printed",
    },
    {
        "format": "fp16",
        "range": "2e-14 to 2e15",
        "note": "a slip for 2^-14 to 2^15; the largest value is 65504, just under 2^16",
        "source": _SOURCE,
    },
    {"format": "fp32", "exponent_bits": 8, "mantissa_bits": 23, "eps": 2.0**-23, "source": _SOURCE},
]


def rows(scale: Scale | None = None) -> list[dict]:
    """One row for each named format, widest first. The scale changes nothing: the figures are exact."""
    return [
        {
            "format": fmt.name,
            "bits": fmt.bits,
            "exponent_bits": fmt.exponent_bits,
            "mantissa_bits": fmt.mantissa_bits,
            "bias": fmt.bias,
            "max": fmt.max,
            "smallest_normal": fmt.smallest_normal,
            "smallest_subnormal": fmt.smallest_subnormal,
            "eps": fmt.eps,
            "finite_values": fmt.finite_values,
        }
        for fmt in FORMATS.values()
    ]
