"""A part of the vocabulary's logits folded into the running sum of a cross-entropy, in one Triton kernel.

As torch functions the same takes some fifteen launches a part, and copies of the logits in fp32; a step at 2,048 tokens
and 50,272 words has 52 parts, and a GPU waits for each launch. Here a program reads its token's logits once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: torch functions serve every device
    triton = None

TILE = 4096  # logits that a program reads at once


def usable(logits: Tensor) -> bool:
    """Whether the kernel serves them: on a GPU, and without a backward pass, which it does not have."""
    return triton is not None and logits.is_cuda and logits.is_contiguous() and not logits.requires_grad


def fold(
    logits: Float[Tensor, "tokens words"],
    begin: int,
    targets: Int[Tensor, " tokens"],
    total: Float[Tensor, " tokens"],
    chosen: Float[Tensor, " tokens"],
) -> None:
    """total ← log(e^total + Σ e^logits), and chosen ← the target's logit where this part has it; in place, fp32.

    Args:
        begin: number of the part's first word.
        targets: each token's word, contiguous.
        total, chosen: contiguous.
    """
    with torch.cuda.device(logits.device):
        _fold[(len(logits),)](logits, targets, total, chosen, begin, logits.shape[1], SIZE=TILE)


if triton is not None:

    @triton.jit(do_not_specialize=["begin"])
    def _fold(logits, targets, total, chosen, begin, length, SIZE: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        logits += token * length
        largest, summed = tl.load(total + token), 1.0  # e^total is the first summand
        for first in range(0, length, SIZE):
            at = first + tl.arange(0, SIZE)
            x = tl.load(logits + at, mask=at < length, other=float("-inf")).to(tl.float32)
            new = tl.maximum(largest, tl.max(x, axis=0))
            base = tl.where(new == float("-inf"), 0.0, new)  # of nothing but zeros, -inf - -inf is not asked for
            summed = summed * tl.exp(largest - base) + tl.sum(tl.exp(x - base), axis=0)
            largest = new
        tl.store(total + token, largest + tl.log(summed))
        place = tl.load(targets + token) - begin
        if (place >= 0) & (place < length):
            tl.store(chosen + token, tl.load(logits + place).to(tl.float32))
