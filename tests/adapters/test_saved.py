"""An adapter saved here loads in peft and gives the same logits, and the reverse; what does not fit is refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peers import CONFIGS, base, ids, near, pair
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from labkit.adapters.attach import attach, detach, lora_layers, use
from labkit.adapters.lora import LoraSpec
from labkit.adapters.saved import CONFIG, TENSORS, load_adapter, save_adapter
from labkit.errors import LabError

SPEC = LoraSpec(4, 8, rslora=True, targets=("q", "v", "down"))
CASES = [(kind, dora) for kind in CONFIGS for dora in (False, True)]


@pytest.mark.parametrize(("kind", "dora"), CASES)
def test_peft_reads_ours_and_we_read_pefts(tmp_path, kind, dora):
    ours, theirs = pair(kind, SPEC, dora)
    tokens = ids()
    logits = ours.eval()(input_ids=tokens).logits
    save_adapter(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of keys that it misses or does not know
        read = PeftModel.from_pretrained(base(kind), tmp_path / "ours").eval()
    assert near(read(input_ids=tokens).logits, logits)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = load_adapter(base(kind), tmp_path / "theirs").eval()
    assert near(mine(input_ids=tokens).logits, theirs.eval()(input_ids=tokens).logits)
    same = [load_file(tmp_path / who / TENSORS) for who in ("ours", "theirs")]
    assert same[0].keys() == same[1].keys() and all(torch.equal(v, same[1][k]) for k, v in same[0].items())


@pytest.mark.parametrize("targets", ["all-linear", r".*\.1\..*(q|v)_proj", ("q",)])
def test_targets_survive(tmp_path, targets):
    model = attach(base("llama"), LoraSpec(2, targets=targets))
    save_adapter(model, tmp_path)
    wanted = [path for path, _ in lora_layers(model)]
    assert [path for path, _ in lora_layers(load_adapter(base("llama"), tmp_path))] == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = PeftModel.from_pretrained(base("llama"), tmp_path)
    assert [n.removeprefix("base_model.model.") for n, m in read.named_modules() if hasattr(m, "lora_A")] == wanted


def test_two_adapters_are_saved_apart_and_loaded_together(tmp_path):
    model = attach(attach(base("llama"), LoraSpec(2), "a"), LoraSpec(4, targets=("o",)), "b")
    for _, layer in lora_layers(model):
        for b in layer.lora_B.values():
            torch.nn.init.normal_(b)
    for name in "ab":
        save_adapter(model, tmp_path / name, name)
    again = load_adapter(load_adapter(base("llama"), tmp_path / "a", "a"), tmp_path / "b", "b")
    tokens = ids()
    for name in ("a", "b", ""):
        expected = use(model, name).eval()(input_ids=tokens).logits
        assert torch.equal(use(again, name).eval()(input_ids=tokens).logits, expected)
    with pytest.raises(LabError, match="no adapter 'c'"):
        save_adapter(model, tmp_path / "c", "c")


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_model_saves_as_a_plain_checkpoint(tmp_path, dora):
    ours, _ = pair("llama", SPEC, dora)
    tokens = ids()
    logits = ours.eval()(input_ids=tokens).logits
    detach(ours, merged=True).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert near(again(input_ids=tokens).logits, logits)


def _rewrite(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / TENSORS)
    change(config, tensors)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / TENSORS)


def _other_kind(config, tensors):
    config["peft_type"] = "IA3"


def _bias(config, tensors):
    config["bias"] = "all"


def _lost_part(config, tensors):
    tensors.pop(next(key for key in tensors if "lora_B" in key))


def _stranger(config, tensors):
    tensors["base_model.model.model.layers.0.mlp.lora_E.weight"] = torch.zeros(2)


def _lost_layer(config, tensors):
    config["target_modules"] = r".*\.(q|v|down)_proj"
    for key in [key for key in tensors if "layers.1" in key]:
        tensors.pop(key)


DAMAGE = {
    "truncated": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-200]), "damaged"),
    "header": (lambda f: (f / TENSORS).write_bytes(b"\x10" + bytes(6)), "damaged"),
    "config": (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text()[:40]), "damaged"),
    "no file": (lambda f: (f / TENSORS).unlink(), "adapter_model.safetensors is missing"),
    "no config": (lambda f: (f / CONFIG).unlink(), "adapter_config.json is missing"),
    "kind": (lambda f: _rewrite(f, _other_kind), "type 'IA3'"),
    "bias": (lambda f: _rewrite(f, _bias), "peft's bias"),
    "part": (lambda f: _rewrite(f, _lost_part), "lacks {'lora_B'}"),
    "stranger": (lambda f: _rewrite(f, _stranger), "lora_E"),
    "layer": (lambda f: _rewrite(f, _lost_layer), "lacks layers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_adapter_is_refused_and_the_model_stays(tmp_path, name):
    damage, said = DAMAGE[name]
    save_adapter(attach(base("llama"), SPEC), tmp_path)
    damage(tmp_path)
    model = base("llama")
    before = [n for n, _ in model.named_modules()]
    with pytest.raises(LabError, match=said):
        load_adapter(model, tmp_path)
    assert [n for n, _ in model.named_modules()] == before and all(p.requires_grad for p in model.parameters())


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(attach(base("opt"), SPEC), tmp_path / "opt")
    with pytest.raises(LabError, match=r"another model: this one has no linear layer model.decoder"):
        load_adapter(base("llama"), tmp_path / "opt")
    wider = type(CONFIGS["llama"])(**{**CONFIGS["llama"].to_dict(), "intermediate_size": 64})
    save_adapter(attach(AutoModelForCausalLM.from_config(wider), SPEC), tmp_path / "wide")
    with pytest.raises(LabError, match=r"lora_A of .*down_proj is \(4, 64\), and this model needs \(4, 48\)"):
        load_adapter(base("llama"), tmp_path / "wide")
