"""A function call that can be made again and computes the same: its arguments, random numbers and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_HOLE = object()


@dataclass(frozen=True)
class Frame:
    """Nested tuples, lists and dictionaries with a hole where each tensor was."""

    leaves: list[Any]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any) -> tuple[Frame, list[Tensor]]:
        """The frame of `tree`, and its tensors in order."""
        leaves, spec = pytree.tree_flatten(tree)
        holes = [_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(holes, spec), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def filled(self, tensors: Iterable[Tensor]) -> Any:
        """The same with tensors in the holes."""
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if leaf is _HOLE else leaf for leaf in self.leaves], self.spec)


class Surroundings:
    """What a result depends on beside the arguments: random number generators and autocast."""

    def __init__(self, tensors: Sequence[Tensor], preserve_rng_state: bool):
        cards = sorted({t.device.index for t in tensors if t.is_cuda}) if preserve_rng_state else []
        self.cpu = torch.get_rng_state() if preserve_rng_state else None
        self.cuda = {card: torch.cuda.get_rng_state(card) for card in cards}
        kinds = sorted({"cpu", *(t.device.type for t in tensors)})
        self.autocast = {kind: _autocast(kind) for kind in kinds if torch.amp.is_autocast_available(kind)}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """As it was in the forward pass; afterwards as it is now."""
        with ExitStack() as stack:
            if self.cpu is not None:
                stack.enter_context(torch.random.fork_rng(list(self.cuda)))
                torch.set_rng_state(self.cpu)
                for card, state in self.cuda.items():
                    torch.cuda.set_rng_state(state, card)
            for kind, options in self.autocast.items():
                stack.enter_context(torch.autocast(kind, **options))
            yield


def _autocast(kind: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


class Call:
    """A function call without its tensors, and how to make it again."""

    def __init__(self, function: Callable, arguments: Frame, surroundings: Surroundings):
        self.function, self.arguments, self.surroundings = function, arguments, surroundings
        self.result: Frame | None = None

    def on(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The tensors of the function's result; the rest of it goes to `result`."""
        args, kwargs = self.arguments.filled(tensors)
        self.result, outputs = Frame.of(self.function(*args, **kwargs))
        return outputs
