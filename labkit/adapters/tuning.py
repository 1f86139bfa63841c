"""LoRA as a `Method`: AdamW on A and B, everything else frozen (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.adapters.attach import attach
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.method import Adapted
from labkit.adapters.targets import Targets
from labkit.tasks import Task


@dataclass
class Lora(Adapted):
    """Adapters of low rank beside the targets; see `labkit.adapters.lora.LoraSpec` for the fields.

    Raises:
        LabError: from `prepare`, for targets that match nothing or a rank that does not fit, before any training.
    """

    rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: Targets = ("q", "v")
    name: str = "lora"

    kind = LoraLinear

    @property
    def spec(self) -> LoraSpec:
        """The adapter, checked."""
        return LoraSpec(self.rank, self.lora_alpha, self.dropout, self.rslora, self.targets)

    def adapt(self, model: torch.nn.Module, task: Task) -> None:
        """Adapters beside the targets."""
        attach(model, self.spec, kind=self.kind)
