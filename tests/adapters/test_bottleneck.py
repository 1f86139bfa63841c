"""Bottleneck adapters: equal to hooks on the untouched model, unchanged at the start, of the size of the formula."""

from __future__ import annotations

import copy

import pytest
import torch
from neighbours import KINDS, TASK, base, check_training, loss, padded, trained
from torch.nn import functional as F

from labkit.adapters.attach import attach
from labkit.adapters.bottleneck import Bottleneck, attach_bottlenecks, bottlenecks, detach_bottlenecks
from labkit.adapters.lora import LoraSpec
from labkit.errors import LabError

PADDED = padded()
PATHS = {
    "llama": {"o": "model.layers.{}.self_attn.o_proj", "down": "model.layers.{}.mlp.down_proj"},
    "opt": {"o": "model.decoder.layers.{}.self_attn.out_proj", "down": "model.decoder.layers.{}.fc2"},
}
PLACES = {"houlsby": ("o", "down"), "pfeiffer": ("down",)}


def logits(model) -> torch.Tensor:
    return model(**PADDED, use_cache=False).logits


def hooked(model, kind: str, placement: str, act, values: dict) -> list[str]:
    """Put `h + act(h Dᵀ + d) Uᵀ + u` on the outputs of the untouched model's layers."""
    paths = [PATHS[kind][place].format(i) for i in range(3) for place in PLACES[placement]]
    for path in paths:
        d, d_bias, u, u_bias = values[path]

        def change(module, inputs, h, d=d, d_bias=d_bias, u=u, u_bias=u_bias):
            return h + act(h @ d.t() + d_bias) @ u.t() + u_bias

        model.get_submodule(path).register_forward_hook(change)
    return paths


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("activation,act", [("gelu", F.gelu), ("relu", torch.relu)])
def test_values_and_gradients_are_those_of_hooks_on_the_untouched_model(kind, placement, activation, act):
    model = base(kind)
    plain = copy.deepcopy(model).requires_grad_(False)
    attach_bottlenecks(model, 5, placement, activation)
    torch.manual_seed(3)
    own = {}
    for path, layer in bottlenecks(model):
        parts = (layer.down.weight, layer.down.bias, layer.up.weight, layer.up.bias)
        for part in parts:
            torch.nn.init.normal_(part, std=0.3)
        own[path] = parts
    theirs = {path: [p.detach().clone().requires_grad_() for p in parts] for path, parts in own.items()}
    paths = hooked(plain, kind, placement, act, theirs)
    assert list(own) == paths
    ours, expected = logits(model), logits(plain)
    torch.testing.assert_close(ours, expected)
    for output in (ours, expected):
        loss(output, PADDED["attention_mask"]).backward()
    for path in paths:
        for mine, other in zip(own[path], theirs[path], strict=True):
            assert mine.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", PLACES)
def test_the_model_starts_unchanged_and_is_whole_again_without(kind, placement):
    model = base(kind)
    before, names = logits(model), list(model.state_dict())
    attach_bottlenecks(model, 7, placement)
    assert torch.equal(logits(model), before)
    own = dict(bottlenecks(model))
    parts = ("down.weight", "down.bias", "up.weight", "up.bias")
    assert set(trained(model)) == {f"{path}.{part}" for path in own for part in parts} and own
    with pytest.raises(LabError, match="already"):
        attach_bottlenecks(model, 7, placement)
    # at the start only U learns: what it multiplies is there, and D's gradient goes through U, which is zero
    loss(logits(model), PADDED["attention_mask"]).backward()
    for _, layer in bottlenecks(model):
        assert layer.up.weight.grad.abs().max() > 0 and not layer.down.weight.grad.any()
        torch.nn.init.normal_(layer.up.weight)
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(detach_bottlenecks(model)), before) and list(model.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement,weights", [("houlsby", ""), ("pfeiffer", ""), ("houlsby", "bfloat16")])
def test_training_holds_what_the_formula_says(kind, placement, weights):
    width, adapters = 6, 3 * len(PLACES[placement])
    method = Bottleneck(width=width, placement=placement, learning_rate=1e-2)
    model = check_training(method, kind, adapters * (2 * 32 * width + width + 32), weights)
    assert len(trained(model)) == 4 * adapters


def test_another_adapter_finds_the_layer_below_and_not_the_bottleneck_s_own():
    model = attach_bottlenecks(base("llama"), 4)
    before = logits(model)
    attach(model, LoraSpec(targets=("down",)))
    assert torch.equal(logits(model), before)
    assert not any("lora" in name and (".up." in name or ".down." in name) for name in trained(model))


def test_what_does_not_fit_is_refused_before_anything_changes():
    model = base("llama")
    wrong = {"width": (0, -1, 2.0, True), "placement": ("huolsby",), "activation": ("step",)}
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(LabError):
                Bottleneck(**{field: value}).adapt(model, TASK)
    with pytest.raises(LabError, match="No linear layer matches"):
        attach_bottlenecks(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert all(p.requires_grad for p in model.parameters()) and not list(bottlenecks(model))
