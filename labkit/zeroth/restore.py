"""How a model computes at w + εz and has w back afterwards: by a walk in the weights, or beside them.

    walk     w + εz,  then − 2εz,  then + εz − η g z         in place, as MeZO's algorithm says; no memory at all
    exact    round(w + εz) where it is needed, and w is never written but by the update; memory: one slot

In exact arithmetic they are the same. In 16 bits each of the walk's moves rounds, by up to 5 10⁻⁴ of a value in fp16
and 4 10⁻³ in bf16, and w comes back as another w; over steps this adds up like a second, blind noise. Where moves
follow each other without a forward pass in between, they are made as one, with one rounding: back to w, the update, and
out in the next step's direction.

`Perturbed` needs no change to the model: while it is on, every torch function that is given a trained tensor is given
round(w + εz) instead. A linear layer's is made some rows at a time in a slot (by default 1/64 of the weights' bytes,
256 MiB at most), an embedding's for the rows that are looked up; what is left are norms, biases, adapters and prefixes,
which on a GPU are made in one launch together (`Perturbed.prepare`). Most of a decoder does without: its blocks hold
what is made for them (`labkit.zeroth.held`). So memory stays below 1.02 times that of inference. Given the weights of
one block, it serves around that block alone: both sides can go through a model block after block, while only that
block's weights are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from labkit.zeroth import perturb
from labkit.zeroth.groups import Group, Pass, book_of, copies_of, slot_of, small_of
from labkit.zeroth.held import Held
from labkit.zeroth.perturb import Terms, Weight

ROWS = 64  # a part of a weight has a multiple of so many: with an odd number, matrix products take thrice as long
# What is asked about a tensor, and is the same at w and at w + εz.
ABOUT = {
    "shape", "dtype", "device", "layout", "requires_grad", "ndim", "is_leaf", "is_cuda", "is_cpu", "is_sparse",
    "is_mps", "is_quantized", "is_meta", "grad", "grad_fn", "names", "itemsize", "nbytes", "_version",
    "is_nested", "is_xpu", "size", "dim", "numel", "nelement", "element_size", "stride", "storage_offset",
    "is_contiguous", "data_ptr", "is_floating_point", "is_complex", "untyped_storage",
    "get_device", "__len__", "__hash__", "is_inference",
}  # fmt: skip


_LISTS = (list, tuple)


class Restore(Protocol):
    """A way to compute beside the weights and to update them."""

    def at(self, terms: Terms) -> AbstractContextManager:
        """In which the model computes at w + Σ scale · z."""

    def update(self, terms: Terms, decay: float) -> None:
        """w ← (1 - decay) w + Σ scale · z; `decay` for matrices only."""

    def settle(self) -> None:
        """Afterwards the parameters are w, for whoever looks at them."""

    @property
    def moved(self) -> bool:
        """Whether the parameters are something else than w now."""


class Perturbed(TorchFunctionMode):
    """While it is on, torch functions find w + Σ scale · z in place of the trained tensors.

    Attributes:
        terms, known: seed and scale of each direction, and what is trained by `id` of each parameter; may change
            from one function to the next.

    Args:
        weights: what is trained.
        terms: seed and scale of each direction.
        slot_bytes: for a linear layer's perturbed weight, of which at least one row is made at a time.
    """

    def __init__(self, weights: Sequence[Weight], terms: Terms, slot_bytes: int):
        super().__init__()
        self.terms, self._slot = [(seed, scale) for seed, scale in terms if scale], slot_bytes
        self.known = {alias: weight for weight in weights for alias in weight.aliases}
        self._small: Group | None = None
        self._ready = self._paused = False

    def __exit__(self, *error: Any) -> None:
        """Off, if it is on."""
        if not self._paused:
            super().__exit__(*error)
        self._paused = False

    def pause(self, paused: bool) -> None:
        """Off or on again, from within: where nothing is perturbed, being asked of every function takes most time."""
        if paused and not self._paused and _get_current_function_mode() is self:
            self._paused = True
            super().__exit__(None, None, None)
        elif self._paused and not paused:
            self._paused = False
            super().__enter__()

    def prepare(self, small: Group | None) -> None:
        """From now on these are made together, when the first of them is needed, and others one by one."""
        self._small, self._ready = small, False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """`func` with what it takes of the trained tensors perturbed."""
        kwargs = kwargs or {}
        if not self.terms or not self._known((*args, *kwargs.values()) if kwargs else args) or _asks_about(func):
            return func(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding and self._looked_up(*args, **kwargs):
            return self._rows(*args[:2], **kwargs)
        if func is torch.Tensor.narrow and args[1] == 0:
            return self._part(*args)
        return func(*map(self._there, args), **{name: self._there(value) for name, value in kwargs.items()})

    def _known(self, values: Sequence[Any]) -> bool:
        """Whether a trained tensor is among them, or among those of a list; asked of every torch function."""
        known = self.known
        for value in values:  # noqa: SIM110 - asked thousands of times a step, and a generator takes thrice as long
            if id(value) in known or (isinstance(value, _LISTS) and self._known(value)):
                return True
        return False

    def _there(self, value: Any) -> Any:
        """A tensor at w + εz, where it is a trained one."""
        if isinstance(value, _LISTS) and self._known(value):
            return type(value)(map(self._there, value))
        if self._small is not None and id(value) in self._small.found:
            if not self._ready:
                self._small.write([(self.terms, 1.0)])
                self._ready = True
            return self._small.found[id(value)]
        if (weight := self.known.get(id(value))) is None:
            return value
        out = torch.empty_like(weight.tensor)
        perturb.write(weight.tensor, out, weight.name, self.terms)
        return out

    def _part(self, weight: Tensor, dim: int, begin: int, length: int) -> Tensor:
        """Some rows that follow each other: the noise of the others is not drawn."""
        known = self.known[id(weight)]
        part = known.tensor.narrow(dim, begin, length)
        out = torch.empty_like(part)
        perturb.write(part, out, known.name, self.terms, start=begin * (weight.numel() // len(weight)))
        return out

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As many rows of the weight at a time as the slot takes, and as many outputs."""
        known, bias = self.known.get(id(weight)), self._there(bias)
        size = part_of(len(weight), self._slot // (weight.element_size() * weight.shape[-1]))
        if known is None or weight.dim() != 2 or size >= len(weight):
            return F.linear(input, self._there(weight), bias)
        out = input.new_empty(*input.shape[:-1], len(weight))
        slot = weight.new_empty(size, weight.shape[1])
        for begin in range(0, len(weight), size):
            part = known.tensor[begin : begin + size]
            rows, stop = slot[: len(part)], begin + len(part)
            perturb.write(part, rows, known.name, self.terms, start=begin * weight.shape[1])
            out[..., begin:stop] = F.linear(input, rows, None if bias is None else bias[begin:stop])
        return out

    def _looked_up(
        self, input: Tensor, weight: Tensor, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
    ):
        return max_norm is None and id(weight) in self.known

    def _rows(self, input: Tensor, weight: Tensor, **_: Any) -> Tensor:
        """What an embedding returns: rows, and no others are perturbed."""
        known = self.known[id(weight)]
        found = perturb.rows(known.tensor, input.reshape(-1), known.name, self.terms)
        return found.view(*input.shape, -1)


def part_of(rows: int, most: int) -> int:
    """Rows of a weight that are made at a time: parts of about one size, of whole ROWS where so many fit.

    Args:
        rows: of the weight.
        most: that the slot takes; one is made in any case.
    """
    if most >= rows:
        return rows
    unit = ROWS if most >= ROWS else 1
    most = max(1, most - most % unit)
    return -(-rows // (-(-rows // most) * unit)) * unit


def _asks_about(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (func.__self__.__name__ if name == "__get__" else name) in ABOUT


class Exact:
    """w is written by updates alone; see the module's docstring.

    Args:
        weights: what is trained.
        slot_bytes: see `Perturbed`; None for that of `slot_of`.
        model: whose they are, so that its blocks can hold them (`labkit.zeroth.held`).
    """

    moved = False

    def __init__(self, weights: Sequence[Weight], slot_bytes: int | None = None, model: nn.Module | None = None):
        self.weights = weights
        self.slot_bytes = slot_of(weights) if slot_bytes is None else slot_bytes
        self._book = book_of(weights)
        self._all = Group(weights, self._book)
        self._small: Group | None = None
        self._held = Held(model, weights, self._book, self.slot_bytes) if model is not None else None

    def at(self, terms: Terms) -> AbstractContextManager:
        """In which the model computes at w + Σ scale · z."""
        return self._beside(terms)

    @contextmanager
    def _beside(self, terms: Terms) -> Iterator[None]:
        if self._small is None:
            small = small_of(self.weights, self.slot_bytes)
            self._small = Group(small, self._book, copies_of(small))
        sight = Perturbed(self.weights, terms, self.slot_bytes)
        sight.prepare(self._small)
        held = self._held.at(sight, sight.terms) if self._held and sight.terms else nullcontext()
        with sight, held:
            yield

    def update(self, terms: Terms, decay: float) -> None:
        """w ← (1 - decay) w + Σ scale · z."""
        self._make(Pass(terms, 1.0 - decay, terms))

    def _make(self, move: Pass) -> None:
        self._all.make([move])

    def settle(self) -> None:
        """The parameters are w at any time."""


class Walk:
    """The weights themselves go out and back. What is owed is paid with the next move, in one pass and one rounding.

    Args:
        weights: what is trained.
    """

    def __init__(self, weights: Sequence[Weight]):
        self.weights, self._all = weights, Group(weights, book_of(weights))
        self._out: dict[int, float] = {}  # what the parameters hold beyond w
        self._owed: dict[int, float] = {}  # an update that w should have had
        self._decay = 0.0

    @property
    def moved(self) -> bool:
        """Whether the parameters are something else than w now."""
        return bool(self._out or self._owed or self._decay)

    def _go(self, target: dict[int, float]) -> None:
        """To w + target, where w is what it should be after the update that is owed.

        Decay acts on w alone, but is applied to w and what lies beyond it: so less of that is to be taken back.
        """
        keep = 1.0 - self._decay
        self._make(Pass(self._sums(target, keep), keep, self._sums(target, 1.0)))
        self._out, self._owed, self._decay = dict(target), {}, 0.0

    def _sums(self, target: dict[int, float], keep: float) -> Terms:
        sums = {seed: -keep * scale for seed, scale in self._out.items()}
        for more in (self._owed, target):
            for seed, scale in more.items():
                sums[seed] = sums.get(seed, 0.0) + scale
        return list(sums.items())

    def _make(self, move: Pass) -> None:
        self._all.make([move])

    @contextmanager
    def at(self, terms: Terms) -> Iterator[None]:
        """In which the model computes at w + Σ scale · z; afterwards it stays there until something else is due."""
        self._go(dict(terms))
        yield

    def update(self, terms: Terms, decay: float) -> None:
        """Note down w ← (1 - decay) w + Σ scale · z."""
        for seed, scale in terms:
            self._owed[seed] = self._owed.get(seed, 0.0) + scale
        self._decay = decay

    def settle(self) -> None:
        """Go to w."""
        if self.moved:
            self._go({})
