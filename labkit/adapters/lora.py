"""LoRA: a frozen matrix, and beside it two thin ones that train (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + s B A x        A of [r, in], B of [out, r], s = α / r

A starts random, B at zero, so that the model starts where pretraining left it. Of a matrix of out × in values r (out +
in) train. s keeps the update's size when r changes; with s = α / √r (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732) it
stays of one size even for large r. Merged, W + s B A is one matrix again and costs nothing at inference; subtracted, W
is back up to rounding. The seed lectures write W + A B with A of [out, r]: the letters are swapped, the method is not.

One layer can hold several adapters over the same W and use one of them at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labkit.adapters.dense import dense_weight, is_dense
from labkit.adapters.product import lora_added, lora_linear
from labkit.adapters.targets import OWN, Targets
from labkit.errors import LabError


@dataclass(frozen=True)
class LoraSpec:
    """What an adapter is, as values that are checked before a model is touched.

    Attributes:
        rank: rows of A, columns of B.
        lora_alpha: α; its update is scaled by α / rank.
        dropout: on the adapter's input, in training.
        rslora: scale by α / √rank instead.
        targets: linear layers that get one (`labkit.adapters.targets`).
    """

    rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: Targets = ("q", "v")

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise LabError(f"{self.rank!r} is no rank.", "Give a whole number of at least 1.")
        if not 0 <= self.dropout < 1:
            raise LabError(f"{self.dropout!r} is no dropout.", "Give a share of at least 0 and below 1.")
        if not math.isfinite(self.lora_alpha):
            raise LabError(f"{self.lora_alpha!r} is no lora_alpha.", "Give a number; 2 × rank is usual.")

    @property
    def scaling(self) -> float:
        """s."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def fits(self, name: str, layer: Any) -> None:
        """Raise LabError where the rank is larger than the layer's matrix."""
        most = min(layer.in_features, layer.out_features)
        if self.rank > most:
            cause = f"Rank {self.rank} is larger than {name}, a matrix of {layer.out_features} × {layer.in_features}."
            raise LabError(cause, f"Give a rank of at most {most}, or leave that layer out of the targets.")


def of(parameters: nn.ParameterDict, name: str) -> Tensor:
    """One of them, without the calls that a ParameterDict makes to find it: a step asks hundreds of times."""
    found: Any = parameters._parameters[name]
    return found


class LoraLinear(nn.Module):
    """A linear layer with adapters beside it; `active` names the one in use, "" for none.

    Args:
        base: torch's Linear, or a layer of another kind with `in_features` and `out_features`. It is frozen.

    Attributes:
        lora_A, lora_B: [r, in] and [out, r], by adapter.
        merged: the adapter that is in the base's weight now, "" for none.
    """

    def __init__(self, base: Any):
        super().__init__()
        setattr(self, OWN, True)
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.specs: dict[str, LoraSpec] = {}
        self.active = self.merged = ""

    def add(self, name: str, spec: LoraSpec, dtype: torch.dtype = torch.float32) -> None:
        """A new adapter, with A as torch's Linear draws its weight and B zero; it becomes the active one."""
        device = next((t.device for t in (*self.base.parameters(), *self.base.buffers())), None)
        a = torch.empty(spec.rank, self.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_A[name] = nn.Parameter(a.to(device, dtype))
        self.lora_B[name] = nn.Parameter(torch.zeros(self.out_features, spec.rank, device=device, dtype=dtype))
        self.specs[name] = spec
        self.active = name

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks a linear layer for it."""
        return self.base.weight

    def scaled(self, name: str) -> tuple[Tensor, Tensor, float]:
        """A, B and s of an adapter."""
        return of(self.lora_A, name), of(self.lora_B, name), self.specs[name].scaling

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The base's output and the active adapter's, if it is not merged."""
        name = self.active
        if not name or self.merged:
            return self.base(x)
        (a, b, scaling), base = self.scaled(name), self.base
        dropout = self.specs[name].dropout if self.training else 0.0
        if type(base) is nn.Linear:
            return lora_linear(x, base.weight, base.bias, a, b, scaling, dropout)
        return lora_added(base(x), x, a, b, scaling, dropout)

    def update(self, name: str) -> Float[Tensor, "out in"]:
        """s B A in fp32: formed to be merged or looked at, never in training."""
        a, b, scaling = self.scaled(name)
        return scaling * (b.detach().float() @ a.detach().float())

    @torch.no_grad()
    def merged_weight(self, name: str) -> Float[Tensor, "out in"]:
        """W + s B A in fp32; of a base in 4 bits, of its weight as read back."""
        return dense_weight(self.base) + self.update(name)

    @torch.no_grad()
    def unmerged_weight(self) -> Float[Tensor, "out in"]:
        """W in fp32, from the merged weight."""
        return dense_weight(self.base) - self.update(self.merged)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the active adapter into the base's weight.

        Raises:
            LabError: where the weight is kept in fewer bits than an update would survive.
        """
        if self.merged or not self.active:
            return
        if not is_dense(self.base):
            cause = f"An update would be lost in a {type(self.base).__name__}, whose weight has few bits."
            raise LabError(cause, "Call `detach(model, merged=True)`: it makes dense layers of the merged weights.")
        self.base.weight.copy_(self.merged_weight(self.active))
        self.merged = self.active

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out again; the weight is what it was up to rounding in its dtype."""
        if self.merged:
            self.base.weight.copy_(self.unmerged_weight())
            self.merged = ""

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        kinds = (f"{name}: rank {spec.rank}, scaling {spec.scaling:g}" for name, spec in self.specs.items())
        return f"active={self.active!r}; " + "; ".join(kinds)
