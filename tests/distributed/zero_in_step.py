"""What runs in ranks for the tests of what is in the midst of a step: budgets, prefetch, accumulation."""

from __future__ import annotations

import torch
import torch.distributed as dist
import zero_checks as checks
from decoders import llama, opt
from zero_checks import STEPS, TASK, verdict
from zero_runs import STAGES, make

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.parallel.zero import Zero2, Zero3
from labkit.parallel.zero_accumulated import AccumulatedZero
from labkit.parallel.zero_engine import ZeroEngine
from labkit.parallel.zero_peak import peak


def stepped(method, config=None):
    """The budget of a step after the first, the least of several, and the second step's loss.

    gloo's threads let go of what they have sent when they get to it, which on a busy machine is after the next layer
    has begun: a step may count a buffer too many, and never one too few.
    """
    method.prepare(checks.model(config or checks.wide()).train(), TASK, STEPS)
    first, second, *_ = checks.batches()
    method.step(first)
    stands = sum(method.measured_standing().values())
    budgets, losses = [], []
    for _ in range(3):
        with peak(method) as found:
            losses.append(method.step(second).item())
        gathered = method.observed()["gathered_bytes"]
        assert found[0].standing == stands, "other bytes stand than the method counts"
        assert gathered == method.gathered_bytes(), f"{gathered} gathered, formula {method.gathered_bytes()}"
        budgets.append(found[0])
    method.close()
    return min(budgets, key=lambda budget: budget.total), losses[0]


class KeepsCopies(ZeroEngine):
    """Whatever is gathered stays as a copy to the end of the step, as if autograd had saved it."""

    def begin(self):
        super().begin()
        self.copies = []

    def _ready(self, unit):
        super()._ready(unit)
        self.copies.append(unit.weights.clone())


class Keeping(Zero3):
    def _make_engine(self):
        given = self._whole, self.stage, getattr(torch, self.weights), self._device
        return KeepsCopies(*given, self.hold_weights, self.prefetch)


def check_budget() -> None:
    """Stage 3 has what stage 2 has but for its weights; what is kept too long is seen; prefetch is a layer at most."""
    two, three = stepped(make(Zero2)()), stepped(make(Zero3)())
    assert two[1] == three[1] and two[0].gathered == 0 < three[0].gathered
    layer = 4 * sum(p.numel() for p in checks.model(checks.wide()).model.layers[0].parameters())
    apart = abs(two[0].gradients + two[0].rest - three[0].gradients - three[0].rest)
    assert two[0].rest > 0 and apart < layer / 2, f"what is no weight is {apart} bytes apart: somebody keeps weights"
    assert three[0].gradients > 0 and three[0].standing < two[0].standing
    kept = stepped(make(Keeping)())
    assert kept[1] == three[1] and kept[0].total - three[0].total > 4 * layer, "copies of weights are not seen"
    alone = stepped(make(Zero3, prefetch=False)())
    assert alone[1] == three[1], "prefetch changes the values"
    fewer = three[0].total - alone[0].total
    assert 0 < fewer < 1.03 * layer, f"without prefetch {fewer} bytes fewer, a layer has {layer}"


def check_without_prefetch() -> None:
    """One layer beside the root, in both directions, whatever the architecture (the formula is checked inside)."""
    for config in (llama(3, initializer_range=0.15), opt(3)):
        stepped(make(Zero3, prefetch=False)(), config)


def accumulated(stage: int, size: int, micro: int):
    """Losses and weights of a training that accumulates, and what waits on the rank when a micro-batch begins."""
    method, net, waiting = make(AccumulatedZero, stage=stage, micro_batch_size=micro)(), checks.model(), []
    share_loss = method._share_loss
    method._share_loss = lambda part: (waiting.append(method.engine.gradient_bytes()), share_loss(part))[1]
    method.prepare(net.train(), TASK, STEPS)
    ledger = Ledger(predicted=method.predicted_bytes())
    losses = [method.measured_step(batch, ledger).item() for batch in checks.batches(size)]
    wrong = {name: bytes_ for name, bytes_ in ledger.predicted.items() if ledger.measured[name] != bytes_}
    assert not wrong, f"measured {ledger.measured}, predicted {ledger.predicted}"
    sent = method.observed()["all_gather_bytes"] + method.observed()["reduce_scatter_bytes"]
    assert sent == method.predicted_traffic(), f"{sent} bytes sent, {method.predicted_traffic()} by formula"
    layers = sum(unit.padded for unit in method.engine.layers)
    whole = 4 * (layers + method.engine.root.padded)
    copies = {1: 2, 2: -(-size // micro) + 1, 3: -(-size // micro) * (3 - method.engine.root.padded * 4 / whole)}
    world = dist.get_world_size()
    assert abs(sent / whole / ((world - 1) / world) - copies[stage]) < 1e-6, "other copies than the text says"
    method.close()
    return losses, list(net.parameters()), waiting


def check_accumulated() -> None:
    """The step of the whole batch to rounding, for even and uneven micro-batches; whole gradients in stage 1 alone."""
    for kind in STAGES:
        for size, micro in ((8, 2), (7, 3)):
            expected, wanted = checks.trained(make(kind)(), size=size)
            losses, weights, waiting = accumulated(kind.stage, size, micro)
            where = f"{kind.name}, {size} rows by {micro}"
            assert torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=2e-5), where
            pairs = zip(weights, wanted, strict=True)
            assert all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs), where
            count = sum(p.numel() for p in weights)
            assert max(waiting) == (4 * count if kind.stage == 1 else 0), (where, max(waiting), count)


def check_refused() -> None:
    """A micro-batch of nothing."""
    try:
        AccumulatedZero(micro_batch_size=0)
    except LabError as error:
        assert error.remedy
    else:
        raise AssertionError("not refused")


def two() -> dict[str, str]:
    """All of it on two ranks."""
    parts = (check_budget, check_without_prefetch, check_accumulated, check_refused)
    return {part.__name__: verdict(part) for part in parts}
