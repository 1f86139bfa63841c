"""Wrong answers to lab 12 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole12
from .answers import Answers

LAB = "12-qlora"
_answers = Answers(LAB)
_wrong = _answers.wrong

PRODUCT, TRAINED, BYTES = "ex1-product", "ex2-trained", "ex3-bytes"
CONVERSATION, LOSS, PLACES = "ex4-conversation", "ex5-loss", "ex6-places"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

_READ, _READ_BACK = "F.linear(x, codes.dequantize(x.dtype))", "gradient @ codes.dequantize(gradient.dtype)"
_BELOW = 'if {"lora_A", "lora_B"} & set(name.split(".")[:-1]):'
_SUM = "return Product.apply(x) + scaling * F.linear(h, B.to(x.dtype))"

RIGHT = {
    "product-checkpointed": (PRODUCT, whole12.CHECKPOINTED),
    "product-checkpointed-reentrant": (PRODUCT, whole12.REENTRANT),
    "product-codes-on-the-context": (PRODUCT, whole12.ON_THE_CONTEXT),
    "product-all-in-one": (PRODUCT, whole12.ALL_IN_ONE),
    "trained-by-modules": (TRAINED, whole12.BY_MODULES),
    "bytes-with-ceil": (BYTES, whole12.CEIL),
    "conversation-by-hand": (CONVERSATION, whole12.BY_HAND),
    "loss-gathered": (LOSS, whole12.GATHERED),
    "places-by-slices": (PLACES, whole12.SLICES),
    "places-by-owners": (PLACES, whole12.OWNERS),
}

# fmt: off
MUTANTS = {
    "product-dense-kept": _wrong(
        PRODUCT, BOTH, "Autograd keeps the dense weight until the backward pass.",
        "Product.apply(x)", "F.linear(x, codes.dequantize(x.dtype))"),
    "product-dense-on-the-context": _wrong(
        PRODUCT, BOTH, "The dense weight hangs on the context, where no hook sees it.",
        "return " + _READ, "ctx.dense = codes.dequantize(x.dtype)\n        return F.linear(x, ctx.dense)",
        _READ_BACK, "gradient @ ctx.dense"),
    "product-dense-on-the-context-in-16-bits": _wrong(
        PRODUCT, HIDDEN, "The dense weight hangs on the context if it is bfloat16, where it seems small.",
        "return " + _READ,
        "ctx.dense = codes.dequantize(x.dtype) if x.dtype == torch.bfloat16 else None\n"
        "        return F.linear(x, codes.dequantize(x.dtype) if ctx.dense is None else ctx.dense)",
        _READ_BACK, "gradient @ (codes.dequantize(gradient.dtype) if ctx.dense is None else ctx.dense)"),
    "product-read-in-32-bits": _wrong(
        PRODUCT, HIDDEN, "Read back in float32, and copied to bfloat16.",
        _READ, "F.linear(x, codes.dequantize(torch.float32).to(x.dtype))",
        _READ_BACK, "gradient @ codes.dequantize(torch.float32).to(gradient.dtype)"),
    "product-widened": _wrong(
        PRODUCT, HIDDEN, "Read back in bfloat16, and copied to float32 for the product.",
        _READ, "F.linear(x.float(), codes.dequantize(x.dtype).float()).to(x.dtype)"),
    "product-no-single-vector": _wrong(
        PRODUCT, HIDDEN, "An x of one dimension has none to flatten.",
        "t.reshape(-1, t.shape[-1])", "t.flatten(0, -2)", code=whole12.ALL_IN_ONE),
    "product-half-kept": _wrong(
        PRODUCT, BOTH, "A copy in 16 bits is kept for backward: half of the dense bytes are still dense.",
        code=whole12.HALF_KEPT),
    "product-kept-in-pieces": _wrong(
        PRODUCT, BOTH, "The dense weight is kept in two pieces.", code=whole12.PIECES),
    "product-remembered-beside": _wrong(
        PRODUCT, BOTH, "The dense weight is remembered on the codes, for the next time.",
        code=whole12.REMEMBERED),
    "product-formed": _wrong(
        PRODUCT, BOTH, "Ŵ + s B A is formed, and kept.", code=whole12.FORMED),
    "product-update-formed": _wrong(
        PRODUCT, BOTH, "B A is formed in both directions, and thrown away.", code=whole12.UPDATE_FORMED),
    "product-gradient-formed": _wrong(
        PRODUCT, BOTH, "Backward forms the gradient of the frozen weight, and takes A's and B's from it.",
        code=whole12.GRADIENT_FORMED),
    "product-input-detached": _wrong(
        PRODUCT, BOTH, "No gradient passes through the codes: only the adapter's reaches x.",
        "Product.apply(x)", "Product.apply(x.detach())"),
    "product-adapter-detached": _wrong(
        PRODUCT, BOTH, "The adapter's part of the gradient to x is lost.",
        "h = F.linear(x, A", "h = F.linear(x.detach(), A"),
    "product-no-scale": _wrong(
        PRODUCT, BOTH, "The scale is forgotten.", "scaling * F.linear", "F.linear"),
    "product-scale-on-both": _wrong(
        PRODUCT, BOTH, "The base is scaled as well.",
        _SUM, "return scaling * (Product.apply(x) + F.linear(h, B.to(x.dtype)))"),
    "product-in-float32": _wrong(
        PRODUCT, BOTH, "The adapter computes in float32, and so the output is.",
        "h = F.linear(x, A.to(x.dtype))\n", "h = F.linear(x.to(A.dtype), A)\n",
        "F.linear(h, B.to(x.dtype))", "F.linear(h, B)"),
    "product-gradient-transposed": _wrong(
        PRODUCT, BOTH, "The gradient is multiplied by the transposed weight: right for no matrix, and square ones run.",
        "return gradient @ codes.dequantize(gradient.dtype)", "return gradient @ codes.dequantize(gradient.dtype).T"),
    "product-read-twice": _wrong(
        PRODUCT, BOTH, "The codes are read back twice in the forward pass.",
        "return F.linear(x, codes.dequantize(x.dtype))",
        "assert codes.dequantize(x.dtype).dim() == 2\n        return F.linear(x, codes.dequantize(x.dtype))"),
    "product-read-in-vain": _wrong(
        PRODUCT, HIDDEN, "The codes are read back for a gradient that nobody needs.",
        code=whole12.IN_VAIN),
    "product-one-weight-for-all": _wrong(
        PRODUCT, HIDDEN, "Codes kept on a name that all layers share: backward takes the last layer's.",
        "return " + _READ, "global last_codes\n        last_codes = codes\n        return " + _READ,
        _READ_BACK, "gradient @ last_codes.dequantize(gradient.dtype)"),
    "trained-everything-wide": _wrong(
        TRAINED, BOTH, "The whole model becomes float32, norms and embedding too.",
        "model.requires_grad_(False)", "model.float().requires_grad_(False)"),
    "trained-in-16-bits": _wrong(
        TRAINED, BOTH, "The adapters stay in bfloat16, where small updates get lost.",
        "        parameter.data = parameter.data.float()\n", ""),
    "trained-not-frozen": _wrong(
        TRAINED, BOTH, "Embedding and norms still train.", "model.requires_grad_(False)\n", ""),
    "trained-codes-too": _wrong(
        TRAINED, BOTH, "Everything is asked to train, codes among it.",
        "model.requires_grad_(False)", "for p in model.parameters():\n    p.requires_grad_(True)"),
    "trained-a-alone": _wrong(
        TRAINED, BOTH, "B stays zero for ever.", '{"lora_A", "lora_B"} &', '{"lora_A"} &'),
    "trained-substring": _wrong(
        TRAINED, HIDDEN, "Looks for lora_ anywhere in the name: frozen norms called so train.",
        _BELOW, 'if "lora_A" in name or "lora_B" in name:'),
    "trained-own-name": _wrong(
        TRAINED, HIDDEN, "A frozen parameter whose own name is lora_A trains.", "[:-1]", ""),
    "trained-children-only": _wrong(
        TRAINED, BOTH, "Looks at the next module only: lora_A.default.weight stays frozen.",
        _BELOW, 'if name.split(".")[-2] in ("lora_A", "lora_B"):'),
    "trained-between-dots": _wrong(
        TRAINED, HIDDEN, "An adapter right on the model has no dot before it.",
        _BELOW, 'if ".lora_A." in name or ".lora_B." in name:'),
    "trained-tied-twice": _wrong(
        TRAINED, HIDDEN, "A parameter that two adapters share is in the optimizer twice.",
        "model.named_parameters()", "model.named_parameters(remove_duplicate=False)"),
    "trained-all-in-the-optimizer": _wrong(
        TRAINED, BOTH, "The optimizer holds the frozen parameters too.",
        "AdamW(trained,", "AdamW(model.parameters(),"),
    "trained-default-rate": _wrong(
        TRAINED, HIDDEN, "The rate is left at AdamW's default.", "AdamW(trained, lr=rate)", "AdamW(trained)"),
    "trained-copies": _wrong(
        TRAINED, BOTH, "The optimizer holds float32 copies that no forward pass reads.",
        "trained.append(parameter.requires_grad_())",
        "parameter.requires_grad_()\n        trained.append(torch.nn.Parameter(parameter.detach().clone()))"),
    "trained-drawn-anew": _wrong(
        TRAINED, BOTH, "A's values are drawn anew.",
        "parameter.data.float()", "torch.randn(parameter.shape)"),
    "bytes-a-code-a-byte": _wrong(
        BYTES, BOTH, "A byte for each code: two share one.", "-(-values // 2)", "values"),
    "bytes-scales-in-32-bits": _wrong(
        BYTES, BOTH, "Without double quantization: 4 bytes a scale.",
        "blocks + 4 * -(-blocks // 256) + 4", "4 * blocks"),
    "bytes-no-second-scales": _wrong(
        BYTES, BOTH, "The scales of the scales are forgotten.", "+ 4 * -(-blocks // 256) + 4", "+ 4"),
    "bytes-no-mean": _wrong(
        BYTES, BOTH, "The mean of the scales is forgotten.", "-(-blocks // 256) + 4", "-(-blocks // 256)"),
    "bytes-rounded-down": _wrong(
        BYTES, BOTH, "Rounds down: right for even sizes only.", "-(-values // 2)", "values // 2"),
    "bytes-blocks-rounded-down": _wrong(
        BYTES, BOTH, "A started block of values is left out.", "-(-values // 64)", "values // 64"),
    "bytes-groups-rounded-down": _wrong(
        BYTES, BOTH, "A started group of scales is left out.", "4 * -(-blocks // 256)", "4 * (blocks // 256)"),
    "bytes-groups-rounded-down-to-one": _wrong(
        BYTES, BOTH, "A started group counts only if it is the first.",
        "4 * -(-blocks // 256)", "4 * max(1, blocks // 256)"),
    "bytes-groups-to-the-nearest": _wrong(
        BYTES, HIDDEN, "A group that is less than half full is left out.",
        "4 * -(-blocks // 256)", "4 * max(1, round(blocks / 256))"),
    "bytes-of-the-sum": _wrong(
        BYTES, BOTH, "All matrices as one.", code=whole12.AS_ONE),
    "bytes-adapters-in-16": _wrong(
        BYTES, BOTH, "Adapters in 16 bits.", "2 * rest + 4 * trained", "2 * rest + 2 * trained"),
    "bytes-adapters-forgotten": _wrong(
        BYTES, BOTH, "The adapters are not among the weights.", "2 * rest + 4 * trained", "2 * rest"),
    "bytes-rest-in-32": _wrong(
        BYTES, BOTH, "The rest in 32 bits.", "2 * rest", "4 * rest") | {"at_least": True},
    "bytes-one-moment": _wrong(
        BYTES, BOTH, "One moment in the place of two.", "8 * trained", "4 * trained"),
    "bytes-floats": _wrong(
        BYTES, BOTH, "Right numbers that are no integers.", "2 * rest + 4", "2.0 * rest + 4"),
    "conversation-end-not-learned": _wrong(
        CONVERSATION, BOTH, "The end is read and not learned: the model never stops.",
        "[-100] * len(asked) + learned", "[-100] * len(asked) + answer + [-100]"),
    "conversation-no-end": _wrong(
        CONVERSATION, BOTH, "There is no end at all.", "learned = [*answer, end]", "learned = [*answer]"),
    "conversation-end-taken-for-given": _wrong(
        CONVERSATION, HIDDEN, "An answer that ends in the end's token gets no end of its own.",
        "learned = [*answer, end]", "learned = list(answer)\nif learned[-1:] != [end]:\n    learned.append(end)"),
    "conversation-prompt-learned": _wrong(
        CONVERSATION, BOTH, "The question is learned as well.",
        "[-100] * len(asked) + learned", "asked + learned"),
    "conversation-shifted": _wrong(
        CONVERSATION, BOTH, "Labels are shifted here already: the loss shifts them again.",
        "[-100] * len(asked) + learned", "[-100] * (len(asked) - 1) + learned + [-100]"),
    "conversation-first-token-lost": _wrong(
        CONVERSATION, BOTH, "The first token of the answer is not learned.",
        "[-100] * len(asked) + learned", "[-100] * (len(asked) + 1) + learned[1:]"),
    "conversation-one-too-many": _wrong(
        CONVERSATION, BOTH, "The prompt's last token is learned.",
        "[-100] * len(asked) + learned", "[-100] * (len(asked) - 1) + asked[-1:] + learned"),
    "conversation-beginning-kept": _wrong(
        CONVERSATION, BOTH, "The end of the question is cut off, where it says what is asked.",
        "prompt[-left:]", "prompt[:left]"),
    "conversation-answer-cut": _wrong(
        CONVERSATION, BOTH, "The answer is cut where the row ends.", code=whole12.ANSWER_CUT),
    "conversation-end-forgotten-in-the-room": _wrong(
        CONVERSATION, BOTH, "The end's place is not counted: rows are one too long.",
        "room - len(learned)", "room - len(answer)"),
    "conversation-no-prompt": _wrong(
        CONVERSATION, BOTH, "An answer without any question passes, and prompt[-0:] is all of it.",
        "if left < 1:", "if left < 0:"),
    "conversation-never-refused": _wrong(
        CONVERSATION, BOTH, "What does not fit is returned too long.", "if left < 1:", "if False:"),
    "conversation-one-token-refused": _wrong(
        CONVERSATION, HIDDEN, "One token of the prompt is taken for none.", "if left < 1:", "if left < 2:"),
    "conversation-input-changed": _wrong(
        CONVERSATION, BOTH, "The caller's list gets the end appended.",
        "learned = [*answer, end]", "answer.append(end)\nlearned = answer"),
    "conversation-end-ignored-by-value": _wrong(
        CONVERSATION, BOTH, "Every token like the end is ignored, the end too.",
        "[-100] * len(asked) + learned", "[-100] * len(asked) + [-100 if t == end else t for t in learned]"),
    "loss-no-shift": _wrong(
        LOSS, BOTH, "Each place is compared with itself.",
        "logits[:, :-1].float(), labels[:, 1:]", "logits.float(), labels"),
    "loss-shifted-backwards": _wrong(
        LOSS, BOTH, "Each place predicts the one before it.",
        "logits[:, :-1].float(), labels[:, 1:]", "logits[:, 1:].float(), labels[:, :-1]"),
    "loss-over-rows": _wrong(
        LOSS, BOTH, "The mean of the rows' means: a token of a short answer counts more.",
        code=whole12.ROW_MEANS) | {"at_least": True},
    "loss-sum": _wrong(
        LOSS, BOTH, "The sum in the place of the mean.", "ignore_index=-100", 'ignore_index=-100, reduction="sum"'),
    "loss-mean-over-all-places": _wrong(
        LOSS, BOTH, "Divided by all places, learned or not.",
        "return F.cross_entropy(before.flatten(0, 1), after.flatten(), ignore_index=-100)",
        'return F.cross_entropy(before.flatten(0, 1), after.flatten(), ignore_index=-100, reduction="none").mean()'),
    "loss-ignored-as-word-0": _wrong(
        LOSS, BOTH, "What is not learned counts as word 0.",
        "after.flatten(), ignore_index=-100", "after.flatten().clamp(min=0)"),
    "loss-word-0-ignored": _wrong(
        LOSS, BOTH, "Word 0 is ignored as well.",
        "after.flatten(), ignore_index=-100", "after.flatten().clamp(min=0), ignore_index=0") | {"at_least": True},
    "loss-flattened-first": _wrong(
        LOSS, BOTH, "Flattened before the shift: a row's last place predicts the next row's first.",
        "logits[:, :-1].float(), labels[:, 1:]", "logits.float().flatten(0, 1)[:-1], labels.flatten()[1:]",
        "before.flatten(0, 1)", "before"),
    "loss-in-16-bits": _wrong(
        LOSS, HIDDEN, "Computed in bfloat16.", "logits[:, :-1].float()", "logits[:, :-1]"),
    "places-run-on": _wrong(
        PLACES, BOTH, "Positions run on through the row.",
        "torch.arange(width) - starts[number]", "torch.arange(width)"),
    "places-from-one": _wrong(
        PLACES, BOTH, "Positions begin at 1.",
        "torch.arange(width) - starts[number]", "torch.arange(width) - starts[number] + 1"),
    "places-not-causal": _wrong(
        PLACES, BOTH, "A token sees the future of its conversation.", ".tril()", ""),
    "places-not-blocked": _wrong(
        PLACES, BOTH, "Causal, and across conversations.",
        "(number[:, None] == number).tril()", "torch.ones(width, width, dtype=torch.bool).tril()"),
    "places-earlier-ones-too": _wrong(
        PLACES, BOTH, "Earlier conversations are seen, later ones not.",
        "(number[:, None] == number)", "(number[:, None] >= number)"),
    "places-not-itself": _wrong(
        PLACES, BOTH, "A token does not see itself, and the first sees nothing.", ".tril()", ".tril(-1)"),
    "places-transposed": _wrong(
        PLACES, BOTH, "Who looks and who is looked at are exchanged.", ".tril()", ".triu()"),
    "places-padding-blind": _wrong(
        PLACES, BOTH, "Padding sees nothing: its softmax is not a number.",
        "return positions, (number[:, None] == number).tril()",
        "seen = (number[:, None] == number).tril()\nseen[sum(lengths):] = False\nreturn positions, seen"),
    "places-padding-together": _wrong(
        PLACES, BOTH, "Padding is one more conversation.", code=whole12.PADDING_TOGETHER),
    "places-padding-counted-on": _wrong(
        PLACES, BOTH, "Padding belongs to the last conversation.", code=whole12.PADDING_WITH_THE_LAST),
    "places-too-long-is-cut": _wrong(
        PLACES, BOTH, "What does not fit is cut off in silence.",
        code=whole12.CUT),
    "places-full-row-refused": _wrong(
        PLACES, HIDDEN, "A row without padding is refused.", "if sum(lengths) > width:", "if sum(lengths) >= width:"),
    "places-added-mask": _wrong(
        PLACES, BOTH, "A mask of floats, where booleans are asked for.",
        "(number[:, None] == number).tril()", "(number[:, None] == number).tril().float()"),
}
# fmt: on
