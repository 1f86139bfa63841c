"""One protocol for every way to fine-tune, and the first two: full fine-tuning and linear probing.

A method prepares a model, makes one step at a time, and says which bytes it will need. `labkit.training` knows nothing
else about it: adding a method is adding one file.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import Ledger, measure, saved_for_backward
from labkit.tasks import Batch, Sentiment, Task


@runtime_checkable
class Method(Protocol):
    """What `labkit.training` asks of a method."""

    name: str

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Choose what trains in `model` and make ready for `steps` steps."""

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Train on one batch; return its loss, detached."""

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step, filling in the ledger's measured bytes."""

    def computing(self) -> AbstractContextManager:
        """In which the model computes as in a step, to be evaluated; nothing of it stays on the model."""

    def observed(self) -> dict[str, float]:
        """What the last step did beside its loss (a loss scale, say), for the run's traces."""

    def predicted_bytes(self) -> dict[str, int]:
        """Bytes by category that the method needs, by formula, after `prepare`."""

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on from here."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, after `prepare`."""

    def close(self) -> None:
        """Take hooks and threads off the model, which stays as it was trained."""


@dataclass
class FirstOrder:
    """Backpropagation and AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on the parameters that are chosen.

    Weights, gradients and moments are 32-bit; `compute_dtype` is what autocast runs matrix products in.

    Attributes:
        learning_rate: reached after the warm-up, then falling linearly to zero.
        warmup: share of the steps in which it rises.
        max_grad_norm: gradients are scaled down to this norm where they exceed it.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    compute_dtype: str = "float32"
    name: str = "first-order"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Set `requires_grad` on what trains; may replace modules. Each method's own part."""
        raise NotImplementedError

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of `trained`; a method with another one overrides this."""
        return torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Choose parameters, build the optimizer and the learning-rate schedule."""
        self.choose(model, task)
        self._model, self._task = model, task
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = self.build_optimizer(self._trained)
        rise = max(1, round(self.warmup * steps))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise))),
        )

    def _loss(self, batch: Batch) -> Tensor:
        dtype = getattr(torch, self.compute_dtype)
        with torch.autocast(batch.labels.device.type, dtype, enabled=dtype != torch.float32):
            return self._task.loss(self._model, batch)

    def _backward(self, loss: Tensor) -> None:
        """The last backward pass before an update; after it, all gradients are there."""
        loss.backward()

    def _update(self, loss: Tensor) -> None:
        self._backward(loss)
        torch.nn.utils.clip_grad_norm_(self._trained, self.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward, backward, clip, update."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        self._update(loss)
        return loss.detach()

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with the bytes counted: activations after forward, the rest after the update."""
        self._optimizer.zero_grad(set_to_none=True)
        with saved_for_backward(self._model) as saved:
            loss = self._loss(batch)
        self._update(loss)
        ledger.measured = measure(self._model, self._optimizer, saved["activations"])
        return loss.detach()

    def computing(self) -> AbstractContextManager:
        """Nothing to set up."""
        return nullcontext()

    def observed(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def predicted_bytes(self) -> dict[str, int]:
        """By formula: 4 bytes a weight, 4 a gradient, 8 for AdamW's two moments, and 4 for its step count a tensor."""
        trained = sum(p.numel() for p in self._trained)
        return {
            "weights": 4 * sum(p.numel() for p in self._model.parameters()),
            "gradients": 4 * trained,
            "optimizer_states": 8 * trained + 4 * len(self._trained),
        }

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, moments and the schedule's place."""
        return {
            "weights": [p.detach() for p in self._trained],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put weights, moments and schedule back."""
        with torch.no_grad():
            for parameter, saved in zip(self._trained, state["weights"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Nothing to take off."""


@dataclass
class FullFineTuning(FirstOrder):
    """Every weight trains."""

    name: str = "full"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """All parameters."""
        model.requires_grad_(True)


@dataclass
class LinearProbing(FirstOrder):
    """Nothing trains but a linear head on the last token's features (Alain & Bengio 2017, arXiv:1610.01644).

    The head starts at the label words' rows of the language-model head, so that at step 0 it answers as the model
    does without training. Gradients stop at the head: no activation below it is kept.
    """

    learning_rate: float = 1e-2
    name: str = "linear-probe"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """A head with one output a class replaces the language-model head; the rest is frozen."""
        if not isinstance(task, Sentiment):
            raise LabError(f"A linear probe needs classes, and {task.name} has none.", "Use full fine-tuning.")
        model.requires_grad_(False)
        language_model: Any = model
        words = language_model.get_output_embeddings().weight
        head = torch.nn.Linear(words.shape[1], len(task.label_ids), device=words.device, dtype=words.dtype)
        with torch.no_grad():
            head.weight.copy_(words[task.label_ids.to(words.device)])
            head.bias.zero_()
        language_model.set_output_embeddings(head)
