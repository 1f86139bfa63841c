"""Checkpointing keeps and needs the bytes that the formula gives, and no more than torch's."""

from __future__ import annotations

import pytest
import torch
from live import LiveBytes
from stacks import drawn, stack, through_torch
from torch import nn
from torch.utils import checkpoint as library

from labkit.ledger import saved_for_backward
from labkit.memory import checkpointing
from labkit.memory.checkpointing import best_segments, checkpoint_sequential, predicted_bytes


def saved_bytes(net: nn.Module, run, x: torch.Tensor) -> int:
    with saved_for_backward(net) as saved:
        run(x)
    return saved["activations"]


def peak_bytes(net: nn.Module, run, x: torch.Tensor) -> tuple[int, int]:
    """Bytes between forward and backward, and at the peak; weights, their gradients and x apart."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x.grad = None
    with LiveBytes(x, *net.parameters(), *(p.grad for p in net.parameters())) as live:
        y = run(x)
        between = live.now
        y.square().sum().backward()
    return between, live.peak


@pytest.mark.parametrize("times", [1, 4])
def test_bytes_are_those_of_the_formula_and_not_more_than_torchs(times):
    layers, x = 12, drawn(64, 8, 16).requires_grad_()
    net, size = stack(layers, times=times), x.nbytes
    interior = (saved_bytes(net, net[:4], x) - saved_bytes(net, net[:2], x)) // 2
    peaks, rest = {}, set()
    for segments in range(1, layers + 1):

        def mine(x, segments=segments):
            return checkpoint_sequential(net, segments, x)

        theirs = through_torch(net, segments)
        assert saved_bytes(net, mine, x) == segments * size <= saved_bytes(net, theirs, x)
        between, peaks[segments] = peak_bytes(net, mine, x)
        # x is not counted, and the last output is: so these are all the inputs, and nothing else is alive.
        assert between == segments * size
        assert abs(peaks[segments] - peak_bytes(net, theirs, x)[1]) <= 256
        if segments > 1:  # where the first segment is all there is, no gradient waits for it
            rest.add(peaks[segments] - predicted_bytes(layers, segments, size, interior))
    assert max(rest) - min(rest) <= 64  # the backward pass adds the same to each
    assert min(peaks, key=peaks.__getitem__) == best_segments(layers, size, interior)
    assert peaks[best_segments(layers, size, interior)] < 0.45 * peak_bytes(net, net, x)[1]


def test_with_a_head_behind_it_the_last_run_is_better_checkpointed():
    x, head = drawn(64, 8, 16).requires_grad_(), nn.Linear(16, 400)
    net = stack(8)
    both = nn.ModuleList([net, head])

    def peak(last: bool, segments: int) -> int:
        return peak_bytes(
            both, lambda x: head(checkpoint_sequential(net, segments, x, checkpoint_last=last)).log_softmax(-1), x
        )[1]

    for segments in (1, 2, 4, 8):
        assert peak(True, segments) < 0.97 * peak(False, segments)


def test_an_unequal_cut_is_lower_than_torchs():
    net, x = stack(12), drawn(64, 8, 16).requires_grad_()
    mine = peak_bytes(net, lambda x: checkpoint_sequential(net, 7, x), x)[1]
    theirs = peak_bytes(net, lambda x: library.checkpoint_sequential(net, 7, x, use_reentrant=False), x)[1]
    assert mine < 0.6 * theirs


def test_a_checkpoint_that_keeps_its_interior_fails_the_byte_check(monkeypatch):
    """A test of the test: the formula rejects a `checkpoint` that only looks like one."""
    net, x = stack(4), drawn(64, 8, 16).requires_grad_()
    monkeypatch.setattr(checkpointing, "checkpoint", lambda run, x, **_: run(x))
    assert saved_bytes(net, lambda x: checkpoint_sequential(net, 2, x), x) > 10 * x.nbytes
