"""What zeroth-order training can minimize: the loss, or what no gradient passes through (MeZO's section 3.3).

MeZO (Malladi et al. 2023, arXiv:2305.17333) trains on accuracy and F1 themselves. They are step functions: from few
examples both sides of a small perturbation often get the same, g is exactly 0, and the step changes nothing. Larger
batches and a larger ε see more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from labkit.errors import LabError, UnknownNameError
from labkit.tasks import Batch, Task

Objective = Callable[[torch.nn.Module, Any, Batch], float]
"""Of model, task and batch: a number that training lowers."""


def loss(model: torch.nn.Module, task: Task, batch: Batch) -> float:
    """The task's own, in nats."""
    return task.loss(model, batch).item()


def error_rate(model: torch.nn.Module, task: Task, batch: Batch) -> float:
    """1 − accuracy."""
    return 1.0 - task.score(model, batch)[0] / len(batch.labels)


def lacking_f1(model: torch.nn.Module, task: Any, batch: Batch) -> float:
    """1 − F1, the mean over the classes that the batch holds or the model names.

    Raises:
        LabError: for a task without classes.
    """
    if not hasattr(task, "class_logits"):
        raise LabError(f"F1 needs classes, and {task.name} has none.", 'Use the objective "loss" or "accuracy".')
    named = task.class_logits(model, batch).argmax(-1)
    return 1.0 - f1(named, batch.labels)


def f1(named: torch.Tensor, labels: torch.Tensor) -> float:
    """2 · hits / (named + there), for each class that occurs in either; their mean.

    Args:
        named, labels: classes of each row, int64 of [batch].
    """
    scores = []
    for each in torch.cat([named, labels]).unique().tolist():
        hits = int(((named == each) & (labels == each)).sum())
        scores.append(2 * hits / int((named == each).sum() + (labels == each).sum()))
    return sum(scores) / len(scores)


OBJECTIVES: dict[str, Objective] = {"loss": loss, "accuracy": error_rate, "f1": lacking_f1}


def objective(chosen: str | Objective) -> Objective:
    """The function of this name, or `chosen` itself.

    Raises:
        UnknownNameError: for another name.
    """
    if not isinstance(chosen, str):
        return chosen
    if chosen not in OBJECTIVES:
        raise UnknownNameError.among("objective", chosen, OBJECTIVES)
    return OBJECTIVES[chosen]
