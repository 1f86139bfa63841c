"""Sharded trainings with one thing wrong that looks right. The checks have to tell each of them from the real one."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.parallel.zero import Zero
from labkit.parallel.zero_adamw import ShardedAdamW
from labkit.parallel.zero_engine import ZeroEngine
from labkit.parallel.zero_wire import Wire


class UnshardedAdamW(ShardedAdamW):
    """Every rank holds the moments of everything and updates everything: right values, nothing sharded."""

    def _allocate(self) -> None:
        for unit in self.engine.units:
            unit.everything = torch.nn.Parameter(torch.empty(unit.padded))
            self.engine.wire.all_gather(unit.everything.data, unit.master.data)
        self.full = torch.optim.AdamW([u.everything for u in self.engine.units], fused=True)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.full.param_groups:
            group.update({k: v for k, v in self.param_groups[0].items() if k != "params"})
        for unit in self.engine.units:
            whole = torch.empty(unit.padded)
            self.engine.wire.all_gather(whole, unit.gradient.float())
            unit.everything.grad = whole if self.factor is None else whole * self.factor
            self.engine.free_gradient(unit)
        self.full.step()
        self.full.zero_grad()
        for unit in self.engine.units:
            unit.master.copy_(unit.everything[unit.own])
            self.engine.publish(unit)


class UnshardedMoments(ShardedAdamW):
    """The moments are made for the whole, of which a part is used."""

    def _allocate(self) -> None:
        super()._allocate()
        for unit in self.engine.units:
            state = self.state[unit.master]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros(unit.padded)[unit.own]


class LocalNorm(ShardedAdamW):
    """Clips by the norm of the rank's own parts, as if that were everything."""

    def squares(self) -> Tensor:
        found = super().squares()
        return found if self.engine.wire.rank == 0 else torch.zeros_like(found)


class KeepsGradients(ZeroEngine):
    """Reduces gradients to their owners, and keeps the whole ones all the same."""

    def _reduce(self, unit) -> None:
        whole = unit.whole_gradient
        super()._reduce(unit)
        unit.whole_gradient = whole


class KeepsWeights(ZeroEngine):
    """Gathers each layer, and never releases it."""

    def _release(self, unit) -> None:
        pass


class ReleasesLate(ZeroEngine):
    """Holds every layer from its forward to the end of the step."""

    def _leaves(self, number):
        return lambda _, __, output: self._before_backward(output, number)

    def _reduce(self, unit) -> None:
        release, self._release = self._release, lambda unit: None
        super()._reduce(unit)
        self._release = release


class HoldsWeights(ZeroEngine):
    """Rounds weights from the masters for every gather, and holds what it rounded as well."""

    def _fetch(self, unit) -> None:
        super()._fetch(unit)
        unit.rounded = unit.weights[unit.own].clone()


class Stale(ZeroEngine):
    """Updates each rank's part and does not tell the others."""

    def publish(self, unit) -> None:
        unit.refresh()


class NoReduction(Wire):
    """Each owner takes its part of its own gradient."""

    def reduce_scatter(self, part, whole):
        part.copy_(whole.view(self.world_size, -1)[self.rank].clone())


class SumForMean(Wire):
    """Adds over ranks and forgets to divide."""

    def reduce_scatter(self, part, whole):
        event = super().reduce_scatter(part, whole)
        part.mul_(self.world_size)
        return event


class AllReduces(Wire):
    """All-reduces whole gradients, as data parallelism does, and takes a part: twice the traffic."""

    def reduce_scatter(self, part, whole):
        torch.distributed.all_reduce(whole)
        whole.div_(self.world_size)
        part.copy_(whole.view(self.world_size, -1)[self.rank].clone())
        self.sent["reduce_scatter"] += (self.world_size - 1) * part.numel() * part.element_size()


def mutant(base: type[Zero], optimizer=ShardedAdamW, engine=ZeroEngine, wire=Wire):
    """A stage with one of its parts exchanged."""

    class Mutant(base):  # type: ignore[misc, valid-type]
        def _make_engine(self):
            from labkit.parallel import zero_engine

            before, zero_engine.Wire = zero_engine.Wire, wire
            try:
                return engine(self._whole, self.stage, getattr(torch, self.weights), self._device)
            finally:
                zero_engine.Wire = before

        def _make_optimizer(self, lr, weight_decay):
            return optimizer(self.engine, lr, weight_decay=weight_decay)

    return Mutant
