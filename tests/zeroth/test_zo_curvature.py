"""A Hessian's size from gradients alone, against one that is known."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabError
from labkit.zeroth import measure
from labkit.zeroth.objectives import Quadratic


def test_a_hessian_is_measured_by_gradients_alone():
    turned, _ = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(1)).double())
    values = torch.arange(1, 31).double() ** -2 * 7
    bowl, x = Quadratic(turned @ torch.diag(values) @ turned.T), torch.ones(30).double()
    v = torch.linspace(-2, 5, 30).double()
    assert torch.allclose(measure.times_hessian(bowl.gradient, x, v), bowl.hessian @ v, atol=1e-9)
    found = measure.curvature(bowl.gradient, x, powers=12, probes=400)
    assert found.largest == pytest.approx(7, rel=1e-6)
    assert abs(found.trace - bowl.trace) < 4 * found.trace_error < 0.2 * bowl.trace
    assert found.effective_rank == pytest.approx(found.trace / 7, rel=1e-6)
    downhill = measure.curvature(lambda x: -bowl.gradient(x), x, powers=12, probes=2)
    assert downhill.largest == pytest.approx(-7, rel=1e-6)


@pytest.mark.parametrize(("powers", "probes"), [(0, 8), (4, 1)])
def test_too_little_to_tell_is_refused(powers, probes):
    with pytest.raises(LabError, match="tell no curvature"):
        measure.curvature(lambda x: x, torch.ones(3), powers, probes)
