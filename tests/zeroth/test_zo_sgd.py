"""ZO-SGD: the update by hand, steps that follow the effective rank, and the bytes of a real step."""

from __future__ import annotations

import math
from contextlib import closing

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.methods import Method
from labkit.training import train
from labkit.zeroth.gradient import LossOfWeights, estimate
from labkit.zeroth.gradient_theory import best_learning_rate, effective_rank
from labkit.zeroth.objectives import Quadratic
from labkit.zeroth.sgd import ZoSgd, descend


def test_a_descent_is_estimates_taken_away_and_counts_their_queries_only():
    f, x = Quadratic(torch.tensor([1.0, 4.0, 0.5]).double()), torch.ones(3).double()
    before, found = x.clone(), descend(f, x, 5, 0.02, tau=0.1, n=2, seed=3)
    generator, by_hand = torch.Generator().manual_seed(3), x.clone()
    for value in found.values[:-1]:
        assert value == float(f(by_hand))
        by_hand.sub_(estimate(f, by_hand, 0.1, n=2, generator=generator), alpha=0.02)
    assert torch.equal(found.x, by_hand) and torch.equal(x, before)
    assert (found.steps, found.queries, len(found.values)) == (5, 20, 6)
    short = descend(f, x, 500, 0.05, until=0.5 * float(f(x)))
    assert short.values[-1] <= 0.5 * float(f(x)) < min(short.values[:-1])
    with pytest.raises(LabError, match="no longer a number"):
        descend(lambda x: x.sum().log(), x, 400, 1.0)


def steps_to_a_tenth(spectrum):
    f, x = Quadratic(spectrum), torch.ones_like(spectrum)
    # In units of the largest curvature: gradient descent's step, made smaller by the effective rank.
    rate = 1 / (effective_rank(f) + 2) / float(spectrum.max())
    return sum(descend(f, x, 20_000, rate, seed=s, until=0.1 * float(f(x))).steps for s in range(3)) / 3


def test_steps_grow_with_d_where_all_curvatures_are_equal_and_not_where_they_fall():
    flat = [steps_to_a_tenth(torch.ones(d).double()) for d in (32, 128, 512)]
    steep = [steps_to_a_tenth(torch.arange(1, d + 1).double() ** -2.0) for d in (32, 128, 512)]
    assert flat[2] / flat[0] > 10 and flat[2] == pytest.approx(514 * math.log(10), rel=0.1)
    assert steep[2] < 2.5 * steep[0]
    f = Quadratic(torch.ones(512).double())
    assert best_learning_rate(f, torch.ones(512).double()) == pytest.approx(1 / 514)


def test_a_step_of_the_method_is_the_estimate_of_its_batch_taken_away():
    task, model, twin = Letters(), micro_llama(), micro_llama()
    method = ZoSgd(learning_rate=1e-3, tau=1e-2, n=2, seed=4)
    assert isinstance(method, Method)
    method.prepare(model, task, 3)
    x, generator = LossOfWeights(twin, lambda m: None).vector(), torch.Generator().manual_seed(4)
    for place in (0, 8):
        batch = task.batch(task.train[place : place + 8])
        f = LossOfWeights(twin, lambda m, batch=batch: task.loss(m, batch))
        loss = method.step(batch)
        assert float(loss) == pytest.approx(float(f(x)), rel=0.2)
        x.sub_(estimate(f, x, 1e-2, n=2, generator=generator), alpha=1e-3)
    mine = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(mine, x) and all(p.grad is None for p in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    method.close()
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3])
def test_bytes_of_a_step_are_counted_and_as_predicted(dtype, n):
    task, model, ledger = Letters(), micro_llama().to(dtype), Ledger()
    method, count = ZoSgd(n=n), sum(p.numel() for p in model.parameters())
    method.prepare(model, task, 3)
    batch = task.batch(task.train[:2])
    method.step(batch)
    method.measured_step(batch, ledger)
    assert ledger.measured == method.predicted_bytes()
    assert ledger.measured["weights"] == dtype.itemsize * count
    vectors = 1 + (n > 1) + 1
    assert ledger.measured["buffers"] == 4 * count * vectors + (2 * count if dtype == torch.bfloat16 else 0)


def test_weights_of_two_dtypes_are_refused():
    model = micro_llama()
    model.model.norm.to(torch.bfloat16)
    with pytest.raises(LabError, match="in one dtype"):
        ZoSgd().prepare(model, Letters(), 1)


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path):
    task = Letters()
    whole, halves = micro_llama(), micro_llama()
    method = ZoSgd(learning_rate=1e-3)
    with closing(method):
        method.prepare(whole, task, 4)
        batches = [task.batch(task.train[8 * k : 8 * k + 8]) for k in range(4)]
        for batch in batches:
            method.step(batch)
    first, second = ZoSgd(learning_rate=1e-3), ZoSgd(learning_rate=1e-3)
    first.prepare(halves, task, 4)
    for batch in batches[:2]:
        first.step(batch)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    fresh = micro_llama()
    second.prepare(fresh, task, 4)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in batches[2:]:
        second.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))


def test_training_learns_the_letters():
    task, model = Letters(), micro_llama()
    run = train(model, task, ZoSgd(learning_rate=3e-3, tau=1e-3, n=4), steps=150, batch_size=32, progress=False)
    assert run.ledger.measured["gradients"] == 0 and "activations" not in run.ledger.measured
    assert len(run.traces["slope"]) == 150
    assert sum(run.losses[-20:]) < 0.95 * sum(run.losses[:20])
