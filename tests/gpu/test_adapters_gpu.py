"""Adapters on a GPU in bf16: peft's losses step by step, at most its peak, and QLoRA's paged moments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro import Letters, micro_llama

from labkit.adapters import dora_kernels as kernels
from labkit.adapters.dora import scales_of
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("out", "rank"), [(70, 8), (33, 5), (64, 1), (2048, 64)])
def test_row_scales_are_the_formulas_of_torchs_operations(out, rank, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    a, b, w = (
        torch.randn(*shape, generator=generator, device="cuda") for shape in ((rank, 50), (out, rank), (out, 50))
    )
    m = torch.rand(out, generator=generator, device="cuda")
    for lost in (w, b, m):
        lost[3] = 0.0
    a, b, w = a.to(dtype), b.to(dtype), w.to(dtype)
    found = kernels.row_scales(w @ a.t(), a @ a.t(), b, w.float().square().sum(1), m, 1.5)
    wanted = scales_of(m, (w.double() + 1.5 * b.double() @ a.double()).square().sum(1).float())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-5)
    assert found[0][3] == 1.0 and found[1][3] == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("count", "width"), [(1, 5), (7, 130), (100, 300), (5000, 64), (4096, 2048)])
def test_the_way_back_through_scales_is_the_same_in_one_reading(count, width, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    g, u = (torch.randn(count, width, generator=generator, device="cuda").to(dtype) for _ in range(2))
    scale = torch.rand(width, generator=generator, device="cuda")
    scaled, total = kernels.through_scale(g, u, scale)
    assert torch.equal(scaled, torch.mul(g, scale, out=torch.empty_like(g)))
    torch.testing.assert_close(total, (g.double() * u.double()).sum(0).float(), rtol=1e-4, atol=1e-3)
