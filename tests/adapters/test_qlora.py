"""QLoRA: what it keeps of the base, what trains, whose layers, and the same losses from ours and bitsandbytes'."""

from __future__ import annotations

import pytest
import torch
from micro import Letters, micro_llama

from labkit.adapters.attach import detach, lora_layers
from labkit.adapters.qlora import OURS, QLora
from labkit.adapters.tuning import Lora
from labkit.errors import LabError
from labkit.ledger.case import Case, four_bit_bytes
from labkit.ledger.predict import standing
from labkit.ledger.shapes import Architecture
from labkit.numerics.quantize import Linear4bit
from labkit.numerics.quantize.int8 import Linear8bit
from labkit.training import evaluate, train

OPTIONS = {"steps": 5, "batch_size": 8, "progress": False}


def run(**fields):
    model, method = micro_llama(), QLora(rank=4, **fields)
    return model, method, train(model, Letters(), method, **OPTIONS)


@pytest.mark.parametrize("base", OURS)
def test_both_libraries_hold_the_predicted_bytes_and_give_the_same_losses(base):
    pytest.importorskip("bitsandbytes")
    losses = []
    for library in ("", "labkit"):
        model, method, found = run(base=base, library=library)
        assert method.library == (library or "bitsandbytes")
        for category in found.ledger.predicted:
            assert found.ledger.residual(category) == 0, (library, category)
        inside = [type(layer.base) for _, layer in lora_layers(model)]
        assert len(inside) == 14 and torch.nn.Linear not in inside
        losses.append(found.losses)
    # LLM.int8() of bitsandbytes computes with dequantized weights where it trains on a CPU
    assert losses[0] == pytest.approx(losses[1], abs=0.1 if base == "int8" else 2e-3)


def test_the_bytes_of_the_paper():
    """0.127 bits a parameter of constants with double quantization, 0.5 without (section 3)."""
    count = 4096 * 4096
    assert 8 * four_bit_bytes(count, double=True) / count == pytest.approx(4.127, abs=1e-3)
    assert 8 * four_bit_bytes(count, double=False) / count == 4.5
    assert four_bit_bytes(65, False) == 33 + 8  # odd sizes round up


def test_the_ledger_and_the_planner_know_the_recipe():
    _, method, found = run(library="labkit")
    arch = Architecture.of(micro_llama().config)
    case = Case(arch, 1, 8, train="lora", adapter="lora", four_bit=True, rank=4, targets=tuple(arch.matrices))
    expected = standing(case, 1)
    assert expected["weights"] == method.predicted_bytes()["weights"] == found.ledger.measured["weights"]
    assert expected["optimizer_states"] == found.ledger.measured["optimizer_states"]
    with pytest.raises(LabError, match="cannot train"):
        Case(arch, 1, 8, four_bit=True)


def test_only_adapters_train_over_codes_that_stay():
    model = micro_llama().train()
    method = QLora(rank=4, library="labkit")
    task = Letters()
    method.prepare(model, task, 5)
    codes = {path: layer.base.codes.clone() for path, layer in lora_layers(model)}
    others = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    for start in (0, 8, 16):
        method.step(task.batch(task.train[start : start + 8]))
    assert all(torch.equal(layer.base.codes, codes[path]) for path, layer in lora_layers(model))
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    assert all(layer.lora_B["default"].abs().max() > 0 for _, layer in lora_layers(model))
    assert type(model.lm_head) is torch.nn.Linear


def test_checkpointing_keeps_less_and_changes_nothing():
    runs = {on: run(checkpointing=on, dropout=0.0, library="labkit")[2] for on in (True, False)}
    assert runs[True].losses == pytest.approx(runs[False].losses, abs=1e-6)
    kept = [runs[on].ledger.measured["activations"] for on in (True, False)]
    assert kept[0] < 0.3 * kept[1]


def test_gradients_are_clipped_to_a_norm_of_03(monkeypatch):
    seen = []
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: seen.append(norm) or real(p, norm))
    run(library="labkit")
    assert set(seen) == {0.3}


def test_it_comes_near_lora_over_the_whole_weights_and_merges_into_dense_layers():
    task = Letters()
    whole = micro_llama()
    exact = train(whole, task, Lora(rank=4, targets="all-linear"), **{**OPTIONS, "steps": 30})
    model, method = micro_llama(), QLora(rank=4, dropout=0.0, base="int8", library="labkit")
    rough = train(model, task, method, **{**OPTIONS, "steps": 30})
    assert rough.losses[-1] == pytest.approx(exact.losses[-1], abs=0.15)
    before = evaluate(model, task)["loss"]
    plain = detach(model, merged=True)
    assert not any(isinstance(m, Linear4bit | Linear8bit) for m in plain.modules())
    assert evaluate(plain, task)["loss"] == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize(
    ("fields", "said"), [({"base": "nf3"}, "base 'nf3'"), ({"library": "bnb"}, "library 'bnb'"), ({"rank": 0}, "rank")]
)
def test_wrong_settings_end_before_the_model_changes(fields, said):
    model = micro_llama()
    with pytest.raises(LabError, match=said):
        train(model, Letters(), QLora(**{"rank": 4, **fields}), **OPTIONS)
    assert all(type(m) is torch.nn.Linear for n, m in model.named_modules() if n.endswith("_proj"))


def test_bitsandbytes_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("labkit.adapters.qlora.library_recipes", dict)
    with pytest.raises(LabError, match="not installed"):
        run(library="bitsandbytes")
    assert run()[1].library == "labkit"
