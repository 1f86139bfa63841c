"""Offloaded AdamW: torch's AdamW to the bit, the bytes that it says, and a state that survives saving."""

from itertools import pairwise

import pytest
import torch
from micro import Small, micro_llama
from offload_runs import BUCKET, SETTINGS, TASK, TINY, batches, offloaded, reference, same

from labkit.errors import LabError
from labkit.ledger import optimizer_tensors, storage_bytes
from labkit.memory.buckets import GRAIN, bucket_values
from labkit.memory.host_adamw import host_bytes
from labkit.memory.lanes import pinned_bytes
from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.memory.offloaded import OffloadedFineTuning
from labkit.methods import FullFineTuning
from labkit.numerics import mixed
from labkit.training import train


@pytest.fixture(autouse=True)
def three_workers(monkeypatch):
    """As many as there would be on a machine with more cores."""
    for module in ("host_adamw", "offloaded"):
        monkeypatch.setattr(f"labkit.memory.{module}.host_workers", lambda overlap: 3 if overlap else 1)


@pytest.mark.parametrize("overlap, layerwise", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("bucket_mib, buckets", [(BUCKET, 2), (TINY, 1), (TINY, 3), (1.0, 2)])
def test_ten_steps_equal_torchs_adamw_to_the_bit(clip, overlap, layerwise, bucket_mib, buckets):
    switches = {"overlap": overlap, "layerwise": layerwise, "bucket_mib": bucket_mib, "buckets": buckets}
    ours = offloaded(micro_llama(), 10, clip, **switches)
    assert same(ours, reference(micro_llama(), 10, clip)) and not same(ours, micro_llama())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("overlap", [True, False])
def test_the_format_on_the_bus_changes_no_bit(clip, overlap):
    """A 16-bit gradient is widened and a weight rounded once, on whichever side."""
    made = []
    for transfer in (None, torch.float32):
        model = micro_llama()
        optimizer = OffloadedAdamW(
            model,
            dtype=torch.bfloat16,
            transfer=transfer,
            max_grad_norm=clip,
            overlap=overlap,
            bucket_mib=TINY,
            **SETTINGS,
        )
        assert (
            {b.dtype for b in optimizer.device_buffers()}
            == {transfer or torch.bfloat16}
            == {optimizer.host.staging.dtype}
        )
        for batch in batches(5):
            with torch.autocast("cpu", torch.bfloat16):
                TASK.loss(model, batch).backward()
            optimizer.step()
        optimizer.synchronize()
        optimizer.close()
        made.append(model)
    assert same(*made) and {p.dtype for p in made[1].parameters()} == {torch.bfloat16}
    with pytest.raises(LabError, match="cannot travel"):
        OffloadedAdamW(micro_llama(), dtype=torch.bfloat16, transfer=torch.float16)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_frozen_parameters_stay_and_are_not_offloaded(clip):
    models = [micro_llama() for _ in range(2)]
    for model in models:
        model.model.layers[0].requires_grad_(False)
        model.model.norm.requires_grad_(False)
    assert same(offloaded(models[0], 4, clip), reference(models[1], 4, clip))
    assert torch.equal(models[0].model.norm.weight, micro_llama().model.norm.weight)


def test_groups_with_rates_of_their_own():
    models = [micro_llama() for _ in range(2)]
    groups = []
    for model in models:
        flat, deep = ([p for p in model.parameters() if (p.dim() == 1) == one] for one in (True, False))
        groups.append([{"params": flat, "weight_decay": 0.0, "lr": 1e-2}, {"params": deep}])
    ours = OffloadedAdamW(models[0], groups[0], bucket_mib=TINY, **SETTINGS)
    theirs = torch.optim.AdamW(groups[1], fused=True, **SETTINGS)
    for batch in batches(4):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            TASK.loss(model, batch).backward()
            optimizer.step()
    ours.synchronize()
    assert same(*models)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_parameter_without_a_gradient_is_left_alone_in_that_step(clip):
    models = [Small().requires_grad_(True) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = OffloadedAdamW(models[0], bucket_mib=TINY, max_grad_norm=clip, **SETTINGS)
    theirs = torch.optim.AdamW(models[1].parameters(), fused=True, **SETTINGS)
    for step in range(6):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            out = model(torch.tensor([1, 2, 5 - step])).square().mean()
            if step % 2:
                out = out + model.unused(torch.ones(2)).sum()
            out.backward()
            if clip and optimizer is theirs:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    ours.synchronize()
    assert same(*models)
    assert ours.state[models[0].unused.weight]["step"] == 3 and ours.state[models[0].norm.weight]["step"] == 6


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_the_rounded_masters_of_the_recipe(dtype, clip):
    ours, theirs = micro_llama(), micro_llama()
    optimizer = OffloadedAdamW(ours, dtype=dtype, max_grad_norm=clip, bucket_mib=TINY, **SETTINGS)
    masters = [torch.nn.Parameter(p.detach().clone()) for p in theirs.parameters()]
    library = torch.optim.AdamW(masters, fused=True, **SETTINGS)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.to(dtype)
    for batch in batches(10):
        for model in (ours, theirs):
            TASK.loss(model, batch).backward()
        optimizer.step()
        for parameter, master in zip(theirs.parameters(), masters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        if clip:
            torch.nn.utils.clip_grad_norm_(masters, clip)
        library.step()
        with torch.no_grad():
            for parameter, master in zip(theirs.parameters(), masters, strict=True):
                parameter.copy_(master)
    optimizer.synchronize()
    assert same(ours, theirs) and next(ours.parameters()).dtype == dtype
    assert all(torch.equal(optimizer.state[p]["master"], m) for p, m in zip(ours.parameters(), masters, strict=True))


def test_a_cut_off_the_grain_would_round_otherwise():
    """Why buckets are cut at multiples of GRAIN."""
    found = []
    for cuts in ([0, 1000], [0, GRAIN, 5 * GRAIN, 1000], [0, GRAIN - 3, 1000]):
        draws = torch.Generator().manual_seed(0)
        weight, first, second, step = torch.randn(1000, generator=draws), torch.zeros(1000), torch.zeros(1000), 0
        for step in range(1, 9):
            gradient = torch.randn(1000, generator=draws)
            for a, b in pairwise(cuts):
                torch._fused_adamw_(
                    *([t[a:b]] for t in (weight, gradient, first, second)),
                    [],
                    [torch.tensor(float(step))],
                    **{"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8},
                    **{"amsgrad": False, "maximize": False},
                )
        found.append(weight)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=1e-7)
    assert bucket_values(10**6, torch.float32, 0.01) == 2560 and bucket_values(100, torch.bfloat16, 1.0) == 128


def test_a_weight_that_the_backward_pass_still_needs_is_not_changed_in_silence():
    """A gradient may come before the last use of its weight, where a later node uses the weight as a constant."""
    layer, below = torch.nn.Linear(32, 32, bias=False), torch.nn.Linear(32, 32, bias=False)
    model = torch.nn.Sequential(below, layer)
    optimizer = OffloadedAdamW(model, overlap=False, bucket_mib=BUCKET, **SETTINGS)
    first = below(torch.ones(2, 32)) @ layer.weight.detach()
    with pytest.raises(RuntimeError, match="inplace"):
        layer(first).sum().backward()
    optimizer.close()


@pytest.mark.parametrize("weights, transfer", [("float32", ""), ("bfloat16", ""), ("bfloat16", "float32")])
def test_bytes_on_the_device_and_the_host_are_the_predicted_ones(weights, transfer):
    method = OffloadedFineTuning(weights=weights, transfer=transfer, bucket_mib=TINY, buckets=3)
    model = micro_llama()
    run = train(model, TASK, method, steps=3, batch_size=8, progress=False)
    for category in ("weights", "gradients", "optimizer_states"):
        assert run.ledger.residual(category) == 0, category
    assert run.ledger.measured["master_weights"] == run.ledger.measured["optimizer_states"] == 0
    assert method.host_bytes() == method.measured_host_bytes()
    count, size = sum(p.numel() for p in model.parameters()), getattr(torch, weights).itemsize
    kinds = host_bytes(count, len(list(model.parameters())), size, 0, 0)
    states = list(optimizer_tensors(method.optimizer))
    assert storage_bytes(states) == kinds["master_weights"] + kinds["optimizer_states"]
    assert run.ledger.measured["weights"] == size * count
    assert run.ledger.measured["gradients"] < size * count
    method.close()


def test_pinned_memory_is_rounded_up_to_a_power_of_two():
    assert [pinned_bytes(n) for n in (0, 1, 2, 3, 4096, 4097)] == [0, 1, 2, 4, 4096, 8192]


@pytest.mark.parametrize("weights, clip", [("float32", 1.0), ("float32", None), ("bfloat16", 1.0)])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(weights, clip, tmp_path):
    settings = {"weights": weights, "max_grad_norm": clip, "bucket_mib": BUCKET, "learning_rate": 3e-3}
    straight, half, resumed = (OffloadedFineTuning(**settings) for _ in range(3))
    models = [micro_llama(), micro_llama(), micro_llama(seed=1)]
    for method, model in zip((straight, half, resumed), models, strict=True):
        method.prepare(model, TASK, 8)
    for number, batch in enumerate(batches(8)):
        straight.step(batch)
        if number < 4:
            half.step(batch)
        elif number == 4:
            torch.save(half.state_dict(), tmp_path / "state")
            resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        if number >= 4:
            resumed.step(batch)
    for method in (straight, half, resumed):
        method.optimizer.synchronize()
        method.close()
    assert same(models[0], models[2]) and not same(models[0], models[1])
    with pytest.raises(LabError, match="other parameters"):
        OffloadedAdamW(Small()).load_state_dict(half.optimizer.state_dict())


def test_as_a_method_it_trains_as_full_fine_tuning_and_as_the_recipe():
    settings = {"steps": 8, "batch_size": 8, "progress": False}
    for offload, plain in (
        (OffloadedFineTuning(bucket_mib=BUCKET), FullFineTuning()),
        (OffloadedFineTuning(bucket_mib=BUCKET, weights="bfloat16"), mixed.MixedPrecision(**mixed.BF16, master=True)),
    ):
        models = [micro_llama() for _ in range(2)]
        runs = [train(m, TASK, method, **settings) for m, method in zip(models, (offload, plain), strict=True)]
        assert runs[0].losses == runs[1].losses and same(*models)
        assert runs[0].accuracy == runs[1].accuracy
        offload.close()
