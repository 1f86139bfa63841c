"""What the tests of `labkit.numerics.mixed` share: a micro model, its batches, an overflow where it is wanted."""

from __future__ import annotations

import math

import torch
from micro import Letters, micro_llama

from labkit.numerics import mixed
from labkit.training import order

TASK = Letters()
NAMES = tuple(mixed.METHODS)
RATE, STEPS, BATCH = 3e-3, 6, 8
RECIPE = {**mixed.FP16, "master": True}
SETTINGS = {"steps": STEPS, "batch_size": BATCH, "progress": False, "on_nan": "stop"}


def prepared(name: str, model=None, steps: int = STEPS, **options):
    model = micro_llama() if model is None else model
    method = mixed.method(name, learning_rate=RATE, **options)
    method.prepare(model.train(), TASK, steps)
    return method, model


def batches(steps: int = STEPS, seed: int = 0):
    return [TASK.batch(examples) for examples in order(TASK, BATCH, seed, steps)]


def overflow_at(model, steps: set[int]) -> None:
    """An infinity in the gradient of one weight at these backward passes, as if a product had overflowed."""
    passes = []

    def inject(gradient):
        passes.append(1)
        if len(passes) - 1 in steps:
            gradient = gradient.clone()
            gradient.view(-1)[3] = math.inf
        return gradient

    model.model.layers[0].mlp.up_proj.weight.register_hook(inject)


def bits(tensors) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]


def assert_same(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
