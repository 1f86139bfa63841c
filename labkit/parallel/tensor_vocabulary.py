"""The vocabulary cut over the ranks: an embedding, and the cross-entropy of logits that no rank has whole.

(Shoeybi et al. 2019, arXiv:1909.08053, section 3.) Rank r has the rows of V / t tokens. Its embedding gives zeros for
all others, and g (`labkit.parallel.tensor`) sums what the ranks have; the head gives it the logits of its own tokens.

Gathering the logits would move b·s·V values, the largest tensor of the whole model. The loss of a position needs three
numbers of them only,

    L = log Σ_j exp(z_j - m) - (z_target - m),        m = max_j z_j

of which each rank knows its part: one all-reduce of the maximum and one of the two sums, 3 b·s fp32 values in all. The
gradient, softmax(z)_j - [j = target], needs nothing more: every rank has its own columns of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.parallel.tensor import Group, leave, shard

IGNORED = -100


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which this rank holds the rows of `num_embeddings / t` tokens.

    Args:
        whole: the same on every rank.
        group: of the ranks that share it; all, unless given.

    Raises:
        LabError: where the vocabulary cannot be divided, or the embedding does more than to look up.
    """

    cut_along = {"weight": 0}

    def __init__(self, whole: nn.Embedding, group: Group = None):
        super().__init__()
        ranks = dist.get_world_size(group)
        if whole.num_embeddings % ranks:
            raise LabError(
                f"A vocabulary of {whole.num_embeddings} tokens cannot be cut into {ranks} equal parts.",
                f"Pad it first: model.resize_token_embeddings(pad_to_multiple_of={ranks}).",
            )
        if whole.max_norm is not None or whole.scale_grad_by_freq or whole.sparse:
            raise LabError("This embedding rescales its rows, or has sparse gradients.", "Use a plain nn.Embedding.")
        self.group = group
        self.weight = shard(whole.weight, 0, group)
        self.first = dist.get_rank(group) * self.weight.shape[0]
        padding = whole.padding_idx
        mine = padding is not None and 0 <= padding - self.first < self.weight.shape[0]
        self.padding_idx = padding - self.first if padding is not None and mine else None

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq hidden"]:
        """Every token's row, on every rank."""
        theirs, local = _local(ids, self.first, self.weight.shape[0])
        # Another rank's token is looked up as row 0 and set to zero, which keeps its gradient from that row as well.
        rows = F.embedding(local, self.weight, self.padding_idx)
        return leave(rows.masked_fill(theirs.unsqueeze(-1), 0.0), self.group)


def _local(tokens: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Which tokens are another rank's; and each token's row here, 0 for those."""
    theirs = (tokens < first) | (tokens >= first + count)
    return theirs, (tokens - first).masked_fill(theirs, 0)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: Group) -> Tensor:
        columns = logits.shape[-1]
        theirs, local = _local(targets, dist.get_rank(group) * columns, columns)
        peak = logits.amax(-1)
        dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        shifted = logits - peak.unsqueeze(-1)
        target = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(theirs, 0.0)
        exponentials = shifted.exp_()
        sums = torch.stack([exponentials.sum(-1), target])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exponentials.div_(sums[0].unsqueeze(-1)), theirs, local, targets == IGNORED)
        return (sums[0].log() - sums[1]).masked_fill(targets == IGNORED, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probabilities, theirs, local, ignored = ctx.saved_tensors
        gradient = probabilities.clone()
        ours = (~theirs).to(gradient.dtype).unsqueeze(-1)
        gradient.scatter_add_(-1, local.unsqueeze(-1), -ours)
        return gradient * gradients[0].masked_fill(ignored, 0.0).unsqueeze(-1), None, None


def cross_entropy(
    logits: Float[Tensor, "tokens part"], targets: Int[Tensor, " tokens"], group: Group = None
) -> Float[Tensor, " tokens"]:
    """Each position's loss in nats, fp32, on every rank; 0 where the target is -100.

    Args:
        logits: this rank's columns: tokens rank·part to (rank + 1)·part of the vocabulary.
        targets: the same on every rank.

    Raises:
        LabError: for targets outside the vocabulary, which would cost nothing and teach nothing.
    """
    size = logits.shape[-1] * dist.get_world_size(group)
    if bool(((targets != IGNORED) & ((targets < 0) | (targets >= size))).any()):
        raise LabError(f"A label lies outside the vocabulary of {size} tokens.", "Mark what does not count by -100.")
    return _CrossEntropy.apply(logits.float(), targets, group)


def causal_loss(
    logits: Float[Tensor, "batch seq part"],
    labels: Int[Tensor, "batch seq"],
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Int[Tensor, "batch seq"] | None = None,
    group: Group = None,
    **_: Any,
) -> Float[Tensor, ""]:
    """The loss of predicting the next token, called as transformers calls its `loss_function`.

    Returns the mean over the tokens that count, or their sum over `num_items_in_batch`, in nats.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    losses = cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, group)
    return losses.sum() / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
