"""Weights as tensors: each once, named, rounded once, without temporaries that grow with them."""

from __future__ import annotations

import pytest
import torch
from micro import micro_llama
from temporaries import Largest

from labkit.errors import LabError
from labkit.zeroth import noise, perturb
from labkit.zeroth.scale_check import unmoved

TERMS = [(7, 1e-3), (8, -2e-3), (7, 5e-4)]


def by_hand(w: torch.Tensor, name: str, terms, keep: float = 1.0) -> torch.Tensor:
    """With every z stored as a tensor."""
    total = w.float() * keep
    for seed, scale in terms:
        total = total + scale * noise.normal(noise.key(seed, name), 0, w.numel()).view(w.shape)
    return total.to(w.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_sum_of_terms_is_formed_in_fp32_and_rounded_once(dtype):
    w = torch.randn(301, 1003).mul(0.02).to(dtype)
    expected = by_hand(w, "w", TERMS, 0.99)
    one_by_one = w.clone()
    for term in TERMS:
        perturb.add_(one_by_one, "w", [term])
    perturb.add_(w, "w", TERMS, 0.99)
    assert torch.equal(w, expected)
    assert not torch.equal(w, one_by_one)


def test_double_precision_is_kept():
    w = torch.randn(10, dtype=torch.float64)
    z = noise.normal(noise.key(7, "w"), 0, 10).double()
    expected = w + z * 1e-12
    perturb.add_(w, "w", [(7, 1e-12)])
    assert torch.equal(w, expected)


def test_slices_and_rows_get_what_they_get_in_the_whole():
    w = torch.randn(200, 61)
    expected = by_hand(w, "w", TERMS)
    out = torch.empty_like(w)
    for begin, stop in ((70, 200), (0, 3), (3, 70)):
        perturb.write(w[begin:stop], out[begin:stop], "w", TERMS, start=begin * 61)
    assert torch.equal(out, expected)
    ids = torch.tensor([199, 0, 7, 7])
    assert torch.equal(perturb.rows(w, ids, "w", TERMS), expected[ids])


def test_no_temporary_grows_with_the_tensor():
    noise.normal((0, 0), 0, 4)  # the noise's own buffers, of one size for all tensors
    sizes = []
    for count in (2**20, 2**23):
        w = torch.zeros(count // 64, 64, dtype=torch.bfloat16)
        with Largest() as seen:
            perturb.add_(w, "w", TERMS, 0.9)
            perturb.rows(w, torch.arange(10), "w", TERMS)
        sizes.append(seen.bytes)
    assert sizes[0] == sizes[1] <= 4 * perturb.CHUNK
    assert sizes[1] < w.numel() * w.element_size()


def test_nothing_is_written_where_nothing_changes():
    w = torch.randn(4)
    before = w._version
    perturb.add_(w, "w", [(1, 0.0)])
    perturb.add_(w, "w", [])
    assert w._version == before
    perturb.add_(w, "w", [], 0.5)
    assert w._version > before


def test_tied_tensors_are_one_under_a_name_that_order_does_not_change():
    one, other = micro_llama(), micro_llama()
    # The head moves in front of the decoder, so that the tied tensor's first name is another.
    other._modules = dict(reversed(list(other._modules.items())))
    assert next(iter(dict(one.named_parameters()))) != next(iter(dict(other.named_parameters())))
    names = [w.name for w in perturb.trained(one)]
    assert names == [w.name for w in perturb.trained(other)] == sorted(set(names))
    assert "lm_head.weight" in names and "model.embed_tokens.weight" not in names
    for model in (one, other):
        for w in perturb.trained(model):
            perturb.add_(w.tensor, w.name, TERMS)
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in one.named_parameters())


def test_parameters_that_share_memory_are_tied_too():
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.weight = torch.nn.Parameter(a.weight.data)
    model = torch.nn.ModuleDict({"a": a, "b": b})
    [tied] = [w for w in perturb.trained(model) if w.decayed]
    assert tied.name == "a.weight" and tied.aliases == {id(a.weight), id(b.weight)}


def test_frozen_and_integer_parameters_are_left_out():
    model = torch.nn.Module()
    model.train_me = torch.nn.Parameter(torch.ones(3))
    model.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    model.codes = torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    assert [w.name for w in perturb.trained(model)] == ["train_me"]
    model.train_me.requires_grad_(False)
    with pytest.raises(LabError, match="Nothing of this model trains"):
        perturb.trained(model)


def test_the_share_that_stays_is_what_the_spacing_says():
    def weights(dtype):
        model = torch.nn.Linear(1024, 64, bias=False)
        torch.nn.init.constant_(model.weight, 1.5 * 2**-6)
        return perturb.trained(model.to(dtype))

    # Half a spacing is 2^-14 in bf16 there and 2^-17 in fp16.
    for dtype, eps, half in (
        (torch.bfloat16, 1e-3, 2**-14),
        (torch.float16, 1e-5, 2**-17),
        (torch.bfloat16, 1e-5, 2**-14),
    ):
        expected = torch.erf(torch.tensor(half / eps / 2**0.5)).item()
        assert unmoved(weights(dtype), eps) == pytest.approx(expected, abs=0.05)
