"""Snapshots of a stack in training against the same quantities by hand, with torch's own Adam."""

from __future__ import annotations

import pytest
import torch

from labkit.numerics import depth
from labkit.numerics.depth import train_stack
from labkit.numerics.stack import LAYER_PARAMETERS, DecoderStack, StackConfig

SMALL = {"width": 16, "heads": 2, "seq_len": 16}
CONFIG = StackConfig(3, "post-ln", **SMALL)


def by_hand(seed, rate, steps):
    """The stack after `steps` of torch's Adam, its last gradients, and the last change of every parameter."""
    stack = DecoderStack(CONFIG, (seed,))
    adam = torch.optim.Adam(stack.parameters(), lr=rate, betas=depth.BETAS, eps=depth.EPS)
    for step in range(steps):
        adam.zero_grad()
        tokens = depth.batches((seed,), step, 8, 16)
        depth.losses_of(stack, tokens).sum().backward()
        before = {n: p.detach().clone() for n, p in stack.named_parameters()}
        adam.step()
    return stack, tokens[:, :, :-1], {n: p.detach() - before[n] for n, p in stack.named_parameters()}


def test_a_snapshot_tells_gradient_step_and_both_parts_of_the_stream():
    runs = train_stack(CONFIG, (0, 1), (3e-3,), steps=8, watch=(1, 6))
    assert [list(run.snapshots) for run in runs] == [[1, 6]] * 2
    stack, tokens, moved = by_hand(1, 3e-3, 6)
    found = runs[1].snapshots[6]
    for layer in range(3):
        entries = torch.cat([getattr(stack, n).grad[layer].flatten() for n in LAYER_PARAMETERS])
        steps = torch.cat([moved[n][layer].flatten() for n in LAYER_PARAMETERS]) / 3e-3
        assert found.gradient[layer] == pytest.approx(entries.square().mean().sqrt().item(), rel=1e-2)
        assert found.step[layer] == pytest.approx(steps.square().mean().sqrt().item(), rel=1e-2)
    x = stack.hidden(tokens)[0].detach()  # a Post-LN stack ends with its last stream
    assert found.common[-1] == pytest.approx(x.mean(0).square().mean().sqrt().item(), rel=1e-2)
    assert found.apart[-1] == pytest.approx(x.var(0, correction=0).mean().sqrt().item(), rel=1e-2)
    assert len(found.common) == len(found.apart) == 4


def test_the_first_step_is_the_rate_in_every_weight():
    (run,) = train_stack(CONFIG, (0,), (1e-3,), steps=2, watch=(1,))
    assert run.snapshots[1].step == pytest.approx([1, 1, 1], abs=0.01)


def test_watching_changes_nothing():
    plain, watched = (train_stack(CONFIG, (0,), (3e-3,), steps=4, watch=w)[0] for w in ((), (1, 2, 4)))
    assert plain.losses == watched.losses and plain.snapshots == {}
    last = watched.snapshots[4]
    spread = [a**2 / (a**2 + c**2) for a, c in zip(last.apart, last.common, strict=True)]
    assert spread == pytest.approx(plain.spread, rel=1e-4)
