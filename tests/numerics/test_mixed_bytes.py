"""Every way to train in 16 bits takes the bytes that it predicts, and counting them changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from micro import micro_llama
from mixed_runs import (
    NAMES,
    RATE,
    SETTINGS,
    TASK,
    assert_same,
    batches,
    prepared,
)

from labkit.ledger import Ledger, storage_bytes
from labkit.methods import Method
from labkit.numerics import mixed
from labkit.training import train


@pytest.mark.parametrize("name", NAMES)
def test_predicted_bytes_equal_the_counted_storages(name):
    method = mixed.method(name, learning_rate=RATE)
    run = train(micro_llama(), TASK, method, **SETTINGS)
    assert isinstance(method, Method) and json.dumps(run.config)
    for category in ("weights", "master_weights", "gradients", "optimizer_states"):
        assert run.ledger.residual(category) == 0, category
    assert run.ledger.measured["activations"] > 0
    assert set(run.ledger.predicted) == {"weights", "master_weights", "gradients", "optimizer_states"}


def test_states_are_counted_although_the_first_steps_were_skipped():
    method = mixed.method("fp16-recipe", learning_rate=RATE, loss_scale=2.0**30)
    run = train(micro_llama(), TASK, method, **{**SETTINGS, "steps": 40})
    assert run.traces["found_inf"][:2] == [1, 1], "the second step must be one of those without an update"
    assert run.ledger.residual("optimizer_states") == 0


BYTES = {
    "fp32": (4, 0, 4, 8), "tf32": (4, 0, 4, 8), "fp16": (2, 0, 2, 4), "fp16+scaler": (2, 0, 2, 4),
    "fp16+master": (2, 4, 4, 8), "fp16-recipe": (2, 4, 4, 8), "fp16-autocast": (4, 0, 4, 8),
    "bf16-autocast": (4, 0, 4, 8), "bf16": (2, 0, 2, 4), "fp16-moments": (4, 0, 4, 4), "fp16-weights": (2, 0, 2, 8),
    "bf16+stochastic": (2, 0, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_bytes_a_parameter_are_those_of_the_files_head(name):
    method, model = prepared(name)
    count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
    found = method.predicted_bytes()
    found["optimizer_states"] -= 4 * tensors
    assert tuple(value / count for value in found.values()) == BYTES[name]
    method.measured_step(batches()[0], ledger := Ledger())
    assert ledger.measured["weights"] == storage_bytes(model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied, and counted once
    wide = micro_llama()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), wide.buffers(), strict=True))


def test_16_bit_products_keep_fewer_activations():
    kept = {}
    for name in ("fp32", "fp16", "fp16-recipe", "fp16-autocast", "bf16"):
        method, _ = prepared(name)
        method.measured_step(batches()[0], ledger := Ledger())
        kept[name] = ledger.measured["activations"]
    assert kept["fp16"] == kept["fp16-recipe"] == kept["bf16"] < kept["fp16-autocast"] < kept["fp32"]


def test_measuring_a_step_changes_nothing():
    for name in ("fp16-recipe", "fp16-autocast", "bf16+stochastic"):
        (plain_method, first), (measured, second) = prepared(name), prepared(name)
        for batch in batches():
            assert plain_method.step(batch) == measured.measured_step(batch, Ledger())
        assert_same(first.parameters(), second.parameters())
