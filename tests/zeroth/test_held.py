"""Blocks that hold their weights at w + εz: the same bits, nothing asked meanwhile, and all as it was afterwards."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from decoders import llama, opt
from micro import Letters, micro_llama
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from labkit.adapters.tuning import Lora
from labkit.zeroth import perturb
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.offload.head import NextToken
from labkit.zeroth.restore import Exact, Perturbed

AT = [(5, 3e-2), (6, 1e-2)]
WORDS = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
ROOM = 2**20


def made(config) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=WORDS, use_cache=False).logits


@pytest.mark.parametrize("config", [llama(), llama(tied=False), opt(), opt(tied=False)], ids=str)
@pytest.mark.parametrize("room", [ROOM, 20_000, 0])
def test_the_same_bits_whether_blocks_hold_them_or_functions_are_given_them(config, room):
    model = made(config)
    weights, before = perturb.trained(model), [*model.parameters()]
    held, asked = Exact(weights, room, model), Exact(weights, room)
    assert bool(held._held) == (room > 0)
    for _ in range(2):
        with held.at(AT):
            one = logits(model)
        with asked.at(AT):
            two = logits(model)
        assert torch.equal(one, two)
    assert not torch.equal(one, logits(model))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_parts_that_fit_are_held_and_no_others():
    model = micro_llama()
    weights = perturb.trained(model)
    layers = model.config.num_hidden_layers
    every = Exact(weights, ROOM, model)._held
    assert len(every._parts) == 3 * layers and not Exact(weights, 0, model)._held
    most = sorted(part.piece.nbytes for part in every._parts.values())[0]
    some = Exact(weights, most, model)._held
    assert 0 < len(some._parts) < 3 * layers
    assert all(part.piece.nbytes <= most for part in some._parts.values())


def test_functions_are_asked_about_outside_the_blocks_alone():
    model = made(llama(layers=4))
    weights, counts = perturb.trained(model), {}
    for name, exact in {"held": Exact(weights, ROOM, model), "asked": Exact(weights, ROOM)}.items():
        own = Perturbed.__torch_function__
        with mock.patch.object(Perturbed, "__torch_function__", autospec=True, side_effect=own) as ask, exact.at(AT):
            logits(model)
        counts[name] = ask.call_count
    assert counts["held"] < counts["asked"] / 3


def test_the_room_is_there_while_blocks_compute_and_no_longer():
    model, seen = made(opt(layers=3)), []
    exact = Exact(perturb.trained(model), ROOM, model)
    storage = exact._held._room.untyped_storage()
    assert not storage.nbytes()
    decoder = model.get_decoder()
    hooks = [
        m.register_forward_hook(lambda *_: seen.append(storage.nbytes())) for m in (decoder.layers[1].fc1, decoder)
    ]
    with exact.at(AT):
        logits(model)
    for hook in hooks:
        hook.remove()
    largest = max(part.piece.nbytes for part in exact._held._parts.values())
    assert seen == [largest, 0] and not storage.nbytes()


def test_an_error_in_a_block_leaves_everything_as_it_was():
    model = made(llama())
    before, exact = [*model.parameters()], Exact(perturb.trained(model), ROOM, model)

    def broken(*_):
        raise RuntimeError("in the middle")

    hook = model.get_decoder().layers[1].mlp.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="in the middle"), exact.at(AT):
        logits(model)
    hook.remove()
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert not exact._held._room.untyped_storage().nbytes()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    other = copy.deepcopy(model)
    for w in perturb.trained(other):
        perturb.add_(w.tensor, w.name, AT)
    with exact.at(AT):
        found = logits(model)
    assert torch.equal(found, logits(other))


def test_another_mode_within_is_not_taken_for_this_one():
    class Other(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model = made(llama())
    exact = Exact(perturb.trained(model), ROOM, model)
    with exact.at(AT), Other():
        within = logits(model)
    with exact.at(AT):
        assert torch.equal(within, logits(model))


def test_adapters_in_frozen_blocks_are_made_one_by_one():
    model, task = micro_llama().eval(), Letters()
    Lora(rank=4).choose(model, task)
    assert not Exact(perturb.trained(model), ROOM, model)._held


def test_a_run_ends_at_the_same_weights(monkeypatch):
    ends = []
    for room in (1.0, 0.0):
        model = made(llama(layers=3))
        method = Mezo(1e-3, 1e-2, directions=2, weight_decay=0.1, slot_mib=room)
        method.prepare(model, NextToken(words=8, tokens=4), 4)
        losses = [method.step(_batch()).item() for _ in range(4)]
        method.close()
        ends.append((losses, [p.clone() for p in model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def _batch():
    from labkit.tasks import Batch

    return Batch(WORDS, torch.ones_like(WORDS), WORDS)
