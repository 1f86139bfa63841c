"""On a GPU: the gradients of an ordinary pass bit for bit, also with dropout, and the peak of torch's checkpoint."""

from __future__ import annotations

import pytest
import torch
from micro import Letters, micro_llama
from torch import nn
from torch.utils import checkpoint as library

from labkit.memory.checkpointed import Checkpointed, checkpointed
from labkit.memory.checkpointing import best_segments, checkpoint_sequential, predicted_bytes, runs
from labkit.methods import FullFineTuning
from labkit.training import train

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


class Block(nn.Module):
    """A transformer layer: causal attention and a wide part, both with dropout."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.dropout = width // 64, dropout

    def forward(self, x):
        batch, length = x.shape[:2]
        q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.functional.dropout(self.out(mixed.transpose(1, 2).reshape(x.shape)), self.dropout)
        return x + nn.functional.dropout(self.down(nn.functional.gelu(self.up(self.norms[1](x)))), self.dropout)


def stack(layers: int, width: int, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(width, dropout) for _ in range(layers))).to(DEVICE)


def through_torch(net, segments):
    def run(x):
        for cut in runs(len(net), segments):
            x = library.checkpoint(net[cut], x, use_reentrant=False)
        return x

    return run


def gradients(net, run, x, dtype=None) -> list[torch.Tensor]:
    net.zero_grad()
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(7)
    with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        y = run(x)
    y.float().square().mean().backward()
    after = [torch.rand(3), torch.rand(3, device=DEVICE)]
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters()), *after]


@pytest.fixture
def deterministic_attention():
    """The backward pass of fused attention adds up in any order; the plain one does not."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_and_random_numbers_are_those_of_an_ordinary_pass(dropout, dtype, deterministic_attention):
    net = stack(6, 128, dropout)
    x = torch.randn(4, 64, 128, device=DEVICE)
    plain = gradients(net, net, x, dtype)
    for segments in (1, 2, 4, 6):
        for run in (lambda x, s=segments: checkpoint_sequential(net, s, x), through_torch(net, segments)):
            assert all(torch.equal(a, b) for a, b in zip(gradients(net, run, x, dtype), plain, strict=True))
    if dropout:
        forgetful = gradients(net, lambda x: checkpoint_sequential(net, 2, x, preserve_rng_state=False), x, dtype)
        assert torch.equal(forgetful[0], plain[0]) and not torch.equal(forgetful[1], plain[1])


def peak(net, run, x) -> int:
    """Bytes above weights and gradients at the allocator's peak, after a pass that warmed it up."""
    for _ in range(2):
        net.zero_grad(set_to_none=False)
        x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(x).square().mean().backward()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_peak_is_torchs_and_the_formulas():
    layers = 16
    net = stack(layers, 1024)
    x = torch.randn(4, 1024, 1024, device=DEVICE, requires_grad=True)
    plain = peak(net, net, x)
    found = {}
    for segments in (1, 2, 4, 8, 16):
        found[segments] = peak(net, lambda x, s=segments: checkpoint_sequential(net, s, x), x)
        assert found[segments] == pytest.approx(peak(net, through_torch(net, segments), x), rel=0.03)
    # What a layer adds, from two of the peaks; the others follow from the formula.
    interior = (found[1] - found[2]) // 8 + x.nbytes // 8
    base = found[2] - predicted_bytes(layers, 2, x.nbytes, interior)
    for segments in (4, 8, 16):
        expected = base + predicted_bytes(layers, segments, x.nbytes, interior)
        assert found[segments] == pytest.approx(expected, rel=0.05)
    assert best_segments(layers, x.nbytes, interior) >= 8
    assert min(found.values()) < 0.25 * plain


def test_a_transformers_model_and_the_method():
    model, tokens = micro_llama().to(DEVICE).train(), torch.arange(1, 13, device=DEVICE).view(2, 6)
    found = []
    for segments in (None, 1, 2):
        model.zero_grad()
        if segments:
            with checkpointed(model, segments):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        else:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        found.append([p.grad.clone() for p in model.model.layers.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    settings = {"steps": 6, "batch_size": 8, "progress": False}
    reference = train(micro_llama().to(DEVICE), Letters(), FullFineTuning(), **settings)
    run = train(micro_llama().to(DEVICE), Letters(), Checkpointed(segments=2), **settings)
    assert run.losses == pytest.approx(reference.losses, rel=1e-4)
    assert run.ledger.measured["activations"] < reference.ledger.measured["activations"]
