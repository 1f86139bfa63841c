"""Training in 16 bits, from the naive way to the seven-step recipe and autocast, as methods of one loop.

The recipe (Micikevicius et al. 2018, arXiv:1710.03740; the lecture's "Recipe for Mixed-Precision Training"):

    1  keep master weights in fp32              5  copy the gradients to fp32, divide them by S
    2  forward in fp16                          6  update the master weights in fp32
    3  multiply the loss by S                   7  round them into the fp16 weights
    4  backward in fp16

Without 3 and the division it is the lecture's "Take-2". Without the master weights it is pure fp16: AdamW's moments are
then fp16 as well, as torch makes them. Autocast (torch.autocast) keeps weights, gradients and moments in fp32 and casts
copies of the weights for the matrix products. In bf16 nothing is scaled: its range is fp32's.

Bytes a parameter: fp32 and autocast 4 + 4 + 8 = 16; pure 16-bit 2 + 2 + 4 = 8; with master weights 2 + 4 + 8, and the
gradients on top: 4 where all are copied to fp32 before the update, as step 5 says and as here, 2 where each is
converted when its turn comes, which makes the lecture's 16. So mixed precision does not save weights; it saves
activations and time. Where there is no kernel `labkit.numerics.products` computes, and `kernels` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import Ledger, measure, saved_for_backward
from labkit.methods import FirstOrder
from labkit.numerics.adamw import ROUNDING, StoredAdamW
from labkit.numerics.products import EMULATED, how, products_in
from labkit.numerics.scaling import DynamicScaler, StaticScaler
from labkit.tasks import Batch, Task

_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_SCALING = ("none", "static", "dynamic")


@dataclass
class MixedPrecision(FirstOrder):
    """Full fine-tuning with the formats of weights, products, moments and master weights chosen one by one.

    Attributes:
        weights: dtype of the model's weights, and so of its gradients.
        compute_dtype: dtype of matrix products under autocast; the weights' own dtype means no autocast.
        tf32: matrix products of fp32 tensors read 10 mantissa bits.
        master: keep fp32 master weights; moments are then fp32 too.
        moments: dtype of AdamW's moments; empty means as the weights that are updated.
        scaling: "none", "static" or "dynamic".
        loss_scale: where scaling starts (and stays, if static).
        growth_interval: good steps after which a dynamic scale doubles.
        rounding: of updated 16-bit weights, "nearest" or "stochastic".

    Raises:
        UnknownNameError: for a dtype, a scaling or a rounding that is not there.
        LabError: for tf32 with 16-bit weights or products.
    """

    weights: str = "float32"
    compute_dtype: str = "float32"
    tf32: bool = False
    master: bool = False
    moments: str = ""
    scaling: str = "none"
    loss_scale: float = 2.0**16
    growth_interval: int = 2000
    rounding: str = "nearest"
    name: str = "mixed"

    def __post_init__(self) -> None:
        for kind, given in (("weights", self.weights), ("products", self.compute_dtype), ("moments", self.moments)):
            if given not in _SHORT and (kind, given) != ("moments", ""):
                raise UnknownNameError.among(f"dtype of {kind}", given, _SHORT)
        if self.scaling not in _SCALING:
            raise UnknownNameError.among("scaling", self.scaling, _SCALING)
        if self.rounding not in ROUNDING:
            raise UnknownNameError.among("rounding", self.rounding, ROUNDING)
        if self.tf32 and {self.weights, self.compute_dtype} != {"float32"}:
            raise LabError("tf32 is a way to multiply fp32 tensors.", "Leave weights and compute_dtype at float32.")

    @property
    def fmt(self) -> str:
        """The format of the matrix products: fp32, tf32, fp16 or bf16."""
        dtype = self.compute_dtype if self.compute_dtype != "float32" else self.weights
        return "tf32" if self.tf32 else _SHORT[dtype]

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Every weight trains; the master copy is taken before the weights are rounded."""
        model.requires_grad_(True)
        whole = [p.detach().float().clone() for p in model.parameters()] if self.master else []
        self._masters = [torch.nn.Parameter(p) for p in whole]
        model.zero_grad(set_to_none=True)
        # Not model.to: that would round the rotary embedding's frequencies as well, which loading in 16 bits does not.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.weights))
        self.device = next(model.parameters()).device.type
        self.kernels = _said(self.fmt, how(self.fmt, self.device), self.device)
        self.scaler = self._scaler()
        self._seen: dict[str, float] = {}

    def _scaler(self) -> StaticScaler | None:
        if self.scaling == "dynamic":
            return DynamicScaler(self.loss_scale, growth_interval=self.growth_interval)
        return StaticScaler(self.loss_scale) if self.scaling == "static" else None

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """torch's fused AdamW on what is updated, or one with moments in a format of their own."""
        self._updated = self._masters or trained
        if not self.moments and self.rounding == "nearest":
            return super().build_optimizer(self._updated)
        states = getattr(torch, self.moments) if self.moments else self._updated[0].dtype
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        return StoredAdamW(self._updated, states=states, rounding=self.rounding, **options)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Products in the method's format, under autocast where that is not the weights' own."""
        dtype = getattr(torch, self.compute_dtype)
        cast = self.compute_dtype not in ("float32", self.weights)
        with products_in(self.fmt, self.device), torch.autocast(self.device, dtype if cast else None, enabled=cast):
            yield

    def _loss(self, batch: Batch) -> Tensor:
        with self.computing():
            return self._task.loss(self._model, batch)

    def _update(self, loss: Tensor) -> None:
        """Backward, gradients to fp32, unscale, clip, update, round; no update where a scaled gradient overflowed."""
        with products_in(self.fmt, self.device):
            (self.scaler.scale_loss(loss) if self.scaler else loss).backward()
        self._gradients_to_masters()
        if self.scaler:
            self.scaler.unscale_(self._updated)
        torch.nn.utils.clip_grad_norm_(self._updated, self.max_grad_norm)
        if self.scaler:
            self.scaler.step(self._advance)
            self._seen = self.scaler.observed()  # before the scaler moves on: the scale that this step used
            self.scaler.update()
        else:
            self._advance()

    def _advance(self) -> None:
        """The part that a skipped step leaves out: weights, moments and the learning rate's schedule stay."""
        self._optimizer.step()
        self._schedule.step()
        if self._masters:
            weights: list[Tensor] = list(self._trained)
            masters: list[Tensor] = list(self._masters)
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)

    def _gradients_to_masters(self) -> None:
        """Step 5: each gradient becomes fp32 and its 16-bit original is freed at once."""
        for parameter, master in zip(self._trained, self._masters, strict=False):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward, backward and, unless a gradient overflowed, update."""
        self._model.zero_grad(set_to_none=True)  # with master weights the optimizer does not know these
        return super().step(batch)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes counted; the gradients are those that the optimizer reads."""
        self._model.zero_grad(set_to_none=True)
        self._optimizer.zero_grad(set_to_none=True)
        with saved_for_backward(self._model) as saved:
            loss = self._loss(batch)
        self._update(loss)
        ledger.measured = measure(self._model, self._optimizer, saved["activations"], self._masters)
        if self._masters:
            held = [p.grad for p in self._masters if p.grad is not None]
            ledger.measured["gradients"] = sum(g.untyped_storage().nbytes() for g in held)
        return loss.detach()

    def observed(self) -> dict[str, float]:
        """The loss scale of the step, whether it overflowed, how many steps were skipped so far; 1 if emulated."""
        return {**self._seen, "emulated": float(how(self.fmt, self.device) == EMULATED)}

    def predicted_bytes(self) -> dict[str, int]:
        """By formula: see the head of this file. AdamW counts its steps in 4 bytes a tensor."""
        count = sum(p.numel() for p in self._trained)
        weight = getattr(torch, self.weights).itemsize
        updated = 4 if self.master else weight
        moment = getattr(torch, self.moments).itemsize if self.moments else updated
        return {
            "weights": weight * sum(p.numel() for p in self._model.parameters()),
            "master_weights": 4 * count if self.master else 0,
            "gradients": updated * count,
            "optimizer_states": 2 * moment * count + 4 * len(self._trained),
        }

    def state_dict(self) -> dict[str, Any]:
        """As every first-order method's, with master weights and the scaler's state."""
        kept = {"masters": [p.detach() for p in self._masters]}
        return {**super().state_dict(), **kept, "scaler": self.scaler.state_dict() if self.scaler else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        with torch.no_grad():
            for master, saved in zip(self._masters, state["masters"], strict=True):
                master.copy_(saved)
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def _said(fmt: str, chosen: str, device: str) -> str:
    where = "GPU" if device == "cuda" else "CPU"
    if chosen == EMULATED:
        return f"{fmt} products emulated: no fast {fmt} kernel on this {where}, so {fmt} inputs are multiplied in fp32"
    return f"{fmt} products by a kernel of this {where}"


FP16: dict[str, Any] = {"weights": "float16", "compute_dtype": "float16"}
BF16: dict[str, Any] = {"weights": "bfloat16", "compute_dtype": "bfloat16"}
METHODS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "fp16": FP16,
    "fp16+scaler": {**FP16, "scaling": "dynamic"},
    "fp16+master": {**FP16, "master": True},
    "fp16-recipe": {**FP16, "master": True, "scaling": "dynamic"},
    "fp16-autocast": {"compute_dtype": "float16", "scaling": "dynamic"},
    "bf16-autocast": {"compute_dtype": "bfloat16"},
    "bf16": BF16,
    # One cause at a time, and the contrast.
    "fp16-moments": {"moments": "float16"},
    "fp16-weights": {**FP16, "moments": "float32"},
    "bf16+stochastic": {**BF16, "rounding": "stochastic"},
}
TABLE = tuple(METHODS)[:9]
CAUSES = ("fp16-moments", "fp16-weights")


def method(name: str, **options: Any) -> MixedPrecision:
    """The method called `name` (see METHODS), with the learning rate and other settings in `options`.

    Raises UnknownNameError for a name that is not there.
    """
    if name not in METHODS:
        raise UnknownNameError.among("way to train", name, METHODS)
    return MixedPrecision(**{"name": name, **METHODS[name], **options})
