"""AdamW with 8-bit states: both moments block-wise quantized between steps (Dettmers et al. 2022, arXiv:2110.02861).

At a step, block by block: read the moments back, update them and the weights in fp32 as AdamW does (Loshchilov &
Hutter 2019, arXiv:1711.05101), quantize the moments again.

    m ← β1 m + (1-β1) g        v ← β2 v + (1-β2) g²
    w ← (1 - η λ) w - η m̂ / (√v̂ + ε)      m̂ = m / (1-β1^t),  v̂ = v / (1-β2^t)

A parameter with n values holds 2 n bytes of codes and 8 bytes for every block of 256: a quarter of 32-bit Adam's 8 n,
plus 0.03 n. Tensors below 4,096 values stay in 32 bits, as in bitsandbytes: they are few bytes, and often norms.

The moments are read and written in blocks, so no fp32 copy of a whole moment ever exists: on a GPU with Triton one
fused kernel per tensor, elsewhere chunk by chunk. bitsandbytes' CUDA kernel decays the weights after the update instead
of before, and gives a first moment that was rounded to the other sign, or to zero from below, its own sign back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.methods import FullFineTuning
from labkit.numerics.quantize import kernels
from labkit.numerics.quantize.blockwise import CHUNK, Quantized, quantize_blockwise
from labkit.numerics.quantize.codebooks import CodeBook, codebook

MIN_SIZE = 4096
BLOCK = 256
MOMENTS = ("exp_avg", "exp_avg_sq")


# The first moment has a sign, the second has none.
BOOKS = ("dynamic8", "dynamic8-unsigned")


class Adam8bit(torch.optim.Optimizer):
    """AdamW whose moments take a byte a value.

    Args:
        params: fp16, bf16 or fp32 parameters, or groups of them.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        block_size: values that share a scale.
        min_size: smaller tensors keep 32-bit moments.
        books: code book of the first moment and of the second, or their names; 8 bits, values ascending.

    Raises:
        LabError: for rates out of range, or a book that is none of 8 ascending bits; QuantizeError on a CPU for a
            gradient with NaN or infinity.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        block_size: int = BLOCK,
        min_size: int = MIN_SIZE,
        books: tuple[CodeBook | str, CodeBook | str] = BOOKS,
    ):
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas) or block_size < 1:
            cause = f"Adam cannot run with lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}."
            raise LabError(cause, "Rates are 0 or more, betas lie in [0, 1), a block has at least 1 value.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.block_size, self.min_size = block_size, min_size
        self.books = tuple(codebook(book) if isinstance(book, str) else book for book in books)
        for book in self.books:
            if book.bits != 8 or not bool((book.values.diff() >= 0).all()):
                raise LabError(f"Moments cannot be kept in {book.name}.", "Give books of 256 ascending values.")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, where one was given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter] or self._fresh(parameter)
        state["step"] += 1
        weights, gradient = parameter.view(-1), gradient.reshape(-1)
        if state["exp_avg"].dtype == torch.float32:
            _adamw(weights, gradient, [state[name].view(-1) for name in MOMENTS], group, state["step"])
        elif kernels.usable(weights, self.block_size):
            kernels.adam8bit(weights, gradient, state, self.books, group, self.block_size)
        else:
            self._chunks(weights, gradient, state, group)

    def _fresh(self, parameter: Tensor) -> dict:
        """Moments of zero, in 8 bits or, for a small tensor, in 32."""
        if not parameter.is_contiguous():
            raise LabError("Adam8bit needs contiguous parameters.", "Call .contiguous() on them first.")
        state = self.state[parameter]
        state["step"] = 0
        small = parameter.numel() < self.min_size
        blocks = -(-parameter.numel() // self.block_size)
        for name in MOMENTS:
            state[name] = torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
            if not small:
                state[f"{name}_scale"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        return state

    def _chunks(self, weights: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        """Some blocks at a time: read the moments back, step, quantize them again."""
        size = max(1, CHUNK // self.block_size) * self.block_size
        for start in range(0, len(weights), size):
            values = slice(start, start + size)
            blocks = slice(start // self.block_size, (start + size) // self.block_size)
            codes = [state[name].view(-1)[values] for name in MOMENTS]
            scales = [state[f"{name}_scale"][blocks] for name in MOMENTS]
            moments = [
                Quantized(c, s, None, book, self.block_size, c.shape, torch.float32).dequantize()
                for c, s, book in zip(codes, scales, self.books, strict=True)
            ]
            _adamw(weights[values], gradient[values], moments, group, state["step"])
            for moment, c, s, book in zip(moments, codes, scales, self.books, strict=True):
                new = quantize_blockwise(moment, book, self.block_size)
                c.copy_(new.codes)
                s.copy_(new.absmax)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; codes stay uint8 and scales fp32, whatever the dtype of the parameters."""
        super().load_state_dict(state_dict)
        # torch casts states to the parameter's dtype on loading, which would turn codes into floats.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for index, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)


def _adamw(weights: Tensor, gradient: Tensor, moments: list[Tensor], group: dict, step: int) -> None:
    """One AdamW step in fp32 on flat tensors, all but the gradient in place."""
    (m, v), (beta1, beta2), lr = moments, group["betas"], group["lr"]
    gradient = gradient.float()
    m.mul_(beta1).add_(gradient, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    new = weights.float() * (1 - lr * group["weight_decay"])
    weights.copy_(new.addcdiv_(m, denominator, value=-lr / (1 - beta1**step)))


@dataclass
class Adam8bitFineTuning(FullFineTuning):
    """Every weight trains, with 8-bit moments."""

    block_size: int = BLOCK
    min_size: int = MIN_SIZE
    books: tuple[CodeBook | str, CodeBook | str] = BOOKS
    name: str = "adam8bit"

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """`Adam8bit` on what trains."""
        sizes = {"block_size": self.block_size, "min_size": self.min_size}
        options = {"weight_decay": self.weight_decay, "books": self.books}
        return Adam8bit(trained, lr=self.learning_rate, **sizes, **options)  # type: ignore[arg-type]

    def predicted_bytes(self) -> dict[str, int]:
        """As 32-bit Adam, but 2 bytes a value and 8 a block for tensors of at least `min_size` values."""
        states = sum(
            8 * p.numel() if p.numel() < self.min_size else 2 * p.numel() + 8 * -(-p.numel() // self.block_size)
            for p in self._trained
        )
        return {**super().predicted_bytes(), "optimizer_states": states}
