"""ZeRO's stages on two ranks: one process's values to the bit, torch's own beside them, and mutants that must fail."""

from __future__ import annotations

import pytest
import zero_runs

from labkit.parallel.launch import launch

pytestmark = pytest.mark.usefixtures("without_gpus")


@pytest.fixture(scope="module")
def verdicts():
    """What the checks said, on every rank."""
    return launch(zero_runs.two, 2, timeout_s=600.0)


@pytest.mark.parametrize("part", ["values", "peers", "sizes", "going_on"])
def test_the_real_ones_pass(verdicts, part):
    for rank, found in enumerate(verdicts):
        assert found[part] and not {name: said for name, said in found[part].items() if said}, rank


def test_values_that_are_wrong_are_found(verdicts):
    for found in verdicts:
        assert len(found["wrong_values"]) == 6
        assert not [name for name, said in found["wrong_values"].items() if not said]


def test_what_is_not_sharded_is_found(verdicts):
    for found in verdicts:
        wrong = dict(found["wrong_bytes"])
        assert wrong.pop("right values") == ""  # the unsharded AdamW computes nothing wrong: only bytes tell
        assert len(wrong) == 14 and not [name for name, said in wrong.items() if not said]
        assert "standing" in wrong["zero1 UnshardedAdamW"] and "sockets" in wrong["AllReduces"]
        assert "at once" in wrong["zero3 ReleasesLate"] and "with gradients" in wrong["zero2 KeepsGradients"]
