"""Wrong answers to lab 06 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole06
from .answers import Answers

LAB = "06-data-parallel"
_wrong = Answers(LAB).wrong

SCATTER, REDUCE, AVERAGE = "ex1-reduce-scatter", "ex2-all-reduce", "ex3-average"
ACCUMULATE, STEP = "ex4-accumulate", "ex5-step"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

_BLOCKING = (
    "group.exchange(partial, (rank + 1) % n, arriving, (rank - 1) % n)",
    "group.send(partial.contiguous(), (rank + 1) % n)\n    group.receive(arriving, (rank - 1) % n)",
)
_LIBRARY = """
whole = tensor.clone()
group.all_reduce(whole)
return whole.tensor_split(group.world_size)[group.rank].clone()
"""
_WHOLE_TENSOR = """
rank, n = group.rank, group.world_size
total, passing = tensor.clone(), tensor.clone()
for step in range(n - 1):
    arriving = torch.empty_like(passing)
    group.exchange(passing, (rank + 1) % n, arriving, (rank - 1) % n)
    total += arriving
    passing = arriving
return total.tensor_split(n)[rank].clone()
"""
_DIRECT = """
rank, n = group.rank, group.world_size
own = tensor.tensor_split(n)
partial = own[rank].clone()
for far in range(1, n):
    arriving = torch.empty_like(partial)
    group.exchange(own[(rank + far) % n], (rank + far) % n, arriving, (rank - far) % n)
    partial += arriving
return partial
"""
_LIBRARY_REDUCE = "group.all_reduce(tensor)"
_LIBRARY_GATHER = """
chunk = reduce_scatter(group, tensor)
size = -(-tensor.numel() // group.world_size)
whole = torch.empty(size * group.world_size, dtype=tensor.dtype)
padded = torch.zeros(size, dtype=tensor.dtype)
padded[: chunk.numel()] = chunk
group.all_gather(whole, padded)
parts = [row[: part.numel()] for row, part in zip(whole.view(-1, size), tensor.tensor_split(group.world_size))]
tensor.copy_(torch.cat(parts))
"""
_TWICE = """
rank, n = group.rank, group.world_size
whole, passing = tensor.clone(), tensor.clone()
for step in range(n - 1):
    arriving = torch.empty_like(passing)
    group.exchange(passing, (rank + 1) % n, arriving, (rank - 1) % n)
    whole += arriving
    passing = arriving
tensor.copy_(whole)
"""

RIGHT = {
    "reduce-scatter-in-a-copy": (SCATTER, whole06.IN_A_COPY),
    "reduce-scatter-by-keyword": (SCATTER, whole06.SCATTER_BY_KEYWORD),
    "all-reduce-by-keyword": (REDUCE, whole06.REDUCE_BY_KEYWORD),
    "accumulate-with-autograd-grad": (ACCUMULATE, whole06.AUTOGRAD_GRAD),
}

# fmt: off
MUTANTS = {
    "scatter-local": _wrong(
        SCATTER, BOTH, "Never sends: this rank's own chunk.",
        code="return tensor.tensor_split(group.world_size)[group.rank].clone()"),
    "scatter-library": _wrong(SCATTER, BOTH, "Asks gloo for the sum.", code=_LIBRARY),
    "scatter-whole-tensor": _wrong(
        SCATTER, BOTH, "Passes the whole tensor around: N times the bytes.", code=_WHOLE_TENSOR),
    "scatter-deadlock": _wrong(SCATTER, BOTH, "Every rank sends first: nobody receives.", *_BLOCKING),
    "scatter-in-place": _wrong(
        SCATTER, BOTH, "Adds into the caller's tensor.", "arriving + mine", "mine.add_(arriving)"),
    "scatter-wrong-chunk": _wrong(
        SCATTER, BOTH, "Starts a chunk too late, so that rank r finishes chunk r + 1.",
        "own[(rank - 1) % n].clone()", "own[rank].clone()", "(rank - 1 - step) % n]", "(rank - step) % n]"),
    "scatter-even-only": _wrong(
        SCATTER, BOTH, "Cuts by division: right only where N divides the size.",
        "tensor.tensor_split(n)", "tensor[: tensor.numel() // n * n].view(n, -1)"),
    "scatter-two-ways": _wrong(
        SCATTER, BOTH, "Receives from the next rank's neighbour at the distance that two and four ranks share.",
        "partial = arriving + mine", "partial = arriving + mine if n in (1, 2, 4) else mine + 0 * arriving"),
    "scatter-direct": _wrong(
        SCATTER, BOTH, "Sends every chunk to its owner: no ring.", code=_DIRECT),
    "scatter-alone-shares": _wrong(
        SCATTER, HIDDEN, "On one rank the caller's memory.",
        "own[(rank - 1) % n].clone()", "own[(rank - 1) % n]"),
    "scatter-float64": _wrong(
        SCATTER, HIDDEN, "Receives in the dtype of the visible tests' tensors.",
        "torch.empty_like(mine)", "torch.empty(len(mine), dtype=torch.float64)"),
    "reduce-local": _wrong(
        REDUCE, BOTH, "Never gathers: only this rank's chunk is the sum.",
        "range(n - 1)", "range(0)"),
    "reduce-library": _wrong(REDUCE, BOTH, "Asks gloo for the sum.", code=_LIBRARY_REDUCE),
    "reduce-library-gather": _wrong(REDUCE, BOTH, "Asks gloo for the second half.", code=_LIBRARY_GATHER),
    "reduce-all-around": _wrong(
        REDUCE, BOTH, "Adds whole tensors in a ring: N - 1 copies instead of 2 (N - 1) / N.", code=_TWICE),
    "reduce-one-step-more": _wrong(
        REDUCE, BOTH, "N steps: right values, a chunk too many on the wire.",
        "range(n - 1)", "range(n if n > 1 else 0)"),
    "reduce-one-step-less": _wrong(
        REDUCE, BOTH, "N - 2 steps: a chunk is missing.", "range(n - 1)", "range(n - 2)"),
    "reduce-mean": _wrong(
        REDUCE, BOTH, "The mean in the place of the sum.",
        "reduce_scatter(group, tensor))", "reduce_scatter(group, tensor) / n)"),
    "average-sum": _wrong(
        AVERAGE, BOTH, "A sum in the place of the mean.", "flat /= total.item()", "flat /= rows"),
    "average-mean-of-means": _wrong(
        AVERAGE, BOTH, "Divides the ranks' sums by the number of ranks' equal rows.",
        "flat /= total.item()", "flat /= rows * 2"),
    "average-local": _wrong(
        AVERAGE, BOTH, "Never sends the gradients.", "all_reduce(flat)", "all_reduce(flat.clone())"),
    "average-each-alone": _wrong(
        AVERAGE, BOTH, "One all-reduce a parameter.", "held >= bucket or", "True or"),
    "average-one-bucket": _wrong(
        AVERAGE, BOTH, "Everything in one bucket.", "held >= bucket or", ""),
    "average-forward-order": _wrong(
        AVERAGE, BOTH, "Fills the buckets from the first parameter on.", "reversed(parameters)", "parameters"),
    "average-unused-skipped": _wrong(
        AVERAGE, BOTH, "Leaves out what this rank did not use: other sizes than the others'.",
        "waiting.append(p)\n", "if p.grad is None:\n        continue\n    waiting.append(p)\n"),
    "average-unused-stays-none": _wrong(
        AVERAGE, BOTH, "A rank that did not use a parameter gets no average.",
        "q.grad = part.view_as(q).clone()", "q.grad = None if q.grad is None else part.view_as(q).clone()"),
    "average-more-than-full": _wrong(
        AVERAGE, HIDDEN, "A bucket that holds exactly enough waits for more.", "held >= bucket", "held > bucket"),
    "average-last-bucket": _wrong(
        AVERAGE, BOTH, "Forgets the last bucket, which is not full.",
        "held >= bucket or index == len(parameters) - 1", "held >= bucket"),
    "average-unused-fills-nothing": _wrong(
        AVERAGE, HIDDEN, "What this rank did not use does not fill its bucket: other cuts than the others'.",
        "held += p.numel()", "held += 0 if p.grad is None else p.numel()"),
    "average-nobody-used": _wrong(
        AVERAGE, BOTH, "Skips what no rank has used.",
        "q.grad = part.view_as(q).clone()", "q.grad = part.view_as(q).clone() if part.any() else None"),
    "accumulate-every": _wrong(
        ACCUMULATE, HIDDEN + VISIBLE, "Averages after every micro-batch.",
        "    loss.backward()\naverage(list(model.parameters()))",
        "    loss.backward()\n    average(list(model.parameters()))"),
    "accumulate-never": _wrong(
        ACCUMULATE, BOTH, "The missing average.", "average(list(model.parameters()))", "pass"),
    "accumulate-sum": _wrong(
        ACCUMULATE, BOTH, "The sum of the micro-batches' gradients.", " / len(micro_batches)", ""),
    "accumulate-stale": _wrong(
        ACCUMULATE, BOTH, "Adds to the gradients of the step before.", "model.zero_grad()", "pass"),
    "accumulate-one-graph": _wrong(
        ACCUMULATE, BOTH, "All graphs wait for one backward pass.",
        code="model.zero_grad()\nlosses = [((model(x) - y) ** 2).mean() for x, y in micro_batches]\n"
        "(sum(losses) / len(losses)).backward()\naverage(list(model.parameters()))"),
    "accumulate-keeps-graphs": _wrong(
        ACCUMULATE, BOTH, "Goes backward at once, and keeps every graph with its loss.",
        "for x, y", "losses = []\nfor x, y",
        "loss.backward()", "losses.append(loss)\n    loss.backward(retain_graph=True)"),
    "accumulate-one-batch": _wrong(
        ACCUMULATE, BOTH, "All micro-batches at once: the memory of all.",
        code="model.zero_grad()\nx, y = (torch.cat(part) for part in zip(*micro_batches))\n"
        "((model(x) - y) ** 2).mean().backward()\naverage(list(model.parameters()))"),
    "step-one-after-the-first": _wrong(
        STEP, BOTH, "The network never waits for a bucket that is not ready.",
        "max(ready, through)", "through or ready"),
    "step-no-overlap": _wrong(
        STEP, BOTH, "Adds all communication after the backward pass.", "max(ready, through)", "max(backward, through)"),
    "step-many-networks": _wrong(
        STEP, BOTH, "Every bucket has a network to itself.", "max(ready, through)", "ready"),
    "step-one-copy": _wrong(
        STEP, BOTH, "The lecture's count: one copy.", "2 * (world_size - 1) / world_size * size", "size"),
    "step-ends-early": _wrong(
        STEP, BOTH, "Ends with the network, though the backward pass goes on.", "max(backward, through)", "through"),
    "step-half-the-messages": _wrong(
        STEP, BOTH, "Only the reduce-scatter.",
        "2 * (world_size - 1) * (alpha", "(world_size - 1) * (alpha"),
    "step-sorted": _wrong(
        STEP, HIDDEN, "Sends what is ready first, not what stands first in the list.",
        "in buckets:\n", "in sorted(buckets):\n"),
}
