"""Linear probing without a gradient through the model: features by inference, a classifier fitted beside it.

    x = the last token's hidden state, as the head sees it        minimize   mean −log p(y | W x + b) + λ/2 ‖W‖²

It costs one forward pass over the examples and holds no activation, so it needs the memory of inference, as MeZO does,
and is a baseline for it in Malladi et al. 2023 (arXiv:2305.17333). The problem is convex; L-BFGS (Liu & Nocedal 1989)
finds its one minimum from the cached features. `labkit.methods.LinearProbing` trains such a head by AdamW, batch by
batch, instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.errors import LabError
from labkit.tasks import Batch, Example


@torch.no_grad()
def features(
    model: Any, task: Any, examples: list[Example], batch_size: int = 32
) -> tuple[Float[Tensor, "n hidden"], Int[Tensor, " n"]]:
    """What the head is given at the last token of each example, in fp64 on the CPU, and the labels.

    Raises:
        LabError: where there are no examples, or the task has no classes.
    """
    if not hasattr(task, "class_logits") or not examples:
        raise LabError(f"There is nothing to probe in {task.name}.", "Give a task with classes, and examples.")
    device, training = next(model.parameters()).device, model.training
    found: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: found.append(args[0][:, -1].double().cpu()))
    model.eval()
    try:
        batches: list[Batch] = list(task.batches(examples, batch_size))
        for batch in batches:
            task.class_logits(model, batch.to(device))
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(found), torch.cat([batch.labels for batch in batches])


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardized features.

    Attributes:
        head: of the classes, fp64.
        mean, scale: of the features it was fitted on.
    """

    head: nn.Linear
    mean: Float[Tensor, " hidden"]
    scale: Float[Tensor, " hidden"]

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n classes"]:
        """Scores of the classes."""
        return self.head((x - self.mean) / self.scale)

    def score(self, x: Float[Tensor, "n hidden"], labels: Int[Tensor, " n"]) -> dict[str, float]:
        """Accuracy (a share) and loss (nats)."""
        logits = self.logits(x)
        hits = (logits.argmax(-1) == labels).double().mean().item()
        return {"accuracy": hits, "loss": F.cross_entropy(logits, labels).item()}


def fit(x: Float[Tensor, "n hidden"], labels: Int[Tensor, " n"], classes: int, penalty: float = 0.1) -> Probe:
    """The classifier with the smallest penalized loss.

    Args:
        penalty: λ.
    """
    mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    head = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    standard = (x - mean) / scale
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(standard), labels) + penalty / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Probe(head.requires_grad_(False), mean, scale)


def probe(model: Any, task: Any, penalty: float = 0.1, batch_size: int = 32) -> dict[str, float]:
    """Accuracy (a share) and loss (nats) on the test part of a classifier fitted on the training part."""
    fitted = fit(*features(model, task, task.train, batch_size), len(task.labels), penalty)
    return fitted.score(*features(model, task, task.test, batch_size))
