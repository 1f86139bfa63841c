"""Every way to train in 16 bits: against loops written out, against torch.amp, in bytes, over skips, cuts and reuse."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import asdict

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError
from labkit.ledger import Ledger, storage_bytes
from labkit.methods import FullFineTuning, Method
from labkit.numerics import mixed, products
from labkit.numerics.products import EMULATED, KERNEL, products_in
from labkit.training import evaluate, order, train

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


def factor(made: int, steps: int = STEPS) -> float:
    """Of the learning rate: warm-up over a tenth of the steps, then a straight line to zero."""
    rise = max(1, round(0.1 * steps))
    return min((made + 1) / rise, max(0.0, (steps - made) / max(1, steps - rise)))


def recipe_by_hand(model, inject: set[int], scale: float, dynamic: bool):
    """The seven steps, one after another. Returns losses, scales and the model's master weights."""
    masters = [p.detach().float().clone() for p in model.parameters()]  # 1
    model.half()
    weights = list(model.parameters())
    overflow_at(model, inject)
    for p in masters:
        p.requires_grad_()
    optimizer = torch.optim.AdamW(masters, lr=RATE, weight_decay=0.01, fused=True)
    losses, scales, made = [], [], 0
    for batch in batches():
        for p in weights:
            p.grad = None
        with products_in("fp16", "cpu"):
            loss = TASK.loss(model, batch)  # 2
            (loss * scale).backward()  # 3, 4
        wide = [p.grad.float() / scale for p in weights]  # 5
        norm = torch.stack([g.norm() for g in wide]).norm()
        for master, g in zip(masters, wide, strict=True):
            master.grad = g * (1.0 / (norm + 1e-6)).clamp(max=1.0)
        losses.append(loss.item())
        scales.append(scale)
        if all(bool(g.isfinite().all()) for g in wide):
            optimizer.param_groups[0]["lr"] = RATE * factor(made)
            optimizer.step()  # 6
            made += 1
            for p, master in zip(weights, masters, strict=True):
                p.data.copy_(master)  # 7
        elif dynamic:
            scale /= 2
    return losses, scales, masters


@pytest.mark.parametrize("scaling", ["none", "static", "dynamic"])
def test_the_recipe_equals_the_seven_steps_written_out(scaling):
    inject = set() if scaling == "none" else {2, 4}
    scale = 1.0 if scaling == "none" else 2.0**10
    theirs, ours = micro_llama(), micro_llama()
    # The rotary frequencies stay in fp32, as in a model that is loaded in 16 bits.
    frequencies = ours.model.rotary_emb.inv_freq
    losses, scales, masters = recipe_by_hand(_half_keeps_buffers(theirs), inject, scale, scaling == "dynamic")
    method = mixed.MixedPrecision(**RECIPE, scaling=scaling, loss_scale=scale, learning_rate=RATE)
    method.prepare(ours.train(), TASK, STEPS)
    overflow_at(ours, inject)
    found, seen = [], []
    for batch in batches():
        found.append(method.step(batch).item())
        seen.append(method.observed())
    assert found == losses
    for a, b in zip(method._masters, masters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for p, master in zip(ours.parameters(), method._masters, strict=True):
        assert p.dtype == torch.float16 and torch.equal(p, master.half())
    if scaling != "none":
        assert [s["loss_scale"] for s in seen] == scales
        assert [s["found_inf"] for s in seen] == [0, 0, 1, 0, 1, 0]
        assert [s["skipped"] for s in seen] == [0, 0, 1, 1, 2, 2]
    assert ours.model.rotary_emb.inv_freq is frequencies and frequencies.dtype == torch.float32


def _half_keeps_buffers(model):
    model.half = lambda: [setattr(p, "data", p.data.half()) for p in model.parameters()]
    return model.train()


def autocast_by_hand(model, scaler, steps, context):
    """torch.autocast, torch.amp.GradScaler and AdamW as their documentation puts them together."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    rows, made = [], 0
    for batch in batches(steps):
        optimizer.zero_grad(set_to_none=True)
        with context():
            with torch.autocast("cpu", torch.float16):
                loss = TASK.loss(model, batch)
            before = scaler.get_scale()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * factor(made, steps)
        found = any(bool(f) for f in scaler._found_inf_per_device(optimizer).values())
        scaler.step(optimizer)
        scaler.update()
        made += not found
        rows.append((loss.item(), before, float(found), bits(model.parameters())))
    return rows, optimizer


@pytest.mark.parametrize("start", [2.0**12, 2.0**24], ids=["injected overflow", "scale too high"])
def test_fp16_autocast_equals_torchs_autocast_and_gradscaler_step_by_step(start):
    steps, inject = 10, {3, 4} if start < 2.0**20 else set()
    ours, theirs = micro_llama(), micro_llama().train()
    overflow_at(ours, inject)
    overflow_at(theirs, inject)
    scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=3)
    rows, optimizer = autocast_by_hand(theirs, scaler, steps, lambda: products_in("fp16", "cpu"))
    method, _ = prepared("fp16-autocast", ours, steps, loss_scale=start, growth_interval=3)
    for batch, (loss, scale, found, weights) in zip(batches(steps), rows, strict=True):
        assert method.step(batch).item() == loss
        assert (method.observed()["loss_scale"], method.observed()["found_inf"]) == (scale, found)
        assert_same(ours.parameters(), weights)
    assert sum(row[2] for row in rows) >= 2 and scaler.get_scale() == method.scaler.scale
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(method._optimizer.state[mine][name], optimizer.state[other][name])


@pytest.mark.parametrize("name", ["fp16-autocast", "fp16-recipe", "bf16", "bf16-autocast"])
def test_emulated_and_native_products_train_alike(name, monkeypatch):
    """torch's own fp16 and bf16 kernels on this CPU, slow as they may be, against the emulation."""
    losses = {}
    for chosen in (KERNEL, EMULATED):
        for module in (products, mixed):
            monkeypatch.setattr(module, "how", lambda fmt, device, chosen=chosen: chosen)
        run = train(micro_llama(), TASK, mixed.method(name, learning_rate=RATE), **SETTINGS)
        losses[chosen] = run.losses
        assert run.traces["emulated"] == [float(chosen == EMULATED)] * STEPS
    assert losses[KERNEL] == pytest.approx(losses[EMULATED], rel=2e-2)


def plain(name: str) -> tuple[list[float], list[torch.Tensor]]:
    """Training without any scaler, master weight or format of its own: torch alone, in the dtype of the name."""
    model = _half_keeps_buffers(micro_llama())
    if name in ("fp16", "bf16"):
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
        for p in model.parameters():
            p.data = p.data.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    losses = []
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        with products_in(name.removesuffix("-autocast"), "cpu"):
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16-autocast"):
                loss = TASK.loss(model, batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * factor(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, bits(model.parameters())


@pytest.mark.parametrize("name", ["fp32", "tf32", "fp16", "bf16", "bf16-autocast"])
def test_the_ways_without_a_scaler_equal_torch_alone(name):
    losses, weights = plain(name)
    method, model = prepared(name)
    assert torch.tensor([method.step(batch) for batch in batches()]).tolist() == pytest.approx(losses, nan_ok=True)
    assert_same(model.parameters(), weights)


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


@pytest.mark.parametrize("chosen", [KERNEL, EMULATED])
@pytest.mark.parametrize("name", NAMES)
def test_what_computes_is_said_truly(name, chosen, monkeypatch):
    for module in (products, mixed):
        monkeypatch.setattr(module, "how", lambda fmt, device: chosen if fmt != "fp32" else KERNEL)
    entered = []
    real = products.EmulatedProducts.__enter__
    monkeypatch.setattr(products.EmulatedProducts, "__enter__", lambda self: (entered.append(self), real(self))[1])
    if name == "tf32" and chosen == KERNEL:
        return  # no CPU has one
    method, _ = prepared(name)
    method.step(batches()[0])
    emulated = chosen == EMULATED and method.fmt != "fp32"
    assert ("emulated" in method.kernels) == emulated == bool(entered) == bool(method.observed()["emulated"])
    assert method.fmt in method.kernels and "CPU" in method.kernels


def test_formats_follow_from_the_settings():
    expected = {"fp32": "fp32", "tf32": "tf32", "bf16": "bf16", "bf16-autocast": "bf16", "fp16-autocast": "fp16",
                "fp16-moments": "fp32", "fp16-weights": "fp16", "bf16+stochastic": "bf16"}  # fmt: skip
    for name in NAMES:
        assert mixed.method(name).fmt == expected.get(name, "fp16")
        assert mixed.method(name).name == name
    assert set(mixed.TABLE) | set(mixed.CAUSES) <= set(NAMES)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "float17"}, {"compute_dtype": "fp16"}, {"compute_dtype": ""}, {"moments": "int8"},
        {"scaling": "automatic"}, {"rounding": "dice"}, {"tf32": True, "weights": "float16"},
        {"tf32": True, "compute_dtype": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_unknown_names_and_settings_that_contradict_each_other_are_refused(options):
    with pytest.raises(LabError):
        mixed.MixedPrecision(**options)


def test_an_unknown_way_is_refused_with_the_nearest():
    with pytest.raises(LabError, match="Did you mean 'fp16-recipe'"):
        mixed.method("fp16-recip")
    with pytest.raises(LabError, match="cannot be scaled by 0"):
        prepared("fp16-recipe", loss_scale=0.0)


def test_settings_reach_the_method_and_the_record():
    method = mixed.method("fp16-recipe", learning_rate=1e-4, weight_decay=0.0, loss_scale=64.0, growth_interval=7)
    method.prepare(micro_llama(), TASK, 5)
    group = method._optimizer.param_groups[0]
    assert group["initial_lr"] == 1e-4 and group["weight_decay"] == 0.0
    assert (method.scaler.scale, method.scaler.growth_interval) == (64.0, 7)
    assert asdict(method)["loss_scale"] == 64.0
