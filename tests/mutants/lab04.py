"""Wrong answers to lab 04 that look right: each loses exactly the graded cells named here.

Most are the lab's own solution with a piece or two replaced; `whole04` holds those that share nothing with it.
"""

from __future__ import annotations

from . import whole04
from .answers import Answers

LAB = "04-memory-anatomy"
_wrong = Answers(LAB).wrong

STAYS, KEPT, BLOCK = "ex1-stays", "ex2-kept", "ex3-block"
PEAK, TALKS = "ex4-peak", "ex5-conversations"
BOTH, HIDDEN = ("test", "hidden"), ("hidden",)

# fmt: off
MUTANTS = {
    "stays-master-forgotten": _wrong(
        STAYS, BOTH, "The fp32 copy of the weights is not counted.",
        '"master_weights": 4 * n if master else 0', '"master_weights": 0'),
    "stays-moments-in-16-bits": _wrong(
        STAYS, BOTH, "With master weights the optimizer's states are fp32, whatever the weights are.",
        "n * updated * {", "n * itemsize * {"),
    "stays-gradients-in-16-bits": _wrong(
        STAYS, BOTH, "ZeRO's count: the gradients stay in 16 bits. Here they have become fp32 before the update.",
        '"gradients": n * updated', '"gradients": n * itemsize'),
    "stays-gradients-twice": _wrong(
        STAYS, BOTH, "20 bytes: the 16-bit gradients are counted beside their fp32 copies, which replaced them.",
        '"gradients": n * updated', '"gradients": n * updated + (n * itemsize if master else 0)'),
    "stays-moments-always-fp32": _wrong(
        STAYS, BOTH, "Without master weights torch makes the states in the format of the weights.",
        "n * updated * {", "n * 4 * {"),
    "stays-weights-always-fp32": _wrong(
        STAYS, BOTH, "4 bytes for a 16-bit weight.",
        '"weights": n * itemsize', '"weights": n * 4'),
    "stays-master-beside-fp32": _wrong(
        STAYS, BOTH, "The lecture's 20 bytes: a master copy of weights that are fp32 already.",
        "4 * n if master else 0", "4 * n"),
    "stays-momentum-is-adam": _wrong(
        STAYS, BOTH, "SGD with momentum keeps one value a parameter, not two.",
        '"momentum": 1', '"momentum": 2'),
    "stays-head-always": _wrong(
        STAYS, BOTH, "A tied head is the embedding: one tensor, counted once.",
        "(1 if model.tied else 2)", "2"),
    "stays-head-never": _wrong(
        STAYS, BOTH, "A head of its own is a second matrix of the embedding's size.",
        "(1 if model.tied else 2)", "1"),
    "stays-all-heads-alike": _wrong(
        STAYS, BOTH, "Keys and values are counted as wide as the queries: grouped queries are overlooked.",
        "2 * model.hidden * model.keys", "2 * model.hidden * model.queries"),
    "stays-square-queries": _wrong(
        STAYS, BOTH, "The queries' width is taken for the hidden width.",
        "2 * model.hidden * model.queries +", "2 * model.hidden**2 +"),
    "stays-last-norm-forgotten": _wrong(
        STAYS, BOTH, "A norm stands behind the last block as well.",
        "words + model.hidden + model.layers", "words + model.layers"),
    "stays-one-norm-a-block": _wrong(
        STAYS, BOTH, "A block has two norms.",
        "block = 2 * model.hidden +", "block = model.hidden +"),
    "stays-no-gate": _wrong(
        STAYS, BOTH, "An OPT-type feed-forward part has two matrices, a Llama-type one three.",
        "3 * model.hidden * model.ffn", "2 * model.hidden * model.ffn"),
    "stays-momentum-in-fp32": _wrong(
        STAYS, BOTH, "torch makes the momentum of a bf16 weight in bf16.",
        '"optimizer_states": n * updated *', '"optimizer_states": n * (4 if optimizer == "momentum" else updated) *'),
    "stays-as-floats": _wrong(
        STAYS, BOTH, "Bytes are whole numbers.",
        '"weights": n * itemsize', '"weights": float(n * itemsize)'),
    "stays-returns-nothing": _wrong(
        STAYS, BOTH, "Forgets to return.",
        "return {", "_ = {"),
    "stays-by-labkit": _wrong(
        STAYS, BOTH, "Asks labkit's own formula, which is switched off.",
        code=whole04.STAYS_BY_LABKIT),
    "kept-by-each": _wrong(
        KEPT, BOTH, "Adds up what each operation keeps: a tensor that two of them keep is counted twice.",
        code=whole04.KEPT_BY_EACH),
    "kept-frozen-keeps-its-input": _wrong(
        KEPT, BOTH, "A frozen layer has no use for its input.",
        "if trains:", "if trains or passes:"),
    "kept-every-layer-keeps-its-input": _wrong(
        KEPT, BOTH, "A frozen layer keeps its input, even where no gradient passes.",
        "if trains:", "if True:"),
    "kept-without-a-gradient": _wrong(
        KEPT, BOTH, "Operations before the first trained layer keep tensors for a gradient that nobody wants.",
        "{}, False", "{}, True"),
    "kept-nothing-for-data": _wrong(
        KEPT, BOTH, "x needs no gradient, and W's gradient needs x all the same.",
        "if trains:", "if trains and passes:"),
    "kept-frozen-stops-the-gradient": _wrong(
        KEPT, HIDDEN, "A frozen layer passes the gradient on to what lies before it.",
        "passes = passes or trains", "passes = trains"),
    "kept-relu-keeps-its-input": _wrong(
        KEPT, BOTH, "ReLU, softmax and exp keep their output, which the next layer may share.",
        "kept[place + 1]", "kept[place]"),
    "kept-exp-and-softmax-keep-their-input": _wrong(
        KEPT, BOTH, "exp and softmax keep their output, not what they read.",
        'operation == "silu"', 'operation in ("silu", "exp", "softmax")'),
    "kept-silu-keeps-its-output": _wrong(
        KEPT, BOTH, "SiLU's derivative is written in its input.",
        'operation == "silu":\n        kept[place]', 'operation == "silu":\n        kept[place + 1]'),
    "kept-double-keeps": _wrong(
        KEPT, BOTH, "The derivative of 2x is 2.",
        'elif passes and operation != "double"', "elif passes"),
    "kept-layer-keeps-its-output": _wrong(
        KEPT, BOTH, "A linear layer's derivative needs its input, not its output.",
        "kept[place] = width\n        passes", "kept[place + 1] = out\n        passes"),
    "kept-in-values": _wrong(
        KEPT, BOTH, "Counts values, not bytes.",
        "4 * n * sum", "n * sum"),
    "kept-measured": _wrong(
        KEPT, BOTH, "Makes a tensor to find out how large a tensor is.",
        code=whole04.KEPT_MEASURED),
    "kept-output-still-stored": _wrong(
        KEPT, HIDDEN, "A flag that the last output is stored, which double does not clear: 2x is a tensor of its own.",
        code=whole04.KEPT_BY_A_FLAG),
    "kept-double-makes-no-tensor": _wrong(
        KEPT, HIDDEN, "Passes over double as if the operation behind it read what double read.",
        code=whole04.KEPT_THROUGH_DOUBLE),
    "block-as-floats": _wrong(
        BLOCK, BOTH, "Bytes are whole numbers.",
        "return 2 *", "return 2.0 *"),
    "block-scores-kept-by-the-kernel": _wrong(
        BLOCK, BOTH, "FlashAttention keeps one number a row, and no scores.",
        "+ 4 * n * model.heads", "+ 4 * scores"),
    "block-row-sums-forgotten": _wrong(
        BLOCK, BOTH, "The one number for each head and token, from which the probabilities come again, is left out.",
        " + 4 * n * model.heads", ""),
    "block-keys-as-wide-as-queries": _wrong(
        BLOCK, BOTH, "One kernel reads keys and values as they are, not repeated.",
        "(model.queries + 2 * model.keys)", "(3 * model.queries)"),
    "block-keys-not-repeated": _wrong(
        BLOCK, BOTH, "The eager way repeats keys and values, and keeps the repeated ones.",
        "3 * itemsize * n * model.queries", "itemsize * n * (model.queries + 2 * model.keys)"),
    "block-output-twice": _wrong(
        BLOCK, BOTH, "The kernel's output is the next layer's input: stored once.",
        "+ 4 * n * model.heads", "+ 4 * n * model.heads + itemsize * n * model.queries"),
    "block-output-never": _wrong(
        BLOCK, BOTH, "In either way of attention the linear layer behind it keeps its input.",
        " + output +", " +"),
    "block-output-only-by-the-kernel": _wrong(
        BLOCK, BOTH, "In the eager way too the linear layer behind attention keeps its input.",
        "output = itemsize * n * model.queries", "output = 0 if eager else itemsize * n * model.queries"),
    "block-square-output": _wrong(
        BLOCK, BOTH, "Attention's output is as wide as the queries, which need not be `hidden`.",
        "output = itemsize * n * model.queries", "output = itemsize * n * model.hidden"),
    "block-one-long-sequence": _wrong(
        BLOCK, BOTH, "Scores are made within a sequence: batch × T², not (batch × T)².",
        "scores = batch * model.heads * seq_len * seq_len", "scores = model.heads * n * n"),
    "block-no-16-bit-scores": _wrong(
        BLOCK, BOTH, "The probabilities' copy in 16 bits is multiplied with the values, and kept.",
        "4 * scores + (2 * scores if itemsize == 2 else 0)", "4 * scores"),
    "block-scores-in-the-models-format": _wrong(
        BLOCK, BOTH, "softmax runs in fp32 whatever the format.",
        "4 * scores + (2 * scores if itemsize == 2 else 0)", "itemsize * scores"),
    "block-norm-in-16-bits": _wrong(
        BLOCK, BOTH, "The norm computes in fp32, and keeps its input so.",
        "norm = 4 * n * model.hidden +", "norm = itemsize * n * model.hidden +"),
    "block-normalized-in-fp32": _wrong(
        BLOCK, BOTH, "The normalized values are in the model's format again.",
        "+ itemsize * n * model.hidden\ninputs", "+ 4 * n * model.hidden\ninputs"),
    "block-normalized-forgotten": _wrong(
        BLOCK, BOTH, "The norm's own weights need the normalized values for their gradient.",
        "+ 4 * n + itemsize * n * model.hidden", "+ 4 * n"),
    "block-inputs-for-each-layer": _wrong(
        BLOCK, BOTH, "Queries, keys and values read one tensor, gate and up another: 2, not 5.",
        "2 * (norm + inputs)", "2 * norm + 5 * inputs"),
    "block-no-inputs": _wrong(
        BLOCK, BOTH, "The norm's output is not its normalized values: it has been multiplied by the weights.",
        "(norm + inputs)", "norm"),
    "block-silu-in-place": _wrong(
        BLOCK, BOTH, "The product keeps SiLU's output beside gate, which SiLU keeps.",
        "4 * itemsize * n * model.ffn", "3 * itemsize * n * model.ffn"),
    "block-one-sum-kept": _wrong(
        BLOCK, BOTH, "A sum keeps nothing.",
        "return 2 *", "return inputs + 2 *"),
    "peak-logits-once": _wrong(
        PEAK, BOTH, "The logits are counted once; three such tensors are there.",
        "12 * tokens", "4 * tokens"),
    "peak-logits-in-16-bits": _wrong(
        PEAK, BOTH, "The loss is taken in fp32, whatever the model's format.",
        "12 * tokens", "3 * itemsize * tokens"),
    "peak-everything-at-once": _wrong(
        PEAK, BOTH, "Adds up gradients and activations, which are not there at the same time.",
        code=whole04.PEAK_SUM_OF_ALL),
    "peak-without-activations": _wrong(
        PEAK, BOTH, "Bytes a parameter, and nothing that depends on the text.",
        code=whole04.PEAK_LORE),
    "peak-one-block": _wrong(
        PEAK, BOTH, "The activations of one block.",
        "model.layers * block", "block"),
    "peak-gradients-at-the-loss": _wrong(
        PEAK, BOTH, "At the loss there are no gradients yet.",
        '"at the loss": base', '"at the loss": base + stays["gradients"]'),
    "peak-embedding-once": _wrong(
        PEAK, BOTH, "A tied embedding gets two gradients, which are added.",
        "(2 * embedding if model.tied else 0)", "0"),
    "peak-embedding-twice": _wrong(
        PEAK, BOTH, "The two are added into a third tensor, not one into the other.",
        "(2 * embedding if model.tied else 0)", "(embedding if model.tied else 0)"),
    "peak-embedding-always-thrice": _wrong(
        PEAK, BOTH, "An embedding that is not the head gets one gradient.",
        "(2 * embedding if model.tied else 0)", "2 * embedding"),
    "peak-fp32-gradients-in-backward": _wrong(
        PEAK, BOTH, "With master weights the gradients become fp32 in the update, not before.",
        '"at the end of the backward pass": base + stays["weights"]',
        '"at the end of the backward pass": base + stays["gradients"]'),
    "peak-16-bit-gradients-in-the-update": _wrong(
        PEAK, BOTH, "With master weights the optimizer reads fp32 gradients.",
        '"in the update": base + stays["gradients"]', '"in the update": base + stays["weights"]'),
    "peak-no-last-block": _wrong(
        PEAK, BOTH, "Where few words are known, what passes in the last block is more than the logits.",
        "base + kept + passing + embedding + down", "0"),
    "peak-no-passing": _wrong(
        PEAK, BOTH, "Nothing passes in the last block.",
        "base + kept + passing", "base + kept"),
    "peak-masters-forgotten": _wrong(
        PEAK, BOTH, "The master weights of the dictionary are left out.",
        ' + stays["master_weights"]', ""),
    "peak-no-last-norm-no-head-no-passing": _wrong(
        PEAK, BOTH, "Only blocks and logits: norm, head's input and gradient, and what passes, all left out together.",
        " + norm + head", "", " + passing + embedding + down", ""),
    "peak-no-last-norm": _wrong(
        PEAK, BOTH, "The norm behind the last block is left out.",
        " + norm + head", " + head"),
    "peak-no-head-input": _wrong(
        PEAK, BOTH, "The head keeps its input.",
        " + norm + head", " + norm"),
    "peak-no-head-gradient": _wrong(
        PEAK, BOTH, "The head's gradient is complete before the last block runs backward.",
        " + passing + embedding", " + passing"),
    "peak-no-down-gradient": _wrong(
        PEAK, BOTH, "The gradient of down's weights is there before those of gate and up.",
        " + embedding + down", " + embedding"),
    "peak-as-floats": _wrong(
        PEAK, BOTH, "Bytes are whole numbers.",
        "12 * tokens * model.vocab", "12.0 * tokens * model.vocab"),
    "peak-in-mib": _wrong(
        PEAK, BOTH, "MiB instead of bytes.",
        "return {", "return {name: count // 2**20 for name, count in {",
        "stays[\"gradients\"],\n}", "stays[\"gradients\"],\n}.items()}"),
    "conversations-decimal-gb": _wrong(
        TALKS, BOTH, "24 GB on the box of a GPU are 24 GiB.",
        "gpu * 2**30", "gpu * 10**9"),
    "conversations-keys-only": _wrong(
        TALKS, BOTH, "Values are kept beside the keys.",
        "2 * model.layers", "model.layers"),
    "conversations-all-heads": _wrong(
        TALKS, BOTH, "Query heads that share keys share their cache.",
        "tokens * model.keys", "tokens * model.queries"),
    "conversations-hidden": _wrong(
        TALKS, BOTH, "The textbook's 2 × layers × hidden is for models whose heads all have their own keys.",
        "tokens * model.keys", "tokens * model.hidden"),
    "conversations-16-bits": _wrong(
        TALKS, HIDDEN, "2 bytes a value, whatever the format.",
        "* itemsize", "* 2"),
    "conversations-no-reserve": _wrong(
        TALKS, BOTH, "The context and the gaps are forgotten.",
        "(gpu * 2**30 - 838 * 2**20) / 1.08", "gpu * 2**30"),
    "conversations-gaps-before-the-context": _wrong(
        TALKS, BOTH, "Gaps lie in what is left after the context.",
        "(gpu * 2**30 - 838 * 2**20) / 1.08", "gpu * 2**30 / 1.08 - 838 * 2**20"),
    "conversations-gaps-as-a-share-of-the-rest": _wrong(
        TALKS, BOTH, "8 % of the tensors are less than 8 % of what is left.",
        "/ 1.08", "* 0.92"),
    "conversations-without-weights": _wrong(
        TALKS, BOTH, "The weights take no room.",
        " - weights", ""),
    "conversations-rounded": _wrong(
        TALKS, BOTH, "Half a conversation is none.",
        "int(room // cache)", "round(room / cache)"),
    "conversations-below-zero": _wrong(
        TALKS, BOTH, "Where not even the weights fit, the answer is 0.",
        "max(0, int(room // cache))", "int(room // cache)"),
}
