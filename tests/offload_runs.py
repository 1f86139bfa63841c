"""Training a micro model by offloaded AdamW and by torch's, for the tests of offloading."""

from __future__ import annotations

import threading

import torch
from micro import Letters

from labkit.memory.offload_optimizer import OffloadedAdamW
from labkit.training import order

TASK = Letters()
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-7, "weight_decay": 0.05}
BUCKET = 0.004  # MiB: a thousand values, so that the micro model fills sixteen
TINY = 0.0011  # cuts matrices


def batches(steps):
    """The first batches of the task."""
    return [TASK.batch(examples) for examples in order(TASK, 8, 0, steps)]


def same(a, b):
    """Whether two models' weights are equal to the bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


_EARLIER: set[threading.Thread] = set()


def note_threads():
    """From now on `threads` leaves out those that run already."""
    _EARLIER.clear()
    _EARLIER.update(threading.enumerate())


def threads():
    """Threads of ours that were started since `note_threads`, and run."""
    return [t for t in threading.enumerate() if t.name.startswith("labkit") and t not in _EARLIER]


def hooks(model):
    """What hangs on a model's parameters and modules."""
    found = [h for p in model.parameters() for h in (p._post_accumulate_grad_hooks or {}).values()]
    return found + [h for m in model.modules() for h in m._forward_pre_hooks.values()]


def reference(model, steps, clip=None, **settings):
    """torch's own AdamW, with its own clipping."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True, **{**SETTINGS, **settings})
    for batch in batches(steps):
        optimizer.zero_grad()
        TASK.loss(model, batch).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
    return model


def offloaded(model, steps, clip=None, **settings):
    optimizer = OffloadedAdamW(model, max_grad_norm=clip, **{**SETTINGS, "bucket_mib": BUCKET, **settings})
    for batch in batches(steps):
        TASK.loss(model, batch).backward()
        optimizer.step()
        assert all(p.grad is None for p in model.parameters())
    optimizer.synchronize()
    optimizer.close()
    assert not threads()
    return model
