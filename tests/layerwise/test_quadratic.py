"""Block coordinate descent on a quadratic: each turn is a minimum over its block, and all orders reach the whole's."""

from __future__ import annotations

import itertools

import pytest
import torch

from labkit.errors import LabError
from labkit.layerwise.quadratic import ORDERS, Quadratic


def test_a_turn_is_the_minimum_over_its_block_alone():
    f = Quadratic.coupled(4, 3, 0.8)
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = f.minimized(x, 2)
    gradient = f.matrix @ found - f.offset
    assert gradient[6:9].abs().max() < 1e-10 < gradient[:6].abs().max()
    assert torch.equal(found[:6], x[:6]) and torch.equal(found[9:], x[9:])
    assert f.value(found) < f.value(x)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_falls_to_the_minimum(order):
    f = Quadratic.coupled(4, 3, 0.8)
    values = f.in_order(torch.zeros(12, dtype=torch.float64), order, 400)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    assert values[-1] < 1e-6 * values[0]


def test_blocks_that_know_nothing_of_each_other_need_one_round():
    f, x = Quadratic.coupled(4, 3, 0.0), torch.zeros(12, dtype=torch.float64)
    assert f.in_order(x, "ordered", 4)[-1] < 1e-12 < f.in_order(x, "ordered", 3)[-1]
    assert Quadratic.coupled(4, 3, 0.9).in_order(x, "ordered", 4)[-1] > 1e-4
    one = Quadratic.coupled(1, 12, 0.9)
    assert one.in_order(x, "ordered", 1)[-1] < 1e-12, "one block is the whole"


def test_paths_begin_where_they_begin_and_descend():
    f = Quadratic(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), torch.zeros(2))
    start = torch.tensor([2.0, 1.0])
    path, all_at_once = f.descend(start, [0, 1, 0]), f.steepest(start, 3)
    assert torch.equal(path[0], start) and path[1][1] == 1.0 and path[1][0] == pytest.approx(-0.9)
    assert len(path) == len(all_at_once) == 4
    assert [f.value(x) for x in all_at_once] == sorted((f.value(x) for x in all_at_once), reverse=True)


def test_other_matrices_are_refused():
    with pytest.raises(LabError, match="positive definite"):
        Quadratic(-torch.eye(2), torch.zeros(2))
    with pytest.raises(LabError, match="one size"):
        Quadratic(torch.eye(3), torch.zeros(3), 2)
