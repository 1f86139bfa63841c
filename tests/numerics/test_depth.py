"""Training stacks side by side: the optimizer, the data, the verdicts, and that a run alone does the same."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.errors import LabError
from labkit.numerics import depth
from labkit.numerics.depth import DepthRun, RunwiseAdam, train_stack
from labkit.numerics.stack import DecoderStack, StackConfig

SMALL = {"width": 16, "heads": 2, "seq_len": 16}


def test_adam_equals_torchs_for_each_run():
    rates = torch.tensor([1e-3, 3e-2])
    ours = DecoderStack(StackConfig(2, "post-ln", **SMALL), (0, 0))
    theirs = [DecoderStack(StackConfig(2, "post-ln", **SMALL), (0,)) for _ in rates]
    optimizer = RunwiseAdam(ours, rates.tolist())
    adams = [
        torch.optim.Adam(s.parameters(), lr=rate, betas=depth.BETAS, eps=depth.EPS)
        for s, rate in zip(theirs, rates.tolist(), strict=True)
    ]
    torch.manual_seed(0)
    for step in range(6):
        for p, *alone in zip(ours.parameters(), *(s.parameters() for s in theirs), strict=True):
            p.grad = torch.randn_like(p) * 10.0 ** -(step % 3)
            for run, single in enumerate(alone):
                single.grad = p.grad[:, run : run + 1].clone()
        optimizer.advance()
        optimizer.apply()
        for adam in adams:
            adam.step()
    for p, *alone in zip(ours.parameters(), *(s.parameters() for s in theirs), strict=True):
        torch.testing.assert_close(p.detach(), torch.cat(alone, 1).detach(), rtol=1e-5, atol=1e-6)
        assert p.grad is None


def test_a_run_in_company_equals_a_run_alone():
    config = StackConfig(3, "pre-ln", **SMALL)
    together = train_stack(config, (0, 1), (1e-3, 1e-2), steps=5, warmups=(0, 3), batch=2)
    (alone,) = train_stack(config, (1,), (1e-2,), steps=5, warmups=(3,), batch=2)
    (same,) = [r for r in together if (r.seed, r.learning_rate, r.warmup) == (1, 1e-2, 3)]
    assert same.losses == pytest.approx(alone.losses, rel=1e-4)
    assert same.gradients_first == pytest.approx(alone.gradients_first, rel=1e-4)
    assert same.gradients_last == pytest.approx(alone.gradients_last, rel=1e-2)
    assert same.update == pytest.approx(alone.update, rel=1e-3)
    assert same.spread == pytest.approx(alone.spread, rel=1e-3) and len(same.spread) == 4


def test_warm_up_makes_the_first_update_smaller():
    runs = train_stack(StackConfig(2, "pre-ln", **SMALL), (0,), (1e-3,), steps=2, warmups=(0, 10), batch=2)
    assert runs[0].losses[0] == runs[1].losses[0]
    assert runs[1].update == pytest.approx(runs[0].update / 10, rel=0.1)


def test_gradient_norms_are_those_of_each_layer():
    stack = DecoderStack(StackConfig(3, "deepnorm", **SMALL), (0, 1))
    depth.losses_of(stack, depth.batches((0, 1), 0, 2, 16)).sum().backward()
    found = depth.gradient_norms(stack)
    wanted = sum(getattr(stack, n).grad[2, 1].square().sum() for n in depth.LAYER_PARAMETERS).sqrt()
    assert found.shape == (3, 2) and found[2, 1].item() == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(LabError, match="backward"):
        depth.gradient_norms(DecoderStack(StackConfig(1, "pre-ln", **SMALL)))


def test_batches_are_pieces_of_the_real_text_and_depend_on_seed_and_step():
    text = bytes(depth.text().tolist())
    drawn = depth.batches((0, 1), 3, 4, 16)
    assert drawn.shape == (2, 4, 17) and all(bytes(row.tolist()) in text for row in drawn[1])
    assert torch.equal(drawn[0], depth.batches((0,), 3, 4, 16)[0])
    assert not torch.equal(drawn[0], depth.batches((0,), 4, 4, 16)[0])


def test_the_unigram_loss_is_that_of_the_best_constant_guess():
    counts = torch.bincount(depth.text(), minlength=256).double()
    best = torch.nn.functional.cross_entropy((counts + 1e-9).log().expand(1000, -1), depth.text()[:1000])
    assert 2.5 < depth.unigram_loss() < 3.5
    assert best.item() == pytest.approx(depth.unigram_loss(), abs=0.1)


def verdict(*losses):
    run = DepthRun(StackConfig(2, "pre-ln"), 0, 1e-3, 0)
    run.losses = list(losses)
    return run.outcome, run.stopped_at


def test_verdicts():
    bar = depth.unigram_loss()
    assert verdict(5.6, bar - 0.2) == ("learns", None)
    assert verdict(5.6, bar - 0.05) == ("stuck", None)
    assert verdict(5.6, 5.7) == ("diverged", None)
    assert verdict(5.6, math.nan, math.nan) == ("diverged", 1)
    assert verdict(5.6, 4.0, math.inf) == ("diverged", 2)


def test_a_nan_in_one_run_stays_there():
    runs = train_stack(StackConfig(2, "pre-ln", **SMALL), (0,), (1e-3, 1e30), steps=4, batch=2)
    assert runs[0].stopped_at is None and all(math.isfinite(x) for x in runs[0].losses)
    assert runs[1].outcome == "diverged"


def test_pre_ln_learns_what_the_unigram_bar_rules_out():
    (run,) = train_stack(StackConfig(2, "pre-ln", width=32, seq_len=32), (0,), (1e-2,), steps=120)
    assert run.outcome == "learns" and run.loss < depth.unigram_loss() - 0.3


def test_nothing_to_train_is_refused():
    with pytest.raises(LabError, match="nothing to train"):
        train_stack(StackConfig(2, "pre-ln"), (0,), (1e-3,), steps=1)
