"""How many ranks compute side by side on a machine."""

import pytest
from machines import machine

from labkit.machine import GB, Gpu
from labkit.parallel.group import side_by_side


def gpus(count):
    return tuple(Gpu(f"card {i}", 80 * GB, (9, 0)) for i in range(count))


@pytest.mark.parametrize(
    "cores, cards, ranks", [(1, 0, 2), (2, 0, 2), (3, 0, 2), (4, 0, 4), (64, 0, 4), (64, 2, 2), (2, 4, 4), (8, 1, 4)]
)
def test_ranks_have_a_gpu_or_a_core_each(cores, cards, ranks):
    assert side_by_side(machine(cores=cores, gpus=gpus(cards)), (2, 4)) == ranks
