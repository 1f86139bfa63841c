"""Sharded checkpoints: 2 → 4 → 1 ranks as without interruption, and readable by torch alone, by parameter."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.distributed.checkpoint as dcp
import zero_saved
from hypothesis import given
from hypothesis import strategies as st
from zero_checks import model

from labkit.parallel.launch import launch
from labkit.parallel.zero_checkpoint import boxes

pytestmark = pytest.mark.usefixtures("without_gpus")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_then_four_then_one_rank(tmp_path):
    first, expected = launch(zero_saved.begun, 2, str(tmp_path), timeout_s=300.0)[0]
    found: dict = {weights: list(first[weights][0]) for weights in expected}
    for stage, ranks in ((1, 4), (2, 1)):
        last = launch(zero_saved.stretch, ranks, str(tmp_path), *zero_saved.SAVE_AT[ranks], stage, timeout_s=300.0)[0]
        for weights, (losses, _) in last.items():
            found[weights] += losses
    for weights, (losses, parameters) in expected.items():
        atol = 1e-5 if weights == "float32" else 2e-2
        assert found[weights][:2] == losses[:2]
        assert found[weights] == pytest.approx(losses, abs=atol), weights
        for ours, theirs in zip(last[weights][1], parameters, strict=True):
            assert torch.allclose(ours, theirs, atol=atol)
    _plain(tmp_path, last)


def _plain(folder, last):
    """torch reads the last checkpoint into plain tensors by name, with nothing of ours."""
    net = model(seed=5)
    moments = {name: torch.full_like(p, -1) for name, p in net.named_parameters()}
    plain = {name: p.detach() for name, p in net.named_parameters()}
    dcp.load({"weights": plain, "exp_avg_sq": moments}, checkpoint_id=folder / "float32-6", no_dist=True)
    for ours, theirs in zip(plain.values(), last["float32"][1], strict=True):
        assert torch.equal(ours, theirs)
    assert all((m >= 0).all() and m.max() > 0 for m in moments.values())


@given(st.lists(st.integers(1, 6), max_size=4), st.data())
def test_boxes_are_the_stretch(shape, data):
    """As many values as asked for, those and no others, in order, in at most three boxes for a matrix."""
    values = torch.arange(prod(shape)).view(shape)
    begin = data.draw(st.integers(0, values.numel()))
    end = data.draw(st.integers(begin, values.numel()))
    cut = list(boxes(begin, end, shape))
    inside = [values[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))].reshape(-1) for box in cut]
    assert torch.cat([torch.arange(0), *inside]).tolist() == list(range(begin, end))
    if len(shape) == 2:
        assert len(cut) <= 3
