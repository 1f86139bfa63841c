"""A random subspace: P is what its rule says, no matrix of it exists, and all dimensions are full fine-tuning."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peers import base
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.adapters.intrinsic import NAME, Intrinsic, Projection
from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.methods import FullFineTuning
from labkit.models import parameters
from labkit.tasks import Batch


class Words:
    """A task on random tokens, in batches that depend on their number."""

    name = "words"

    def batch(self, number: int) -> Batch:
        ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(number))
        return Batch(ids, torch.ones_like(ids), ids[:, 0])

    def loss(self, model, batch):
        return model(input_ids=batch.input_ids, labels=batch.input_ids).loss


def trained(method, model=None, steps: int = 4):
    model, task = model or base("llama"), Words()
    method.prepare(model, task, steps)
    return model, [method.step(task.batch(number)).item() for number in range(steps)]


def flat(model):
    return torch.cat([p.detach().reshape(-1) for name, p in model.named_parameters() if name != NAME])


def dense(projection: Projection):
    """P, which nothing but a test forms."""
    columns = projection.columns(0, projection.total)
    return torch.stack([projection.spread(row, columns) for row in torch.eye(projection.dimensions)], 1)


@pytest.mark.parametrize(("total", "dimensions"), [(60, 12), (61, 7), (50, 50), (40, 1)])
def test_every_weight_listens_to_one_value_and_every_value_moves_as_many_weights(total, dimensions):
    p = dense(Projection(total, dimensions, seed=3))
    assert (p != 0).sum(1).eq(1).all()
    heard = (p != 0).sum(0)
    assert heard.min() == total // dimensions and heard.max() == -(-total // dimensions)
    assert torch.equal(p.abs()[p != 0], torch.full((total,), math.sqrt(dimensions / total)))
    if total % dimensions == 0:
        assert torch.allclose(p.T @ p, torch.eye(dimensions), atol=1e-6)
    if dimensions > 1:
        assert 0 < (p > 0).sum() < total  # signs differ
        assert not torch.equal(p.abs(), dense(Projection(total, dimensions, seed=4)).abs())  # the places differ
    g = torch.randn(total, generator=torch.Generator().manual_seed(0))
    parts = Projection(total, dimensions, seed=3)
    cut = parts.gather(g[:17], parts.columns(0, 17)) + parts.gather(g[17:], parts.columns(17, total - 17))
    assert torch.allclose(cut, p.T @ g, atol=1e-5)


def test_signs_and_places_look_drawn():
    """Neither depends on the other nor on the neighbour, as a pattern in i would."""
    columns = Projection(100_003, 100).columns(0, 100_003)
    place, sign = columns // 2, 1.0 - 2 * (columns % 2)
    noise = 4 / math.sqrt(100_003)
    assert abs(sign.mean()) < noise and abs((sign[1:] * sign[:-1]).mean()) < noise
    centred = (place - 49.5) / 29
    assert abs((centred * sign).mean()) < noise


def test_all_dimensions_are_full_fine_tuning():
    start = base("llama")
    total = parameters(start)
    ours, losses = trained(Intrinsic(dimensions=total, learning_rate=5e-3))
    full, expected = trained(FullFineTuning(weight_decay=0.0, learning_rate=5e-3))
    assert losses == pytest.approx(expected, rel=2e-5)
    moved = flat(full) - flat(start)
    assert (flat(ours) - flat(full)).norm() < 1e-3 * moved.norm() and moved.norm() > 0


def test_weights_move_in_the_subspace_alone_and_the_seed_replays_them():
    method, model = Intrinsic(dimensions=9, learning_rate=5e-3), base("llama")
    before = flat(model)
    trained(method, model)
    replay = Projection(before.numel(), 9)
    replay = replay.spread(method.z.detach(), replay.columns(0, before.numel()))
    assert method.z.detach().abs().min() > 0
    assert torch.allclose(flat(model) - before, replay, atol=1e-6)
    method.close()
    assert parameters(model) == before.numel() and not model.get_input_embeddings().weight.requires_grad
    other = Intrinsic(dimensions=9, learning_rate=5e-3, projection_seed=1)
    model = base("llama")
    trained(other, model)
    assert not torch.allclose(flat(model) - before, replay, atol=1e-4)


class Largest(TorchDispatchMode):
    """Values of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        outputs = made if isinstance(made, tuple | list) else (made,)
        self.numel = max([self.numel, *(o.numel() for o in outputs if isinstance(o, torch.Tensor))])
        return made


def test_no_matrix_is_formed_and_gradients_are_let_go():
    model, task, method = base("llama"), Words(), Intrinsic(dimensions=500)
    widest = max(p.numel() for p in model.parameters())
    method.prepare(model, task, 3)
    with Largest() as largest:
        method.step(task.batch(0))
    assert largest.numel <= 2 * max(widest, 3 * 7 * 50)
    ledger = Ledger(predicted=method.predicted_bytes())
    method.measured_step(task.batch(1), ledger)
    assert {name: ledger.residual(name) for name in ledger.predicted} == dict.fromkeys(ledger.predicted, 0)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [NAME]
    assert parameters(model, trainable=True) == 500


def test_a_run_that_was_cut_off_goes_on():
    whole, halves = Intrinsic(dimensions=40, learning_rate=5e-3), Intrinsic(dimensions=40, learning_rate=5e-3)
    expected, losses = trained(whole)
    model, task = base("llama"), Words()
    halves.prepare(model, task, 4)
    found = [halves.step(task.batch(number)).item() for number in range(2)]
    state, again = copy.deepcopy(halves.state_dict()), Intrinsic(dimensions=40, learning_rate=5e-3)
    model = base("llama")
    again.prepare(model, task, 4)
    again.load_state_dict(state)
    found += [again.step(task.batch(number)).item() for number in (2, 3)]
    assert found == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(flat(model), flat(expected), atol=1e-6)


@pytest.mark.parametrize("dimensions", [0, 10**9, 2.5])
def test_dimensions_that_are_none_are_refused(dimensions):
    with pytest.raises(LabError, match="is none of"):
        Intrinsic(dimensions=dimensions).prepare(base("llama"), Words(), 1)


@pytest.mark.parametrize("dimensions", [1, 40, 3000])
def test_the_first_step_is_as_long_for_every_dimension(dimensions):
    """AdamW moves every z by its rate, so w by rate √Ψ: P's columns are one long, and the rate grows as s falls."""
    model = base("llama")
    before = flat(model)
    trained(Intrinsic(dimensions=dimensions, learning_rate=1e-3, warmup=0.0), model, steps=1)
    assert (flat(model) - before).norm() == pytest.approx(1e-3 * math.sqrt(before.numel()), rel=2e-2)
