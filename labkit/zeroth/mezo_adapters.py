"""MeZO on adapters: few values are perturbed, the frozen weights may be in any format (Malladi et al. 2023, section 3).

The paper runs MeZO on LoRA (r = 8, α = 16 on queries and values) and on a prefix of 5 positions that starts from real
tokens, and finds both about as good as on all weights; the learning rates are larger, 5 10⁻⁵ to 10⁻⁴ for LoRA and 10⁻³
to 10⁻² for a prefix, and so is ε, 10⁻² and 10⁻¹. Two forward passes cost the same whatever trains; what adapters save
is making the noise and writing it.

The adapters are those of `labkit.adapters`, as backpropagation trains them there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.adapters.prefix import PrefixTuning
from labkit.adapters.targets import Targets
from labkit.adapters.tuning import Lora
from labkit.tasks import Task
from labkit.zeroth.mezo import Mezo


@dataclass
class MezoLora(Mezo):
    """Zeroth-order training of adapters of low rank; see `labkit.adapters.tuning.Lora` for the fields."""

    learning_rate: float = 1e-3
    perturbation_scale: float = 1e-2
    rank: int = 8
    lora_alpha: float = 16.0
    targets: Targets = ("q", "v")
    weights: str = ""
    name: str = "mezo-lora"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Adapters beside the targets of a frozen model."""
        Lora(rank=self.rank, lora_alpha=self.lora_alpha, targets=self.targets, weights=self.weights).choose(model, task)


@dataclass
class MezoPrefix(Mezo):
    """Zeroth-order training of a prefix; see `labkit.adapters.prefix.PrefixTuning` for the fields.

    The default rate is one for the course's small model, ten times the paper's largest.
    """

    learning_rate: float = 1e-1
    perturbation_scale: float = 1e-1
    length: int = 5
    start: str = "words"
    text: str = ""
    weights: str = ""
    name: str = "mezo-prefix"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """A prefix in front of a frozen model's input."""
        PrefixTuning(length=self.length, start=self.start, text=self.text, weights=self.weights).choose(model, task)
