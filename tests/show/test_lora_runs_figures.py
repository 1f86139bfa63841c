"""Lesson 10's rule for a finding: standard errors are those of a coin, and seeds count as well."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from labkit.errors import LabError
from labkit.show import lora_runs


def test_standard_errors_are_those_of_repeated_draws():
    drawn = (torch.rand(20_000, 200, generator=torch.Generator().manual_seed(0)) < 0.8).double().mean(1)
    assert lora_runs.standard_error(0.8, 200) == pytest.approx(drawn.std().item(), rel=0.03)
    halves = drawn.view(2, -1)
    _, most = lora_runs.difference(0.8, 0.8, 200)
    assert most == pytest.approx(200 * (halves[0] - halves[1]).std().item(), rel=0.03)
    for share, count in ((1.2, 10), (-0.1, 10), (math.nan, 10), (0.5, 0)):
        with pytest.raises(LabError, match="is no share"):
            lora_runs.standard_error(share, count)


def test_a_difference_counts_beyond_two_errors_and_beyond_two_seeds():
    assert not lora_runs.apart(0.80, 0.86, 200) and lora_runs.apart(0.80, 0.86, 2000)
    assert lora_runs.apart(0.86, 0.70, 200) and not lora_runs.apart(0.86, 0.70, 200, seeds=17)
    assert lora_runs.verdict(0.86, 0.70, 200).startswith("+16.0 points") and "a finding" in lora_runs.verdict(
        0.86, 0.70, 200
    )
    said = lora_runs.verdict(0.70, 0.86, 200, seeds=17)
    assert said.startswith("-16.0 points") and said.endswith("two seeds 17.0): no finding")


def test_rows_carry_the_error_beside_the_accuracy():
    run = SimpleNamespace(
        trainable_params=1234567, config={"learning_rate": 0.005}, evaluations=[{"accuracy": 0.5, "loss": 0.69315}]
    )
    (row,) = lora_runs.rows({"a run": run}, 100, rates=True)
    assert row == {"run": "a run", "values": "1,234,567", "rate": "0.005", "accuracy": 50.0, "±": 5.0, "loss": 0.693}
