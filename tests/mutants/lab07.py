"""Wrong answers to lab 07 that look right: each loses exactly the graded cells named here."""

from __future__ import annotations

from .answers import Answers

LAB = "07-zero"
_wrong = Answers(LAB).wrong

BYTES, PARTITION, ZERO1 = "ex1-bytes", "ex2-partition", "ex3-zero1"
GRADIENTS, BLOCK = "ex4-gradients", "ex5-block"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

_BY_TENSORS = """
size = -(-sum(t.numel() for t in tensors) // world_size)
mine = [index for index in range(len(tensors)) if index * world_size // len(tensors) == rank]
part, start = torch.zeros(size, dtype=tensors[0].dtype), 0
for index in mine:
    part[start : start + tensors[index].numel()] = tensors[index].flatten()[: size - start]
    start += tensors[index].numel()
return part, [(index, 0, tensors[index].numel()) for index in mine]
"""
# Right values and an all-reduce's traffic: the halves carry gradients twice, and nothing is sharded.
_UNSHARDED = """
n, size = group.world_size, weights.numel() // group.world_size
mean, whole = weights.new_empty(size), torch.empty_like(weights)
group.reduce_scatter(mean, gradient)
group.all_gather(whole, mean / n)
if not state:
    state["own"] = torch.nn.Parameter(weights.clone())
    state["adam"] = torch.optim.Adam([state["own"]], lr=lr)
state["own"].grad = whole
state["adam"].step()
state["own"].grad = None
weights.copy_(state["own"].detach())
"""
# Moments of the part only; but the mean gradient is held as well from step to step.
_KEEPS_GRAD = """
n, size = group.world_size, weights.numel() // group.world_size
own = weights[group.rank * size : (group.rank + 1) * size]
if not state:
    state["part"] = torch.nn.Parameter(own)
    state["adam"] = torch.optim.Adam([state["part"]], lr=lr)
mean = torch.empty_like(own)
group.reduce_scatter(mean, gradient)
state["part"].grad = mean / n
state["adam"].step()
group.all_gather(weights, state["part"].detach())
"""
_ELSEWHERE = """
cache = my_zero1_step.__dict__.setdefault("cache", {})
if not state:
    state["t"] = 0
    cache[group.world_size, group.rank] = torch.zeros_like(weights), torch.zeros_like(weights)
state["t"] += 1
n, size = group.world_size, weights.numel() // group.world_size
mean, whole = weights.new_empty(size), torch.empty_like(weights)
group.reduce_scatter(mean, gradient)
group.all_gather(whole, mean / n)
m, v = cache[group.world_size, group.rank]
m.mul_(0.9).add_(whole, alpha=0.1)
v.mul_(0.999).addcmul_(whole, whole, value=0.001)
weights -= lr * m / (1 - 0.9 ** state["t"]) / ((v / (1 - 0.999 ** state["t"])).sqrt() + 1e-8)
"""
_AT_THE_END = """
n, parts = group.world_size, [None] * len(layers)
everything = [p for layer in layers for p in layer]
arrived = []

def hook(p):
    arrived.append(p)
    if len(arrived) < len(everything):
        return
    arrived.clear()
    for index, layer in enumerate(layers):
        flat = torch.cat([q.grad.flatten() for q in layer])
        whole = torch.cat([flat, flat.new_zeros(-len(flat) % n)])
        parts[index] = whole.new_empty(len(whole) // n)
        group.reduce_scatter(parts[index], whole)
        parts[index] /= n
        for q in layer:
            q.grad = None

for p in everything:
    p.register_post_accumulate_grad_hook(hook)
return parts
"""
_COUNTING = """\
    arrived.append(p)
        if len(arrived) < len(layer):
            return
        arrived.clear()
"""
_PLAIN = """
n = group.world_size
def gathered():
    whole = part.detach().new_empty(n * part.numel())
    group.all_gather(whole, part.detach())
    return whole
def reduced(gradient):
    mean = torch.empty_like(part)
    group.reduce_scatter(mean, gradient)
    return mean / n
return compute(Gather.apply(part, gathered, reduced), x)
"""
_AGAIN = _PLAIN.replace(
    "return compute(Gather.apply(part, gathered, reduced), x)",
    "from torch.utils.checkpoint import checkpoint\n"
    "return checkpoint(lambda x: compute(Gather.apply(part, gathered, reduced), x), x, use_reentrant=False)",
)

# fmt: off
MUTANTS = {
    "bytes-no-padding": _wrong(
        BYTES, BOTH, "Divides without rounding up.", "-(-sum(sizes) // world_size)", "sum(sizes) // world_size"),
    "bytes-padded-together": _wrong(
        BYTES, BOTH, "Pads the whole model once, not each unit.",
        "sum(-(-sum(sizes) // world_size) for sizes in units)", "-(-sum(map(sum, units)) // world_size)"),
    "bytes-whole-not-padded": _wrong(
        BYTES, BOTH, "What stays whole has no padding.",
        "part * world_size if stage else sum(sum(sizes) for sizes in units)", "sum(sum(sizes) for sizes in units)"),
    "bytes-stage-0-padded": _wrong(
        BYTES, BOTH, "Pads data parallelism as well.",
        "part * world_size if stage else sum(sum(sizes) for sizes in units)", "part * world_size"),
    "bytes-masters-whole": _wrong(
        BYTES, BOTH, "Shards the moments and leaves every rank all master weights.",
        '"master_weights": 1', '"master_weights": 3'),
    "bytes-gradients-first": _wrong(
        BYTES, BOTH, "Shards gradients from stage 1 on.", '"gradients": 2, "master', '"gradients": 1, "master'),
    "bytes-fp32-masters": _wrong(
        BYTES, BOTH, "Gives fp32 weights masters of their own.", "4 if mixed else 0", "4"),
    "bytes-fractions": _wrong(
        BYTES, BOTH, "A true division: no whole numbers.",
        "-(-sum(sizes) // world_size) for", "sum(sizes) / world_size for"),
    "bytes-nothing-sharded": _wrong(
        BYTES, BOTH, "Everything on every rank.", "part if stage >= begins[name] else whole", "whole"),
    "partition-view": _wrong(
        PARTITION, BOTH, "Returns a slice, which keeps everything in memory.",
        "part = whole.new_zeros(size)\npart[: len(whole[low:high])] = whole[low:high]",
        "part = torch.cat([whole, whole.new_zeros(size * world_size - len(whole))])[low:high]"),
    "partition-by-tensors": _wrong(PARTITION, BOTH, "Deals out whole tensors.", code=_BY_TENSORS),
    "partition-float32": _wrong(
        PARTITION, BOTH, "Takes torch's default dtype, whatever the tensors have.",
        "whole.new_zeros(size)", "torch.zeros(size)"),
    "partition-drops-the-end": _wrong(
        PARTITION, BOTH, "The last part has only what is left of full ones.",
        "part[: len(whole[low:high])] = whole[low:high]",
        "if high <= len(whole):\n    part.copy_(whole[low:high])"),
    "partition-floor": _wrong(
        PARTITION, BOTH, "Rounds down, and loses the end.",
        "-(-len(whole) // world_size)", "len(whole) // world_size"),
    "partition-uneven": _wrong(
        PARTITION, BOTH, "Parts of different sizes: no padding.",
        "part = whole.new_zeros(size)\npart[: len(whole[low:high])] = whole[low:high]",
        "part = whole[low:high].clone()"),
    "partition-pads-with-ones": _wrong(
        PARTITION, BOTH, "What is in the padding is left to chance.",
        "whole.new_zeros(size)", "whole.new_ones(size)"),
    "partition-places-in-the-whole": _wrong(
        PARTITION, BOTH, "Counts from the beginning of the whole, not of the tensor.",
        "owned.append((index, begin, end))", "owned.append((index, begin + start, end + start))"),
    "partition-empty-pieces": _wrong(
        PARTITION, BOTH, "Names tensors of which it has nothing.", "if begin < end:", "if True:"),
    "partition-in-place": _wrong(
        PARTITION, BOTH, "Takes the values away from where they were.",
        "return part, owned", "tensors[0].zero_()\nreturn part, owned"),
    "zero1-unsharded": _wrong(
        ZERO1, BOTH, "An AdamW of everything on every rank: right values, right traffic.", code=_UNSHARDED),
    "zero1-unsharded-elsewhere": _wrong(
        ZERO1, BOTH, "Keeps all moments where nobody looks.", code=_ELSEWHERE),
    "zero1-sliced-moments": _wrong(
        ZERO1, BOTH, "Moments are slices of moments for everything.",
        "m=torch.zeros_like(mean), v=torch.zeros_like(mean)",
        "m=torch.zeros_like(weights)[:size], v=torch.zeros_like(weights)[:size]"),
    "zero1-keeps-gradient": _wrong(
        ZERO1, BOTH, "Keeps the whole gradient for later.",
        'state["t"] += 1', 'state["t"] += 1\nstate["g"] = gradient.clone()'),
    "zero1-own-copy": _wrong(
        ZERO1, BOTH, "Holds its part of the weights twice.",
        'state["t"] += 1', 'state["t"] += 1\nstate["w"] = own.clone()'),
    "zero1-sum": _wrong(
        ZERO1, BOTH, "A sum in the place of the mean; Adam all but hides it.",
        "mean /= n\n", ""),
    "zero1-local": _wrong(
        ZERO1, BOTH, "Updates its part with its own gradient: no reduction.",
        "group.reduce_scatter(mean, gradient)\nmean /= n",
        "group.reduce_scatter(mean, gradient)\nmean = gradient[group.rank * size : (group.rank + 1) * size].clone()"),
    "zero1-never-gathers": _wrong(
        ZERO1, BOTH, "The others never hear of the update.", "group.all_gather(weights, own)", "pass"),
    "zero1-all-reduces": _wrong(
        ZERO1, BOTH, "All-reduces the gradient and takes its part.",
        "group.reduce_scatter(mean, gradient)\n",
        "whole = gradient.clone()\ngroup.all_reduce(whole)\n"
        "mean = whole[group.rank * size : (group.rank + 1) * size].clone()\n"),
    "zero1-no-correction": _wrong(
        ZERO1, BOTH, "Forgets that the moments begin at zero.", '/ (1 - 0.9 ** state["t"])', "/ 1"),
    "zero1-three-ranks": _wrong(
        ZERO1, HIDDEN, "Right for the visible test's three ranks only.", "mean /= n\n", "mean /= 3\n"),
    "zero1-rebinds": _wrong(
        ZERO1, BOTH, "Computes new weights, and gives them a name that nobody knows.",
        "group.all_gather(weights, own)", "weights = torch.empty_like(weights)\ngroup.all_gather(weights, own)",
        "own -= lr * m", "own = own - lr * m"),
    "zero1-adam-keeps-grad": _wrong(
        ZERO1, BOTH, "torch's Adam on the part, whose gradient stays to the next step.", code=_KEEPS_GRAD),
    "zero1-deadlock": _wrong(
        ZERO1, BOTH, "Only rank 0 tells its part.",
        "group.all_gather(weights, own)", "if group.rank == 0:\n    group.all_gather(weights, own)"),
    "gradients-hook-on-first": _wrong(
        GRADIENTS, BOTH, "Takes it that the first parameter of a layer comes last.",
        "for p in layer:\n        p.register_post_accumulate_grad_hook(hook)",
        "layer[0].register_post_accumulate_grad_hook(hook)",
        _COUNTING, ""),
    "gradients-hook-on-last": _wrong(
        GRADIENTS, BOTH, "Takes it that the last parameter of a layer comes last.",
        "for p in layer:\n        p.register_post_accumulate_grad_hook(hook)",
        "layer[-1].register_post_accumulate_grad_hook(hook)",
        _COUNTING, ""),
    "gradients-kept": _wrong(
        GRADIENTS, BOTH, "Reduces, and keeps the whole gradients all the same.",
        "for q in layer:\n            q.grad = None\n        whole", "whole"),
    "gradients-at-the-end": _wrong(
        GRADIENTS, BOTH, "Waits for the whole backward pass.", code=_AT_THE_END),
    "gradients-sum": _wrong(
        GRADIENTS, ("test", "hidden"), "A sum in the place of the mean.", "parts[index] /= n", "pass"),
    "gradients-local": _wrong(
        GRADIENTS, BOTH, "The part of this rank's own gradient; the reduction is thrown away.",
        "parts[index] /= n", "parts[index] = whole.view(n, -1)[group.rank].clone()"),
    "gradients-all-reduce": _wrong(
        GRADIENTS, BOTH, "All-reduces and takes a slice, which keeps everything.",
        "group.reduce_scatter(parts[index], whole)",
        "group.all_reduce(whole)\n        parts[index] = whole.view(n, -1)[group.rank]"),
    "gradients-in-order-of-arrival": _wrong(
        GRADIENTS, BOTH, "Lays them flat as they come.",
        "arrived.clear()\n        flat = torch.cat([q.grad.flatten() for q in layer])",
        "flat = torch.cat([q.grad.flatten() for q in sorted(arrived, key=torch.numel)])\n        arrived.clear()"),
    "gradients-once": _wrong(
        GRADIENTS, BOTH, "Counts on in the next backward pass.",
        "if len(arrived) < len(layer):", "if len(arrived) != len(layer):", "arrived.clear()\n", "pass\n"),
    "gradients-adds-up": _wrong(
        GRADIENTS, BOTH, "Adds the next backward pass to the parts of the one before.",
        "parts[index] = whole", "before, parts[index] = parts[index], whole",
        "parts[index] /= n", "parts[index] /= n\n        if before is not None:\n            parts[index] += before"),
    "gradients-not-padded": _wrong(
        GRADIENTS, BOTH, "Works where N divides the layer.",
        "torch.cat([flat, flat.new_zeros(-len(flat) % n)])", "flat"),
    "gradients-each-alone": _wrong(
        GRADIENTS, BOTH, "A reduce-scatter of each parameter.",
        "layer):\n            return\n        arrived.clear()\n"
        "        flat = torch.cat([q.grad.flatten() for q in layer])\n"
        "        for q in layer:\n            q.grad = None\n",
        "[p]):\n            return\n        arrived.clear()\n        flat = p.grad.flatten()\n        p.grad = None\n"),
    "block-keeps-weights": _wrong(BLOCK, BOTH, "Autograd keeps the gathered weights.", code=_PLAIN),
    "block-computes-again": _wrong(
        BLOCK, BOTH, "Checkpoints: right bytes, for another forward pass.", code=_AGAIN),
    "block-releases-late": _wrong(
        BLOCK, BOTH, "Holds the weights to the backward pass.", "held.clear()\nreturn out", "return out"),
    "block-never-releases": _wrong(
        BLOCK, BOTH, "Keeps what was gathered again, on the part.",
        "held, n = {}, ", "held, n = part.__dict__, ", "    held.clear()\n    mean = ", "    mean = "),
    "block-gathers-for-each": _wrong(
        BLOCK, BOTH, "Gathers anew for every saved tensor.", "    if not held:\n", "    if True:\n"),
    "block-sum": _wrong(BLOCK, BOTH, "A sum in the place of the mean.", "return mean / n", "return mean"),
    "block-local": _wrong(
        BLOCK, BOTH, "The part of this rank's own gradient.",
        "return mean / n", "return gradient.view(n, -1)[group.rank].clone()"),
    "block-computes-with-a-copy": _wrong(
        BLOCK, BOTH, "Releases what it gathered, and computes with a copy that stays.",
        "compute(whole, x)", "compute(whole.clone(), x)"),
    "block-no-gradient": _wrong(
        BLOCK, BOTH, "Computes with detached weights.", "compute(whole, x)", "compute(whole.detach(), x)"),
}
