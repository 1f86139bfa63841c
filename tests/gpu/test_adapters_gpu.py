"""Adapters on a GPU in bf16: peft's losses step by step, at most its peak, and QLoRA's paged moments."""

from __future__ import annotations

from dataclasses import replace

import pytest
from micro import Letters, micro_llama

from labkit.adapters.qlora import QLora
from labkit.bench.lora_cost import _one
from labkit.bench.lora_steps import Setting, Steps
from labkit.training import train

pytestmark = pytest.mark.gpu
STEPS = 20


def far(one: list[float], other: list[float]) -> float:
    """The largest difference."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("targets", ["q,v", "all-linear"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("model", ["smollm2-135m", "opt-125m"])
def test_losses_are_pefts_to_rounding_and_the_peak_is_at_most_pefts(model, method, dropout, targets):
    """The first loss agrees to a step of bf16; later ones as far as rounding moves peft's own, which AdamW's division
    by small moments makes more of with each step: no further apart than thrice what lies between peft's losses in bf16
    and from the same weights in fp32 (dropout draws other masks there, so that this is taken without it)."""
    mine = Setting(model, method, "bfloat16", "bfloat16", 8, 64, targets=targets, dropout=dropout)
    ours, theirs = (_one(setting, "cuda") for setting in (mine, replace(mine, method=mine.peer)))
    dry = replace(mine, method=mine.peer, dropout=0.0)
    exact = Steps(dry, "cuda")
    exact.model.float()
    rounding = far(Steps(dry, "cuda").losses(STEPS), exact.losses(STEPS))
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=0.01)
    assert far(ours["losses"], theirs["losses"]) <= 3 * rounding
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["peak_allocated_mib"] <= theirs["peak_allocated_mib"]
    assert ours["measured_mib"] <= theirs["measured_mib"]


def test_in_fp32_losses_are_pefts_to_many_digits():
    mine = Setting("smollm2-135m", "dora", "float32", "float32", 4, 64, targets="all-linear", dropout=0.1)
    ours, theirs = (Steps(setting, "cuda").losses(STEPS) for setting in (mine, replace(mine, method=mine.peer)))
    assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("base", ["nf4+dq", "int8"])
def test_qlora_runs_on_the_librarys_layers_with_paged_moments(base):
    pytest.importorskip("bitsandbytes")
    model, method = micro_llama().to("cuda"), QLora(rank=4, base=base, weights="bfloat16")
    run = train(model, Letters(), method, steps=20, batch_size=8, progress=False)
    assert method.library == "bitsandbytes" and method.paged
    assert type(method._optimizer).__name__ == "PagedAdamW32bit"
    assert run.losses[-1] < run.losses[0]
    assert run.ledger.residual("weights") == 0
