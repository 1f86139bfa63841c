"""LoRA+: B learns faster than A (Hayou et al. 2024, arXiv:2402.12354).

B starts at zero and A does not, so the first step moves B only: ∂A = s Bᵀ ∂y xᵀ is zero where B is. For wide layers the
paper finds that both move the output by about as much only if the rate of B is a multiple λ of the rate of A, λ growing
with the width; it recommends λ near 16, and a smaller rate of A with it.

    lr(A) = lr        lr(B) = λ lr

That is one line in the optimizer's groups. peft's `create_loraplus_optimizer` puts every one-dimensional parameter
that trains (biases, norms, DoRA's magnitudes) into B's group, at the high rate, and A and all else into A's; the paper
speaks of B alone, and so does this. For LoRA by itself both give the same groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from labkit.adapters.attach import lora_layers
from labkit.adapters.tuning import Lora
from labkit.errors import LabError
from labkit.tasks import Task


def groups(model: torch.nn.Module, learning_rate: float, ratio: float) -> list[dict]:
    """Parameter groups for torch's optimizers: B at `ratio` times the rate, all else that trains at the rate."""
    fast = {id(b) for _, layer in lora_layers(model) for b in layer.lora_B.values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in fast], "lr": learning_rate},
        {"params": [p for p in trained if id(p) in fast], "lr": learning_rate * ratio},
    ]


@dataclass
class LoraPlus(Lora):
    """LoRA with a learning rate of B that is `ratio` times that of A.

    Raises:
        LabError: from `prepare`, for a ratio that is no positive number.
    """

    learning_rate: float = 5e-4
    ratio: float = 16.0
    name: str = "lora+"

    def adapt(self, model: torch.nn.Module, task: Task) -> None:
        """Adapters beside the targets."""
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise LabError(f"{self.ratio!r} is no ratio of learning rates.", "Give a positive number; 16 is usual.")
        super().adapt(model, task)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW with two groups."""
        made = groups(self._model, self.learning_rate, self.ratio)
        return torch.optim.AdamW(made, weight_decay=self.weight_decay, fused=True)
