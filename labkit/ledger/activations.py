"""What autograd keeps for the backward pass, operation by operation, by formula.

An operation keeps what its derivative needs. A matrix product y = x Wᵀ keeps its input x for the gradient of W, and W
for the gradient of x; W is there anyway. A product of two activations keeps both. A sum keeps nothing. A tensor that
two operations keep is stored once. With B sequences of T tokens, width h, feed-forward width f, q and k the widths of
all query and key heads, and products of c bytes, a block of a Llama in fp32 keeps (c = 4)

    2 · (3 B T h c + 4 B T)            two norms: input, normalized, output; one factor a token
    B T (2 q + 2 k) c + 4 B heads T    attention: q, k, v, output, and the logarithm of the softmax's sum
    4 B T f c                          feed-forward: gate, its SiLU, up, their product

(Korthikanti et al. 2022, arXiv:2205.05198, count 34 B T h and 5 B heads T² for GPT-3's block in 16 bits, the second
term being the scores that FlashAttention, Dao et al. 2022, arXiv:2205.14135, does not keep.) Which operation keeps what
is a matter of the implementation: these are transformers 5's, and the tests hold them to the last byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit.ledger.case import PEFT, Case

IDS = 8  # bytes of a token's number
LOGITS = "logarithms of probabilities"


@dataclass(frozen=True)
class Kept:
    """One tensor that is kept: by which operation, and its bytes."""

    name: str
    bytes: int


def total(kept: Iterator[Kept]) -> int:
    """Bytes of all of them."""
    return sum(k.bytes for k in kept)


GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""A block's matrices in the order in which a token meets them; those of a group read the same tensor."""


def wakes(case: Case) -> int:
    """Where gradients stop in the first block over a frozen embedding: at the first of GROUPS that has an adapter.

    What comes before needs no gradient, and keeps nothing; of that group's matrices the inputs need none.
    """
    return next(index for index, group in enumerate(GROUPS) if set(group) & set(case.targets))


def block(case: Case, first: bool = False) -> Iterator[Kept]:
    """What one block keeps; the `first` one has an input that needs no gradient where the embedding is frozen."""
    if case.train == "nothing":
        return
    # -1: gradients flow through all of it.
    woken = wakes(case) if first and case.train == "lora" else -1
    if woken < 0:
        yield from _norm(case, "norm1")
    yield from _inputs(case, GROUPS[0], case.arch.hidden, woken == 0)
    if woken < 1:
        yield from _attention(case, woken == 0)
    yield from _inputs(case, GROUPS[1], case.arch.queries, woken == 1, shared=not case.keeps_scores and woken < 1)
    if woken < 2:
        yield from _dropout(case, "attention")
    yield from second_half(case, woken)
    yield from _casts(case, woken)


def second_half(case: Case, woken: int = -1) -> Iterator[Kept]:
    """The feed-forward part's share of a block: free again when backward comes to the attention."""
    opt = case.arch.kind == "opt"
    if woken < 2:
        yield from _norm(case, "norm2")
    yield from _inputs(case, ("up",) if opt else GROUPS[2], case.arch.hidden, woken == 2)
    if woken < 3:
        yield from _feed_forward(case, woken == 2)
    yield from _inputs(case, GROUPS[3], case.arch.ffn, woken == 3, shared=opt and woken < 3)
    yield from _dropout(case, "feed-forward")


def outside(case: Case) -> Iterator[Kept]:
    """What embedding, last norm, head and loss keep."""
    arch, tokens = case.arch, case.tokens
    if case.train == "nothing":
        return
    if case.train == "full":
        yield Kept("token numbers", IDS * tokens * (2 if arch.positions else 1))
    if arch.kind == "llama":
        yield Kept("cosines and sines", 2 * case.stored * case.seq_len * arch.head_dim)
    yield from _norm(case, "norm")
    if case.train == "full":
        yield Kept("input of head", case.product * tokens * arch.hidden)
    if case.autocast:
        yield Kept("head in 16 bits", case.product * arch.vocab * arch.hidden)
    yield Kept(LOGITS, 4 * tokens * arch.vocab)
    yield Kept("labels and their number", IDS * tokens + 4)


def _norm(case: Case, name: str) -> Iterator[Kept]:
    values, tokens = case.tokens * case.arch.hidden, case.tokens
    if case.arch.kind == "opt":
        # On a CPU mean and factor are of the input's dtype.
        statistic = 4 if case.device == "cuda" else case.stored
        yield Kept(f"{name}: input", case.stored * values)
        yield Kept(f"{name}: mean and factor", 2 * statistic * tokens)
        return
    yield Kept(f"{name}: input in fp32", 4 * values)
    yield Kept(f"{name}: factor", 4 * tokens)
    if case.train == "full":
        yield Kept(f"{name}: normalized", case.stored * values)


def _inputs(
    case: Case, names: tuple[str, ...], width: int, asleep: bool = False, shared: bool = False
) -> Iterator[Kept]:
    """Inputs of linear layers that read the same tensor; `shared`: the operation before has kept it already."""
    values, label = case.tokens * width, ", ".join(names)
    if case.train == "full":
        # autocast makes a copy for each, unless the tensor has 16 bits already
        copies = len(names) if case.autocast else 1
        yield Kept(f"input of {label}", 0 if shared else copies * case.product * values)
        return
    chosen = [name for name in names if name in case.targets]
    for name in chosen:
        yield from _adapter(case, name, values, asleep)
    if not chosen or shared or (case.adapter == PEFT and case.wide_adapters):
        return
    copies = len(chosen) if case.autocast and len(names) > 1 else 1  # of what a norm put out in 32 bits
    yield Kept(f"input of A beside {label}", copies * case.product * values)


def _adapter(case: Case, name: str, values: int, asleep: bool) -> Iterator[Kept]:
    """What one adapter keeps beside its input: A's output, and DoRA's product before it is scaled, with two vectors.

    peft's are fp32: without autocast each of them casts a 16-bit input for itself, and under autocast A and B are cast.
    Where `fully_shard` gathers them in 16 bits there is nothing to cast, and they share their input as in fp32.
    """
    rows, columns = case.arch.matrices[name].shape
    if case.adapter != PEFT:
        yield Kept(f"output of A beside {name}", case.product * case.tokens * case.rank)
        if case.adapter == "dora":
            yield Kept(f"direction's output of {name}", case.product * case.tokens * rows)
            yield Kept(f"lengths and scales of {name}", 2 * 4 * rows)
        return
    width = case.product if case.autocast or not case.wide_adapters else 4
    if case.wide_adapters:
        yield Kept(f"input of A beside {name}", width * values)
    yield Kept(f"output of A beside {name}", width * case.tokens * case.rank)
    if case.autocast:
        yield Kept(f"A and B of {name} in 16 bits", width * case.rank * (rows + (0 if asleep else columns)))


def _attention(case: Case, asleep: bool = False) -> Iterator[Kept]:
    arch, c, tokens = case.arch, case.product, case.tokens
    if not case.keeps_scores:
        yield Kept("queries", c * tokens * arch.queries)
        yield Kept("keys and values", 2 * c * tokens * arch.keys)
        yield Kept("logarithms of the sums", 4 * tokens * arch.heads)
        yield Kept("output of attention", c * tokens * arch.queries)
        return
    scores = arch.heads * case.seq_len * tokens
    # Keys and values are repeated for the query heads that share them.
    # A product of two activations keeps the one for the other's gradient; frozen keys of sleeping inputs have none.
    idle = asleep and "k" not in case.targets
    yield Kept("queries, keys and values", (2 if idle else 3) * c * tokens * arch.queries)
    yield Kept("probabilities in fp32", 4 * scores)
    if c < 4:
        yield Kept("probabilities in 16 bits", c * scores)


def _feed_forward(case: Case, asleep: bool = False) -> Iterator[Kept]:
    values = case.tokens * case.arch.ffn
    if case.arch.kind == "opt":
        yield Kept("ReLU of up", case.product * values)
        return
    # SiLU keeps gate; the product keeps up for the gradient of gate, and SiLU's output for that of up.
    gate, up = (not asleep or name in case.targets for name in GROUPS[2])
    yield Kept("gate, its SiLU and up", (2 * gate + up) * case.product * values)


def _dropout(case: Case, name: str) -> Iterator[Kept]:
    if case.arch.dropout:
        mask = 1 if case.device == "cuda" else case.product
        yield Kept(f"mask of dropout after {name}", mask * case.tokens * case.arch.hidden)


def _casts(case: Case, woken: int) -> Iterator[Kept]:
    """Under autocast a weight is cast once a step, and the cast is what backward multiplies with.

    Our adapters cast theirs again instead.
    """
    if not case.autocast:
        return
    unused = {name for group in GROUPS[: woken + 1] for name in group}  # no gradient flows further down
    if case.train == "lora" and case.adapter != PEFT:
        unused |= set(case.targets)
    yield Kept(
        "weights in 16 bits", case.product * sum(w.numel for n, w in case.arch.matrices.items() if n not in unused)
    )
