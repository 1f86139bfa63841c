"""What is there in the midst of a step of ZeRO, and what a step of many micro-batches sends, on two ranks."""

from __future__ import annotations

import pytest
import zero_in_step

from labkit.parallel.launch import launch

pytestmark = pytest.mark.usefixtures("without_gpus")


def test_budgets_prefetch_and_accumulation():
    results = launch(zero_in_step.two, 2, timeout_s=300.0)
    failed = [{name: said for name, said in found.items() if said} for found in results]
    assert all(len(found) == 4 for found in results) and not any(failed), failed  # what each rank says
