"""All bytes of one step by formula: what stays, what the step adds, and the moment when the sum is largest.

What stays is counted parameter by parameter. With N parameters, full fine-tuning in fp32 with AdamW holds 4 N bytes of
weights, 8 N of moments and, from backward to update, 4 N of gradients: 16 N. Mixed precision with fp32 master weights
holds 2 N + 4 N + 8 N + 4 N (a gradient as the optimizer reads it) = 18 N, or 20 N where 16-bit gradients stay beside
their fp32 copies. QLoRA's authors (Dettmers et al. 2023, arXiv:2305.14314) say "more than 780 GB" for 65 billion
parameters in 16 bits, which is 12 N: fp32 master weights and moments alone come to that.

The step adds activations (`activations`), which grow block by block in the forward pass and are freed in reverse, and
passing tensors. Four moments compete for the peak:

1. The loss: all activations, and B T V numbers (V words) three times over in fp32: the log-probabilities, the loss's
   gradient with respect to them, and with respect to the logits.
2. Backward through the last block: nearly all activations, the gradients of the head and of the feed-forward part.
3. The end of backward: no activations, all gradients, and the embedding's gradient. Where it is also the head, autograd
   has the head's part, the embedding's, and their sum: three copies (two under autocast, whose fp32 copy of the head's
   part takes the sum in).
4. The update: all gradients. With master weights they pass from 16 bits to 32 one tensor after the other, and the
   tensor that is just copied lies there in both formats.

In between the sums of backward are linear in the number of blocks, so that no moment there can be larger.
"""

from __future__ import annotations

from collections.abc import Iterable

from labkit.ledger import activations
from labkit.ledger.case import BUCKET, BUCKETS, OPTIMIZERS, Case
from labkit.ledger.segments import runs
from labkit.ledger.shapes import Architecture
from labkit.ledger.trace import BLOCK, Moment, Trace, round_up

ADAM8BIT_MIN, ADAM8BIT_BLOCK = 4096, 256  # smaller tensors keep 32-bit moments; values that share a scale


SHARDED = {"optimizer_states": 1, "master_weights": 1, "gradients": 2, "weights": 3}  # from which stage on


def _share(case: Case, name: str, size: int) -> int:
    """Bytes of a category on one rank."""
    return -(-size // case.world_size) if case.stage >= SHARDED[name] else size


def standing(case: Case, round_to: int = BLOCK) -> dict[str, int]:
    """Bytes by category that are there before, during and after a step (gradients apart)."""
    adapters = case.adapters if case.train == "lora" else ()
    whole = {"weights": _sum([*case.frozen_bytes, *(4 * n for n in adapters)], round_to)}
    if case.master and not case.offloaded:
        whole["master_weights"] = _sum((4 * n for n in case.trained), round_to)
    if not case.offloaded:
        whole["optimizer_states"] = _states(case, round_to)
    if case.fsdp and case.master:
        del whole["weights"]
    found = {name: _share(case, name, size) for name, size in whole.items()}
    found["buffers"] = _sum([8 * case.tokens], round_to)
    return {name: count for name, count in found.items() if count}


def gradients(case: Case, round_to: int = BLOCK) -> int:
    """Bytes of all gradients as the optimizer reads them; on their way to the host only the buckets and the largest."""
    if case.offloaded:
        sizes = [n * case.updated for n in case.trained]
        return min(BUCKETS * BUCKET, sum(sizes)) + max(sizes)
    return _share(case, "gradients", _sum((n * _reduced(case) for n in case.trained), round_to))


def _reduced(case: Case) -> int:
    """Bytes of a gradient value between backward and update: our stages widen a layer's at a time, as it is updated."""
    return case.stored if case.stage and not case.fsdp and case.train == "full" else case.updated


def _states(case: Case, round_to: int) -> int:
    factor = OPTIMIZERS[case.optimizer]
    if case.optimizer == "adamw8bit":
        return sum(_adam8bit(n, round_to) for n in case.trained)
    states = factor * _sum((n * case.updated for n in case.trained), round_to)
    # AdamW counts its steps in one 4-byte number a tensor.
    return states + (_sum([4], round_to) * len(case.trained) if case.optimizer == "adamw" else 0)


def _adam8bit(count: int, round_to: int) -> int:
    if count < ADAM8BIT_MIN:
        return _sum([4 * count, 4 * count], round_to)
    scales = 4 * -(-count // ADAM8BIT_BLOCK)
    return _sum([count, count, scales, scales], round_to)


def _sum(sizes: Iterable[int], round_to: int) -> int:
    return sum(round_up(size, round_to) for size in sizes)


class _Sizes:
    """The sizes that the moments of a step are made of."""

    def __init__(self, case: Case, round_to: int):
        arch, tokens = case.arch, case.tokens
        self.stream = case.stored * tokens * arch.hidden  # the gradient of the residual stream
        self.words = tokens * arch.vocab
        self.first = _sum((k.bytes for k in activations.block(case, first=True)), round_to)
        self.block = _sum((k.bytes for k in activations.block(case)), round_to)
        outside = [k for k in activations.outside(case) if k.name != activations.LOGITS]
        self.outside = _sum((k.bytes for k in outside), round_to)
        self.feed_forward = case.product * tokens * arch.ffn
        self.second_half = _sum((k.bytes for k in activations.second_half(case)), round_to)
        scores = arch.heads * case.seq_len * tokens if case.keeps_scores else 0
        # Backward: gradients of fp32 probabilities and of scores, while the 16-bit copy of the former is free again.
        self.scores = (8 - (case.product if case.product < 4 else 0)) * scores
        # Forward: scores and probabilities, what they are made of, and the mask; autocast adds it to scores in fp32.
        made_of = case.product * tokens * (3 * arch.queries + 2 * arch.keys) + 2 * self.stream
        mask = 2 * case.stored * case.seq_len**2
        self.scored = (10 if case.autocast else 8) * scores + made_of + mask if scores else 0
        size = case.updated if not case.master else case.stored
        self.embedding = arch.vocab * arch.hidden * size if case.train == "full" else 0
        size = case.updated if case.fsdp else size  # reduced gradients are of the shards' dtype at once
        head = arch.vocab * arch.hidden * size if case.train == "full" and not arch.tied else 0
        self.head = _share(case, "gradients", head)  # its gradient is complete at once
        others = sum(w.numel for w in arch.outside if w.name not in ("embedding", "head"))
        self.others = _share(case, "gradients", others * size) if case.train == "full" else 0
        per_block = sum(w.numel for w in arch.block) if case.train == "full" else sum(case.adapters) // arch.layers
        self.block_gradients = _share(case, "gradients", per_block * size)
        self.gradients = gradients(case, round_to) if case.train != "nothing" else 0
        if case.bucketed:  # they stand in the buckets all the time, and what backward makes is copied there at once
            self.head = self.others = self.block_gradients = self.gradients = 0
        self.rest, self.gathered = _gathered(case)


def _gathered(case: Case) -> tuple[int, int]:
    """Bytes of gathered weights: beside the loss, and while a block computes.

    Of a base in 4 bits one matrix at a time is read back, no more. Our own stage 3 has one block. `fully_shard` lets
    all that is in no block stay from forward to backward. With more ranks than one the next block arrives in a buffer
    while one computes, and is copied out of it. Where all weights train, a block's gradients wait for their reduction,
    and are there once more in its buffer.
    """
    block = sum(w.numel for w in case.arch.block) + (sum(case.adapters) // case.arch.layers) * (case.train == "lora")
    block *= case.stored
    if case.four_bit:
        return 0, case.product * max(w.numel for w in case.arch.matrices.values())
    if not case.fsdp:
        return 0, block if case.stage == 3 and case.world_size > 1 else 0
    rest = sum(w.numel for w in case.arch.outside) * case.stored
    waiting = 2 * block if case.train == "full" else 0
    return rest + block, rest + (2 if case.world_size > 1 else 1) * block + waiting


def predict(case: Case, round_to: int = BLOCK) -> Trace:
    """The moments of one step by formula, in the form of a trace, so that the two can be laid over each other."""
    base, sizes = standing(case, round_to), _Sizes(case, round_to)
    moments = [Moment("start", base)]

    def at(place: str, **more: int) -> None:
        moments.append(Moment(place, base | {k: v + base.get(k, 0) for k, v in more.items() if v}))

    if case.train == "nothing":
        arch = case.arch
        passing = 2 * sizes.stream + 3 * sizes.feed_forward + sizes.gathered
        at("forward", temporary=max(passing, sizes.scored))
        casts = case.product * arch.vocab * arch.hidden if case.autocast else 0
        at("forward", logits=case.product * sizes.words, temporary=sizes.stream + casts)
        at("forward", logits=_loss(case, sizes), temporary=sizes.stream)
        at("end")
        return Trace(moments)
    if case.bucketed:
        base["gradients"] = gradients(case, round_to)
    kept = _kept(case, sizes)
    # autocast keeps the casts of trained weights until its context ends, also those that checkpointing will make again.
    cast = case.autocast and case.segments and case.train == "full"
    casts = case.product * sum(w.numel for w in case.arch.matrices.values()) if cast else 0
    for blocks in range(case.arch.layers + 1):
        at("forward", activations=kept[blocks], temporary=sizes.gathered + blocks * casts)
    whole = kept[-1] + sizes.outside
    head = sizes.stream if case.autocast else 0  # the last hidden state beside its 16-bit copy
    head += case.arch.layers * casts + sizes.rest
    at("forward", activations=whole, logits=_loss(case, sizes), temporary=head)
    at("backward", activations=whole, logits=12 * sizes.words, temporary=sizes.rest)
    _backward(case, sizes, kept, at)
    at("update", gradients=max(sizes.gradients, _both_formats(case, round_to)))
    at("end")
    return Trace(moments)


def _both_formats(case: Case, round_to: int) -> int:
    """Most bytes of gradients while they become fp32 in the order of the parameters, each copied before it is freed."""
    if not case.master or case.train != "full" or case.stage:
        return 0
    arch = case.arch
    at_end = [w for w in arch.outside if w.name == "head" or (arch.kind == "llama" and w.name.startswith("norm"))]
    at_start = [w for w in arch.outside if w not in at_end]
    sizes = [w.numel for w in (*at_start, *arch.block * arch.layers, *at_end)]
    held, most = _sum((case.stored * n for n in sizes), round_to), 0
    for n in sizes:
        narrow, wide = round_up(case.stored * n, round_to), round_up(4 * n, round_to)
        most = max(most, held + wide)
        held += wide - narrow
    return _share(case, "gradients", most)


def _loss(case: Case, sizes: _Sizes) -> int:
    """Logits as they come, in fp32 if they are not yet, and their log-probabilities."""
    logits = case.product
    return (logits + (4 if logits < 4 else 0) + 4) * sizes.words


def _kept(case: Case, sizes: _Sizes) -> list[int]:
    """Activations after 0, 1, … blocks: all that they keep, or one tensor for each segment that has begun."""
    if not case.segments:
        return [0] + [sizes.first + n * sizes.block for n in range(case.arch.layers)]
    cuts = runs(case.arch.layers, case.segments)
    return [sum(cut.start <= blocks for cut in cuts) * sizes.stream for blocks in range(case.arch.layers + 1)]


def _backward(case: Case, sizes: _Sizes, kept: list[int], at) -> None:
    """Backward through the blocks, at the widest moment of each, and through the embedding."""
    pending = sizes.embedding * case.arch.tied
    total = min(sizes.head, sizes.gradients)
    # The feed-forward part: gradients of gate and up beside that of their product, whose own value is free by then.
    passing = sizes.stream + 2 * sizes.feed_forward + sizes.gathered
    cuts = runs(case.arch.layers, case.segments) if case.segments else []
    for blocks in range(case.arch.layers, 0, -1):
        alive = _computed_again(sizes, cuts, blocks) if cuts else kept[blocks]
        at("backward", activations=alive, gradients=total, temporary=passing + pending)
        if sizes.scores:
            alive -= sizes.second_half
            at("backward", activations=alive, gradients=total, temporary=sizes.stream + sizes.scores + pending)
        total = min(total + sizes.block_gradients, sizes.gradients)
    total = min(total + sizes.others, sizes.gradients)
    # The head's part is a view of a transposed product, which autograd adds to in a new tensor; its fp32 copy is not.
    summed = 0 if case.autocast else pending
    at("backward", gradients=total + pending, temporary=sizes.stream + sizes.embedding + summed)


def _computed_again(sizes: _Sizes, cuts: list[slice], blocks: int) -> int:
    """Activations while the last of `blocks` blocks runs backward: its segment's up to there, and the inputs before."""
    number, cut = next((n, cut) for n, cut in enumerate(cuts) if cut.start < blocks <= cut.stop)
    return (number + 1) * sizes.stream + (blocks - cut.start) * sizes.block


def kv_cache(arch: Architecture, batch: int, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values that generation keeps: two tensors a block, each batch × key heads × tokens × width.

    Args:
        tokens: of prompt and answer so far.
        itemsize: bytes of a value.
    """
    return 2 * arch.layers * batch * tokens * arch.keys * itemsize
