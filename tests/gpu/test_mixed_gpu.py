"""On a GPU: scaling beside torch.cuda's GradScaler, tensor cores beside their emulation, and every way to train."""

from __future__ import annotations

import math

import pytest
import torch
from micro import Letters, micro_llama

from labkit.numerics import mixed
from labkit.numerics.adamw import StoredAdamW
from labkit.numerics.formats import FORMATS, round_to, spacing
from labkit.numerics.products import KERNEL, EmulatedProducts, how, products_in
from labkit.numerics.rounding import round_nearest, round_stochastic
from labkit.numerics.scaling import DynamicScaler, nonfinite
from labkit.training import evaluate, order, train

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TASK = Letters()
RATE = 3e-3
SETTINGS = {"steps": 8, "batch_size": 8, "progress": False, "on_nan": "stop"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}


def drawn(*shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def test_the_scaler_takes_gradscalers_decisions_and_gives_its_gradients():
    theirs = torch.amp.GradScaler(DEVICE, init_scale=2.0**15, growth_interval=2)
    ours = DynamicScaler(2.0**15, growth_interval=2)
    mine, other = ([torch.nn.Parameter(drawn(40, seed=s)) for s in range(3)] for _ in range(2))
    library = torch.optim.SGD(other, lr=0.1)
    theirs.scale(torch.zeros((), device=DEVICE))
    for step, bad in enumerate([None, None, math.inf, None, math.nan, -math.inf, None, None, None]):
        for place, (a, b) in enumerate(zip(mine, other, strict=True)):
            a.grad = drawn(40, seed=10 * step + place)
            if bad is not None and place == step % 3:
                a.grad[step] = bad
            b.grad = a.grad.clone()
        found = ours.unscale_(mine)
        theirs.unscale_(library)
        assert found == (bad is not None)
        for a, b in zip(mine, other, strict=True):
            assert torch.equal(a.grad.nan_to_num(nan=7.0), b.grad.nan_to_num(nan=7.0))
        ours.step(lambda: None)
        theirs.step(library)
        ours.update()
        theirs.update()
        assert (ours.scale, ours.growth_tracker) == (theirs.get_scale(), theirs._get_growth_tracker())


def test_16_bit_gradients_are_multiplied_by_the_fp32_reciprocal():
    for dtype in (torch.float16, torch.bfloat16):
        weight = torch.nn.Parameter(torch.zeros(4, device=DEVICE, dtype=dtype))
        weight.grad = torch.tensor([1.0, -3e4, 60000.0, 1e-7], device=DEVICE).to(dtype)
        expected = (weight.grad.float() * 2.0**-30).to(dtype)
        assert not DynamicScaler(2.0**30).unscale_([weight]) and torch.equal(weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_infinities_and_nans_are_found_anywhere_and_large_values_are_none(dtype):
    largest = torch.full((3_000_001,), torch.finfo(dtype).max, device=DEVICE, dtype=dtype)
    assert not nonfinite([largest, drawn(7, dtype=dtype), largest[:0]])
    for bad in (math.inf, -math.inf, math.nan):
        for place in (0, 1_234_567, 3_000_000):
            wrong = largest.clone()
            wrong[place] = bad
            assert nonfinite([largest, wrong])


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32"])
def test_rounding_on_the_gpu_is_the_exact_one_and_dice_choose_neighbours(name):
    bits = torch.randint(-(2**31), 2**31, (400_000,), generator=torch.Generator().manual_seed(0)).int()
    x = torch.cat(
        [bits.view(torch.float32), torch.tensor([0.0, -0.0, math.inf, 65519.9, 65520.0, 3.4e38, 1e-45, 6e-8])]
    )
    there, finite = x.to(DEVICE), x.isfinite()
    assert torch.equal(round_nearest(there, name).cpu()[finite], round_to(x, name)[finite])
    generator = torch.Generator(DEVICE).manual_seed(1)
    found = round_stochastic(there, name, generator).cpu()
    assert torch.equal(found.isnan(), x.isnan()) and torch.equal(found.signbit()[finite], x.signbit()[finite])
    low = round_to(x, name, "toward_zero")[finite].abs().double()
    moved, fmt = found[finite].abs().double(), FORMATS[name]
    high = low + torch.where(low == x[finite].abs().double(), 0.0, spacing(low, name))
    high = torch.where(high > fmt.max, math.inf, high)
    assert bool(((moved == low) | (moved == high) | (x[finite].abs() > fmt.max)).all())
    exact = round_stochastic(round_nearest(there, name), name, generator)
    assert torch.equal(exact.nan_to_num(nan=7.0), round_nearest(there, name).nan_to_num(nan=7.0))
    thrown = round_stochastic(torch.full((400_000,), 1 + 0.25 * fmt.eps, device=DEVICE), name, generator)
    assert (thrown > 1).double().mean().item() == pytest.approx(0.25, abs=0.005)


@pytest.fixture
def sums_in_fp32():
    """torch lets parts of a long sum be added up in 16 bits unless it is told not to."""
    names = [f"allow_{name}_reduced_precision_reduction" for name in ("fp16", "bf16")]
    before = [getattr(torch.backends.cuda.matmul, name) for name in names]
    for name in names:
        setattr(torch.backends.cuda.matmul, name, False)
    yield
    for name, value in zip(names, before, strict=True):
        setattr(torch.backends.cuda.matmul, name, value)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "tf32"])
def test_tensor_cores_agree_with_the_emulation(fmt, sums_in_fp32):
    if how(fmt, DEVICE) != KERNEL:
        pytest.skip(f"this GPU has no {fmt}")
    a, b = drawn(96, 512, dtype=DTYPES[fmt]), drawn(512, 64, dtype=DTYPES[fmt], seed=1)
    with products_in(fmt, DEVICE):
        core = (a @ b).cpu()
    with EmulatedProducts(fmt):
        emulated = a.cpu() @ b.cpu()
    read = [round_nearest(t.cpu(), "tf32") if fmt == "tf32" else t.cpu() for t in (a, b)]
    exact = read[0].double() @ read[1].double()
    unit = spacing(exact, "fp32" if fmt == "tf32" else fmt)
    # Tensor cores cut digits of the sums that fp32 additions would round.
    slack = (read[0].double().abs() @ read[1].double().abs()) * 2.0**-17
    for found in (core, emulated):
        assert found.dtype == DTYPES[fmt] and bool(((found.double() - exact).abs() <= unit + slack).all())
    if fmt == "tf32":
        assert ((core.double() - a.cpu().double() @ b.cpu().double()).abs() > 1e-3).any()  # it did read fewer digits


def test_the_switch_of_tf32_is_put_back():
    before = torch.get_float32_matmul_precision()
    for fmt in ("fp32", "tf32", "fp16"):
        with products_in(fmt, DEVICE):
            pass
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", mixed.METHODS)
def test_every_way_trains_evaluates_and_takes_the_bytes_that_it_predicts(name):
    model, method = micro_llama().to(DEVICE), mixed.method(name, learning_rate=RATE, loss_scale=2.0**10)
    run = train(model, TASK, method, **SETTINGS)
    for category in ("weights", "master_weights", "gradients", "optimizer_states"):
        assert run.ledger.residual(category) == 0, category
    assert "GPU" in method.kernels and method.kernels.startswith(method.fmt)
    assert set(run.traces["emulated"]) == {float("emulated" in method.kernels)}
    assert run.ledger.peak_allocated > sum(run.ledger.predicted.values())
    with method.computing():
        assert evaluate(model, TASK)["accuracy"] == run.accuracy
    reference = train(micro_llama(), TASK, mixed.method("fp32", learning_rate=RATE), **SETTINGS)
    # Pure fp16 loses its second moments and goes astray; its first loss is right all the same.
    known = 1 if name in ("fp16", "fp16+scaler", "fp16-moments") else len(reference.losses)
    assert run.losses[:known] == pytest.approx(reference.losses[:known], rel=0.05, abs=0.02)


def test_fp16_autocast_equals_torchs_own_loop_with_a_skipped_step():
    ours, theirs = micro_llama().to(DEVICE).train(), micro_llama().to(DEVICE).train()
    for model in (ours, theirs):
        passes: list[int] = []

        def inject(gradient, passes=passes):
            passes.append(1)
            return gradient * math.inf if len(passes) == 3 else gradient

        model.model.layers[1].mlp.down_proj.weight.register_hook(inject)
    method = mixed.method("fp16-autocast", learning_rate=RATE, warmup=0.0, loss_scale=2.0**12)
    method.prepare(ours, TASK, 1000)  # so long a way that the learning rate hardly falls
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**12)
    for examples in order(TASK, 8, 0, 6):
        batch = TASK.batch(examples).to(DEVICE)
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = TASK.loss(theirs, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert method.step(batch).item() == pytest.approx(loss.item(), rel=5e-3)
        assert method.scaler.scale == scaler.get_scale()
    assert method.scaler.skipped == 1
    for a, b, start in zip(ours.parameters(), theirs.parameters(), micro_llama().parameters(), strict=True):
        assert (a - b).abs().mean() < 0.02 * (b - start.to(DEVICE)).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_stored_adamw_steps_as_torchs_fused_kernel(dtype):
    found = []
    for make in (
        lambda p: StoredAdamW(p, states=dtype, lr=RATE, betas=(0.9, 0.98), eps=1e-7),
        lambda p: torch.optim.AdamW(p, fused=True, lr=RATE, betas=(0.9, 0.98), eps=1e-7),
    ):
        weight = torch.nn.Parameter(drawn(5000, dtype=dtype))
        optimizer = make([weight])
        for step in range(6):
            weight.grad = (drawn(5000, seed=step + 1) * 1e-2).to(dtype)
            optimizer.step()
        found.append(torch.stack([weight.detach().float(), optimizer.state[weight]["exp_avg_sq"].float()]))
    torch.testing.assert_close(*found, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    assert (found[0] != found[1]).double().mean() < (1.0 if dtype == torch.float32 else 0.03)
