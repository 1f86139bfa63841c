"""Wrong answers to lab 07 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole07
from .answers import Answers

LAB = "07-zero"
_wrong = Answers(LAB).wrong

BYTES, PARTITION, ZERO1 = "ex1-bytes", "ex2-partition", "ex3-zero1"
GRADIENTS, BLOCK = "ex4-gradients", "ex5-block"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "bytes-by-category": (BYTES, whole07.BYTES_BY_CATEGORY),
    "partition-by-values": (PARTITION, whole07.PARTITION_BY_VALUES),
    "zero1-torchs-adam": (ZERO1, whole07.TORCHS_ADAM),
}

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
    "bytes-each-parameter-padded": _wrong(
        BYTES, BOTH, "Pads every parameter to N parts, not the unit.",
        "-(-sum(sizes) // world_size) for sizes in units",
        "-(-size // world_size) for sizes in units for size in sizes"),
    "bytes-one-more": _wrong(
        BYTES, BOTH, "Rounds up by adding one, also where N divides the unit.",
        "-(-sum(sizes) // world_size)", "(sum(sizes) // world_size + 1)"),
    "bytes-stage-0-mixed": _wrong(
        BYTES, HIDDEN, "Takes it that data parallelism is always mixed.",
        'each = {"weights"', 'mixed = mixed or not stage\neach = {"weights"'),
    "bytes-stage-2-half": _wrong(
        BYTES, HIDDEN, "Takes it that what leaves at once is of half precision.",
        '"gradients": 2 if mixed else 4', '"gradients": 2 if mixed or stage == 2 else 4'),
    "partition-view": _wrong(
        PARTITION, BOTH, "Returns a slice, which keeps everything in memory.",
        "part = whole.new_zeros(size)\npart[: len(whole[low:high])] = whole[low:high]",
        "part = torch.cat([whole, whole.new_zeros(size * world_size - len(whole))])[low:high]"),
    "partition-by-tensors": _wrong(PARTITION, BOTH, "Deals out whole tensors.", code=whole07.BY_TENSORS),
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
    "partition-beyond-the-end": _wrong(
        PARTITION, BOTH, "A piece ends where the part does, though its tensor ended before.",
        "min(high, start + t.numel()) - start\n    if begin < end:",
        "high - start\n    if begin < min(end, t.numel()):"),
    "partition-float64": _wrong(
        PARTITION, HIDDEN, "The dtype of the visible tests' tensors.",
        "whole.new_zeros(size)", "torch.zeros(size, dtype=torch.float64)"),
    "zero1-unsharded": _wrong(
        ZERO1, BOTH, "An AdamW of everything on every rank: right values, right traffic.", code=whole07.UNSHARDED),
    "zero1-unsharded-elsewhere": _wrong(
        ZERO1, BOTH, "Keeps all moments where nobody looks.", code=whole07.ELSEWHERE),
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
        ZERO1, BOTH, "torch's Adam on the part, whose gradient stays to the next step.", code=whole07.KEEPS_GRAD),
    "zero1-first-rate": _wrong(
        ZERO1, BOTH, "torch's Adam on the part, with the first step's lr for ever.", code=whole07.FIXED_RATE),
    "zero1-deadlock": _wrong(
        ZERO1, BOTH, "Only rank 0 tells its part.",
        "group.all_gather(weights, own)", "if group.rank == 0:\n    group.all_gather(weights, own)"),
    "gradients-hook-on-first": _wrong(
        GRADIENTS, BOTH, "Takes it that the first parameter of a layer comes last.",
        "for p in layer:\n        p.register_post_accumulate_grad_hook(hook)",
        "layer[0].register_post_accumulate_grad_hook(hook)",
        whole07.COUNTING, ""),
    "gradients-hook-on-last": _wrong(
        GRADIENTS, BOTH, "Takes it that the last parameter of a layer comes last.",
        "for p in layer:\n        p.register_post_accumulate_grad_hook(hook)",
        "layer[-1].register_post_accumulate_grad_hook(hook)",
        whole07.COUNTING, ""),
    "gradients-kept": _wrong(
        GRADIENTS, BOTH, "Reduces, and keeps the whole gradients all the same.",
        "for q in layer:\n            q.grad = None\n        whole", "whole"),
    "gradients-at-the-end": _wrong(
        GRADIENTS, BOTH, "Waits for the whole backward pass.", code=whole07.AT_THE_END),
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
    "gradients-of-two": _wrong(
        GRADIENTS, BOTH, "Takes it that a layer has a weight and a bias.",
        "if len(arrived) < len(layer):", "if len(arrived) < 2:"),
    "gradients-from-the-last": _wrong(
        GRADIENTS, BOTH, "Takes it that the list has the layers in the network's order.", code=whole07.LAST_TO_FIRST),
    "block-keeps-weights": _wrong(BLOCK, BOTH, "Autograd keeps the gathered weights.", code=whole07.PLAIN),
    "block-computes-again": _wrong(
        BLOCK, BOTH, "Checkpoints: right bytes, for another forward pass.", code=whole07.AGAIN),
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
    "block-no-strides": _wrong(
        BLOCK, BOTH, "Finds sizes and places again, and takes transposed weights for others.",
        "(t.size(), t.stride(), t.storage_offset())", "(t.size(), t.storage_offset())",
        "gathered().as_strided(*kept) if", "gathered()[kept[1] : kept[1] + kept[0].numel()].view(kept[0]) if"),
    "block-computes-with-a-copy": _wrong(
        BLOCK, BOTH, "Releases what it gathered, and computes with a copy that stays.",
        "compute(whole, x)", "compute(whole.clone(), x)"),
    "block-no-gradient": _wrong(
        BLOCK, BOTH, "Computes with detached weights.", "compute(whole, x)", "compute(whole.detach(), x)"),
}
