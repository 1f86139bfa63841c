"""Ways to train in 16 bits equal loops written out and torch.amp, step by step; senseless settings are refused."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from micro import micro_llama
from mixed_runs import (
    NAMES,
    RATE,
    RECIPE,
    SETTINGS,
    STEPS,
    TASK,
    assert_same,
    batches,
    bits,
    overflow_at,
    prepared,
)

from labkit.errors import LabError
from labkit.numerics import mixed, products
from labkit.numerics.products import EMULATED, KERNEL, products_in
from labkit.training import train


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
    # A slow loop may exist: torch multiplies fp16 on any CPU.
    assert not emulated or f"no fast {method.fmt} kernel" in method.kernels


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
