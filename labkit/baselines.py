"""What a model must beat: logistic regression on which words and word pairs a sentence holds.

Wang & Manning 2012, "Baselines and Bigrams", ACL: hard to beat on short reviews when labels are few.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from labkit.sentences import words
from labkit.tasks import Example, Sentiment


def _terms(text: str) -> set[str]:
    found = words(text)
    return {*found, *(f"{a} {b}" for a, b in pairwise(found))}


def _matrix(examples: list[Example], columns: dict[str, int]) -> Tensor:
    """One row a sentence, 1 where it holds the term, scaled to length 1."""
    matrix = torch.zeros(len(examples), len(columns))
    for row, example in enumerate(examples):
        matrix[row, [columns[t] for t in _terms(example.text) if t in columns]] = 1.0
    return F.normalize(matrix)


def bag_of_words(task: Sentiment, penalty: float = 1e-5, iterations: int = 50) -> float:
    """Accuracy (a share of the test part) of logistic regression on words and word pairs.

    Args:
        task: fitted on its training part.
        penalty: on the squared weights; 1e-5 did best on the validation part.
        iterations: of L-BFGS.
    """
    columns = {t: i for i, t in enumerate(sorted({t for e in task.train for t in _terms(e.text)}))}
    matrix, labels = _matrix(task.train, columns), torch.tensor([float(e.label) for e in task.train])
    weights = torch.zeros(len(columns) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = matrix @ weights[1:] + weights[0]
        loss = F.binary_cross_entropy_with_logits(scores, labels) + penalty * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        scores = _matrix(task.test, columns) @ weights[1:] + weights[0]
    right = sum((s > 0) == bool(e.label) for s, e in zip(scores.tolist(), task.test, strict=True))
    return right / len(task.test)
