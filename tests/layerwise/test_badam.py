"""BAdam: whose turn it is, and that a block's steps are Adam's on that block."""

from __future__ import annotations

import copy

import pytest
import torch
from micro import Letters
from test_lisa import LAYERS, OPTIONS, deep

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, blocks_of
from labkit.layerwise.badam import ORDERS, BAdam
from labkit.layerwise.lisa import Lisa
from labkit.methods import FullFineTuning
from labkit.training import train

ALL = [*map(str, range(LAYERS)), OUTSIDE]


def turns(order, steps, **fields):
    """The blocks of each step."""
    method, task = BAdam(order=order, period=2, **fields), Letters()
    method.prepare(deep().train(), task, steps)
    found = []
    for i in range(steps):
        method.step(task.batch(task.train[4 * i % 48 : 4 * i % 48 + 8]))
        [name] = method.awake.names
        found.append(name)
        assert {id(p) for p in method._optimizer.state} == {id(p) for p in method._blocks[name]}
    return found


def test_every_block_has_its_turn_of_some_steps_in_order():
    assert turns("ordered", 14, outside=True) == [name for name in ALL for _ in range(2)]
    assert turns("descending", 12) == [name for name in reversed(ALL[:-1]) for _ in range(2)]
    two = turns("random", 4 * LAYERS, seed=3)
    rounds = two[: 2 * LAYERS : 2], two[2 * LAYERS :: 2]
    assert all(sorted(one) == ALL[:-1] for one in rounds) and rounds[0] != rounds[1]
    assert turns("random", 4, seed=3) == two[:4]


def test_a_rehearsal_without_a_model_is_what_happens():
    for order in ("ordered", "descending", "random"):
        expected = [(name,) for name in turns(order, 26, seed=5)]
        assert BAdam(order=order, period=2, seed=5).rehearsed(LAYERS, 26) == expected
    task, lisa = Letters(), Lisa(layers=3, period=2, seed=5)
    lisa.prepare(deep().train(), task, 12)
    seen = []
    for _ in range(12):
        lisa.step(task.batch(task.train[:8]))
        seen.append(lisa.awake.names)
    assert Lisa(layers=3, period=2, seed=5).rehearsed(LAYERS, 12) == seen
    with pytest.raises(LabError, match="3 of 2 layers"):
        lisa.rehearsed(2, 1)


def test_a_block_s_steps_are_adamw_on_that_block():
    model, other, task = deep(), deep(), Letters()
    method = BAdam(order="ordered", period=4)
    mine = train(model, task, method, **{**OPTIONS, "steps": 4})
    other.requires_grad_(False)
    for parameter in blocks_of(other)["0"]:
        parameter.requires_grad_(True)

    class Same(FullFineTuning):
        def choose(self, model, task):
            pass

    expected = train(other, task, Same(), **{**OPTIONS, "steps": 4})
    assert mine.losses == pytest.approx(expected.losses, abs=1e-6)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    for category in ("weights", "gradients", "optimizer_states"):
        assert mine.ledger.residual(category) == 0, category


def test_gauss_southwell_takes_the_block_with_the_largest_gradient_and_frees_each():
    method, task = BAdam(order="gauss-southwell", period=1, outside=True), Letters()
    model = deep().train()
    method.prepare(model, task, 6)
    batch = task.batch(task.train[:8])
    norms = method.gradient_norms(batch)
    assert all(p.grad is None for p in model.parameters())
    twin = copy.deepcopy(model).requires_grad_(True)
    task.loss(twin, batch).backward()
    for name, params in blocks_of(twin).items():
        expected = torch.stack([p.grad.square().sum() for p in params if p.grad is not None]).sum().sqrt()
        assert norms[name] == pytest.approx(expected.item(), rel=1e-5)
    method.step(batch)
    before = method.gradient_norms(batch)
    method.step(batch)
    assert method.awake.names == (max(before, key=before.get),)
    awake = {id(p) for p in method.awake.parameters}
    assert all(p.requires_grad == (id(p) in awake) for p in model.parameters())


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_trains(order):
    run = train(deep(), Letters(), BAdam(order=order, period=3, learning_rate=3e-3), **{**OPTIONS, "steps": 24})
    assert sum(run.losses[-6:]) < sum(run.losses[:6])


def test_wrong_settings_end_before_any_training():
    with pytest.raises(LabError, match="order of blocks 'sorted'"):
        turns("sorted", 1)
    with pytest.raises(LabError, match="every -1 steps"):
        train(deep(), Letters(), BAdam(period=-1), **OPTIONS)
