"""BitFit: exactly the biases train, as in a plain loop of torch; where there are none, zeros are added."""

from __future__ import annotations

import copy

import pytest
import torch
from neighbours import KINDS, TASK, base, check_training, loss, padded, peft_twin, trained
from peft import LoraConfig

from labkit.adapters.bitfit import BitFit, attach_biases, detach_biases
from labkit.adapters.targets import find
from labkit.errors import LabError

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
PADDED = padded()


def logits(model) -> torch.Tensor:
    return model(**PADDED, use_cache=False).logits


def test_on_opt_the_biases_that_there_are_train_as_in_a_plain_loop():
    model = base("opt")
    plain = copy.deepcopy(model).train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    method = BitFit(learning_rate=1e-2)
    method.prepare(model.train(), TASK, 3)
    assert set(trained(model)) == set(trained(plain))
    assert method.added == 0 and method.observed() == {"biases_added": 0.0}
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=1e-2, weight_decay=0.0, fused=True)
    for step, batch in enumerate(TASK.batches(TASK.train[:24], 8)):
        optimizer.zero_grad()
        TASK.loss(plain, batch).backward()
        torch.nn.utils.clip_grad_norm_(trained(plain).values(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1, 1, 0.5)[step]
        optimizer.step()
        method.step(batch)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    peft = peft_twin(base("opt"), LoraConfig(r=1, target_modules=["q_proj"], bias="all"))
    of_peft = [p for name, p in trained(peft).items() if "lora_" not in name]
    assert sum(p.numel() for p in of_peft) == sum(p.numel() for p in trained(model).values())


def test_targets_and_norms_say_which_biases_train():
    model = base("opt")
    assert attach_biases(model, ("q", "up"), norms=False) == 0
    names = {name.split("layers.")[-1] for name in trained(model)}
    assert names == {f"{i}.{end}.bias" for i in range(3) for end in ("self_attn.q_proj", "fc1")}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_model_is_prepared_once(weights):
    model = base("llama").to(weights)
    attach_biases(model)
    with pytest.raises(LabError, match="prepared already"):
        attach_biases(model)


@pytest.mark.parametrize("targets", ["all-linear", ("q", "v", "down")])
def test_a_model_without_biases_gets_zeros_and_starts_unchanged(targets):
    model = base("llama")
    before, names = logits(model), list(model.state_dict())
    added = attach_biases(model, targets)
    assert torch.equal(logits(model), before)
    layers = find(model, targets)
    assert added == sum(layer.out_features for layer in layers.values()) > 0
    assert set(trained(model)) == {f"{path}.bias" for path in layers}

    sums = {}  # of each layer's output gradient over all tokens, which is its bias's
    for path, layer in layers.items():
        layer.register_full_backward_hook(lambda _, __, g, path=path: sums.update({path: g[0].sum((0, 1))}))
    loss(logits(model), PADDED["attention_mask"]).backward()
    for path, layer in layers.items():
        assert layer.bias.grad.abs().max() > 0
        torch.testing.assert_close(layer.bias.grad, sums[path])
    with torch.no_grad():
        next(iter(layers.values())).bias.add_(1.0)
    assert not torch.equal(logits(model), before)
    detach_biases(model)
    assert torch.equal(logits(model), before) and list(model.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["", "bfloat16"])
def test_training_holds_what_the_formula_says(kind, weights):
    attention, feed_forward = {"llama": (32 + 16 + 16 + 32, 48 + 48 + 32), "opt": (4 * 32, 48 + 32)}[kind]
    norms = {"llama": 0, "opt": (2 * 3 + 1) * 32}[kind]
    method = BitFit(learning_rate=1e-2)
    model = check_training(method, kind, 3 * (attention + feed_forward) + norms, weights)
    assert method.added == (3 * (attention + feed_forward) if kind == "llama" else 0)
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if weights else torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_below_the_spacing_of_16_bits_is_not_lost(kind):
    model = base(kind)
    method = BitFit(learning_rate=1e-5, weights="bfloat16", warmup=0.0)
    method.prepare(model.train(), TASK, 50)
    start = {name: p.detach().clone() for name, p in trained(model).items()}
    for batch in TASK.batches(TASK.train[:16], 8):
        method.step(batch)
    moved = sum(int((p != start[name]).sum()) for name, p in trained(model).items())
    assert moved > 0.9 * sum(p.numel() for p in start.values())
    detach_biases(model)
    assert not trained(model) and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any("parametrizations" in name for name in model.state_dict())
    assert torch.isfinite(logits(model.eval())).all()


def test_targets_that_match_nothing_are_refused_before_anything_changes():
    model = base("llama")
    with pytest.raises(LabError, match="No linear layer matches 'fc9'"):
        BitFit(targets=("fc9",)).adapt(model, TASK)
    assert all(p.requires_grad for p in model.parameters()) and not any("bias" in n for n in model.state_dict())
