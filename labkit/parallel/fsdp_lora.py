"""The recipe for the largest model that fits: bf16, FSDP2 and LoRA.

Three savings multiply. Of Ψ weights and ψ in adapters of rank r (ψ/Ψ is about 1 in 1,000), a rank of N holds

    full fine-tuning, mixed precision           (2 + 2 + 12) Ψ        16 Ψ
    + sharded (FSDP2, ZeRO's stage 3)           16 Ψ / N
    + LoRA: only the adapters train             (2 Ψ + (4 + 4 + 8) ψ) / N     about 2 Ψ / N

and, while it computes, two or three layers that are gathered, and activations. Nothing frozen has a gradient, a master
weight or a moment. The adapters are fp32, and gathered in bf16 as the layers are: so their shards are master weights,
at no further byte (lesson 02). FSDP2 asks for one dtype among the trained parameters of a group that it gathers, and
leaves frozen ones theirs, so that bf16 weights and fp32 adapters of a layer travel in one all-gather.

Sharding is torch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277), adapters are peft's (Hu et al. 2021,
arXiv:2106.09685), bf16 with fp32 masters is Micikevicius et al. 2018, arXiv:1710.03740. The seed lecture gives the
recipe in words; what it does not say is that traffic stays: frozen weights are gathered twice a step all the same, and
only the 2 Ψ of gradients fall away.

Layers are checkpointed inside of what `fully_shard` wraps (`labkit.memory.checkpointed.checkpoint_layers`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.adapters.targets import MODULES
from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.memory.checkpointed import checkpoint_layers, decoder_layers
from labkit.methods import FirstOrder
from labkit.parallel.group import device, ranks_mesh
from labkit.parallel.sharded_weights import allocate, fill
from labkit.parallel.zero_torch import TorchFsdp2
from labkit.tasks import Task


@dataclass
class FsdpLora(TorchFsdp2):
    """LoRA on a model that is sharded layer by layer.

    `prepare` takes a model of transformers: whole, or a `labkit.parallel.sharded_weights.skeleton`, whose rows it then
    allocates and fills. The model itself is what `fully_shard` wraps, and is called, evaluated and asked to generate;
    all ranks have to do that together. Its adapters are peft's: `peft` is peft's own object around it.

    Attributes:
        weights: dtype of the frozen weights, and in which layers are gathered: float32 or bfloat16.
        rank: of the adapters.
        lora_alpha: their output is scaled by lora_alpha / rank.
        targets: matrices that get one, by the names that `labkit.ledger.case.Case` has.
        checkpointed: keep one tensor a layer and compute the rest again.
        base: model whose weights fill a skeleton; empty for random ones.
        seed: of adapters and of random weights.

    Raises:
        UnknownNameError: for another dtype.
        LabError: from `prepare`, for matrices that the model has not, or a checkpoint that does not fit.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    weights: str = "bfloat16"
    rank: int = 8
    lora_alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    checkpointed: bool = False
    base: str = ""
    seed: int = 0
    name: str = "torch.fsdp2+peft.lora"

    def prepare(self, model: nn.Module, task: Task, steps: int) -> None:
        """Add adapters, shard, allocate and fill; then the optimizer of the adapters and its schedule."""
        self._device = device()
        self.peft = self._with_adapters(model)
        self.wrap(model)
        if any(p.is_meta for p in model.parameters()):
            allocate(model, self._device)
            fill(model, self._read(), self.seed)
        FirstOrder.prepare(self, model, task, steps)

    def choose(self, model: nn.Module, task: Task) -> None:
        """peft has chosen: its adapters."""

    def _with_adapters(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        modules = MODULES[Architecture.of(model.config).kind]
        unknown = [name for name in self.targets if name not in modules]
        if unknown or not self.targets:
            raise LabError(
                f"No adapters can stand beside {', '.join(unknown) or 'nothing'}.", f"Choose from {', '.join(modules)}."
            )
        found = LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            target_modules=[modules[name] for name in self.targets],
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():  # peft reads a property that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            made: Any = get_peft_model(model, found)
        found.base_model_name_or_path = self.base or None  # peft has put in the folder of this machine
        return made

    def wrap(self, model: nn.Module) -> nn.Module:
        """Each decoder layer and the rest sharded, in place."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        narrow = None if self.weights == "float32" else getattr(torch, self.weights)
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)
        how: dict[str, Any] = {"mesh": ranks_mesh(), "mp_policy": policy}
        if self.checkpointed:
            checkpoint_layers(model)
        for layer in decoder_layers(model)[2]:
            fully_shard(layer, reshard_after_forward=self.reshard, **how)
        fully_shard(model, **how)
        return model

    def _read(self) -> dict[str, Tensor] | None:
        """The base model's weights, on rank 0 only."""
        from labkit import models

        if not self.base or dist.get_rank():
            return None
        return models.load(self.base, dtype=self.weights).state_dict()

    def predicted_bytes(self) -> dict[str, int]:
        """Rows of this rank, ⌈rows / N⌉ of each tensor: frozen ones as they are, of adapters three more in fp32."""
        ranks, parameters = dist.get_world_size(), list(self._model.parameters())
        local = [p.to_local().numel() for p in self._trained]  # type: ignore[attr-defined]
        return {
            "weights": sum(_padded(p, ranks) for p in parameters),
            "gradients": sum(_padded(p, ranks) for p in self._trained),
            "optimizer_states": 8 * sum(local) + 4 * len(local),
        }


def _padded(parameter: Tensor, ranks: int) -> int:
    """Bytes of a rank's rows: `fully_shard` gives each rank as many, the last ranks' filled up with zeros."""
    rows = -(-parameter.shape[0] // ranks)
    return rows * (parameter.numel() // parameter.shape[0]) * parameter.itemsize
