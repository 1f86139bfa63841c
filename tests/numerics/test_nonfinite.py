"""What a scaler looks for: an infinity or a NaN in any of many gradients, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.numerics.scaling import nonfinite

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_infinity_or_a_nan_is_found_wherever_it_is(dtype):
    clean = torch.randn(3, 50).to(dtype)
    for bad in (INF, -INF, NAN):
        for place in (0, 77, 149):
            tensor = clean.clone()
            tensor.view(-1)[place] = bad
            assert nonfinite([clean, tensor]) and nonfinite([tensor.t()]), (bad, place)
    assert not nonfinite([clean, clean.t()])


def test_large_finite_values_are_no_overflow_though_their_squares_sum_to_one():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        largest = torch.full((1000, 1000), torch.finfo(dtype).max, dtype=dtype)
        assert largest.float().square().sum().isinf() or dtype == torch.float16
        assert not nonfinite([largest, -largest])
        assert not nonfinite([torch.ones(3), largest])
    assert torch.full((2**20,), 65504.0, dtype=torch.float16).square().isinf().all()


def test_nothing_is_finite():
    assert not nonfinite([])
    assert not nonfinite([torch.empty(0), torch.empty(0, 4, dtype=torch.float16)])
    assert nonfinite([torch.empty(0), torch.tensor(NAN)])
