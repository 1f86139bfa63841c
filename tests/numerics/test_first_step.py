"""The first step against the training loop's, and DeepNorm's arithmetic: what is level in depth, and what grows."""

from __future__ import annotations

import pytest

from labkit.errors import UnknownNameError
from labkit.numerics.depth import train_stack
from labkit.numerics.first_step import MATRICES, first_update
from labkit.numerics.stack import StackConfig

SMALL = {"width": 16, "heads": 2, "seq_len": 16}


@pytest.mark.parametrize("norm", ["pre-ln", "deepnorm"])
def test_it_is_the_first_step_of_training(norm):
    config = StackConfig(3, norm, **SMALL)
    wanted = [run.update for run in train_stack(config, (0, 2), (1e-3,), steps=2)]
    assert first_update(config, (0, 2), 1e-3) == pytest.approx(wanted, rel=1e-3)


def change(layers, norm="deepnorm", **options):
    (found,) = first_update(StackConfig(layers, norm, **SMALL), (0,), 1e-3, **options)
    return found


def test_sgd_on_the_matrices_is_level_in_depth_with_deepnorm_only():
    deep, post = ([change(n, norm, rule="sgd", only=MATRICES) for n in (4, 64)] for norm in ("deepnorm", "post-ln"))
    assert 0.5 < deep[1] / deep[0] < 2 and post[1] / post[0] > 5


def test_adam_on_the_matrices_grows_with_the_root_of_the_depth_and_the_rest_faster():
    matrices = [change(n, only=MATRICES) for n in (4, 64)]
    everything = [change(n) for n in (4, 64)]
    assert 2.5 < matrices[1] / matrices[0] < 6  # sqrt(64 / 4) = 4
    assert everything[1] / everything[0] > matrices[1] / matrices[0]


def test_only_the_named_parameters_move():
    assert change(2, only=()) == 0 and change(2, only=("up",)) < change(2)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UnknownNameError, match="sgd"):
        change(2, rule="momentum")
