"""Functions of a vector whose derivatives are known, to hold estimates against: quadratic, cubic, logistic regression.

The quadratic's Hessian decides everything about a random estimate: its trace and the trace of its square are in the
variance, and its effective rank tr H / ‖H‖ in the number of steps (`labkit.zeroth.gradient_theory`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import LabError
from labkit.sentences import words
from labkit.tasks import Example, Sentiment


@dataclass(frozen=True)
class Quadratic:
    """f(x) = ½ xᵀ H x + offset.

    Attributes:
        hessian: H, symmetric, or its diagonal alone where it has nothing else.
    """

    hessian: Float[Tensor, "d d"] | Float[Tensor, " d"]
    offset: float = 0.0

    def gradient(self, x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """H x."""
        return self.hessian * x if self.hessian.ndim == 1 else self.hessian @ x

    def __call__(self, x: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        return 0.5 * torch.dot(x, self.gradient(x)) + self.offset

    @property
    def dim(self) -> int:
        """d."""
        return len(self.hessian)

    @property
    def trace(self) -> float:
        """tr H."""
        return float(self.diagonal.sum())

    @property
    def square_trace(self) -> float:
        """tr H², the sum of all squared entries."""
        return float(self.hessian.square().sum())

    @property
    def diagonal(self) -> Float[Tensor, " d"]:
        """Second derivatives along the coordinates."""
        return self.hessian if self.hessian.ndim == 1 else self.hessian.diagonal()


@dataclass(frozen=True)
class Cubic:
    """f(x) = Σ c_i x_i³ / 6, the simplest function on which central differences err: by τ²/6 c along a coordinate."""

    third: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        return (self.third * x**3).sum() / 6

    def gradient(self, x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """c x² / 2."""
        return self.third * x.square() / 2


class Logistic:
    """Logistic regression: mean cross-entropy in nats, plus a penalty on the squared weights, which has one minimum.

    Args:
        features: one row an example; a column of ones serves as the bias.
        labels: 0 or 1.
    """

    def __init__(self, features: Float[Tensor, "n d"], labels: Float[Tensor, " n"], penalty: float = 1e-3) -> None:
        if len(features) != len(labels):
            raise LabError(f"{len(features)} rows have {len(labels)} labels.", "Give each row one.")
        self.features, self.penalty = features, penalty
        self.labels = labels.to(features.dtype)

    def __call__(self, x: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        loss = F.binary_cross_entropy_with_logits(self.features @ x, self.labels)
        return loss + 0.5 * self.penalty * x.square().sum()

    def accuracy(self, x: Float[Tensor, " d"]) -> float:
        """Share that is right. It has steps and no slope."""
        return float(((self.features @ x > 0) == (self.labels > 0.5)).double().mean())

    def gradient(self, x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """By formula: Aᵀ (σ(A x) - y) / n, plus the penalty's part."""
        apart = torch.sigmoid(self.features @ x) - self.labels
        return self.features.T @ apart / len(self.labels) + self.penalty * x

    def hessian(self, x: Float[Tensor, " d"]) -> Float[Tensor, "d d"]:
        """By formula: Aᵀ diag(σ (1 - σ)) A / n, plus the penalty's part."""
        share = torch.sigmoid(self.features @ x)
        weighted = self.features * (share * (1 - share))[:, None]
        return self.features.T @ weighted / len(self.labels) + self.penalty * torch.eye(len(x), dtype=x.dtype).to(x)

    def on(self, rows: Tensor) -> Logistic:
        """The same function of some rows only: a batch."""
        return Logistic(self.features[rows], self.labels[rows], self.penalty)


def vocabulary(examples: list[Example], size: int) -> list[str]:
    """The `size` words that occur in the most sentences, ties by alphabet."""
    counts = Counter(word for e in examples for word in set(words(e.text)))
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


def word_features(examples: list[Example], vocabulary: list[str]) -> tuple[Tensor, Tensor]:
    """One row a sentence in fp64: 1 where it holds the word, scaled to length 1; then a 1, the bias. And the labels."""
    columns = {word: place for place, word in enumerate(vocabulary)}
    matrix = torch.zeros(len(examples), len(columns), dtype=torch.float64)
    for row, example in enumerate(examples):
        matrix[row, [columns[w] for w in set(words(example.text)) if w in columns]] = 1.0
    ones = torch.ones(len(examples), 1, dtype=torch.float64)
    return torch.cat([F.normalize(matrix), ones], 1), torch.tensor([float(e.label) for e in examples])


def sentiment_regression(task: Sentiment, dim: int, penalty: float = 1e-3) -> tuple[Logistic, Logistic]:
    """Logistic regression on the task's sentences with d = `dim` weights: of its training part and of its test part.

    Raises:
        LabError: where the training part does not have so many words.
    """
    known = vocabulary(task.train, dim - 1)
    if dim < 2 or len(known) < dim - 1:
        cause = f"The training sentences do not give {dim} features."
        raise LabError(cause, f"Ask for 2 to {len(known) + 1}.")
    train, test = (Logistic(*word_features(part, known), penalty) for part in (task.train, task.test))
    return train, test
