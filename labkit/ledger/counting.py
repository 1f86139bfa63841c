"""Bytes by category: predicted by formula, measured, and the residual.

Measured means counted on real tensors, on any device: each storage once, however many tensors view it. Activations
are the tensors that autograd saves for the backward pass (torch's saved-tensor hooks), without those that are weights.
On CUDA the allocator's peak stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

CATEGORIES = ("weights", "master_weights", "gradients", "optimizer_states", "activations", "buffers")
MIB = 2**20


def storage_bytes(tensors: Iterable[Tensor], but: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages behind `tensors`, without the storages behind `but`."""
    seen = {_identity(t) for t in but}
    total = 0
    for tensor in tensors:
        identity = _identity(tensor)
        if identity not in seen:
            seen.add(identity)
            total += tensor.untyped_storage().nbytes()
    return total


def _identity(tensor: Tensor) -> tuple:
    return tensor.device, tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()


@dataclass
class Ledger:
    """Bytes by category.

    Attributes:
        predicted: by formula, for the categories that the method can predict.
        measured: by counting storages.
        host: bytes that the method holds on the host beside a GPU, by kind, as measured.
        peak_allocated: the CUDA allocator's peak in bytes, where there is one.
    """

    predicted: dict[str, int] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    peak_allocated: int | None = None

    @property
    def total_measured(self) -> int:
        """Bytes measured, all categories together."""
        return sum(self.measured.values())

    def residual(self, category: str) -> int | None:
        """Measured minus predicted, in bytes; None where either is missing."""
        if category in self.predicted and category in self.measured:
            return self.measured[category] - self.predicted[category]
        return None

    def rows(self) -> list[dict]:
        """One row a category that is not empty, and the total, in MiB (residual in bytes)."""
        used = [c for c in CATEGORIES if self.measured.get(c) or self.predicted.get(c)]
        rows = [
            {
                "category": name.replace("_", " "),
                "predicted_mib": _mib(self.predicted.get(name)),
                "measured_mib": _mib(self.measured.get(name)),
                "residual_bytes": self.residual(name),
            }
            for name in used
        ]
        total = {"category": "sum", "predicted_mib": None, "measured_mib": _mib(self.total_measured)}
        return [*rows, {**total, "residual_bytes": None}]

    def as_dict(self) -> dict:
        """As plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = (f"{r['category']:<17} {_text(r['predicted_mib'])} {_text(r['measured_mib'])}" for r in self.rows())
        return "\n".join([f"{'MiB':<17} {'predicted':>10} {'measured':>10}", *lines])


def _mib(count: int | None) -> float | None:
    return None if count is None else round(count / MIB, 3)


def _text(value: float | None) -> str:
    return f"{'–':>10}" if value is None else f"{value:>10.2f}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor in an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@contextmanager
def saved_for_backward(model: torch.nn.Module) -> Iterator[dict[str, int]]:
    """Count the bytes that autograd saves while the block runs.

    Yields a dictionary whose `activations` holds, after the block, the bytes of the distinct storages saved for the
    backward pass, weights and buffers apart.
    """
    found: dict[str, int] = {"activations": 0}
    seen = {_identity(t) for t in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        # Whatever is saved stays alive until the backward pass, so no address is used twice in between.
        identity = _identity(tensor)
        if identity not in seen:
            seen.add(identity)
            found["activations"] += tensor.untyped_storage().nbytes()
        # An operation that keeps its own output would hold itself through it, for ever if no backward pass comes.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def measure(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    activations: int,
    master_weights: Iterable[Tensor] = (),
) -> dict[str, int]:
    """Count the bytes that a model, its gradients and its optimizer hold now.

    Args:
        model: after a step, its gradients still in place.
        optimizer: whose states count; None for a method without any.
        activations: bytes saved for backward, from `saved_for_backward`.
        master_weights: copies of the weights in a wider format, where the method keeps them.
    """
    weights = list(model.parameters())
    return {
        "weights": storage_bytes(weights),
        "master_weights": storage_bytes(master_weights, but=weights),
        "gradients": storage_bytes(p.grad for p in weights if p.grad is not None),
        "optimizer_states": storage_bytes(optimizer_tensors(optimizer)) if optimizer else 0,
        "activations": activations,
        "buffers": storage_bytes(model.buffers(), but=weights),
    }
