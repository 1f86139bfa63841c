"""Wrong answers to lab 08 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole08
from .answers import Answers

LAB = "08-model-parallel"
_wrong = Answers(LAB).wrong

COLUMNS, ROWS, LOSS, ORDER, BUBBLE = "ex1-columns", "ex2-rows", "ex3-cross-entropy", "ex4-order", "ex5-bubble"
BOTH, HIDDEN = ("test", "hidden"), ("hidden",)

_ENTER_BACKWARD = "total = gradient.clone()\n        group.all_reduce(total)\n        return total"

RIGHT = {
    "columns-hook-where-needed": (COLUMNS, whole08.HOOK_WHERE_NEEDED),
    "columns-one-function": (COLUMNS, whole08.ONE_FUNCTION),
    "rows-in-place": (ROWS, whole08.IN_PLACE),  # autograd does not see the sum: its backward hands on, as g's does
    "loss-three-messages": (LOSS, whole08.THREE_MESSAGES),
    "order-by-what-is-held": (ORDER, whole08.BY_TURNS),
    "bubble-recursive": (BUBBLE, whole08.RECURSIVE),
}

# fmt: off
MUTANTS = {
    "columns-no-f": _wrong(
        COLUMNS, BOTH, "The missing all-reduce: right outputs, one rank's share of the gradient.",
        _ENTER_BACKWARD, "return gradient"),
    "columns-mean": _wrong(
        COLUMNS, BOTH, "A mean in the place of the sum.", "return total", "return total / group.world_size"),
    "columns-hook-on-x": _wrong(
        COLUMNS, BOTH, "Sums all of x's gradient, also what came past the layer and is whole.", code=whole08.HOOK_ON_X),
    "columns-needs-a-gradient": _wrong(
        COLUMNS, BOTH, "A hook, which an input without a gradient refuses.", code=whole08.HOOK_ON_VIEW),
    "columns-always-sends": _wrong(
        COLUMNS, BOTH, "Sends a gradient that nobody needs.", code=whole08.ALWAYS_SENDS),
    "columns-whole-and-slice": _wrong(
        COLUMNS, BOTH, "Computes all outputs on every rank and keeps its own.", code=whole08.WHOLE_AND_SLICE),
    "columns-equal-parts": _wrong(
        COLUMNS, BOTH, "Cuts by division: loses outputs that the ranks do not divide.", code=whole08.EQUAL_ROWS),
    "columns-chunk": _wrong(
        COLUMNS, BOTH, "Cuts by chunk, whose parts differ where the ranks do not divide the outputs.",
        "weight.tensor_split", "weight.chunk", "bias.tensor_split", "bias.chunk"),
    "columns-other-dimension": _wrong(
        COLUMNS, BOTH, "Cuts the inputs in the place of the outputs.",
        "weight.tensor_split(group.world_size)", "weight.tensor_split(group.world_size, 1)"),
    "columns-sum-forward-too": _wrong(
        COLUMNS, BOTH, "Sends in the forward pass as well.",
        "return x.view_as(x)", "again = x / group.world_size\n        group.all_reduce(again)\n        return again"),
    "columns-sent-twice": _wrong(
        COLUMNS, BOTH, "Two all-reduces: right values, twice the bytes.",
        "return total", "again = total / group.world_size\n        group.all_reduce(again)\n        return again"),
    "columns-whole-bias": _wrong(
        COLUMNS, BOTH, "Adds the first outputs' bias on every rank.",
        "bias.tensor_split(group.world_size)[group.rank]", "bias.tensor_split(group.world_size)[0]"),
    "rows-local": _wrong(
        ROWS, BOTH, "Never sends: one rank's summand.", "group.all_reduce(total)", "pass"),
    "rows-bias-on-every-rank": _wrong(
        ROWS, BOTH, "Adds the bias before the sum, once a rank.",
        "F.linear(part, columns)", "F.linear(part, columns, bias)",
        "total if bias is None else total + bias", "total"),
    "rows-bias-in-shares": _wrong(
        ROWS, BOTH, "An N-th of the bias on each rank: right outputs, an N-th of its gradient.",
        "F.linear(part, columns)", "F.linear(part, columns, None if bias is None else bias / group.world_size)",
        "total if bias is None else total + bias", "total"),
    "rows-bias-on-rank-0": _wrong(
        ROWS, BOTH, "The bias on one rank: right outputs, but the other ranks' copies never learn.",
        "total if bias is None else total + bias", "total",
        "F.linear(part, columns)", "F.linear(part, columns, bias if group.rank == 0 else None)"),
    "rows-sum-backward-too": _wrong(
        ROWS, BOTH, "Sums the gradient as well: N times as long.",
        "return gradient", "again = gradient.clone()\n        group.all_reduce(again)\n        return again"),
    "rows-mean": _wrong(
        ROWS, BOTH, "The mean of the summands.", "return total\n", "return total / group.world_size\n"),
    "rows-always-a-bias": _wrong(
        ROWS, BOTH, "Takes for granted that there is a bias.", "total if bias is None else total + bias",
        "total + bias"),
    "rows-equal-parts": _wrong(
        ROWS, BOTH, "Cuts by division: right only where the ranks divide the inputs.",
        "weight.tensor_split(group.world_size, 1)[group.rank]",
        "weight[:, group.rank * (w := weight.shape[1] // group.world_size) : (group.rank + 1) * w]"),
    "rows-chunk": _wrong(
        ROWS, BOTH, "Cuts by chunk, whose parts differ where the ranks do not divide the inputs.",
        "weight.tensor_split(group.world_size, 1)", "weight.chunk(group.world_size, 1)"),
    "rows-reads-all": _wrong(
        ROWS, BOTH, "Takes the first columns on every rank, which are another's.",
        "weight.tensor_split(group.world_size, 1)[group.rank]", "weight[:, :part.shape[-1]]"),
    "rows-detached": _wrong(
        ROWS, BOTH, "Sums outside of autograd's sight: no gradient at all.",
        "Leave.apply(F.linear(part, columns))", "F.linear(part, columns).detach()\ngroup.all_reduce(total)"),
    "loss-gathered": _wrong(LOSS, BOTH, "Gathers all logits: right values, the bytes of the vocabulary.",
        code=whole08.GATHERED),
    "loss-local": _wrong(LOSS, BOTH, "The loss among this rank's tokens only.", code=whole08.LOCAL),
    "loss-own-peak": _wrong(
        LOSS, BOTH, "Each rank subtracts its own largest logit.", 'group.all_reduce(peak, "max")', "pass"),
    "loss-summed-peak": _wrong(
        LOSS, BOTH, "Forgets to sum the exponentials over the ranks.", "group.all_reduce(sums)", "pass"),
    "loss-no-peak": _wrong(
        LOSS, BOTH, "Subtracts nothing: overflows where logits are large.",
        "shifted = logits - peak[:, None]", "shifted = logits"),
    "loss-one-peak": _wrong(
        LOSS, BOTH, "One peak for all positions: where logits are far below it nothing is left.",
        "logits.amax(1)", "logits.amax().repeat(len(logits))"),
    "loss-mean-peak": _wrong(
        LOSS, BOTH, "The mean of the ranks' peaks: overflows where they differ.",
        'group.all_reduce(peak, "max")', "group.all_reduce(peak)\npeak /= group.world_size"),
    "loss-four-values": _wrong(
        LOSS, BOTH, "Four all-reduces: right values, a value a position too many.",
        "group.all_reduce(sums)", "group.all_reduce(sums)\ngroup.all_reduce(sums[0].clone())"),
    "loss-ignored-first": _wrong(
        LOSS, BOTH, "Takes -100 for a token of the first rank's, counted from the end.",
        "(targets >= first) & (targets < first", "(targets < first",
        "torch.where(mine, targets - first, 0)",
        "torch.where(mine, (targets - first).clamp(min=-logits.shape[1]), 0) % logits.shape[1]"),
    "loss-target-on-every-rank": _wrong(
        LOSS, BOTH, "Counts some logit for the target on ranks that do not have it.",
        "torch.where(mine, shifted.gather(1, local[:, None])[:, 0], 0.0)", "shifted.gather(1, local[:, None])[:, 0]"),
    "loss-ignored-counts": _wrong(
        LOSS, BOTH, "Gives positions that do not count a loss and a gradient.",
        "targets != -100", "targets != -101"),
    "loss-ignored-gradient": _wrong(
        LOSS, BOTH, "No loss, but a gradient, where nothing counts.", "gradient * counts[:, None]", "gradient"),
    "loss-no-minus-one": _wrong(
        LOSS, BOTH, "The gradient is the softmax alone.", "gradient[mine, local[mine]] -= 1", "pass"),
    "loss-minus-one-everywhere": _wrong(
        LOSS, BOTH, "Subtracts one also where the target is another rank's.",
        "gradient[mine, local[mine]] -= 1", "gradient[torch.arange(len(local)), local] -= 1"),
    "loss-equal-parts": _wrong(
        LOSS, BOTH, "Takes for granted that all ranks have as many tokens.",
        "shifted = logits - peak[:, None]",
        "shifted, first = logits - peak[:, None], group.rank * logits.shape[1]"),
    "order-gpipe": _wrong(
        ORDER, BOTH, "All forwards, then all backwards: holds every micro-batch.", code=whole08.GPIPE),
    "order-library": _wrong(ORDER, BOTH, "Asks labkit for the order.", code=whole08.LIBRARY_ORDER),
    "order-library-inside": _wrong(
        ORDER, BOTH, "Asks for labkit's order where it is made.", code=whole08.LIBRARY_ORDER_INSIDE),
    "order-one-more": _wrong(
        ORDER, BOTH, "A forward too many to warm up: one more micro-batch in memory.",
        "stages - 1 - stage)", "stages - stage)"),
    "order-one-less": _wrong(
        ORDER, BOTH, "A forward too few to warm up: slower, or a deadlock.",
        "stages - 1 - stage)", "max(0, stages - 2 - stage))"),
    "order-none": _wrong(
        ORDER, BOTH, "No forwards to warm up: stages wait for each other.",
        "min(micro_batches, stages - 1 - stage)", "0"),
    "order-from-the-end": _wrong(
        ORDER, BOTH, "Counts the stages from the other end.", "stages - 1 - stage)", "stage)"),
    "order-few": _wrong(
        ORDER, BOTH, "Warms up with micro-batches that do not exist.",
        "min(micro_batches, stages - 1 - stage)", "stages - 1 - stage"),
    "order-no-end": _wrong(
        ORDER, BOTH, "Forgets the backwards that are left.",
        "order + [(\"B\", k) for k in range(micro_batches - warm, micro_batches)]", "order"),
    "order-descending": _wrong(
        ORDER, BOTH, "The last backwards descend, so that one message is taken for another.",
        "range(micro_batches - warm, micro_batches)]", "reversed(range(micro_batches - warm, micro_batches))]"),
    "order-two-or-four": _wrong(
        ORDER, HIDDEN, "Right for two and four stages only.",
        "stages - 1 - stage)", "(stages if stages in (2, 4) else 4) - 1 - min(stage, 3))"),
    "bubble-formula": _wrong(BUBBLE, BOTH, "The formula for equal stages, with mean times.", code=whole08.FORMULA),
    "bubble-slowest": _wrong(BUBBLE, BOTH, "All stages as slow as the slowest.", code=whole08.SLOWEST),
    "bubble-library": _wrong(BUBBLE, BOTH, "Asks labkit for the bubble.", code=whole08.LIBRARY_BUBBLE),
    "bubble-library-imported": _wrong(
        BUBBLE, BOTH, "Has taken labkit's functions from a module that imported them before.",
        code=whole08.LIBRARY_BUBBLE_FROM_ELSEWHERE),
    "bubble-over-work": _wrong(
        BUBBLE, BOTH, "Idle time over useful time.", "1 - work / (p * seconds)", "p * seconds / work - 1"),
    "bubble-no-backward-waits": _wrong(
        BUBBLE, BOTH, "A backward does not wait for the next stage's.", "stage + 1\n", "-1\n"),
    "bubble-last-stage": _wrong(
        BUBBLE, BOTH, "Ends with the last stage, while the first still works.", "max(clock)", "clock[-1]"),
    "bubble-forward-times": _wrong(
        BUBBLE, BOTH, "Takes forwards' times for backwards.",
        'begin + (forward if kind == "F" else backward)[stage]', "begin + forward[stage]"),
    "bubble-no-clock": _wrong(
        BUBBLE, BOTH, "Begins when the input is there, though the stage is still busy.",
        "max(clock[stage], ends.get((source, kind, k), 0.0))", "ends.get((source, kind, k), 0.0)"),
    "bubble-by-count": _wrong(
        BUBBLE, HIDDEN, "Takes a stage's n-th backward for micro-batch n, whatever its number.",
        "kind, k = order[places[stage]]", "kind = order[places[stage]][0]\n"
        "            k = sum(kind == other for other, _ in order[: places[stage]])"),
    "bubble-four-sweeps": _wrong(
        BUBBLE, HIDDEN, "Goes over all stages four times, though more may wait for each other.",
        code=whole08.FOUR_SWEEPS),
    "bubble-sweep-for-each-neighbour": _wrong(
        BUBBLE, HIDDEN, "Goes over all stages there and back, though each micro-batch may wait for the one before.",
        code=whole08.FOUR_SWEEPS.replace("range(4)", "range(2 * p)")),
    "bubble-sweep-for-each-micro-batch": _wrong(
        BUBBLE, HIDDEN, "Goes over all stages once a micro-batch, though its way back needs more.",
        code=whole08.FOUR_SWEEPS.replace("range(4)", "range(1 + len(orders[0]) // 2)")),
}
