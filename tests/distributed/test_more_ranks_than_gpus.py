"""Ranks that outnumber the GPUs run on the CPU, whole: also where torch would take the machine's GPU by itself."""

from __future__ import annotations

import pytest
import runs

from labkit.parallel.launch import launch


def test_every_method_on_ranks_of_the_cpu():
    """On a machine with a GPU this fails where a method leaves the choice of the device to torch."""
    for found in launch(runs.every_method, 2, device="cpu", timeout_s=300.0):
        assert len(found) == 7
        for name, losses in found.items():
            assert losses == pytest.approx(found["ddp"], rel=1e-4), name
