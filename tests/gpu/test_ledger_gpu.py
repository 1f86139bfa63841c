"""On a GPU: the predicted peak beside the allocator's, and a run that does not fit."""

from __future__ import annotations

import gc

import pytest
import torch
from decoders import wide_llama, wide_opt
from micro import Letters, micro_llama

from labkit.bench.anatomy import workspaces
from labkit.ledger import fit
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.memory.step import Step
from labkit.methods import FullFineTuning
from labkit.training import train

pytestmark = pytest.mark.gpu
POLICIES = [{}, {"weights": "bfloat16"}, {"compute": "bfloat16"}, {"optimizer": "sgd"}, {"train": "lora"}]


@pytest.mark.parametrize("segments", [0, 6])
@pytest.mark.parametrize("options", POLICIES, ids=str)
@pytest.mark.parametrize("kind", [wide_llama, wide_opt])
def test_the_predicted_peak_is_the_allocators(kind, options, segments):
    workspaces("cuda")  # they are part of what was there before
    gc.collect()
    config, before = kind(), torch.cuda.memory_allocated()
    case = Case(Architecture.of(config), 8, 256, segments=segments, **options)
    step = Step(case, config, "cuda")
    step.run()
    torch.cuda.reset_peak_memory_stats()
    step.run()
    peak = torch.cuda.max_memory_allocated() - before
    assert abs(peak / predict(case).peak.total - 1) < 0.1, (peak, predict(case).peak)


def test_running_out_of_real_memory_is_explained_and_given_back():
    free, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (whole - free + 2**28) / whole))

    class Greedy(FullFineTuning):
        def step(self, batch):
            self.held = torch.zeros(2**40, device="cuda")

    try:
        with pytest.raises(fit.DoesNotFit, match="memory ran out"):
            train(micro_llama().cuda(), Letters(), Greedy(), steps=3, batch_size=4, progress=False)
        assert torch.cuda.memory_allocated() < 2**28
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
