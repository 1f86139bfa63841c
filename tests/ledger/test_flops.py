"""Operations counted by formula, against torch's counter, and times only where a rate is known."""

import pytest
from decoders import llama, opt
from torch.utils.flop_counter import FlopCounterMode

from labkit.ledger import flops
from labkit.ledger.case import Case
from labkit.ledger.shapes import Architecture
from labkit.memory.step import Step


def counted(case, config, whole):
    step = Step(case, config, "cpu")
    with FlopCounterMode(display=False) as counter, step.checkpointing():
        loss = step.forward()
        if whole:
            step.backward(loss)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segments": 3},
        {"segments": 2},
        {"train": "nothing"},
        {"train": "lora", "targets": ("q", "o")},
        {"train": "lora"},
        {"train": "lora", "targets": ("o",)},
        {"train": "lora", "targets": ("up",), "adapter": "lora"},
        {"train": "lora", "targets": ("down",)},
        {"train": "lora", "adapter": "dora"},
        {"train": "lora", "adapter": "dora", "targets": ("q", "up"), "segments": 3},
        {"train": "lora", "targets": ("q", "k", "v", "o", "up", "down"), "adapter": "lora"},
        {"train": "lora", "segments": 2},
        {"train": "lora", "segments": 3, "targets": ("q", "down")},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [llama, opt])
def test_operations_are_those_that_torch_counts(kind, options):
    config = kind(3, attention="eager")
    case = Case(Architecture.of(config), 2, 16, attention="eager", device="cpu", rank=4, **options)
    found = counted(case, config, case.train != "nothing")
    assert flops.step(case) == found
    if case.train == "full" and not case.segments:
        assert flops.forward(case) == counted(case, config, whole=False) == found / 3


def test_times_come_from_the_nearest_measured_step_or_not_at_all():
    case = Case(Architecture.of(llama()), 2, 16)
    size = flops.step(case)
    rates = [flops.Rate("h100", "float32", 2 * size, 0.4), flops.Rate("h100", "float32", 9 * size, 0.9)]
    assert flops.seconds(case, "h100", rates) == pytest.approx(0.2)
    assert flops.seconds(case, "a100", rates) is None
    assert flops.seconds(case.with_(compute="bfloat16"), "h100", rates) is None
    assert flops.seconds(case.with_(batch=4000), "h100", rates) is None
