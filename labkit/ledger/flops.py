"""Floating-point operations of a step, by formula, and the time that measured rates let one expect.

A product of a matrix of m × k and one of k × n takes 2 m k n operations. A linear layer of p weights takes 2 p a token
forward; backward takes the same again for the gradient of its input and once more for that of its weight, if the weight
trains. Attention multiplies T × T scores with keys and with values: 4 T q a token and block, for q the width of all
query heads (a kernel that skips the masked half does half of it); backward takes twice that. So a training step is near
6 N a token (Kaplan et al. 2020, arXiv:2001.08361), plus at most 2 N where checkpointing runs the forward pass again:
all but the last product of each segment, whose result nobody needs (`labkit.memory.checkpointing`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.ledger.case import Case


def forward(case: Case) -> int:
    """Operations of the blocks' and the head's products in one forward pass."""
    return _products(case) + _scores(case) + _head(case)


def step(case: Case) -> int:
    """Operations of one step."""
    if case.train == "nothing":
        return forward(case)
    frozen, products, scores = case.train == "lora", _products(case), _scores(case)
    adapters = 2 * sum(case.adapters) * case.tokens if frozen else 0
    again = products + scores + adapters - case.segments * _last_product(case) if case.segments else 0
    backward = products * (1 if frozen else 2) + 2 * scores + _head(case) * (1 if frozen else 2)
    whole = forward(case) + backward + again + adapters * 3
    return whole - _asleep(case) if frozen else whole


def _last_product(case: Case) -> int:
    """Of a block, forward: the feed-forward part's second matrix, or the adapter beside it."""
    down = case.arch.matrices["down"].shape
    adapted = case.train == "lora" and "down" in case.targets
    return 2 * case.tokens * (case.rank * down[0] if adapted else down[0] * down[1])


def _asleep(case: Case) -> int:
    """The gradients that the first block does not compute, since its input needs none below frozen q, k and v."""
    arch, first = case.arch, ("q", "k", "v")
    inputs = sum(2 * arch.matrices[name].numel for name in first)
    inputs += sum(2 * case.rank * arch.hidden for name in first if name in case.targets)
    scores = 2 * case.seq_len * arch.queries  # one of the four products of attention's backward
    idle = sum(name not in case.targets for name in first)
    return case.tokens * (inputs + idle * scores)


def _products(case: Case) -> int:
    """Of all blocks' linear layers, forward."""
    return 2 * sum(w.numel for w in case.arch.matrices.values()) * case.tokens * case.arch.layers


def _scores(case: Case) -> int:
    """Of all blocks' attention, forward."""
    return 4 * case.seq_len * case.arch.queries * case.tokens * case.arch.layers


def _head(case: Case) -> int:
    return 2 * case.arch.vocab * case.arch.hidden * case.tokens


@dataclass(frozen=True)
class Rate:
    """What a machine reached in one measured step: `flops` operations in `seconds`, products in `products`.

    `blockwise`: whether the optimizer kept its moments in 8 bits, and decoded and encoded them in each update.
    """

    gpu: str
    products: str
    flops: int
    seconds: float
    blockwise: bool = False


def seconds(case: Case, gpu: str, rates: Sequence[Rate]) -> float | None:
    """Expected seconds of a step, at the rate of the measured step on that GPU that is nearest in operations.

    A small step is bound by launches and a large one by arithmetic, so that a rate holds near its own size only. None
    where no step with such products and such an optimizer was measured there, or none within a factor of ten.
    """
    wanted, kind = step(case), (case.compute or case.weights, case.optimizer == "adamw8bit")
    known = [rate for rate in rates if rate.gpu == gpu and (rate.products, rate.blockwise) == kind]
    near = min(known, key=lambda rate: abs(math.log(rate.flops / wanted)), default=None)
    if near is None or not 0.1 <= near.flops / wanted <= 10:
        return None
    return near.seconds * wanted / near.flops
