"""The table `formats` against torch.finfo, against counted codes, and against what the lecture published."""

from __future__ import annotations

import json

import pytest
import torch

from labkit.bench import formats as bench
from labkit.numerics import formats

ROWS = {row["format"]: row for row in bench.rows()}
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_e4m3": torch.float8_e4m3fn,
}
INTEGER = {8: torch.uint8, 16: torch.int16}


@pytest.mark.parametrize("name", DTYPES)
def test_rows_equal_torch_finfo(name):
    row, info = ROWS[name], torch.finfo(DTYPES[name])
    assert (row["bits"], row["max"], row["smallest_normal"], row["eps"]) == (
        info.bits,
        info.max,
        info.smallest_normal,
        info.eps,
    )
    assert row["bits"] == 1 + row["exponent_bits"] + row["mantissa_bits"]


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "fp32"])
def test_finite_values_and_smallest_subnormal_equal_a_count_over_torchs_codes(name):
    bits = ROWS[name]["bits"]
    codes = torch.arange(2**bits, dtype=torch.int32)
    value = codes.to(INTEGER[bits]).view(DTYPES[name]).double()
    finite = value[value.isfinite()]
    assert ROWS[name]["finite_values"] == len(finite.unique())  # unique() merges +0 and -0
    assert ROWS[name]["smallest_subnormal"] == finite[finite > 0].min().item()


def test_rows_without_a_torch_dtype():
    assert ROWS["fp4_e2m1"]["finite_values"] == 15 and ROWS["fp4_e2m1"]["max"] == 6
    assert ROWS["tf32"]["bits"] == 19 and ROWS["tf32"]["eps"] == ROWS["fp16"]["eps"]
    assert ROWS["tf32"]["smallest_normal"] == ROWS["fp32"]["smallest_normal"]
    assert set(ROWS) == set(formats.FORMATS)


def test_published_figures_hold_except_for_the_slip():
    for published in bench.PUBLISHED:
        row = ROWS[published["format"]]
        for column in set(row) & set(published) - {"format"}:
            assert float(f"{row[column]:.6g}") == pytest.approx(published[column], rel=2e-6), column
        assert published["source"]
    slip = [p for p in bench.PUBLISHED if "range" in p]
    low, high = (float(part) for part in slip[0]["range"].split(" to "))
    assert high / ROWS["fp16"]["max"] > 1e10 and ROWS["fp16"]["smallest_normal"] / low > 1e9


def test_the_table_is_plain_json():
    assert json.loads(json.dumps(bench.rows())) == bench.rows()
