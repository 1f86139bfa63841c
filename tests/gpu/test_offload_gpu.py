"""On a GPU: offloading is the host's AdamW to the bit, frees the bytes that it says, and has no race."""

from __future__ import annotations

import pytest
import torch
from micro import Letters, micro_llama

from labkit.memory.host_adamw import HostAdamW
from labkit.memory.offload_activations import OffloadedActivations
from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.memory.offloaded import OffloadedFineTuning, OffloadedTuning
from labkit.memory.timeline import COMPUTE, DOWNLOAD, HOST, UPLOAD, Timeline, overlapped
from labkit.methods import FullFineTuning
from labkit.training import order, train

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TASK = Letters()
RATES = {"lr": 3e-3, "betas": (0.9, 0.98), "weight_decay": 0.05}
MIB = 2**20


def batches(steps):
    return [TASK.batch(examples).to(DEVICE) for examples in order(TASK, 8, 0, steps)]


def wide(layers=8, width=1024):
    """Layers of 4 MiB in fp32: copies of them take about 0.1 ms."""
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers))).to(DEVICE)


def loss_of(model, step, rows=256):
    width = next(model.parameters()).shape[1]
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(step))
    return model(x.to(DEVICE, next(model.parameters()).dtype)).float().square().mean()


def taken():
    """Bytes of live tensors; cuBLAS's workspace, which comes with the first product, is none of a method's."""
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_it_is_adamw_on_a_cpu_given_the_gpus_gradients(clip):
    """A copy of the weights on the host is updated by torch's AdamW with the gradients of a second, equal GPU model."""
    ours, twin = micro_llama().to(DEVICE), micro_llama().to(DEVICE)
    optimizer = OffloadedAdamW(ours, max_grad_norm=clip, bucket_mib=0.0011, **RATES)
    masters = [torch.nn.Parameter(p.detach().cpu()) for p in twin.parameters()]
    library = torch.optim.AdamW(masters, fused=True, **RATES)
    for batch in batches(10):
        for model in (ours, twin):
            TASK.loss(model, batch).backward()
        optimizer.step()
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        for parameter, master in zip(twin.parameters(), masters, strict=True):
            master.grad, parameter.grad = parameter.grad.cpu(), None
        library.step()
        with torch.no_grad():
            for parameter, master in zip(twin.parameters(), masters, strict=True):
                parameter.copy_(master)
    optimizer.synchronize()
    for a, b, start in zip(ours.parameters(), twin.parameters(), micro_llama().parameters(), strict=True):
        # Not to the bit: the embedding's gradient may be summed in another order, clip_grad_norm_ takes norms by
        # another kernel, and where a gradient is nearly zero AdamW makes a whole step of its last digit.
        assert (a - b).abs().mean() < 1e-3 * (b - start.to(DEVICE)).abs().mean()
    optimizer.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("bucket_mib, buckets", [(64.0, 1), (5.0, 2), (0.3, 2), (0.3, 5)])
def test_no_race_twenty_steps_with_and_without_overlap_are_equal_to_the_bit(dtype, clip, bucket_mib, buckets):
    """Linear layers' gradients are the same in every run, so any difference is a copy that came early or late."""
    models, settings = [], {"max_grad_norm": clip, "bucket_mib": bucket_mib, "buckets": buckets, "dtype": dtype}
    for switches in ({"overlap": False}, {}, {"layerwise": False}):
        model = wide()
        optimizer = OffloadedAdamW(model, **RATES, **settings, **switches)
        for step in range(20):
            loss_of(model, step).backward()
            optimizer.step()
        optimizer.synchronize()
        optimizer.close()
        models.append(model)
    for model in models[1:]:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), models[0].parameters(), strict=True))
    assert not torch.equal(next(models[0].parameters()), next(wide().parameters()).to(dtype))


def test_a_slow_host_and_a_slow_bus_change_nothing(monkeypatch):
    """Copies are held up on their streams by 5 ms of idling, the host's thread by sleeping: whoever does not wait for
    the right event reads old values."""
    import time

    from labkit.memory.lanes import Bus

    move, update = Bus._move, HostAdamW._adamw

    def slow_move(self, *args):
        torch.cuda._sleep(10_000_000)  # clock cycles, on the current stream
        return move(self, *args)

    def slow_update(self, *args):
        time.sleep(0.003)
        return update(self, *args)

    found = []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr(Bus, "_move", slow_move)
            monkeypatch.setattr(HostAdamW, "_adamw", slow_update)
        model = wide(4, 512)
        optimizer = OffloadedAdamW(model, bucket_mib=0.5, **RATES)
        offload = OffloadedActivations(model, min_bytes=1, in_flight=1)
        for step in range(6):
            with offload:
                loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            del loss
            torch.randn(256, 512, device=DEVICE).mul_(7)  # reuses whatever memory was given back too early
        optimizer.synchronize()
        found.append([p.detach().clone() for p in model.parameters()])
        optimizer.close()
        offload.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_the_gpu_holds_the_bytes_that_are_predicted(weights):
    """Layers of a power of two of bytes, so that the allocator rounds nothing."""
    model, dtype = wide(), getattr(torch, weights)
    count, layer = sum(p.numel() for p in model.parameters()), 1024 * 1024
    before = taken()
    optimizer = OffloadedAdamW(model, dtype=dtype, bucket_mib=2.0, buckets=2)
    for step in range(3):
        loss_of(model, step).backward()
        optimizer.step()
    optimizer.synchronize()
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.gradient_bytes() == 2 * 2 * MIB + dtype.itemsize * layer
    expected = before - (4 - dtype.itemsize) * count + 2 * 2 * MIB
    assert abs(taken() - expected) <= MIB // 2, (taken(), expected)
    plain = wide()
    full, start = torch.optim.AdamW(plain.parameters(), fused=True), taken()
    loss_of(plain, 0).backward()
    full.step()
    assert taken() - start >= 12 * count  # gradients and moments, which offloading does not hold
    optimizer.close()


def test_the_peak_of_a_step_is_lower_by_what_moved_to_the_host():
    peaks = {}
    for name in ("full", "offloaded"):
        torch.cuda.empty_cache()
        model = wide(16)
        count = sum(p.numel() for p in model.parameters())
        if name == "full":
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        else:
            optimizer = OffloadedAdamW(model, bucket_mib=4.0)
        for step in range(3):
            if step == 2:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            optimizer.zero_grad()
            loss_of(model, step, rows=32).backward()
            optimizer.step()
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated()
        if isinstance(optimizer, OffloadedAdamW):
            optimizer.close()
        del model, optimizer
    # All but two buckets of 4 MiB, a gradient of 4 MiB, some activations and a gradient that autograd holds besides.
    assert peaks["full"] - peaks["offloaded"] > 12 * count - 2 * 4 * MIB - 4 * 4 * MIB


def deep(layers=48, width=512):
    torch.manual_seed(0)
    pairs = [(torch.nn.Linear(width, width), torch.nn.Tanh()) for _ in range(layers)]
    return torch.nn.Sequential(*(torch.nn.Sequential(*pair) for pair in pairs)).to(DEVICE)


def passes(model, x, offload=None):
    """Gradients, and the peak above what was there before, in bytes."""
    model.zero_grad(set_to_none=False)
    before = taken()
    torch.cuda.reset_peak_memory_stats()
    if offload is None:
        loss = model(x).square().mean()
    else:
        with offload:
            loss = model(x).square().mean()
    loss.backward()
    torch.cuda.synchronize()
    return [p.grad.clone() for p in model.parameters()], torch.cuda.max_memory_allocated() - before


def test_offloaded_activations_give_the_same_gradients_and_a_peak_lower_by_four_fifths_of_them():
    model, x = deep(), torch.randn(8192, 512, device=DEVICE)
    passes(model, x)  # workspaces, gradients
    plain, high = passes(model, x)
    offload = OffloadedActivations(model)
    for _ in range(3):
        found, low = passes(model, x, offload)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    saved = offload.moved_bytes
    assert saved == 49 * 8192 * 512 * 4
    assert high - low >= 0.8 * saved, (high, low, saved)
    assert offload.peak_bytes <= 5 * 8192 * 512 * 4
    offload.close()


def test_activations_of_many_sizes_and_of_autocast_come_back_in_every_order():
    model = micro_llama().to(DEVICE).train()
    offload = OffloadedActivations(model, min_bytes=1, in_flight=1, prefetch=3)
    for batch in batches(10):
        losses = []
        for context in (offload, torch.enable_grad()):
            model.zero_grad()
            with context, torch.autocast(DEVICE, torch.bfloat16):
                loss = TASK.loss(model, batch)
            loss.backward()
            losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        # All but the embedding, whose gradient is summed in an order of its own.
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    offload.close()


def test_no_pinned_memory_is_allocated_after_the_first_step():
    model, x = deep(), torch.randn(4096, 512, device=DEVICE)
    optimizer, offload = OffloadedAdamW(model, bucket_mib=1.0, max_grad_norm=1.0), OffloadedActivations(model)
    made = []
    for _ in range(4):
        with offload:
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.synchronize()
        del loss
        torch.cuda.synchronize()
        made.append((offload.pool.allocations, torch.cuda.host_memory_stats()["num_host_alloc"]))
    assert made[0] == made[1] == made[2] == made[3] and made[0][0] == 49
    assert all(optimizer.host.staging.is_pinned() and slot.is_pinned() for slot, _ in offload.pool._free[2**23])
    optimizer.close()
    offload.close()


def test_the_timeline_shows_copies_beside_compute_only_where_they_overlap():
    shares = {}
    for overlap in (True, False):
        timeline, model = Timeline(DEVICE), wide(12, 2048)
        optimizer = OffloadedAdamW(model, overlap=overlap, bucket_mib=16.0, timeline=timeline)
        for step in range(4):
            if step == 3:
                optimizer.synchronize()
                timeline.restart()
            with timeline.span(COMPUTE, "forward"):
                loss = loss_of(model, step, rows=8192)
            with timeline.span(COMPUTE, "backward"):
                loss.backward()
            optimizer.step()
        optimizer.synchronize()
        found = timeline.spans()
        assert all(-1 < s.start_ms <= s.end_ms for s in found)
        down, host, up = ({s.name: s for s in found if s.lane == lane} for lane in (DOWNLOAD, HOST, UPLOAD))
        assert set(down) == set(host) == set(up) and len(down) > 8
        for name in host:  # the two clocks agree: nothing is updated before it has come
            assert down[name].end_ms < host[name].start_ms + 0.2 and host[name].end_ms < up[name].start_ms + 0.2
        shares[overlap] = overlapped(found, [DOWNLOAD])
        optimizer.close()
    assert shares[False] < 0.05 and shares[True] > 0.5, shares


def test_as_methods_they_train_on_the_gpu_as_full_fine_tuning():
    settings = {"steps": 8, "batch_size": 8, "progress": False}
    reference = train(micro_llama().to(DEVICE), TASK, FullFineTuning(), **settings)
    for method in (
        OffloadedFineTuning(bucket_mib=0.004),
        OffloadedFineTuning(bucket_mib=0.004, max_grad_norm=None, weights="bfloat16"),
        OffloadedTuning(bucket_mib=0.004, min_bytes=1),
    ):
        run = train(micro_llama().to(DEVICE), TASK, method, **settings)
        for category in ("weights", "gradients", "optimizer_states"):
            assert run.ledger.residual(category) == 0, (method.name, category)
        assert method.host_bytes() == method.measured_host_bytes()
        rough = method.weights != "float32" or method.max_grad_norm is None
        assert run.losses == pytest.approx(reference.losses, rel=0.1 if rough else 1e-2, abs=0.05 if rough else 1e-3)
        method.close()
