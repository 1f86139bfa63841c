"""Bottleneck adapters: two thin matrices with a nonlinearity between, in series with a frozen block.

    h ← h + U act(D h + d) + u        D of [width, out], d of [width], U of [out, width], u of [out]

2 · out · width + width + out values each. U and u start at zero, so that the model starts exactly where pretraining
left it; the paper starts both matrices near zero. Unlike LoRA's update this one is not linear, so it cannot be merged:
it costs two small products in a row after every layer that has one, for as long as the model is used.

    "houlsby"    after the attention's output projection and after the feed-forward's last matrix, both before the
                 residual sum (Houlsby et al. 2019, arXiv:1902.00751)
    "pfeiffer"   after the feed-forward's last matrix only (Pfeiffer et al. 2021, arXiv:2005.00247): half the values

Houlsby adapts BERT, whose norm follows the residual sum: x ← norm(x + adapter(f(x))), and trains those norms as well;
Pfeiffer's search decided on norms and residuals around the adapter too. A decoder like Llama or OPT has its norm before
the block, x ← x + adapter(f(norm(x))): what the adapter adds reaches the stream as it is, no norm rescales it, and the
frozen model has no norm at that place. So the norms stay frozen here. BERT and OPT drop values out between f and the
sum; Houlsby's adapter sees them after dropout, this one before.

The seed lectures' tables list Houlsby's (Adapter^H) and one after the feed-forward alone (Adapter^L, Lin et al. 2020)
beside LoRA, and define neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.adapters.method import Adapted
from labkit.adapters.targets import OWN, find
from labkit.errors import LabError, UnknownNameError
from labkit.tasks import Task

PLACEMENTS = {"houlsby": ("o", "down"), "pfeiffer": ("down",)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class BottleneckLinear(nn.Module):
    """A linear layer and the adapter on its output.

    Args:
        base: torch's Linear, or a layer of another kind with `in_features` and `out_features`. It is frozen.
        width: of the bottleneck.
        activation: a name from `ACTIVATIONS`.
    """

    def __init__(self, base: Any, width: int, activation: str = "gelu"):
        super().__init__()
        setattr(self, OWN, True)
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        device = next((t.device for t in (*base.parameters(), *base.buffers())), None)
        self.down = nn.Linear(self.out_features, width, device=device, dtype=torch.float32)
        self.up = nn.Linear(width, self.out_features, device=device, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = activation

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks a linear layer for it."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The base's output, adapted; the adapter computes in the output's dtype, with fp32 masters."""
        h = self.base(x)
        return h + _narrow(self.up, ACTIVATIONS[self.activation](_narrow(self.down, h)))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"width {self.down.out_features}, {self.activation}"


def _narrow(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's product in the dtype of x."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def bottlenecks(model: nn.Module) -> Iterator[tuple[str, BottleneckLinear]]:
    """Every layer with an adapter, with its path."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BottleneckLinear))


def attach_bottlenecks(
    model: nn.Module, width: int = 16, placement: str = "houlsby", activation: str = "gelu"
) -> nn.Module:
    """Freeze a model, in place, and put adapters where `placement` says; return the model.

    Raises:
        LabError: for a width below 1 or a name that is not known, a model without such layers, or one that has
            adapters of this kind. The model is then as it was.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise LabError(f"{width!r} is no width of a bottleneck.", "Give a whole number of at least 1.")
    for kind, given, known in (("placement", placement, PLACEMENTS), ("activation", activation, ACTIVATIONS)):
        if given not in known:
            raise UnknownNameError.among(kind, given, known)
    layers = find(model, PLACEMENTS[placement])
    if any(bottlenecks(model)):
        raise LabError("This model has bottleneck adapters already.", "Call `detach_bottlenecks(model)` first.")
    model.requires_grad_(False)
    for path, layer in layers.items():
        _put(model, path, BottleneckLinear(layer, width, activation))
    return model


def detach_bottlenecks(model: nn.Module) -> nn.Module:
    """Take the adapters off: the layers stand where they stood, unchanged."""
    for path, layer in list(bottlenecks(model)):
        _put(model, path, layer.base)
    return model


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@dataclass
class Bottleneck(Adapted):
    """Adapters in series: 2 · out · width + width + out values train in each.

    Attributes:
        width: of the bottleneck; Houlsby tries 8, 64 and 256 on a stream of 1024.
        placement: "houlsby" (two a block) or "pfeiffer" (one).
        activation: "gelu", as in Houlsby's code; "relu", as in Pfeiffer's; "silu" or "tanh".

    Raises:
        LabError: from `prepare`, for what does not fit the model, before any training.
    """

    learning_rate: float = 1e-2
    width: int = 16
    placement: str = "houlsby"
    activation: str = "gelu"
    name: str = "bottleneck"

    def adapt(self, model: nn.Module, task: Task) -> None:
        """Adapters after the layers that the placement names."""
        attach_bottlenecks(model, self.width, self.placement, self.activation)
