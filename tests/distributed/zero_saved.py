"""A training that is saved and goes on among other numbers of ranks."""

from __future__ import annotations

import zero_checks as checks
from zero_runs import make

from labkit.errors import LabError
from labkit.parallel import zero_checkpoint
from labkit.parallel.zero import Zero1, Zero2, Zero3

SAVE_AT = {2: (0, 2), 4: (2, 4), 1: (4, 6)}  # which steps run on how many ranks
KINDS = {"float32": (Zero3, Zero1, Zero2), "bfloat16": (Zero2, Zero3, Zero3)}  # which stage runs them


def stretch(folder: str, begin: int, end: int, stage: int) -> dict:
    """Steps `begin` to `end` in both formats, from the checkpoint of `begin` to that of `end`; losses and weights."""
    found = {}
    for weights, kinds in KINDS.items():
        net, method = checks.model(seed=0 if not begin else 1), make(kinds[stage], weights=weights, max_grad_norm=0.5)()
        method.prepare(net.train(), checks.TASK, checks.STEPS)
        if begin:
            zero_checkpoint.load(method, f"{folder}/{weights}-{begin}")
        losses = [method.step(batch).item() for batch in checks.batches()[begin:end]]
        zero_checkpoint.save(method, f"{folder}/{weights}-{end}")
        if end == 4:
            refused(folder)
        method.close()
        found[weights] = losses, [p.detach().float() for p in net.parameters()]
    return found


def begun(folder: str) -> tuple[dict, dict]:
    """The first stretch, and all steps without interruption."""
    return stretch(folder, *SAVE_AT[2], stage=0), whole()


def whole() -> dict:
    """The same six steps without interruption."""
    found = {}
    for weights in KINDS:
        net, method = checks.model(), make(Zero2, weights=weights, max_grad_norm=0.5)()
        method.prepare(net.train(), checks.TASK, checks.STEPS)
        losses = [method.step(batch).item() for batch in checks.batches()]
        method.close()
        found[weights] = losses, [p.detach().float() for p in net.parameters()]
    return found


def refused(folder: str) -> None:
    """Where there is nothing, and where there is another model's, a sentence says so."""
    other = make(Zero3)()
    other.prepare(checks.model(checks.llama(3)).train(), checks.TASK, checks.STEPS)
    for place in (f"{folder}/nothing", f"{folder}/float32-2"):
        try:
            zero_checkpoint.load(other, place)
        except LabError as error:
            assert "No checkpoint of this model" in error.cause, error
        else:
            raise AssertionError("not refused")
    other.close()
