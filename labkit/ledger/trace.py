"""One training step really run under fake tensors: every allocation and release, in order, without the memory.

A fake tensor (torch's FakeTensorMode) has shape, dtype and device, and no storage behind it; the operations run through
torch's own dispatcher and autograd, which allocate and free as they would. So a step of OPT-175B, whose weights alone
are 350 GB in fp16, can be followed on a laptop. `Tracker` sees every tensor that an operation returns, and the moment
when the last reference to its storage is dropped. The same tracker follows a step of real tensors.

What it cannot see is memory that no tensor stands for: a kernel's own scratch space, and what the caching allocator
keeps or rounds. A CUDA allocation is a multiple of 512 bytes; `round_to` does that.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

BLOCK = 512  # bytes: CUDA allocations are multiples of it


def round_up(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to


@dataclass(frozen=True)
class Moment:
    """Bytes by category after one operation, and where in the step that was."""

    place: str
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """All categories together."""
        return sum(self.bytes.values())


@dataclass
class Trace:
    """What a tracker saw.

    Attributes:
        moments: one after each operation that changed the sum, in order.
    """

    moments: list[Moment] = field(default_factory=list)

    @property
    def peak(self) -> Moment:
        """The moment with the most bytes."""
        return max(self.moments, key=lambda moment: moment.total)

    def highest(self, place: str) -> Moment | None:
        """The moment with the most bytes in one part of the step, such as "forward"; None where nothing changed."""
        return max((m for m in self.moments if m.place == place), key=lambda moment: moment.total, default=None)


def _adds_up(args: Any) -> bool:
    """Whether autograd adds a second gradient to a first one; without a dispatch mode it does so in place.

    Not where the first is a view, as the gradient of a linear layer's weight is: the tensor that it is a view of holds
    the storage, too. Only for fake tensors: there is no value that could be overwritten too early.
    """
    first, second = args[:2]
    if torch.is_grad_enabled():
        return False  # a checkpointed segment's second forward
    fake = isinstance(first, FakeTensor) and isinstance(second, FakeTensor)
    return fake and first.shape == second.shape and not first._is_view()


class _Storage:
    """Category and bytes of a storage that is alive."""

    def __init__(self, category: str, size: int):
        self.category, self.bytes = category, size
        self.watch: weakref.ref | None = None


class Tracker(TorchDispatchMode):
    """Follows bytes by category while it is entered.

    New tensors are "temporary"; those that autograd saves become "activations", and gradients "gradients" once they are
    complete. What has a number for each word and token is "logits" from the head's product on to the gradient of that.

    Args:
        round_to: bytes that an allocation is a multiple of.
    """

    def __init__(self, round_to: int = BLOCK):
        super().__init__()
        self.round_to = round_to
        self._words, self._casting = 0, False
        self.trace = Trace()
        self.place = "start"
        self._now: dict[str, int] = {}
        self._alive: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._total = self._marked = 0

    def register(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count tensors that exist already, or whose category is known now."""
        for tensor in tensors:
            self._see(tensor, category, known=True)
        self.mark()

    def mark(self) -> None:
        """Note the present sum, if it changed."""
        if self._total != self._marked:
            self.trace.moments.append(Moment(self.place, {k: v for k, v in self._now.items() if v}))
            self._marked = self._total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and self.place == "backward" and _adds_up(args):
            func = torch.ops.aten.add_.Tensor
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf, self._kind(func, leaf))
        self.mark()
        return result

    @contextmanager
    def saving(self) -> Iterator[None]:
        """In which what autograd saves is told from what is only passing."""

        def pack(tensor: Tensor) -> Tensor:
            entry = self._alive.get(tensor.untyped_storage())
            if entry is not None and entry.category == "temporary":
                self._move(entry, "activations")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    @contextmanager
    def logits_of(self, head: torch.nn.Linear) -> Iterator[None]:
        """In which logits are told apart: what `head` makes, [..., words], and of as many numbers, until backward has
        come to its gradient. A hidden state can have the same shape, but not between these two."""

        def begin(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            self._words, self._casting = args[0].numel() // head.in_features * head.out_features, True

        def ready(module: torch.nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            self._casting = False
            if logits.requires_grad:
                logits.register_hook(end)

        def end(gradient: Tensor) -> None:
            self._words = 0

        hooks = head.register_forward_pre_hook(begin), head.register_forward_hook(ready)
        try:
            yield
        finally:
            self._words = 0
            for hook in hooks:
                hook.remove()

    def _kind(self, func: Any, tensor: Tensor) -> str:
        # Before its product the head under autocast casts its input, which can have as many numbers.
        cast = self._casting and func is torch.ops.aten._to_copy.default
        wide = self._words and tensor.numel() == self._words and tensor.is_floating_point()
        return "logits" if wide and not cast else "temporary"

    def _see(self, tensor: Tensor, category: str, known: bool = False) -> None:
        storage = tensor.untyped_storage()
        entry = self._alive.get(storage)
        if entry is not None:
            if known and entry.category != category:
                self._move(entry, category)
            return
        size = round_up(storage.nbytes(), self.round_to)
        if size:
            entry = _Storage(category, size)
            entry.watch = weakref.ref(storage, partial(self._gone, entry))
            self._alive[storage] = entry
            self._add(category, size)

    def _gone(self, entry: _Storage, _: Any) -> None:
        self._add(entry.category, -entry.bytes)

    def _move(self, entry: _Storage, category: str) -> None:
        self._add(entry.category, -entry.bytes)
        entry.category = category
        self._add(category, entry.bytes)

    def _add(self, category: str, change: int) -> None:
        self._now[category] = self._now.get(category, 0) + change
        self._total += change
