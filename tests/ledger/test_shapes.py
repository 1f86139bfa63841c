"""A configuration as numbers: parameters counted as transformers builds them, and what cannot be read refused."""

from types import SimpleNamespace

import pytest
import torch
from decoders import llama, opt
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig

from labkit.errors import LabError, UnknownNameError
from labkit.ledger.case import Case
from labkit.ledger.shapes import Architecture


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [llama, opt])
def test_every_tensor_is_there_with_its_shape(kind, tied):
    config = kind(3, tied=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    arch = Architecture.of(config)
    assert sorted(w.shape for w in arch.weights) == sorted(tuple(p.shape) for p in model.parameters())
    linear = [m.weight.shape for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "head" not in n]
    assert sorted(w.shape for w in arch.block * 3 if w.linear) == sorted(tuple(s) for s in linear)


def test_published_sizes():
    sizes = {"hidden_size": 12288, "word_embed_proj_dim": 12288, "ffn_dim": 49152, "num_hidden_layers": 96}
    arch = Architecture.of(OPTConfig(**sizes, num_attention_heads=96))
    assert round(arch.parameters / 1e9, 1) == 174.6


def test_what_cannot_be_read_is_refused():
    with pytest.raises(LabError, match="gpt2"):
        Architecture.of(GPT2Config())
    with pytest.raises(LabError, match="num_hidden_layers"):
        Architecture.of(SimpleNamespace(model_type="llama", num_attention_heads=4))
    for name, value in (("num_hidden_layers", 0), ("vocab_size", -5)):
        config = llama()
        setattr(config, name, value)
        with pytest.raises(LabError, match=str(value)):
            Architecture.of(config)
    config = opt()
    config.word_embed_proj_dim = 16
    with pytest.raises(LabError, match="projects"):
        Architecture.of(config)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch": 0}, "0 is no batch"),
        ({"seq_len": -1}, "-1 is no seq len"),
        ({"segments": 3}, "2 layers cannot be cut into 3"),
        ({"master": True}, "fp32 copies of 16-bit"),
        ({"stage": 4}, "no stage 4"),
        ({"train": "lora", "targets": ("gate", "queries")}, "no matrix queries"),
    ],
)
def test_cases_that_make_no_sense(wrong, says):
    with pytest.raises(LabError, match=says):
        Case(Architecture.of(llama()), **{"batch": 1, "seq_len": 8, **wrong})


@pytest.mark.parametrize("name", ["weights", "compute", "train", "optimizer", "attention"])
def test_unknown_names(name):
    with pytest.raises(UnknownNameError, match="adamq"):
        Case(Architecture.of(llama()), 1, 8, **{name: "adamq"})
