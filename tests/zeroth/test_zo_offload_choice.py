"""How rarely blocks are written back is found by trying, and leaves the numbers as they are."""

from __future__ import annotations

import pytest
import torch
from offloads import MODELS, offloaded, pair, same, steps

from labkit.errors import LabError
from labkit.zeroth.offload.choose import CHOICES, MEASURED, Chooser
from labkit.zeroth.offload.roofline import Machine

STEPS = sum(k + max(k, 3) for k in CHOICES)


@pytest.mark.parametrize("tokens", [10, 1500, 4000])
def test_the_roofline_s_best_is_found_from_times(tokens):
    machine, uploaded = Machine(up=50.0, both=30.0, token_us=10.0, noise_ms=20.0), 20 * 10**9
    told: list[int] = []
    chooser = Chooser(told.append)
    while chooser.chosen is None:
        chooser.note(machine.step_ms(uploaded, tokens, told[-1]))
    assert told[:-1] == list(CHOICES) and told[-1] == chooser.chosen
    assert chooser.chosen == machine.best_write_back(uploaded, tokens, CHOICES)
    chooser.note(0.0)
    assert len(told) == len(CHOICES) + 1


def test_steps_that_settle_are_not_timed_and_equal_times_choose_the_smallest():
    told: list[int] = []
    chooser = Chooser(told.append)
    for k in CHOICES:
        for step in range(k + max(k, 3)):
            chooser.note(100.0 if step < k else 1.0 - 0.001 * k)
    assert chooser.chosen == 1 and set(chooser.times) == set(CHOICES)


@pytest.mark.parametrize("parts", [1, 3])
def test_while_it_tries_the_numbers_stay_mezo_s(parts):
    model, losses, common = pair("opt", STEPS + 2, torch.float16)
    method, other = offloaded(**common, parts=parts, write_back=MEASURED), MODELS["opt"]().to(torch.float16)
    assert steps(method, other, STEPS + 2) == losses
    assert method.chooser is not None and method.chooser.chosen in CHOICES
    assert sorted(method.chooser.times) == list(CHOICES) and all(t > 0 for t in method.chooser.times.values())
    method.close()
    assert same(model, other)


def test_another_word_is_refused():
    with pytest.raises(LabError, match='"measured"'):
        offloaded(write_back="best").prepare(MODELS["opt"](), None, 1)
