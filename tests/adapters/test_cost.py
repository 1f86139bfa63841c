"""LoRA's operations: the formula against torch's count on real layers, and on a whole model against the ledger's."""

from __future__ import annotations

import pytest
import torch
from micro import micro_llama
from torch.nn import functional as F

from labkit.adapters.attach import attach, lora_layers
from labkit.adapters.cost import WAYS, counted, formed, linear_flops
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.errors import LabError
from labkit.ledger import flops
from labkit.ledger.case import Case
from labkit.ledger.shapes import Architecture

TOKENS, INPUTS, OUTPUTS, RANK = 10, 48, 32, 4


def layer(way):
    """A function from x to y by a way to train, with its trained tensors."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    adapted = LoraLinear(torch.nn.Linear(INPUTS, OUTPUTS, bias=False))
    adapted.add("default", LoraSpec(RANK))
    a, b, scaling = adapted.scaled("default")
    return {
        "full": lambda x: F.linear(x, linear.weight),
        "lora": adapted,
        "lora formed": lambda x: formed(x, adapted.base.weight, a, b, scaling),
    }[way]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_formula_is_what_torch_counts(way, first):
    run = layer(way)
    x = torch.randn(TOKENS, INPUTS, requires_grad=not first)
    assert counted(lambda: run(x)) == linear_flops(way, TOKENS, INPUTS, OUTPUTS, RANK, first)


def test_lora_saves_a_third_where_the_rank_is_small_and_nothing_where_the_sum_is_formed():
    full = linear_flops("full", 4096, 2048, 2048)
    lora = linear_flops("lora", 4096, 2048, 2048, 8)
    sum_formed = linear_flops("lora formed", 4096, 2048, 2048, 8)
    assert 0.66 < lora.step / full.step < 0.68
    assert sum_formed.step > full.step
    assert linear_flops("lora", 4096, 2048, 2048, 8, first=True).backward < 0.02 * full.backward
    assert linear_flops("lora", 4096, 2048, 2048, 1024).step > full.step  # a large rank costs more than it saves


def test_both_ways_to_multiply_give_the_same_values():
    adapted = layer("lora")
    torch.nn.init.normal_(adapted.lora_B["default"])
    x = torch.randn(TOKENS, INPUTS)
    assert torch.allclose(adapted(x), formed(x, adapted.base.weight, *adapted.scaled("default")), atol=1e-4)


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "gate", "up", "down"), ("down",)])
def test_a_models_step_takes_what_the_ledger_says(targets):
    model, rank = micro_llama(), 2
    case = Case(Architecture.of(model.config), 3, 8, train="lora", rank=rank, targets=targets, attention="eager")
    model.set_attn_implementation("eager")
    attach(model, LoraSpec(rank, targets=targets))
    ids = torch.randint(1, 16, (3, 8))
    found = counted(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    assert found.step == flops.step(case)


def test_doras_norm_costs_products_with_thin_matrices_only():
    found = []
    for kind in (LoraLinear, DoraLinear):
        adapted = kind(torch.nn.Linear(INPUTS, OUTPUTS, bias=False))
        adapted.add("default", LoraSpec(RANK))
        x = torch.randn(TOKENS, INPUTS, requires_grad=True)
        found.append(counted(lambda adapted=adapted, x=x: adapted(x)))
    lora, dora = found
    thin = 2 * RANK * (OUTPUTS * INPUTS + INPUTS * RANK + OUTPUTS * RANK)
    assert dora.forward == lora.forward + thin and dora.backward == lora.backward
    assert sum(1 for _ in lora_layers(torch.nn.Sequential(adapted))) == 1


@pytest.mark.parametrize(("arguments", "said"), [(("all", 1, 1, 1), "way 'all'"), (("lora", 1, 1, 1), "rank"),
                                                  (("full", 0, 1, 1), "sizes")])  # fmt: skip
def test_wrong_sizes_are_refused(arguments, said):
    with pytest.raises(LabError, match=said):
        linear_flops(*arguments)
