"""Offloaded AdamW's schedule: what overlaps, who waits for what, what is refused, and nothing left behind."""

import gc
import time
import weakref

import pytest
import torch
from micro import micro_llama
from offload_runs import BUCKET, TASK, batches, hooks, offloaded, reference, same, threads

from labkit.errors import LabError, UnknownNameError
from labkit.memory.host_adamw import HostAdamW
from labkit.memory.lanes import Bus
from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.memory.offloaded import OffloadedFineTuning
from labkit.memory.timeline import COMPUTE, DOWNLOAD, HOST, WAIT, Timeline, overlapped, union
from labkit.training import train


def test_a_copy_waits_for_those_that_it_is_told_to():
    bus = Bus("cpu", synthetic_gb_per_s=0.001)
    start, on_host, back = torch.randn(5000), torch.zeros(5000), torch.zeros(5000)
    down = bus.download([(on_host, start)], "down")  # 20 ms
    late = bus.download([(torch.zeros(5000), start)], "late")
    up = bus.upload([(back, on_host)], "up", after=[late])
    assert not down.done() and not up.done()
    up.wait()
    assert down.done() and late.done() and torch.equal(back, start)
    with pytest.raises(RuntimeError, match="size"):
        bus.upload([(torch.zeros(3), start)], "wrong").wait()
    bus.close()


def test_overlap_hides_copies_and_its_absence_hides_none():
    """The bus is synthetic, so that copies last; shares of recorded spans, not seconds, are compared."""
    shares, waits = {}, {}
    for overlap in (True, False):
        timeline = Timeline()
        method = OffloadedFineTuning(
            overlap=overlap, bucket_mib=BUCKET, buckets=3, max_grad_norm=None, synthetic_gb_per_s=0.01
        )
        method.watch(timeline)
        train(micro_llama(), TASK, method, steps=2, batch_size=8, progress=False)
        found = timeline.spans()
        shares[overlap] = overlapped(found, [DOWNLOAD])
        waits[overlap] = sum(b - a for a, b in union((s.start_ms, s.end_ms) for s in found if s.lane == WAIT))
        lanes = {lane: [s for s in found if s.lane == lane] for lane in (COMPUTE, DOWNLOAD, HOST)}
        assert [s.name for s in lanes[COMPUTE]] == ["forward", "backward"] * 2
        assert len(lanes[DOWNLOAD]) == len(lanes[HOST]) > 8
        backward = lanes[COMPUTE][1]
        beside = [s for s in lanes[HOST] if backward.start_ms < s.start_ms < backward.end_ms]
        assert beside, "no update began during the backward pass"
        method.close()
    assert shares[False] == 0 < shares[True] and waits[True] < waits[False]


def test_with_clipping_no_update_begins_before_the_last_gradient():
    timeline = Timeline()
    method = OffloadedFineTuning(bucket_mib=BUCKET, max_grad_norm=1.0, synthetic_gb_per_s=0.05)
    method.watch(timeline)
    train(micro_llama(), TASK, method, steps=1, batch_size=8, progress=False)
    found = timeline.spans()
    backward = next(s for s in found if s.name == "backward")
    updates = [s for s in found if s.lane == HOST]
    assert updates and all(s.start_ms >= backward.end_ms for s in updates)
    # The embedding, needed first, arrived last: its bucket is the first to be updated.
    assert updates[0].name == f"bucket {len(updates) - 1}"
    method.close()


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_slow_host_and_a_slow_bus_change_nothing(monkeypatch, clip, layerwise):
    """Whoever does not wait for the right copy reads old weights, or a gradient that has not come."""
    update = HostAdamW._adamw
    monkeypatch.setattr(HostAdamW, "_adamw", lambda *args: (time.sleep(0.002), update(*args))[1])
    slow = {"layerwise": layerwise, "synthetic_gb_per_s": 0.002, "buckets": 8}
    assert same(offloaded(micro_llama(), 3, clip, **slow), reference(micro_llama(), 3, clip))


class Wrong(Exception):
    pass


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_exception_in_the_thread_reaches_the_step_and_ends_the_thread(monkeypatch, overlap, clip):
    def broken(self, *_):
        raise Wrong("in the host's thread")

    monkeypatch.setattr(HostAdamW, "_adamw", broken)
    model = micro_llama()
    optimizer = OffloadedAdamW(model, overlap=overlap, bucket_mib=BUCKET, max_grad_norm=clip)
    with pytest.raises(Wrong, match="host's thread"):
        for batch in batches(2):
            TASK.loss(model, batch).backward()
            optimizer.step()
    optimizer.close()
    assert not threads() and not hooks(model)
    with pytest.raises(LabError, match="closed"):
        optimizer.step()


def test_nothing_stays_on_the_model_after_close_or_collection():
    for by_hand in (True, False):
        model = micro_llama()
        optimizer = OffloadedAdamW(model, bucket_mib=BUCKET)
        TASK.loss(model, batches(1)[0]).backward()
        optimizer.step()
        assert hooks(model) and threads()
        gone = weakref.ref(optimizer)
        if by_hand:
            optimizer.close()
            optimizer.close()
        del optimizer
        gc.collect()
        assert gone() is None and not hooks(model) and not threads()
        TASK.loss(model, batches(1)[0]).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_method_that_is_prepared_again_leaves_the_first_model():
    method, models = OffloadedFineTuning(bucket_mib=BUCKET), [micro_llama() for _ in range(2)]
    for model in models:
        method.prepare(model, TASK, steps=3)
    assert not hooks(models[0]) and hooks(models[1])
    method.close()


def test_training_takes_hooks_and_threads_away_at_its_end():
    method, models = OffloadedFineTuning(bucket_mib=BUCKET), [micro_llama() for _ in range(2)]
    runs = [train(model, TASK, method, steps=3, batch_size=8, progress=False) for model in models]
    assert runs[0].losses == runs[1].losses and same(*models)
    assert not any(hooks(model) for model in models) and not threads()
    assert runs[0].ledger.host == method.host_bytes() and runs[0].ledger.measured["optimizer_states"] == 0


def test_what_it_cannot_do_is_refused():
    model = micro_llama()
    for wrong in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"buckets": 0}, {"bucket_mib": 0}):
        with pytest.raises(LabError):
            OffloadedAdamW(model, **wrong)
    with pytest.raises(LabError, match="not of this model"):
        OffloadedAdamW(model, [torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(LabError, match="fp32"):
        OffloadedAdamW(micro_llama().bfloat16())
    turned = torch.nn.Linear(3, 4)
    turned.weight = torch.nn.Parameter(torch.randn(3, 4).t())
    with pytest.raises(LabError, match="contiguous"):
        OffloadedAdamW(turned)
    with pytest.raises(LabError, match="synthetic"):
        Bus("cpu", synthetic_gb_per_s=0.0)
    with pytest.raises(UnknownNameError):
        OffloadedFineTuning(weights="int8")
    assert not hooks(model)


@pytest.mark.parametrize("layerwise", [True, False])
def test_a_second_backward_pass_is_refused(layerwise):
    model, batch = micro_llama(), batches(1)[0]
    optimizer = OffloadedAdamW(model, bucket_mib=BUCKET, layerwise=layerwise, max_grad_norm=1.0)
    TASK.loss(model, batch).backward()
    with pytest.raises(LabError, match="twice"):
        TASK.loss(model, batch).backward()
    optimizer.close()


def test_a_weight_used_behind_its_modules_back_is_noticed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    for layerwise in (False, True):
        optimizer = OffloadedAdamW(model, layerwise=layerwise)
        for step in range(2):
            loss = torch.nn.functional.linear(model[0](torch.ones(1, 3)), model[1].weight).sum()
            if step and layerwise:
                with pytest.raises(LabError, match="layerwise=False"):
                    loss.backward()
            else:
                loss.backward()
                optimizer.step()
        optimizer.close()
