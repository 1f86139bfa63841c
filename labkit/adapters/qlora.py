"""QLoRA: a base in 4 bits, LoRA beside every linear layer (Dettmers et al. 2023, arXiv:2305.14314).

Lesson 09 stores a weight in 4 bits and a share of its block's scale; LoRA needs no gradient of it, only products with
it. So of N weights in linear layers, frozen, and ψ in adapters

    N / 2 + N / 64 + N / 4096    codes, 8-bit scales of blocks of 64, 32-bit scales of 256 of those     0.516 N bytes
    16 ψ                         adapters, their gradients and two moments, in 32 bits

instead of 16 N. Every product reads the weight back into the dtype of the computation for its own duration, forward and
backward. The rest of the recipe keeps the step's peak down: decoder layers are checkpointed (lesson 05), gradients are
clipped to a norm of 0.3, and the moments live in memory that CUDA pages out to the host when the GPU's runs short.
Adapters beside q and v alone did not reach full fine-tuning in the paper; beside all linear layers they did. The seed
lecture (004) takes rank 8, α 32 and q and v.

The base is bitsandbytes' layer where that library runs on the model's device, and ours elsewhere: `QLora.library` says
which one it was. Paging needs CUDA and bitsandbytes; elsewhere the moments are torch's AdamW's, where the model is.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.adapters.targets import ALL_LINEAR, Targets, find
from labkit.adapters.tuning import Lora
from labkit.errors import LabError, UnknownNameError
from labkit.ledger import Ledger, storage_bytes
from labkit.ledger.case import four_bit_bytes
from labkit.memory.checkpointed import checkpointed, decoder_layers
from labkit.numerics.quantize import quantize_linears
from labkit.numerics.quantize.evaluate import RECIPES
from labkit.numerics.quantize.peer import library_recipes, stored_bytes
from labkit.tasks import Batch, Task

OURS = {"nf4+dq": "nf4+dq", "nf4": "nf4", "fp4": "fp4", "int8": "llm.int8"}
"""Names of bases, and of our recipes for them."""
LIBRARIES = ("bitsandbytes", "labkit")


@dataclass
class QLora(Lora):
    """LoRA over a base in few bits.

    Attributes:
        base: "nf4+dq" (with quantized scales), "nf4", "fp4" or "int8".
        library: whose layers; empty: bitsandbytes' where they run, else ours. After `prepare`, whose they are.
        checkpointing: compute every decoder layer's activations again in the backward pass.
        paged: moments in memory that can be paged out, where that exists; after `prepare`, whether they are.

    Raises:
        UnknownNameError: from `prepare`, for another base or library.
        LabError: where bitsandbytes is asked for and is not there.
    """

    rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.1
    targets: Targets = ALL_LINEAR
    max_grad_norm: float = 0.3
    base: str = "nf4+dq"
    library: str = ""
    checkpointing: bool = True
    paged: bool = True
    name: str = "qlora"

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Quantize, add adapters, build the optimizer; what the recipe cannot do with is refused first."""
        if self.base not in OURS:
            raise UnknownNameError.among("base", self.base, OURS)
        if self.library and self.library not in LIBRARIES:
            raise UnknownNameError.among("library", self.library, LIBRARIES)
        spec = self.spec
        for path, layer in find(model, spec.targets).items():
            spec.fits(path, layer)  # before the weights are thrown away for codes
        self._segments = len(decoder_layers(model)[2]) if self.checkpointing else 0
        super().prepare(model, task, steps)

    def adapt(self, model: torch.nn.Module, task: Task) -> None:
        """Every linear layer but the head in few bits, adapters beside the targets."""
        self._quantized = [tuple(layer.weight.shape) for layer in _linears(model)]
        weights = {id(layer.weight) for layer in _linears(model)}
        self._others = [p for p in model.parameters() if id(p) not in weights]
        self._quantize(model)
        super().adapt(model, task)

    def _quantize(self, model: torch.nn.Module) -> None:
        theirs = library_recipes().get(f"bitsandbytes.{self.base}") if self.library != "labkit" else None
        if theirs is None and self.library == "bitsandbytes":
            raise LabError("bitsandbytes is not installed.", "Install it, or give library='labkit'.")
        self.library = "bitsandbytes" if theirs else "labkit"
        with torch.random.fork_rng(enabled=bool(theirs)):  # its layers draw weights that are thrown away
            quantize_linears(model, theirs or RECIPES[OURS[self.base]])
        model.requires_grad_(False).train(model.training)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, its moments paged where that exists."""
        self.paged = self.paged and trained[0].is_cuda and bool(library_recipes())
        if not self.paged:
            return super().build_optimizer(trained)
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW32bit(
            trained, lr=self.learning_rate, weight_decay=self.weight_decay
        )
        return made

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        with checkpointed(self._model, self._segments) if self._segments else nullcontext():
            return super()._loss(batch)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """Codes and scales are weights, whether a library keeps them as parameters, buffers or beside those."""
        loss = super().measured_step(batch, ledger)
        ledger.measured["weights"] = stored_bytes(self._model) - storage_bytes(self._plain_buffers())
        ledger.measured["buffers"] = storage_bytes(self._plain_buffers())
        return loss

    def _plain_buffers(self) -> list[Tensor]:
        """Buffers that are no part of a quantized layer."""
        inside = {id(b) for layer in self._model.modules() if hasattr(layer, "in_features") for b in layer.buffers()}
        return [b for b in self._model.buffers() if id(b) not in inside]

    def predicted_bytes(self) -> dict[str, int]:
        """By formula: codes, scales, what is not quantized, adapters; gradients and moments of adapters alone."""
        trained = sum(p.numel() for p in self._trained)
        weights = sum(p.numel() * p.element_size() for p in self._others) + 4 * trained
        if self.base == "int8":  # a code a value, and a 32-bit constant a row
            weights += sum(rows * columns + 4 * rows for rows, columns in self._quantized)
        else:
            weights += sum(four_bit_bytes(m * n, self.base.endswith("+dq")) for m, n in self._quantized)
        states = 8 * trained + (0 if self.paged else 4 * len(self._trained))
        return {"weights": weights, "gradients": 4 * trained, "optimizer_states": states}


def _linears(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """The layers that are quantized: every torch Linear but the head, as `quantize_linears` finds them."""
    return [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
