"""Wrong answers to lab 05 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing.

Most are the lab's own solution with a piece or two replaced; `whole05` holds those that share nothing with it.
"""

from __future__ import annotations

from . import whole05
from .answers import Answers

LAB = "05-compute-for-memory"
_answers = Answers(LAB)
_wrong = _answers.wrong

CHECKPOINT, SEQUENCE, PLAN = "ex1-checkpoint", "ex2-sequence", "ex3-plan"
ACCUMULATE, OFFLOAD = "ex4-accumulate", "ex5-offload"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "sequence-in-two-steps": (SEQUENCE, whole05.IN_TWO_STEPS),
    "accumulate-float-of-the-loss": (ACCUMULATE, _answers.right(ACCUMULATE).replace("part.item()", "float(part)")),
    "offload-own-context": (OFFLOAD, whole05.OWN_CONTEXT),
}

# fmt: off
MUTANTS = {
    "checkpoint-none": _wrong(
        CHECKPOINT, BOTH, "No checkpoint at all: the gradients are right and everything is kept.",
        code="return function(x)"),
    "checkpoint-keeps-the-graph": _wrong(
        CHECKPOINT, BOTH, "The graph of the first computation waits on ctx: nothing is computed again, nothing saved.",
        code=whole05.KEEPS_THE_GRAPH),
    "checkpoint-keeps-the-inside-too": _wrong(
        CHECKPOINT, BOTH, "Computes again, and keeps what the first computation saved all the same.",
        "return function(x)\n", "with torch.enable_grad():\n            ctx.y = function(x.detach().requires_grad_())\n"
        "        return ctx.y.detach()\n"),
    "checkpoint-copies-x": _wrong(
        CHECKPOINT, BOTH, "Keeps a copy of x beside x: where x is kept anyway, that is once more its bytes.",
        "ctx.save_for_backward(x)", "ctx.save_for_backward(x.clone())"),
    "checkpoint-other-random-numbers": _wrong(
        CHECKPOINT, BOTH, "The second call draws another dropout mask: the gradients are those of another loss.",
        "        torch.set_rng_state(ctx.state)\n", ""),
    "checkpoint-state-of-the-backward-pass": _wrong(
        CHECKPOINT, BOTH, "Takes the generator's state after the function has drawn, not before it.",
        "return function(x)\n", "y = function(x)\n        ctx.state = torch.get_rng_state()\n        return y\n"),
    "checkpoint-random-numbers-not-put-back": _wrong(
        CHECKPOINT, BOTH, "The generator stays where the second call left it, so that later numbers repeat.",
        "torch.random.fork_rng(devices=[]), torch.enable_grad()", "torch.enable_grad()"),
    "checkpoint-weights-forgotten": _wrong(
        CHECKPOINT, BOTH, "autograd.grad returns the gradient of x alone; the weights never get theirs.",
        "y.backward(gradient)\n        return x.grad", "return torch.autograd.grad(y, x, gradient)[0]"),
    "checkpoint-upstream-ignored": _wrong(
        CHECKPOINT, BOTH, "The gradient that arrives is not passed on.",
        "y.backward(gradient)", "y.sum().backward()"),
    "checkpoint-graph-runs-on": _wrong(
        CHECKPOINT, BOTH, "The second graph leads on into whatever made x, which is differentiated twice.",
        "ctx.saved_tensors[0].detach().requires_grad_()", "ctx.saved_tensors[0]"),
    "checkpoint-runs-three-times": _wrong(
        CHECKPOINT, BOTH, "The backward pass calls the function twice.",
        "torch.set_rng_state(ctx.state)\n", "torch.set_rng_state(ctx.state)\n            function(x)\n"
        "            torch.set_rng_state(ctx.state)\n"),
    "checkpoint-detached-input": _wrong(
        CHECKPOINT, BOTH, "The node hangs on a copy of x: no gradient reaches what lies below.",
        "Again.apply(x)", "Again.apply(x.detach().requires_grad_())"),
    "checkpoint-without-dropout": _wrong(
        CHECKPOINT, BOTH, "The second call runs in evaluation mode, where nothing is dropped.",
        "y = function(x)\n", "y = (function.eval() if isinstance(function, nn.Module) else function)(x)\n"),
    "checkpoint-clears-the-weights": _wrong(
        CHECKPOINT, HIDDEN, "Clears the weights' gradients first: a second backward pass replaces the first one's.",
        "y.backward(gradient)", "if isinstance(function, nn.Module):\n            function.zero_grad()\n"
        "        y.backward(gradient)"),
    "checkpoint-needs-a-module": _wrong(
        CHECKPOINT, HIDDEN, "Asks the function for its weights, and not every function has some.",
        "y.backward(gradient)", "torch.autograd.backward(y, gradient, inputs=[x, *function.parameters()])"),
    "checkpoint-x-as-attribute": _wrong(
        CHECKPOINT, HIDDEN, "x on ctx without save_for_backward: nobody notices when it is changed in place.",
        "ctx.save_for_backward(x)", "ctx.x = x", "ctx.saved_tensors[0].detach()", "ctx.x.detach()"),
    "checkpoint-only-its-own-parameters": _wrong(
        CHECKPOINT, HIDDEN, "Gradients for function.parameters() alone: weights that a lambda uses get none.",
        "y.backward(gradient)",
        "weights = getattr(function, 'parameters', list)()\n"
        "        torch.autograd.backward(y, gradient, inputs=[x, *weights])"),
    "checkpoint-keeps-the-result": _wrong(
        CHECKPOINT, HIDDEN, "Keeps the result beside x: it stays alive when nobody else holds it.",
        "return function(x)\n", "y = function(x)\n        ctx.save_for_backward(x, y)\n        return y\n"),
    "checkpoint-random-numbers-of-modules": _wrong(
        CHECKPOINT, HIDDEN, "Takes the generator's state for modules alone: a lambda may draw as well.",
        "torch.get_rng_state()", "torch.get_rng_state() if isinstance(function, nn.Module) else None",
        "torch.set_rng_state(ctx.state)", "if ctx.state is not None:\n                torch.set_rng_state(ctx.state)"),
    "sequence-late-binding": _wrong(
        SEQUENCE, BOTH, "Each run looks its layers up when it is called: in the backward pass all are the last one's.",
        "def run(x, part=layers[start:end]):\n        for layer in part:",
        "part = layers[start:end]\n\n    def run(x):\n        for layer in part:"),
    "sequence-rest-in-the-last": _wrong(
        SEQUENCE, BOTH, "What is left over goes into the last run, which is computed again while all inputs are kept.",
        code=whole05.TORCHS_CUT),
    "sequence-equal-chunks": _wrong(
        SEQUENCE, BOTH, "Chunks of the rounded-up length: the last is short, or there are too few of them.",
        code=whole05.CHUNKS),
    "sequence-rest-dropped": _wrong(
        SEQUENCE, BOTH, "The layers that are left over are never called.",
        " + (k < longer)", ""),
    "sequence-longer-last": _wrong(
        SEQUENCE, BOTH, "The right lengths, the longer ones last.",
        "k < longer", "k >= segments - longer"),
    "sequence-off-by-one": _wrong(
        SEQUENCE, BOTH, "Runs overlap by a layer, which is applied twice.",
        "start = end\n", "start = end - (k < longer)\n"),
    "sequence-last-in-the-open": _wrong(
        SEQUENCE, BOTH, "The last run is not checkpointed, as in torch's version.",
        "x = checkpoint(run, x)", "x = checkpoint(run, x) if k < segments - 1 else run(x)"),
    "sequence-every-layer": _wrong(
        SEQUENCE, BOTH, "A checkpoint for each layer, whatever was asked for.",
        code="for layer in layers:\n    x = checkpoint(layer, x)\nreturn x"),
    "sequence-one-for-all": _wrong(
        SEQUENCE, BOTH, "A single checkpoint around everything: nothing is gained at the peak.",
        code="return checkpoint(nn.Sequential(*layers), x)"),
    "sequence-detached": _wrong(
        SEQUENCE, BOTH, "The graph is cut between the runs: only the last one trains.",
        "checkpoint(run, x)", "checkpoint(run, x.detach().requires_grad_())"),
    "plan-rounded-up": _wrong(
        PLAN, BOTH, "s I + ⌈n/s⌉ A: too much where the longer segments meet few inputs.",
        "max(sizes)", "segments * layer_input + -(-layers // segments) * layer_interior"),
    "plan-rounded-down": _wrong(
        PLAN, BOTH, "s I + ⌊n/s⌋ A: forgets that some segments are longer.",
        "max(sizes)", "segments * layer_input + length * layer_interior"),
    "plan-not-whole": _wrong(
        PLAN, BOTH, "s I + (n/s) A: the formula for segments that cannot be had.",
        "max(sizes)", "segments * layer_input + layers / segments * layer_interior"),
    "plan-own-input-forgotten": _wrong(
        PLAN, BOTH, "The input of the segment that is computed again is kept as well.",
        "(k + 1) * layer_input", "k * layer_input"),
    "plan-longer-last": _wrong(
        PLAN, BOTH, "The longer segments come last and meet all inputs.",
        "k < longer", "k >= segments - longer"),
    "plan-first-segment": _wrong(
        PLAN, BOTH, "Only the longest segment counts, with one input.",
        "max(sizes)", "sizes[0]"),
    "plan-last-segment": _wrong(
        PLAN, BOTH, "Only the last segment counts, though a longer one comes later.",
        "max(sizes)", "sizes[-1]"),
    "plan-root-of-n": _wrong(
        PLAN, BOTH, "√n, whatever a layer keeps.",
        "1 + peaks.index(min(peaks))", "round(layers**0.5)"),
    "plan-root": _wrong(
        PLAN, BOTH, "The root of the formula, which knows nothing of unequal segments nor of n as the most.",
        "1 + peaks.index(min(peaks))", "round((layers * layer_interior / layer_input) ** 0.5)"),
    "plan-floats": _wrong(
        PLAN, BOTH, "True division: the numbers are right, and no integers.",
        "max(sizes)", "max(sizes) / 1"),
    "plan-tuple": _wrong(
        PLAN, BOTH, "A tuple of bytes where a list was asked for.",
        "return peaks,", "return tuple(peaks),"),
    "plan-counts-from-zero": _wrong(
        PLAN, BOTH, "The place in the list, which is one less.",
        "1 + peaks.index", "peaks.index"),
    "plan-largest-of-several": _wrong(
        PLAN, BOTH, "The largest number of segments with the fewest bytes.",
        "1 + peaks.index(min(peaks))", "layers - peaks[::-1].index(min(peaks))"),
    "accumulate-mean-of-means": _wrong(
        ACCUMULATE, BOTH, "Each micro-batch counts the same, however few tokens it has.",
        code=whole05.MEAN_OF_MEANS),
    "accumulate-sum-of-means": _wrong(
        ACCUMULATE, BOTH, "The means are added up and never divided.",
        code=whole05.MEAN_OF_MEANS.replace(" / len(micro_batches)", "")),
    "accumulate-shares-of-rows": _wrong(
        ACCUMULATE, BOTH, "Weighed by rows, as for a classifier; here tokens count.",
        code=whole05.ROW_SHARES),
    "accumulate-padding-counts": _wrong(
        ACCUMULATE, BOTH, "Divides by all tokens, with those that do not count.",
        "int((targets != -100).sum())", "targets.numel()"),
    "accumulate-zeros-each-time": _wrong(
        ACCUMULATE, BOTH, "Clears the gradient before each micro-batch: only the last one's is left.",
        "logits = model(inputs)", "model.zero_grad()\n    logits = model(inputs)"),
    "accumulate-never-clears": _wrong(
        ACCUMULATE, BOTH, "Adds to the gradient of the step before.",
        "model.zero_grad()\n", ""),
    "accumulate-one-backward": _wrong(
        ACCUMULATE, BOTH, "All graphs wait for one backward pass: right, with the large batch's memory.",
        code=whole05.ONE_BACKWARD),
    "accumulate-large-batch": _wrong(
        ACCUMULATE, BOTH, "Puts the pieces together again, which is the batch that did not fit.",
        code=whole05.LARGE_BATCH),
    "accumulate-retains-the-graph": _wrong(
        ACCUMULATE, BOTH, "retain_graph keeps the activations, and the list of parts keeps the graphs.",
        "loss = 0.0", "loss, parts = 0.0, []", "part.backward()", "part.backward(retain_graph=True)\n    "
        "parts.append(part)"),
    "accumulate-keeps-the-logits": _wrong(
        ACCUMULATE, BOTH, "Keeps every piece's logits, without their graphs: the largest activations of all.",
        "loss = 0.0", "loss, kept = 0.0, []", "logits = model(inputs)",
        "logits = model(inputs)\n    kept.append(logits.detach())"),
    "accumulate-empty-piece": _wrong(
        ACCUMULATE, HIDDEN, "The mean over no tokens is NaN, and 0 times NaN is NaN.",
        code=whole05.MEANS_WITH_SHARES),
    "accumulate-running-count": _wrong(
        ACCUMULATE, BOTH, "Divides by the tokens so far: the first micro-batches weigh too much.",
        "total = sum(int((targets != -100).sum()) for _, targets in micro_batches)\n", "total = 0\n",
        "    logits =", "    total += int((targets != -100).sum())\n    logits ="),
    "accumulate-last-loss": _wrong(
        ACCUMULATE, BOTH, "Returns the last micro-batch's part of the loss.",
        "loss += part.item()", "loss = part.item()"),
    "accumulate-runs-twice": _wrong(
        ACCUMULATE, BOTH, "Runs the model to count tokens, which the targets alone tell.",
        "int((targets != -100).sum()) for _, targets", "int((targets[model(inputs).argmax(-1) > -1] != -100).sum())"
        " for inputs, targets"),
    "accumulate-tensor": _wrong(
        ACCUMULATE, VISIBLE, "The loss comes back as a tensor.",
        "loss += part.item()", "loss += part.detach()"),
    "offload-weights-too": _wrong(
        OFFLOAD, BOTH, "Weights are saved tensors like others, and cross the bus in each step.",
        "tensor.untyped_storage().data_ptr() in weights or ", ""),
    "offload-weights-by-identity": _wrong(
        OFFLOAD, BOTH, "A transposed weight is another tensor, and slips through.",
        "tensor.untyped_storage().data_ptr() in weights", "any(tensor is p for p in model.parameters())"),
    "offload-weights-by-shape": _wrong(
        OFFLOAD, HIDDEN, "An activation that happens to have a weight's shape stays.",
        "tensor.untyped_storage().data_ptr() in weights",
        "tuple(tensor.shape) in {s for p in model.parameters() for s in (tuple(p.shape), tuple(p.shape)[::-1])}"),
    "offload-weights-by-address": _wrong(
        OFFLOAD, HIDDEN, "The address where a tensor begins: a chunk of a fused weight begins elsewhere, and is sent.",
        "tensor.untyped_storage().data_ptr() in weights", "tensor.data_ptr() in weights"),
    "offload-frozen-weights": _wrong(
        OFFLOAD, HIDDEN, "A frozen weight is a weight: it needs no gradient, and what lies before it needs the weight.",
        "model.parameters()", "model.parameters() if p.requires_grad"),
    "offload-weights-of-some-layers": _wrong(
        OFFLOAD, HIDDEN, "Knows the weights of linear layers and norms, and no parameter outside of them.",
        "for p in model.parameters()",
        "for m in model.modules() if isinstance(m, (nn.Linear, nn.LayerNorm)) for p in m.parameters()"),
    "offload-keeps-what-came-back": _wrong(
        OFFLOAD, HIDDEN, "Keeps all that it has fetched: at the end of the backward pass everything is there again.",
        "weights = {", "back, weights = {}, {", "return kept if torch.is_tensor(kept) else host.get(kept)",
        "if not torch.is_tensor(kept) and kept not in back:\n        back[kept] = host.get(kept)\n"
        "    return kept if torch.is_tensor(kept) else back[kept]"),
    "offload-storage-size": _wrong(
        OFFLOAD, HIDDEN, "Compares the storage's size with the limit: small views of large storages are sent.",
        "tensor.nbytes < min_bytes", "tensor.untyped_storage().nbytes() < min_bytes"),
    "offload-keeps-the-tensor": _wrong(
        OFFLOAD, BOTH, "The ticket comes in a pair with the tensor, which so stays on the device.",
        "return host.put(tensor)", "return host.put(tensor), tensor",
        "return kept if torch.is_tensor(kept) else host.get(kept)",
        "return kept if torch.is_tensor(kept) else host.get(kept[0])"),
    "offload-fetched-at-once": _wrong(
        OFFLOAD, BOTH, "Goes and comes back at once: a copy on the device instead of the tensor.",
        "return host.put(tensor)", "return host.get(host.put(tensor))"),
    "offload-small-ones-too": _wrong(
        OFFLOAD, BOTH, "Each small tensor costs a copy of its own.",
        " or tensor.nbytes < min_bytes", ""),
    "offload-counts-values": _wrong(
        OFFLOAD, HIDDEN, "Compares the number of values with a limit in bytes.",
        "tensor.nbytes < min_bytes", "tensor.numel() < min_bytes"),
    "offload-limit-stays": _wrong(
        OFFLOAD, HIDDEN, "A tensor of exactly the limit stays.",
        "tensor.nbytes < min_bytes", "tensor.nbytes <= min_bytes"),
    "offload-in-16-bits": _wrong(
        OFFLOAD, BOTH, "Half the traffic, and the gradients are no longer equal.",
        "host.put(tensor)", "host.put(tensor.half())", "else host.get(kept)", "else host.get(kept).float()"),
    "offload-nothing": _wrong(
        OFFLOAD, BOTH, "Nothing ever leaves.",
        "return host.put(tensor)", "return tensor"),
    "offload-hooks-stay-on": _wrong(
        OFFLOAD, BOTH, "The hooks are entered and never left: what runs later is sent as well.",
        code=whole05.HOOKS_STAY_ON),
}
