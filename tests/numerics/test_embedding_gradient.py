"""Embedding-gradient shrink: the factor, the untouched forward pass, the tied matrix, Adam's indifference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit import models
from labkit.errors import LabError, UnknownNameError
from labkit.numerics import embedding_gradient as emb


@pytest.fixture
def model():
    return models.load("tiny")


def loss_of(model, tokens=None):
    tokens = torch.arange(10, 42).view(2, 16) if tokens is None else tokens
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


@pytest.mark.parametrize("way", emb.WAYS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.25, 1.0])
def test_the_gradient_is_multiplied_by_alpha(way, alpha):
    x = torch.randn(50, requires_grad=True)
    upstream = torch.randn(50)
    emb.WAYS[way](x, alpha).backward(upstream)
    assert torch.equal(x.grad, upstream * alpha)


def test_the_hook_leaves_the_forward_pass_alone_and_the_sum_does_not():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(emb.shrink_by_hook(x, 0.1), x)
    moved = emb.shrink_by_sum(x, 0.1) != x
    assert 0.05 < moved.double().mean() < 0.5
    torch.testing.assert_close(emb.shrink_by_sum(x, 0.1), x, rtol=2.0**-22, atol=0)
    assert torch.equal(emb.shrink_by_sum(x, 0.125), x)  # a power of two rounds nothing


def test_the_hook_belongs_to_one_use():
    x = torch.randn(5, requires_grad=True)
    (emb.shrink_by_hook(x, 0.1) + x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((5,), 1.1))
    assert torch.equal(emb.shrink_by_hook(x.detach(), 0.1), x)


@pytest.mark.parametrize("way", emb.WAYS)
def test_in_a_tied_model_only_the_input_part_shrinks(model, way):
    parts = emb.embedding_gradient_parts(model, lambda: loss_of(model))
    weight = model.get_input_embeddings().weight
    loss_of(model).backward()
    torch.testing.assert_close(parts["input"] + parts["output"], weight.grad)
    assert parts["output"].norm() > 0 and parts["input"].norm() > 0
    before, others = weight.grad.clone(), [p.grad.clone() for p in model.model.layers.parameters()]
    model.zero_grad()
    handle = emb.shrink_embedding(model, 0.1, way)
    loss_of(model).backward()
    torch.testing.assert_close(weight.grad, 0.1 * parts["input"] + parts["output"], rtol=1e-3, atol=1e-6)
    for p, gradient in zip(model.model.layers.parameters(), others, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-2, atol=1e-5)
    handle.remove()
    model.zero_grad()
    loss_of(model).backward()
    assert torch.equal(weight.grad, before)


def test_padding_gets_no_gradient():
    model = models.from_random("tiny")
    padding = model.get_input_embeddings().padding_idx
    tokens = torch.full((1, 6), padding)
    tokens[0, 3:] = 20
    parts = emb.embedding_gradient_parts(model, lambda: loss_of(model, tokens))
    assert padding is not None and not parts["input"][padding].any() and parts["input"][20].any()


def test_norms_add_up_to_the_global_norm(model):
    with pytest.raises(LabError, match="backward"):
        emb.gradient_norms(model)
    loss_of(model).backward()
    norms = emb.gradient_norms(model)
    assert list(norms)[:2] == ["embedding", "layer 1"] and list(norms)[-1] == "last norm" and len(norms) == 10
    total = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert sum(n**2 for n in norms.values()) ** 0.5 == pytest.approx(total.item(), rel=1e-5)


def test_bad_requests_are_refused(model):
    with pytest.raises(LabError, match="not a share"):
        emb.shrink_embedding(model, 1.5)
    with pytest.raises(UnknownNameError, match="hook"):
        emb.shrink_embedding(model, 0.1, "hoke")
