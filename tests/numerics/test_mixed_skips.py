"""Ways to train in 16 bits over skipped steps, cuts and reuse: nothing of one run is left in the next."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from micro import micro_llama
from mixed_runs import (
    NAMES,
    RATE,
    SETTINGS,
    STEPS,
    TASK,
    assert_same,
    batches,
    bits,
    overflow_at,
    prepared,
)

from labkit.methods import FullFineTuning
from labkit.numerics import mixed
from labkit.numerics.products import products_in
from labkit.training import evaluate, train


@pytest.mark.parametrize("name", ["fp16+scaler", "fp16-recipe", "fp16-autocast"])
def test_a_skipped_step_leaves_weights_moments_and_schedule(name):
    method, model = prepared(name, loss_scale=2.0**8)
    overflow_at(model, {3})
    steps = batches()
    for batch in steps[:3]:
        method.step(batch)

    def everything():
        moments = [t for state in method._optimizer.state.values() for t in state.values()]
        return bits([*model.parameters(), *method._masters, *moments]), copy.deepcopy(method._schedule.state_dict())

    before = everything()
    assert method.step(steps[3]).isfinite() and method.observed()["found_inf"] == 1
    after = everything()
    assert_same(before[0], after[0])
    assert before[1] == after[1] and method._schedule.last_epoch == 3
    assert method.scaler.scale == 2.0**7
    method.step(steps[4])
    assert method.observed()["found_inf"] == 0
    assert not torch.equal(everything()[0][0], before[0][0]) and method._schedule.last_epoch == 4


@pytest.mark.parametrize("name", ["fp16+scaler", "fp16-recipe", "fp16-autocast"])
def test_a_scale_that_is_too_large_is_halved_until_gradients_fit(name):
    method, model = prepared(name, steps=40, loss_scale=2.0**30)
    before = bits(model.parameters())
    skips = 0
    for batch in batches(40):
        assert method.step(batch).isfinite()
        if not method.observed()["found_inf"]:
            break
        skips += 1
        assert_same(model.parameters(), before)
    assert 5 < skips < 30 and method.scaler.scale == 2.0 ** (30 - skips) and method.observed()["skipped"] == skips


def test_pure_fp16_without_a_scaler_is_ruined_by_one_overflow():
    model = micro_llama()
    method = mixed.method("fp16", learning_rate=RATE)
    method.prepare(model.train(), TASK, STEPS)
    overflow_at(model, {1})
    losses = [method.step(batch) for batch in batches()]
    assert losses[1].isfinite() and losses[2].isnan()


@pytest.mark.parametrize(
    ("name", "computing"),
    [
        ("fp32", (None, None)), ("tf32", ("tf32", None)), ("fp16-recipe", ("fp16", None)),
        ("fp16-autocast", ("fp16", torch.float16)), ("bf16-autocast", ("bf16", torch.bfloat16)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_is_evaluated_in_the_methods_own_format(name, computing):
    fmt, autocast = computing
    model = micro_llama()
    method = mixed.method(name, learning_rate=RATE)
    found = train(model, TASK, method, **SETTINGS).evaluations[-1]["loss"]
    with products_in(fmt or "fp32", "cpu"), torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert evaluate(model, TASK)["loss"] == found
    if name in ("tf32", "fp16-autocast", "bf16-autocast"):
        # Outside, the fp32 weights compute in fp32, and the difference is more than one of the order of additions.
        assert abs(evaluate(model, TASK)["loss"] - found) > 1e-6
    with method.computing():
        assert evaluate(model, TASK)["loss"] == found


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_off_run_goes_on_and_ends_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.training.SAVE_EVERY_SECONDS", 0.0)
    options = {"learning_rate": RATE, "loss_scale": 2.0**12, "growth_interval": 2}
    whole_model = micro_llama()
    whole = train(whole_model, TASK, mixed.method(name, **options), **SETTINGS)
    cut, kept = mixed.method(name, **options), tmp_path / "run.pt"
    real, made = cut.step, []

    def step(batch):
        made.append(1)
        if len(made) == 4:  # the second of all steps is the measured one
            raise KeyboardInterrupt
        return real(batch)

    cut.step = step
    with pytest.raises(KeyboardInterrupt):
        train(micro_llama(), TASK, cut, **SETTINGS, resume=kept)
    model = micro_llama(seed=5)  # the state brings its own weights
    method = mixed.method(name, **options)
    again = train(model, TASK, method, **SETTINGS, resume=kept)
    assert len(made) == 4 and torch.equal(torch.tensor(again.losses), torch.tensor(whole.losses))
    assert_same(model.parameters(), whole_model.parameters())
    assert again.evaluations == whole.evaluations and again.traces == whole.traces
    assert all(p.dtype == q.dtype for p, q in zip(model.parameters(), whole_model.parameters(), strict=True))


@pytest.mark.parametrize("first", ["fp16-recipe", "tf32", "fp16-autocast", "fp32"])
@pytest.mark.parametrize("second", ["fp32", "fp16-recipe", "bf16"])
def test_a_second_method_on_the_same_model_starts_clean(first, second):
    """No format, no hook and no gradient of the first: the same as on a new model with the same weights."""
    used = micro_llama()
    train(used, TASK, mixed.method(first, learning_rate=RATE), **SETTINGS)
    assert any(p.grad is not None for p in used.parameters()) == (first != "fp16-recipe")
    fresh = micro_llama(seed=3)
    for p, q in zip(fresh.parameters(), used.parameters(), strict=True):
        p.data = q.detach().clone()
    runs = [train(m, TASK, mixed.method(second, learning_rate=RATE), **SETTINGS) for m in (used, fresh)]
    assert runs[0].losses == runs[1].losses and runs[0].evaluations == runs[1].evaluations
    assert_same(used.parameters(), fresh.parameters())


@pytest.mark.parametrize("name", ["fp16-recipe", "tf32", "fp16-autocast"])
def test_other_methods_and_plain_calls_do_not_compute_in_a_formats_that_is_over(name):
    model = micro_llama()
    train(model, TASK, mixed.method(name, learning_rate=RATE), **SETTINGS)
    model.float()
    fresh = micro_llama(seed=3)
    fresh.load_state_dict(model.state_dict())
    assert evaluate(model, TASK) == evaluate(fresh, TASK)
    runs = [train(m, TASK, FullFineTuning(learning_rate=RATE), **SETTINGS) for m in (model, fresh)]
    assert runs[0].losses == runs[1].losses and runs[0].evaluations == runs[1].evaluations


@pytest.mark.parametrize("name", ["fp16-recipe", "tf32", "fp16-autocast"])
def test_a_copy_computes_with_its_own_weights_and_a_saved_model_comes_back(name):
    model = micro_llama()
    train(model, TASK, mixed.method(name, learning_rate=RATE), **SETTINGS)
    found = evaluate(model, TASK)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert evaluate(other, TASK) == found
        with torch.no_grad():
            other.model.norm.weight.zero_()  # every logit becomes zero
        assert evaluate(other, TASK)["loss"] == pytest.approx(math.log(2))
    assert evaluate(model, TASK) == found
    # Of its own, and trained without touching the original.
    twin, before = copy.deepcopy(model), bits(model.parameters())
    train(twin, TASK, mixed.method(name, learning_rate=RATE), **SETTINGS)
    assert_same(model.parameters(), before)
    assert not torch.equal(next(twin.parameters()), next(model.parameters()))


def test_gradients_left_behind_are_not_added_to_the_first_step():
    """With master weights the optimizer knows the weights' own gradients no more: the method clears them."""
    clean, dirty = micro_llama(), micro_llama()
    TASK.loss(dirty, batches()[0]).backward()
    (first, _), (second, _) = prepared("fp16-recipe", clean), prepared("fp16-recipe", dirty)
    assert all(p.grad is None for p in dirty.parameters())  # they were of another dtype, too
    first.step(batches()[1])
    second.step(batches()[1])
    assert_same(clean.parameters(), dirty.parameters())
    TASK.loss(dirty, batches()[0]).backward()  # and between two steps, as a step that was interrupted does
    first.step(batches()[2])
    second.step(batches()[2])
    assert_same(clean.parameters(), dirty.parameters())


def test_dice_are_thrown_anew_and_the_same_way_again():
    weights = {}
    for turn, name in enumerate(("bf16+stochastic", "bf16+stochastic", "bf16")):
        method, model = prepared(name)
        for batch in batches():
            method.step(batch)
        weights[turn] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.testing.assert_close(weights[0], weights[2], rtol=0.1, atol=0.03)


def test_a_model_in_16_bits_is_widened_for_the_ways_that_want_fp32():
    model = micro_llama()
    for p in model.parameters():
        p.data = p.data.bfloat16()
    start = bits(model.parameters())
    method, _ = prepared("fp16-recipe", model)
    for p, master, old in zip(model.parameters(), method._masters, start, strict=True):
        assert torch.equal(master, old.float()) and torch.equal(p, old.half())
    prepared("fp32", model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
