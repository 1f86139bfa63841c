"""Offloaded activations: the same gradients to the bit, each storage once, few at a time, and slots used again."""

import gc
import threading

import numpy as np
import pytest
import torch
from micro import Letters, micro_llama
from torch.utils.checkpoint import checkpoint

from labkit.errors import LabError
from labkit.ledger import saved_for_backward
from labkit.memory.offload_activations import HostPool, OffloadedActivations
from labkit.memory.offloaded import OffloadedActivationTuning, OffloadedFineTuning, OffloadedTuning
from labkit.memory.timeline import COMPUTE, DOWNLOAD, UPLOAD, Timeline, overlapped
from labkit.methods import FullFineTuning
from labkit.training import order, train

TASK = Letters()
WIDTH, ROWS = 32, 64
LAYER = 4 * WIDTH * ROWS  # bytes of a layer's output


def batch(step=0):
    return TASK.batch(list(order(TASK, 8, 0, step + 1))[step])


def deep(layers=12):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(layers))
    )


def gradients(model, loss):
    model.zero_grad()
    loss().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def agree(a, b):
    assert any(g is not None for g in a)
    return all((p is q is None) or torch.equal(p, q) for p, q in zip(a, b, strict=True))


def under(offload, forward):
    def loss():
        with offload:
            return forward()

    return loss


@pytest.mark.parametrize("prefetch, in_flight, overlap", [(0, 1, True), (2, 2, True), (5, 1, True), (2, 2, False)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit(prefetch, in_flight, overlap, dtype):
    model = micro_llama().train()

    def forward():
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return TASK.loss(model, batch())

    settings = {"prefetch": prefetch, "in_flight": in_flight, "overlap": overlap}
    offload = OffloadedActivations(model, min_bytes=1, **settings)
    for _ in range(2):
        assert agree(gradients(model, under(offload, forward)), gradients(model, forward))
    assert offload.moved_bytes > 0 == offload.kept_bytes
    offload.close()


@pytest.mark.parametrize("threshold", [1, 2000, 5000, 10**9])
def test_what_moves_is_what_autograd_saves_beyond_the_threshold(threshold):
    model = micro_llama().train()
    sizes = {}

    def note(tensor):  # as in labkit.ledger, but storage by storage
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        kept = TASK.loss(model, batch())
    with saved_for_backward(model) as saved:
        kept_too = TASK.loss(model, batch())
    assert sum(sizes.values()) == saved["activations"]
    offload = OffloadedActivations(model, min_bytes=threshold)
    with offload:
        TASK.loss(model, batch()).backward()
    assert offload.moved_bytes == sum(n for n in sizes.values() if n >= threshold)
    assert offload.moved_bytes + offload.kept_bytes == saved["activations"]
    del kept, kept_too


def test_views_of_one_storage_travel_once_and_come_back_as_they_were():
    model = torch.nn.Linear(WIDTH, WIDTH)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def forward():
        y = x * 2
        parts = (y[1::2] * y[::2]).sum() + (y.t()[3:5] ** 2).sum() + (y * y).sum() + y.view(-1)[5:9].prod()
        return parts + y.expand(2, ROWS, WIDTH).square().mean()

    plain = torch.autograd.grad(forward(), x)[0]
    offload = OffloadedActivations(model, min_bytes=LAYER)
    with offload:
        loss = forward()
    found = torch.autograd.grad(loss, x)[0]
    assert torch.equal(found, plain)
    # x * 2 saves nothing of x: y alone moves, and its views of other sizes with it.
    assert offload.moved_bytes == LAYER


def test_an_address_that_is_used_again_is_another_storage():
    """What was offloaded is freed at once, and the allocator gives its address to the next tensor."""
    memory, weight = np.ones((ROWS, WIDTH), dtype=np.float32), torch.ones(ROWS, WIDTH, requires_grad=True)
    offload = OffloadedActivations(torch.nn.Linear(1, 1), min_bytes=1, in_flight=1)
    with offload:
        loss = (weight * torch.from_numpy(memory)).sum() + (weight * torch.full((ROWS, WIDTH), 10.0)).sum()
        memory[:] = 100.0
        loss = loss + (weight * torch.from_numpy(memory)).sum()
    assert torch.equal(torch.autograd.grad(loss, weight)[0], torch.full((ROWS, WIDTH), 111.0))
    assert offload.moved_bytes == 3 * LAYER


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_and_around_torchs_checkpoint(reentrant):
    model = deep(6)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def forward():
        h = model[0](x)
        h = checkpoint(model[1:3], h, use_reentrant=reentrant)
        h = checkpoint(model[3:5], h, use_reentrant=reentrant)
        return model[5](h).square().sum()

    offload = OffloadedActivations(model, min_bytes=1)
    assert agree(gradients(model, under(offload, forward)), gradients(model, forward))
    assert 0 < offload.moved_bytes < 12 * LAYER


def test_few_storages_are_on_the_device_at_a_time():
    model, x = deep(40), torch.randn(ROWS, WIDTH)
    offload = OffloadedActivations(model, min_bytes=1, in_flight=2, prefetch=2)
    with offload:
        loss = model(x).square().sum()
    assert offload.moved_bytes == 41 * LAYER
    assert offload.peak_bytes <= 3 * LAYER
    loss.backward()
    assert offload.peak_bytes <= 5 * LAYER
    del loss
    assert offload._alive == 0


def test_what_is_needed_next_is_fetched_ahead():
    model, x, peaks = deep(40), torch.randn(ROWS, WIDTH), []
    for prefetch in (0, 4):
        offload = OffloadedActivations(model, min_bytes=1, in_flight=1, prefetch=prefetch)
        with offload:
            loss = model(x).square().sum()
        loss.backward()
        peaks.append(offload.peak_bytes)
    assert peaks[0] == 2 * LAYER and peaks[1] >= 5 * LAYER


def test_slots_are_used_again_and_freed_with_the_graph():
    model, x = deep(), torch.randn(ROWS, WIDTH)
    offload = OffloadedActivations(model, min_bytes=1)
    made = []
    for step in range(4):
        with offload:
            loss = model(x if step < 3 else x[: ROWS - 5]).sum()  # a little less fits the same powers of two
        loss.backward()
        made.append(offload.pool.allocations)
    assert made == [13] * 4 and offload.pool.nbytes == 13 * LAYER
    with offload:  # a graph that is thrown away gives its slots back, too
        loss = model(x).sum()
    del loss
    gc.collect()
    assert sum(map(len, offload.pool._free.values())) == 13 and offload._alive == 0


def test_a_graph_that_is_kept_can_be_walked_twice():
    model, x = deep(5), torch.randn(ROWS, WIDTH)
    offload = OffloadedActivations(model, min_bytes=1, in_flight=1)
    with offload:
        loss = model(x).sum()
    twice = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
    assert offload._alive <= LAYER  # what came back is not kept, but for what had not left
    twice.append(torch.autograd.grad(loss, list(model.parameters())))
    assert offload._alive == 0
    assert agree(*twice) and agree(twice[0], gradients(model, lambda: model(x).sum()))


def test_a_tensor_modified_on_its_way_out_is_noticed():
    model = deep(2)
    offload = OffloadedActivations(model, min_bytes=1, in_flight=1)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with pytest.raises(LabError, match="in place"), offload:
        y = x * 1
        z = y.square()
        y.add_(1)
        z.square().square()


def test_overlap_hides_copies_and_its_absence_hides_none():
    model, x = deep(), torch.randn(ROWS, WIDTH)
    shares = {}
    for overlap in (True, False):
        timeline = Timeline()
        offload = OffloadedActivations(
            model, min_bytes=1, in_flight=4, overlap=overlap, synthetic_gb_per_s=0.01, timeline=timeline
        )
        with timeline.span(COMPUTE, "forward"), offload:
            loss = model(x).sum()
        with timeline.span(COMPUTE, "backward"):
            loss.backward()
        found = timeline.spans()
        shares[overlap] = overlapped(found)
        lanes = [s.lane for s in found]
        assert lanes.count(DOWNLOAD) == 13 and 13 - 5 <= lanes.count(UPLOAD) <= 13
        offload.close()
    assert shares[False] == 0 < shares[True]


def test_settings_out_of_range_are_refused_and_threads_end():
    model = deep(2)
    for wrong in ({"min_bytes": 0}, {"in_flight": 0}, {"prefetch": -1}, {"synthetic_gb_per_s": -1.0}):
        with pytest.raises(LabError):
            OffloadedActivations(model, **wrong)
    gc.collect()
    before = threading.active_count()
    offload = OffloadedActivations(model, min_bytes=1)
    gradients(model, under(offload, lambda: model(torch.ones(ROWS, WIDTH)).sum()))
    assert threading.active_count() > before
    offload.close()
    assert threading.active_count() == before


def test_the_pool_gives_slots_of_powers_of_two():
    pool = HostPool(pinned=False)
    slot, ticket = pool.take(5000)
    assert len(slot) == pool.nbytes == 8192 and ticket.done()
    pool.give(slot, ticket)
    assert pool.take(4097)[0] is slot and pool.allocations == 1


def test_as_methods_alone_and_with_the_optimizer_they_train_as_full_fine_tuning():
    settings = {"steps": 2, "batch_size": 8, "progress": False}
    methods = [
        FullFineTuning(),
        OffloadedActivationTuning(min_bytes=1),
        OffloadedTuning(min_bytes=1, bucket_mib=0.004),
        OffloadedFineTuning(bucket_mib=0.004),
    ]
    models = [micro_llama() for _ in methods]
    runs = [train(model, TASK, method, **settings) for model, method in zip(models, methods, strict=True)]
    for model, run in zip(models[1:], runs[1:], strict=True):
        assert run.losses == runs[0].losses and run.accuracy == runs[0].accuracy
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), models[0].parameters(), strict=True))
    full, moved, both, _ = (run.ledger.measured for run in runs)
    assert 0 < moved["activations"] < 0.5 * full["activations"]
    assert both["activations"] == moved["activations"] and both["optimizer_states"] == 0
    assert runs[2].ledger.residual("gradients") == 0
    for method in methods[2:]:
        method.close()
