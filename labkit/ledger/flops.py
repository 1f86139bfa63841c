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

from labkit.ledger.activations import GROUPS, wakes
from labkit.ledger.case import Case


def forward(case: Case) -> int:
    """Operations of the blocks' and the head's products in one forward pass."""
    return _products(case) + _scores(case) + head(case)


def step(case: Case) -> int:
    """Operations of one step."""
    if case.train == "nothing":
        return forward(case)
    frozen, products, scores = case.train == "lora", _products(case), _scores(case)
    adapters = _adapters(case) if frozen else 0
    again = products + scores + adapters - case.segments * _last_product(case) if case.segments else 0
    backward = products * (1 if frozen else 2) + 2 * scores + head(case) * (1 if frozen else 2)
    whole = forward(case) + backward + again + adapters * 3
    return whole - _asleep(case) + _norms(case) * (2 if case.segments else 1) if frozen else whole


def _adapters(case: Case) -> int:
    """Of A and B beside all targets, forward."""
    sides = (sum(case.arch.matrices[name].shape) for name in case.targets)
    return 2 * case.tokens * case.rank * sum(sides) * case.arch.layers


def _norms(case: Case) -> int:
    """DoRA's lengths of rows, from W Aᵀ, A Aᵀ and B (A Aᵀ): no product has more tokens to it."""
    if case.adapter != "dora":
        return 0
    shapes = [case.arch.matrices[name].shape for name in case.targets]
    return sum(2 * case.rank * (m * n + case.rank * (m + n)) for m, n in shapes) * case.arch.layers


def _last_product(case: Case) -> int:
    """Of a block, forward: the feed-forward part's second matrix, or the adapter beside it."""
    down = case.arch.matrices["down"].shape
    adapted = case.train == "lora" and "down" in case.targets
    return 2 * case.tokens * (case.rank * down[0] if adapted else down[0] * down[1])


def _asleep(case: Case) -> int:
    """The gradients that the first block does not compute, since nothing below its first adapter trains."""
    arch, woken = case.arch, wakes(case)
    sizes = {name: 2 * weight.numel for name, weight in arch.matrices.items()}
    idle = sum(sizes.get(name, 0) for group in GROUPS[: woken + 1] for name in group)
    idle += sum(2 * case.rank * arch.matrices[name].shape[1] for name in GROUPS[woken] if name in case.targets)
    # Attention's backward has four products of scores: two are for queries and keys, two for probabilities and values.
    products = sum(name not in case.targets for name in GROUPS[0]) if woken == 0 else 4
    return case.tokens * (idle + products * 2 * case.seq_len * arch.queries)


def _products(case: Case) -> int:
    """Of all blocks' linear layers, forward."""
    return 2 * sum(w.numel for w in case.arch.matrices.values()) * case.tokens * case.arch.layers


def _scores(case: Case) -> int:
    """Of all blocks' attention, forward."""
    return 4 * case.seq_len * case.arch.queries * case.tokens * case.arch.layers


def head(case: Case) -> int:
    """Operations of the head's product in one forward pass."""
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
