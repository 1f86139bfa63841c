"""The most bytes that a step of ZeRO needs at once, counted operation by operation, and what they are.

What stands on a rank is not what it needs: gathered weights, gradients on their way, activations and what passes come
on top, each at a time of its own. `peak` follows every storage that an operation of the step makes until its last
reference is gone, and asks the units for the buffers that come and go by `resize_`, which no operation shows. So it
counts what autograd keeps as well, were it a copy of gathered weights. A kernel's own scratch space is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from labkit.ledger import optimizer_tensors, storage_bytes
from labkit.parallel.zero import Zero
from labkit.parallel.zero_engine import ZeroEngine


@dataclass(frozen=True)
class Budget:
    """Bytes on one rank at one moment.

    Attributes:
        standing: weights, master weights, optimizer states and buffers that stay from step to step.
        gathered: weights that are whole for the moment (stage 3).
        gradients: whole ones and parts.
        rest: activations, and what is only passing.
    """

    standing: int = 0
    gathered: int = 0
    gradients: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.standing + self.gathered + self.gradients + self.rest


class _Live(TorchDispatchMode):
    """Keeps the largest budget: what operations have `made` beside what stands."""

    def __init__(self, engine: ZeroEngine, known: Iterable[Tensor], standing: int):
        super().__init__()
        self.engine, self.standing, self.made, self.peak = engine, standing, 0, Budget()
        self._alive: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in known:
            self._alive[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._alive:
                size = storage.nbytes()
                self._alive[storage] = weakref.ref(storage, partial(self._gone, size))
                self.made += size
        self._look()
        return result

    def _gone(self, size: int, _: Any) -> None:
        self.made -= size

    def _look(self) -> None:
        gathered = sum(unit.gathered_bytes for unit in self.engine.units) if self.engine.stage == 3 else 0
        if self.standing + gathered + self.made > self.peak.total:
            gradients = self.engine.gradient_bytes()
            self.peak = Budget(self.standing, gathered, gradients, self.made - gradients)


@contextmanager
def peak(method: Zero) -> Iterator[list[Budget]]:
    """Within, steps of a prepared method fill the list with one budget: of the moment with the most bytes."""
    engine, found = method.engine, list[Budget]()
    parts = [t for u in engine.units for t in (u.part, u.master) if t is not None]
    stands = [*parts, *optimizer_tensors(method.optimizer), *engine.model.buffers()]
    flat = [u.weights for u in engine.units]
    standing = storage_bytes(stands if engine.stage == 3 else [*stands, *flat])
    with _Live(engine, [*stands, *flat], standing) as live:
        yield found
    found.append(live.peak)
