"""At w + εz every use of a weight sees it; afterwards w is there, bit for bit, or what the walk leaves of it."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from decoders import opt
from hypothesis import given
from hypothesis import strategies as st
from micro import Letters, Small, micro_llama
from temporaries import Largest
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from labkit.adapters.prefix import PrefixTuning
from labkit.adapters.tuning import Lora
from labkit.zeroth import noise, perturb
from labkit.zeroth.groups import Group, book_of, copies_of
from labkit.zeroth.restore import ROWS, Exact, Perturbed, Walk, part_of

AT = [(5, 3e-2), (6, 1e-2)]
TASK = Letters()


def shifted(model: nn.Module) -> nn.Module:
    """A copy whose weights are w + εz."""
    other = copy.deepcopy(model)
    for w in perturb.trained(other):
        perturb.add_(w.tensor, w.name, AT)
    return other


def llama(trains: str = "all") -> nn.Module:
    model = micro_llama().eval()
    torch.manual_seed(1)
    if trains == "lora":
        Lora(rank=4).choose(model, TASK)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
    elif trains == "prefix":
        PrefixTuning(length=3).choose(model, TASK)
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    batch = TASK.batch(TASK.train[:8])
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.mark.parametrize("trains", ["all", "lora", "prefix"])
@pytest.mark.parametrize("slot", [0, 1000, 2**20])
def test_a_model_computes_as_one_with_perturbed_weights(trains, slot):
    model = llama(trains)
    before = [p.clone() for p in model.parameters()]
    expected, base = outputs(shifted(model)), outputs(model)
    with Exact(perturb.trained(model), slot).at(AT):
        found = outputs(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - base).abs().max() > 1e-2
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_opt_and_a_head_that_is_not_tied_too():
    for tied in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(opt(tied=tied)).eval()
        expected = outputs(shifted(model))
        with Exact(perturb.trained(model), 500).at(AT):
            torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)


def test_every_function_sees_the_bits_of_w_plus_eps_z():
    """Linear layers and embeddings have ways of their own; all others are given a perturbed copy."""
    model = Small().bfloat16()
    other, ids = shifted(model), torch.tensor([[0, 5], [3, 3]])
    eye = torch.eye(3, dtype=torch.bfloat16)

    def uses(m):
        weight = m.embed_tokens.weight
        return [
            weight * 1,
            weight.T.contiguous(),
            torch.cat([weight, weight]),
            F.embedding(ids, weight),
            m.embed_tokens(ids),
            F.linear(eye, weight),
            F.linear(input=eye, weight=m.layers[0].weight, bias=m.layers[0].bias),
            weight[2],
            weight.to(torch.float32),
            eye @ m.layers[1].weight,
        ]

    expected = uses(other)
    for slot in (0, 12, 10**6):
        with torch.no_grad(), Perturbed(perturb.trained(model), AT, slot):
            found = uses(model)
            assert model.embed_tokens.weight.shape == (6, 3) and model.embed_tokens.weight.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_streams_go_through_block_after_block():
    """As the whole model does on both sides: all that a scheduler of blocks has to know of is the block's weights."""
    model, ids = Small().eval(), torch.tensor([[0, 5], [3, 3]])
    weights = perturb.trained(model)
    parts = [
        model.embed_tokens,
        *(nn.Sequential(layer, nn.ReLU()) for layer in model.layers),
        model.norm,
        model.lm_head,
    ]
    sides = {1e-2: ids, -1e-2: ids}
    with torch.no_grad():
        for part in parts:
            aliases = {id(p) for p in part.parameters()}
            block = Exact([w for w in weights if w.aliases & aliases])
            for eps, x in sides.items():
                with block.at([(3, eps)]):
                    sides[eps] = part(x)
        for eps, y in sides.items():
            with Exact(weights).at([(3, eps)]):
                assert torch.equal(model(ids), y)
    assert not torch.equal(*sides.values())


def test_no_weight_is_copied_whole(monkeypatch):
    """A model whose head is 98 % of the weights: what is made at once is a 128th of it, not it."""
    monkeypatch.setattr(noise, "PIECE", 512)
    monkeypatch.setattr(noise, "_scratch", noise._Scratch())
    monkeypatch.setattr(perturb, "CHUNK", 2048)
    noise.normal((0, 0), 0, 4)  # buffers of one size for all models
    monkeypatch.setattr("labkit.zeroth.groups.SLOT_MIN", 0)
    model = nn.Sequential(nn.Embedding(4096, 64), nn.Linear(64, 64), nn.Linear(64, 4096, bias=False))
    model[2].weight = model[0].weight
    total = sum(p.numel() for p in model.parameters()) * 4
    ids = torch.tensor([[3]])
    with torch.no_grad(), Largest() as made, Exact(perturb.trained(model)).at(AT):
        model(ids)
    assert made.bytes <= max(total // 128, 4096 * 4, 64 * 64 * 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_exact_brings_w_back_bitwise_over_a_hundred_steps_and_a_walk_drifts(dtype):
    def after(kind):
        torch.manual_seed(0)
        model = nn.Linear(40, 40).to(dtype)
        weights, x = perturb.trained(model), torch.ones(2, 40, dtype=dtype)
        before = [w.tensor.clone() for w in weights]
        restore = kind(weights)
        with torch.no_grad():
            for seed in range(100):
                for side in (1e-3, -1e-3):
                    with restore.at([(seed, side)]):
                        model(x)
                restore.update([], 0.0)
            restore.settle()
        pairs = zip(weights, before, strict=True)
        return max(((w.tensor - b).float().norm() / b.float().norm()).item() for w, b in pairs)

    assert after(Exact) == 0.0
    drift = after(Walk)
    low, high = {torch.float16: (1e-3, 2e-2), torch.bfloat16: (8e-3, 2e-1), torch.float32: (1e-8, 1e-5)}[dtype]
    assert low < drift < high


def test_a_walk_makes_all_that_is_due_in_one_pass(monkeypatch):
    model = Small()
    weights = perturb.trained(model)
    expected = [w.tensor.double() for w in weights]
    passes = []
    monkeypatch.setattr(perturb, "write", lambda *a, _real=perturb.write, **k: (passes.append(a[2]), _real(*a, **k))[1])
    walk = Walk(weights)
    with torch.no_grad():
        for seed, scale, decay in ((1, 0.5, 0.1), (2, -0.25, 0.2)):
            for side in (1e-2, -1e-2):
                with walk.at([(seed, side)]):
                    pass
            walk.update([(seed, scale)], decay)
            assert walk.moved
        walk.settle()
    assert not walk.moved
    assert len(passes) == 5 * len(weights)  # +, −, back with update and +, −, back with update
    for seed, scale, decay in ((1, 0.5, 0.1), (2, -0.25, 0.2)):
        for w, value in zip(weights, expected, strict=True):
            z = noise.normal(noise.key(seed, w.name), 0, value.numel()).view(value.shape)
            value.mul_(1 - decay if w.decayed else 1).add_(z.double(), alpha=scale)
    for w, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.tensor.double(), value, rtol=1e-5, atol=1e-6)


@given(rows=st.integers(1, 60_000), most=st.integers(0, 60_000))
def test_parts_fit_the_slot_are_of_about_one_size_and_of_whole_units(rows, most):
    """An odd number of rows would leave a matrix product without its fast kernels."""
    size = part_of(rows, most)
    assert size <= max(1, most) and (size == rows) == (rows <= max(1, most))
    assert size == rows or most < ROWS or size % ROWS == 0
    fits = max(1, most - most % ROWS if most >= ROWS else most)
    assert size == rows or -(-rows // size) <= -(-rows // fits), "more parts than needed"


def test_small_tensors_are_made_together_when_the_first_is_needed_and_are_the_same():
    model, ids = llama(), torch.arange(8)[None]
    weights = perturb.trained(model)
    small = [w for w in weights if w.tensor.dim() == 1]
    group = Group(small, book_of(weights), copies_of(small))
    sight = Perturbed(weights, [(3, 1e-2)], 2**20)
    with torch.no_grad(), sight:
        alone = model(input_ids=ids).logits
    with mock.patch.object(Group, "write", autospec=True, side_effect=Group.write) as write, torch.no_grad():
        sight.prepare(group)
        with sight:
            pass
        assert not write.called, "what nobody asks for is not made"
        with sight:
            together = model(input_ids=ids).logits
        assert write.call_count == 1 and len(small) > 1
        sight.prepare(None)
        with sight:
            again = model(input_ids=ids).logits
        assert write.call_count == 1
    assert torch.equal(together, alone) and torch.equal(again, alone)
