"""On a GPU: a stack's steps replayed from a CUDA graph equal steps made one by one, and fp16 attention does as told."""

from __future__ import annotations

import warnings

import pytest
import torch

from labkit.numerics import attention_softmax, depth
from labkit.numerics.stack import StackConfig

pytestmark = pytest.mark.gpu


def test_a_replayed_step_equals_one_made_kernel_by_kernel(monkeypatch):
    config = StackConfig(6, "deepnorm", width=32)
    arguments = {"steps": 12, "warmups": (0, 6), "device": "cuda"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "No CUDA graph" would mean that nothing was replayed
        replayed = depth.train_stack(config, (0, 1), (1e-3,), **arguments)
    monkeypatch.setattr(depth._Step, "_record", lambda self: setattr(self, "eager_calls", -1))
    one_by_one = depth.train_stack(config, (0, 1), (1e-3,), **arguments)
    for a, b in zip(replayed, one_by_one, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-3)
        assert len(set(a.losses)) == 12  # every step saw its own batch
        assert a.gradients_last == pytest.approx(b.gradients_last, rel=0.05)


def test_the_gpu_trains_as_the_cpu_does():
    config = StackConfig(4, "pre-ln", width=32, seq_len=32)
    there, here = (depth.train_stack(config, (0,), (1e-3,), steps=8, device=d)[0] for d in ("cuda", "cpu"))
    assert there.losses == pytest.approx(here.losses, rel=5e-3)


def test_alpha_keeps_scores_finite_that_overflow_without():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 8, 64, 32, device="cuda") for _ in range(3))
    q, k = q * 300, k * 300
    assert attention_softmax.damage("fp32", q, k, v).overflow > 0
    assert attention_softmax.damage("fp32", q, k, v).lost > 0
    assert attention_softmax.damage("line 2, divided late", q, k, v, alpha=64).lost > 0
    for name in ("line 1", "line 2"):
        found = attention_softmax.damage(name, q, k, v, alpha=64)
        assert (found.overflow, found.lost) == (0, 0)
    assert attention_softmax.damage(attention_softmax.LIBRARY, q, k, v).lost == 0
