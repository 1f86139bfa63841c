"""The formula for what autograd keeps, against what it keeps: to the last byte."""

import weakref
from itertools import product

import pytest
import torch
from decoders import WORDS, llama, opt
from transformers import AutoModelForCausalLM

from labkit.ledger import activations, saved_for_backward
from labkit.ledger.case import ADAPTERS, PEFT, Case
from labkit.ledger.shapes import Architecture
from labkit.memory.step import _adapted

POLICIES = [("float32", ""), ("bfloat16", ""), ("float32", "bfloat16")]
MODELS = {
    "llama": lambda layers, attention: llama(layers, attention=attention),
    "llama, own head": lambda layers, attention: llama(layers, False, attention),
    "opt": lambda layers, attention: opt(layers, attention=attention),
    "opt, dropout": lambda layers, attention: opt(layers, attention=attention, dropout=0.1),
}
ALL = {"llama": ("q", "k", "v", "o", "gate", "up", "down"), "opt": ("q", "k", "v", "o", "up", "down")}


def saved(config, case: Case) -> int:
    """Bytes that autograd keeps in a forward pass on this CPU."""
    model = AutoModelForCausalLM.from_config(config).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, case.weights))
    if case.train == "lora":
        model = _adapted(case, model)
        if case.fsdp:  # as `fully_shard` gathers them
            model.to(getattr(torch, case.weights))
    ids = torch.randint(0, WORDS, (case.batch, case.seq_len))
    dtype = getattr(torch, case.compute) if case.autocast else None
    with saved_for_backward(model) as found, torch.autocast("cpu", dtype, enabled=case.autocast):
        model(input_ids=ids, labels=ids, use_cache=False)
    return found["activations"]


def formula(case: Case) -> int:
    blocks = activations.total(activations.block(case, first=True))
    blocks += (case.arch.layers - 1) * activations.total(activations.block(case))
    return blocks + activations.total(activations.outside(case))


@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
@pytest.mark.parametrize("name", MODELS)
def test_full_fine_tuning_to_the_last_byte(name, policy, attention):
    for layers in (1, 3):
        config = MODELS[name](layers, "sdpa" if attention == "flash" else "eager")
        case = Case(Architecture.of(config), 2, 8, *policy, attention=attention, device="cpu")
        assert saved(config, case) == formula(case), layers


@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_to_the_last_byte(adapter, name, policy):
    chosen = [("q", "v"), ALL[name], ("o", "up"), ("up",), ("down",), *([("gate", "down")] if name == "llama" else [])]
    for attention, targets in product(("flash", "eager"), chosen):
        config = MODELS[name](3, "sdpa" if attention == "flash" else "eager")
        options = {"train": "lora", "targets": targets, "rank": 4, "attention": attention, "device": "cpu"}
        case = Case(Architecture.of(config), 2, 8, *policy, adapter=adapter, **options)
        assert saved(config, case) == formula(case), (attention, targets)
        if adapter == PEFT and not case.autocast:
            gathered = case.with_(stage=3, fsdp=True)
            assert saved(config, gathered) == formula(gathered), (attention, targets)


def test_our_adapters_keep_less_than_pefts():
    arch = Architecture.of(llama(3))
    for policy in POLICIES:
        case = Case(arch, 2, 8, *policy, train="lora", targets=ALL["llama"], rank=4, device="cpu")
        kept = formula(case), formula(case.with_(adapter="lora"))
        assert kept[0] == kept[1] if policy == ("float32", "") else kept[0] > kept[1]


def test_forward_alone_keeps_nothing():
    assert formula(Case(Architecture.of(llama()), 2, 8, train="nothing")) == 0


def test_the_byte_counts_of_the_literature():
    """Korthikanti et al. 2022: 34 B T h and 5 B heads T² for GPT-3's block; ours has no GELU and another dropout."""
    wide = Architecture("opt", 1, 1024, 16, 16, 64, 4096, 64, positions=64, biases=True, dropout=0.1)
    case = Case(wide, 4, 512, weights="bfloat16", attention="eager")
    flash = case.with_(attention="flash")
    values, scores = 4 * 512 * 1024, 4 * 16 * 512 * 512
    kept, lean = (activations.total(activations.block(c)) for c in (case, flash))
    assert kept - lean == 6 * scores - 4 * 4 * 512 * 16  # fp32 and bf16 probabilities for one number a row
    # 2 norms and 2 inputs of 2 bytes, q k v out, 8 for the ReLU's output, 2 masks of 1
    assert 26 * values <= lean < 26.1 * values


def test_nothing_stays_where_no_backward_pass_comes():
    """exp keeps its own output: kept as it is, it would hold itself."""
    model = torch.nn.Linear(4, 4)
    with saved_for_backward(model):
        kept = model(torch.ones(1, 4)).exp()
    there = weakref.ref(kept)
    del kept
    assert there() is None
