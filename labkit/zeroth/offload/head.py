"""The next-token loss without the logits: some rows of the head at a time, and a running sum.

    −log p(y) = log Σ_v e^{x·w_v} − x·w_y        the sum over v grows with each part of the vocabulary

Logits of 2,048 tokens and 50,272 words are 206 MB in fp16, 412 in fp32, and cross-entropy makes as many again; of 4,096
words and 1,024 tokens at a time they are 25 MB. Words are the outer loop and tokens the inner one: at w ± εz each row
of the head is made once a pass, however many tokens there are.

The sum is formed in another order than a softmax over the whole vocabulary forms it, so that the loss differs in the
last places; it is the same on one device alone and with blocks offloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.tasks import Batch
from labkit.zeroth.offload import fold


def next_token_loss(
    hidden: Float[Tensor, "tokens width"],
    head: nn.Linear,
    targets: Int[Tensor, " tokens"],
    words: int = 4096,
    tokens: int = 1024,
) -> Float[Tensor, " tokens"]:
    """−log p of each target in nats, fp32.

    Args:
        words, tokens: how many are worked on at once.
    """
    count = head.weight.shape[0]
    total = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
    chosen = torch.zeros_like(total)
    shares = [slice(start, start + tokens) for start in range(0, len(hidden), tokens)]
    parts = [(hidden[some], targets[some], total[some], chosen[some]) for some in shares]
    for begin in range(0, count, words):
        length = min(words, count - begin)
        weight = head.weight.narrow(0, begin, length)
        bias = None if head.bias is None else head.bias.narrow(0, begin, length)
        for part, *rest in parts:
            logits = F.linear(part, weight, bias)
            step = fold.fold if fold.usable(logits) else _fold
            step(logits, begin, *rest)
    return total - chosen


def _fold(logits: Tensor, begin: int, targets: Tensor, total: Tensor, chosen: Tensor) -> None:
    """`fold.fold` as torch functions."""
    logits, length = logits.float(), logits.shape[1]
    total.copy_(torch.logaddexp(total, logits.logsumexp(-1)))
    place = targets - begin
    inside = (place >= 0) & (place < length)
    found = logits.gather(1, place.clamp(0, length - 1)[:, None])[:, 0]
    chosen.copy_(torch.where(inside, found, chosen))


@dataclass(frozen=True)
class NextToken:
    """Language modelling as a task: the mean over real tokens of −log p(next token).

    Attributes:
        words, tokens: see `next_token_loss`.
        padded: whether batches have padding; without it attention takes its fast way, and nothing asks the device
            (but transformers, once before the first block: whether a Llama's sequences are packed, and in its older
            releases whether anything of an OPT's is padded).
    """

    words: int = 4096
    tokens: int = 1024
    padded: bool = False
    name: str = "next-token"

    def loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """In nats; a tensor on the device."""
        mask = batch.attention_mask if self.padded else None
        output = model.get_decoder()(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        hidden, targets = output.last_hidden_state[:, :-1], batch.input_ids[:, 1:]
        head = model.get_output_embeddings()
        each = next_token_loss(hidden.flatten(0, 1), head, targets.flatten(), self.words, self.tokens)
        if not self.padded:
            return each.mean()
        real = (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).flatten().float()
        return (each * real).sum() / real.sum()
