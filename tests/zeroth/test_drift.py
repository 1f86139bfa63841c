"""The walk's drift: none beside w, some in every format, less with fewer roundings, and as the root of the steps."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabError, UnknownNameError
from labkit.zeroth import noise
from labkit.zeroth.drift import drift

WEIGHT = 0.05 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
MARKS = (1, 4, 16, 64)


def test_drift_is_none_beside_w_and_grows_as_the_root_of_the_steps():
    for dtype, unit in ((torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)):
        w = WEIGHT.to(dtype)
        before = w.clone()
        assert drift(w, 1e-3, MARKS, "exact") == [0.0] * 4
        three, walk = (drift(w, 1e-3, MARKS, way) for way in ("three moves", "walk"))
        assert torch.equal(w, before)
        assert 0.2 * unit < three[0] < 3 * unit, "a step is off by a few roundings, each up to half a spacing"
        for far in (three, walk):
            assert 4 < far[3] / far[0] < 16, "64 steps are about 8 times one"
        assert 0.5 < walk[3] / three[3] < 0.95, "√(2/3), two roundings where the other makes three"


def test_three_moves_are_those_of_the_algorithm():
    w = WEIGHT.to(torch.bfloat16)
    moved = w.clone()
    for seed in (1, 2):
        z = noise.normal(noise.key(seed, "w"), 0, w.numel()).view(w.shape)
        for scale in (0.01, -0.02, 0.01):
            moved = (moved.float() + scale * z).to(w.dtype)
    [found] = drift(w, 0.01, (2,), "three moves")
    assert found == pytest.approx(float((moved.double() - w.double()).norm() / w.double().norm()), rel=1e-9)


def test_what_cannot_be_walked_is_refused():
    with pytest.raises(UnknownNameError):
        drift(WEIGHT, 1e-3, (1,), "home")
    for marks in ((), (0, 1), (3, 2)):
        with pytest.raises(LabError, match="no rising numbers"):
            drift(WEIGHT, 1e-3, marks, "walk")
