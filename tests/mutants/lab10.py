"""Wrong answers to lab 10 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole10
from .answers import Answers

LAB = "10-lora"
_answers = Answers(LAB)
_wrong = _answers.wrong

LAYER, MERGE, BYTES, GROUPS, TARGETS = "ex1-layer", "ex2-merge", "ex3-bytes", "ex4-groups", "ex5-targets"
BOTH, HIDDEN = ("test", "hidden"), ("hidden",)

_ADAPTER = "F.linear(h, self.B)"
_SUM = "return self.linear(x) + alpha / rank * F.linear(h, self.B)"

RIGHT = {
    "layer-other-spelling": (LAYER, whole10.SEQUENTIAL),
    "layer-scale-on-h": (LAYER, _answers.right(LAYER).replace(_SUM, whole10.SCALED_H)),
    "layer-as-pefts": (LAYER, whole10.PEFTS),
    "merge-addmm": (MERGE, whole10.ADDMM),
    "bytes-tensor-by-tensor": (BYTES, whole10.LOOPS),
    "groups-one-for-each": (GROUPS, whole10.ONE_EACH),
    "targets-all-expressions": (TARGETS, whole10.IN_TURN),
}

# fmt: off
MUTANTS = {
    "layer-b-random": _wrong(
        LAYER, BOTH, "B does not start at zero: the model starts somewhere else.",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))\n        nn.init.normal_(self.B, std=1e-2)"),
    "layer-a-zero": _wrong(
        LAYER, BOTH, "Both are zero: neither ever gets a gradient.",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))", "nn.init.zeros_(self.A)"),
    "layer-swapped-start": _wrong(
        LAYER, BOTH, "A starts at zero and B at random: it starts unchanged, and is not what was asked for.",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))",
        "nn.init.zeros_(self.A)\n        nn.init.normal_(self.B)"),
    "layer-a-constant": _wrong(
        LAYER, BOTH, "All entries of A are equal: all its rows learn the same.",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))", "nn.init.constant_(self.A, 0.1)"),
    "layer-no-scale": _wrong(
        LAYER, BOTH, "The scale is forgotten.", "alpha / rank * F.linear", "F.linear"),
    "layer-alpha": _wrong(
        LAYER, BOTH, "α in the place of α / r.", "alpha / rank *", "alpha *"),
    "layer-rslora": _wrong(
        LAYER, BOTH, "α / √r, which is another method.", "alpha / rank *", "alpha / rank**0.5 *"),
    "layer-whole-division": _wrong(
        LAYER, BOTH, "α // r: right where r divides α.", "alpha / rank *", "alpha // rank *"),
    "layer-not-frozen": _wrong(
        LAYER, BOTH, "The weight trains as well.", "linear.requires_grad_(False)", "linear"),
    "layer-bias-trains": _wrong(
        LAYER, ("test",), "The weight is frozen and the bias is not.",
        "self.linear, self.dropout = linear.requires_grad_(False), nn.Dropout(dropout)",
        "self.linear, self.dropout = linear, nn.Dropout(dropout)\n        linear.weight.requires_grad_(False)"),
    "layer-copy": _wrong(
        LAYER, BOTH, "A copy of the weight: twice the memory that LoRA is to save.",
        "self.linear, self.dropout = linear.requires_grad_(False),",
        "import copy\n        self.linear, self.dropout = copy.deepcopy(linear).requires_grad_(False),"),
    "layer-formed": _wrong(
        LAYER, BOTH, "W + s B A is formed in every pass, and so is its gradient.",
        "h = F.linear(self.dropout(x), self.A)", "whole = self.linear.weight + alpha / rank * self.B @ self.A",
        _SUM, "return F.linear(x, whole, self.linear.bias)"),
    "layer-product-formed": _wrong(
        LAYER, BOTH, "B A is formed, and multiplied with x by itself.",
        "h = F.linear(self.dropout(x), self.A)", "update = self.B @ self.A",
        _ADAPTER, "F.linear(self.dropout(x), update)"),
    "layer-dropout-everywhere": _wrong(
        LAYER, BOTH, "The frozen weight sees dropped values too.",
        "h = F.linear(self.dropout(x), self.A)", "x = self.dropout(x)\n        h = F.linear(x, self.A)"),
    "layer-no-dropout": _wrong(
        LAYER, BOTH, "Dropout is never applied.", "self.dropout(x)", "x"),
    "layer-dropout-on-h": _wrong(
        LAYER, BOTH, "Drops what comes out of A, after it was summed: on r values, without effect on the input's.",
        "F.linear(self.dropout(x), self.A)", "F.linear(x, self.A)", _ADAPTER,
        "(F.linear(h, self.B) if not self.training else F.linear(h * (torch.rand(()) > dropout), self.B))"),
    "layer-dropout-always": _wrong(
        LAYER, BOTH, "Drops in evaluation too.", "self.dropout(x)", "F.dropout(x, dropout)"),
    "layer-dropout-unscaled": _wrong(
        LAYER, BOTH, "What is left is not scaled by 1 / (1 - p).",
        "self.dropout(x)", "(x * (torch.rand_like(x) >= dropout) if self.training else x)"),
    "layer-float32": _wrong(
        LAYER, BOTH, "A and B are float32 whatever the weight is.",
        "linear.weight.new_empty(rank, linear.in_features)", "torch.empty(rank, linear.in_features)",
        "linear.weight.new_zeros(linear.out_features, rank)", "torch.zeros(linear.out_features, rank)"),
    "layer-bias-twice": _wrong(
        LAYER, BOTH, "The bias is added on both paths.", _ADAPTER, "F.linear(h, self.B, self.linear.bias)"),
    "layer-detached": _wrong(
        LAYER, BOTH, "The adapter reads x without its graph: the layers below miss a part of their gradient.",
        "self.dropout(x)", "self.dropout(x).detach()"),
    "layer-frozen-path-detached": _wrong(
        LAYER, BOTH, "No gradient flows through the frozen layer, which is not what frozen means.",
        "return self.linear(x) +", "return self.linear(x).detach() +"),
    "layer-no-module": _wrong(
        LAYER, BOTH, "A function, which holds no parameters.",
        "return Lora()", "return lambda x: linear(x)"),
    "layer-a-huge": _wrong(
        LAYER, BOTH, "A starts so large that B's first steps throw the model off.",
        "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))", "nn.init.normal_(self.A, std=100)"),
    "layer-needs-a-bias": _wrong(
        LAYER, BOTH, "Fails where the layer has no bias.",
        "return self.linear(x) +", "return x @ linear.weight.t() + linear.bias +"),
    "layer-two-dimensions": _wrong(
        LAYER, BOTH, "Right for x of two dimensions only.", _ADAPTER, "(self.B @ h.t()).t()"),
    "layer-transposed": _wrong(
        LAYER, BOTH, "Multiplies from the left: fails where x is a single vector.",
        "F.linear(self.dropout(x), self.A)", "self.A @ self.dropout(x).mT", _ADAPTER, "(self.B @ h).mT"),
    "layer-formed-in-evaluation": _wrong(
        LAYER, BOTH, "B A is formed wherever the layer does not train.", *whole10.FORMED_IN_EVALUATION),
    "layer-dropout-by-feature": _wrong(
        LAYER, BOTH, "One mask for all tokens.", "self.dropout(x)", "x * self.dropout(torch.ones_like(x[:1]))"),
    "layer-dropout-by-token": _wrong(
        LAYER, BOTH, "Whole tokens are dropped.", "self.dropout(x)", "x * self.dropout(torch.ones_like(x[..., :1]))"),
    "layer-bias-copied": _wrong(
        LAYER, ("test",), "The weight is kept, the bias is another one.", *whole10.BIAS_COPIED),
    "merge-twice": _wrong(
        MERGE, BOTH, "Merging twice adds twice.",
        "if layer.merged == merged:\n    return\n", ""),
    "merge-no-scale": _wrong(
        MERGE, BOTH, "The scale is forgotten.", "layer.scaling * (", "("),
    "merge-unmerge-without-scale": _wrong(
        MERGE, BOTH, "The way out forgets the scale.",
        "(update if merged else -update)", "(update if merged else -update / layer.scaling)"),
    "merge-only-the-flag": _wrong(
        MERGE, BOTH, "The way out sets the flag and leaves the weight.",
        "(update if merged else -update)", "(update if merged else 0)"),
    "merge-flag-forgotten": _wrong(
        MERGE, BOTH, "The flag stays: the adapter counts twice.", "layer.merged = merged", "pass"),
    "merge-new-parameter": _wrong(
        MERGE, BOTH, "A new parameter: whoever holds the old one is left behind.",
        "layer.weight.copy_(layer.weight.float() + (update if merged else -update))",
        "whole = layer.weight.float() + (update if merged else -update)\n"
        "    layer.weight = nn.Parameter(whole.to(layer.weight.dtype), requires_grad=False)"),
    "merge-with-a-graph": _wrong(
        MERGE, BOTH, "The weight hangs on A and B from now on.",
        "with torch.no_grad():", "if True:"),
    "merge-update-rounded": _wrong(
        MERGE, BOTH, "The update is rounded before it is added, and the sum again.",
        "layer.weight.copy_(layer.weight.float() + (update if merged else -update))",
        "layer.weight.add_((update if merged else -update).to(layer.weight.dtype))"),
    "merge-a-b-swapped": _wrong(
        MERGE, BOTH, "A and B in the wrong order: the shapes do not fit.",
        "layer.B.float() @ layer.A.float()", "layer.A.float() @ layer.B.float()"),
    "merge-clears-the-adapter": _wrong(
        MERGE, BOTH, "The adapter is emptied: it can never be taken out again.",
        "layer.merged = merged", "layer.merged = merged\nlayer.B.data.zero_()"),
    "merge-keeps-the-original": _wrong(
        MERGE, BOTH, "A second copy of every weight: what LoRA saves is spent on it.", code=whole10.KEEPS_A_COPY),
    "merge-keeps-a-copy-unused": _wrong(
        MERGE, BOTH, "Subtracts, and keeps the sum all the same.",
        "layer.merged = merged", "layer.merged, layer.original = merged, layer.weight.detach().clone()"),
    "merge-new-tensor": _wrong(
        MERGE, BOTH, "The parameter gets another tensor: views and optimizers hold the old one.",
        "layer.weight.copy_(layer.weight.float() + (update if merged else -update))",
        "whole = layer.weight.float() + (update if merged else -update)\n"
        "    layer.weight.data = whole.to(layer.weight.dtype)"),
    "merge-product-in-16-bits": _wrong(
        MERGE, BOTH, "A and B are rounded before they are multiplied.",
        "layer.B.float() @ layer.A.float()",
        "(layer.B.to(layer.weight.dtype) @ layer.A.to(layer.weight.dtype)).float()"),
    "bytes-a-only": _wrong(
        BYTES, BOTH, "Counts A and forgets B.", "rank * (outputs + inputs)", "rank * inputs"),
    "bytes-twice-the-input": _wrong(
        BYTES, BOTH, "2 r in: right for square matrices only.", "rank * (outputs + inputs)", "2 * rank * inputs"),
    "bytes-gradients-of-all": _wrong(
        BYTES, BOTH, "Gradients of the frozen matrices too.",
        '"gradients": 4 * trained', '"gradients": 4 * (trained + matrices)'),
    "bytes-one-moment": _wrong(
        BYTES, BOTH, "One moment in the place of two.", "8 * trained", "4 * trained"),
    "bytes-no-step-count": _wrong(
        BYTES, BOTH, "AdamW's count of steps is forgotten.", " + 4 * 2 * len(shapes)", ""),
    "bytes-one-count-a-matrix": _wrong(
        BYTES, BOTH, "One count of steps a matrix, though A and B are two tensors.",
        "4 * 2 * len(shapes)", "4 * len(shapes)"),
    "bytes-adapters-not-held": _wrong(
        BYTES, BOTH, "The adapters are not counted among the weights.",
        "stored * (matrices + frozen) + 4 * trained", "stored * (matrices + frozen)"),
    "bytes-rest-forgotten": _wrong(
        BYTES, BOTH, "The other frozen values are forgotten.", "(matrices + frozen)", "matrices"),
    "bytes-adapters-as-stored": _wrong(
        BYTES, BOTH, "Adapters in the dtype of the frozen weights.",
        "stored * (matrices + frozen) + 4 * trained", "stored * (matrices + frozen + trained)"),
    "bytes-all-four": _wrong(
        BYTES, BOTH, "Four bytes for every weight.", "stored * (matrices", "4 * (matrices"),
    "bytes-floats": _wrong(
        BYTES, BOTH, "Right numbers that are no integers.",
        "stored * (matrices + frozen)", "1.0 * stored * (matrices + frozen)"),
    "operations-formed": _wrong(
        BYTES, BOTH, "B A is formed in the forward pass.",
        '"forward": large + thin', '"forward": large + 2 * rank * matrices'),
    "operations-all-weights": _wrong(
        BYTES, BOTH, "The frozen matrices get their gradients as well.",
        '"backward": large + 2 * thin', '"backward": 2 * large + 2 * thin'),
    "operations-no-gradient-of-x": _wrong(
        BYTES, BOTH, "Backward as if nothing trained below.",
        '"backward": large + 2 * thin', '"backward": 2 * thin'),
    "operations-half-of-the-thin": _wrong(
        BYTES, BOTH, "Backward has A's and B's gradients and forgets those of h and x.",
        '"backward": large + 2 * thin', '"backward": large + thin'),
    "operations-multiplications": _wrong(
        BYTES, BOTH, "Multiplications alone, without the additions.",
        "2 * tokens * matrices, 2 * tokens * trained", "tokens * matrices, tokens * trained"),
    "groups-ratio-on-a": _wrong(
        GROUPS, BOTH, "The high rate goes to A.", '"lora_B"', '"lora_A"'),
    "groups-ratio-on-both": _wrong(
        GROUPS, BOTH, "Both matrices get the high rate.",
        '"lora_B" in name.split(".")', 'any(part.startswith("lora_") and len(part) == 6 for part in name.split("."))'),
    "groups-ratio-divides": _wrong(
        GROUPS, BOTH, "The rate of B is divided by the ratio.", "ratio * rate", "rate / ratio"),
    "groups-no-ratio": _wrong(
        GROUPS, BOTH, "One rate for all.", "ratio * rate if fast else rate", "rate"),
    "groups-biases-with-b": _wrong(
        GROUPS, BOTH, "Everything of one dimension learns at B's rate, as in peft.", code=whole10.PEFTS_GROUPS),
    "groups-substring": _wrong(
        GROUPS, HIDDEN, "Looks for lora_B anywhere in the name, where an adapter may be called so.",
        '"lora_B" in name.split(".")', '"lora_B" in name'),
    "groups-between-dots": _wrong(
        GROUPS, HIDDEN, "A name may begin with it.", '"lora_B" in name.split(".")', '".lora_B." in name'),
    "groups-vectors-alone-stay": _wrong(
        GROUPS, HIDDEN, "A single number decays.", "p.dim() > 1", "p.dim() != 1"),
    "groups-letter": _wrong(
        GROUPS, BOTH, "Looks for a part that ends with B.",
        '"lora_B" in name.split(".")', 'any(part.endswith("B") for part in name.split("."))'),
    "groups-labkits-names": _wrong(
        GROUPS, BOTH, "The last part but one: peft has .weight behind the adapter's name.",
        '"lora_B" in name.split(".")', '"lora_B" in name.split(".")[-2:-1]'),
    "groups-matrices-alone-decay": _wrong(
        GROUPS, HIDDEN, "What has three dimensions does not decay.", "p.dim() > 1", "p.dim() == 2"),
    "groups-frozen-too": _wrong(
        GROUPS, BOTH, "Frozen parameters are in the groups.", "if p.requires_grad:", "if True:"),
    "groups-adapters-only": _wrong(
        GROUPS, BOTH, "Nothing but A and B: the head and the biases are left behind.",
        "if p.requires_grad:", 'if p.requires_grad and ("lora_A" in name or "lora_B" in name):'),
    "groups-decay-for-all": _wrong(
        GROUPS, BOTH, "Biases and magnitudes decay too.", code=whole10.TWO_GROUPS),
    "groups-empty": _wrong(
        GROUPS, BOTH, "Four groups, whatever is in them.", code=whole10.EMPTY_GROUPS),
    "groups-twice": _wrong(
        GROUPS, BOTH, "A parameter is in two groups.", code=whole10.ITERATORS),
    "groups-tied-twice": _wrong(
        GROUPS, HIDDEN, "A shared parameter comes once for each of its names.",
        "model.named_parameters()", "model.named_parameters(remove_duplicate=False)"),
    "targets-no-dot": _wrong(
        TARGETS, BOTH, "A name's end need not be cut at a dot: o_proj finds two_proj.",
        'f".{path}".endswith(f".{name}")', "path.endswith(name)"),
    "targets-contains": _wrong(
        TARGETS, BOTH, "A name anywhere in the path.", 'f".{path}".endswith(f".{name}")', "name in path"),
    "targets-last-part-only": _wrong(
        TARGETS, BOTH, "Compares the last part alone: a name with a dot finds nothing.",
        'f".{path}".endswith(f".{name}")', 'path.rpartition(".")[2] == name'),
    "targets-needs-a-dot": _wrong(
        TARGETS, HIDDEN, "A path that is the name itself has no dot before it.",
        'f".{path}".endswith(f".{name}")', 'path.endswith(f".{name}")'),
    "targets-name-as-expression": _wrong(
        TARGETS, HIDDEN, "A name is taken for an expression, whose dots match anything.",
        'f".{path}".endswith(f".{name}")', 're.search(rf"(^|\\.){name}$", path)'),
    "targets-search": _wrong(
        TARGETS, BOTH, "The expression need match a part only.", "re.fullmatch", "re.search"),
    "targets-match": _wrong(
        TARGETS, BOTH, "The expression need match the beginning only.", "re.fullmatch", "re.match"),
    "targets-dollar": _wrong(
        TARGETS, HIDDEN, "The $ belongs to the last alternative alone.",
        "re.fullmatch(targets, path)", 're.match(targets + "$", path)'),
    "targets-first-match": _wrong(
        TARGETS, HIDDEN, "A shorter alternative is found first.", "if re.fullmatch(targets, path)",
        "if (m := re.match(targets, path)) and m.end() == len(path)"),
    "targets-linear-afterwards": _wrong(
        TARGETS, HIDDEN, "An expression that matches a norm is no error.", *whole10.LINEAR_AFTERWARDS),
    "targets-any-head": _wrong(
        TARGETS, HIDDEN, "Leaves out whatever is called head.", "if layer is not head", 'if not path.endswith("head")'),
    "targets-any-module": _wrong(
        TARGETS, BOTH, "Modules that are not linear are found as well.",
        "if isinstance(layer, nn.Linear)}", "if path}"),
    "targets-with-the-head": _wrong(
        TARGETS, BOTH, "The head gets an adapter too.", "if layer is not head]", "]"),
    "targets-head-needed": _wrong(
        TARGETS, HIDDEN, "Fails where there is no head.", 'getattr(model, "head", None)', "model.head"),
    "targets-one-is-enough": _wrong(
        TARGETS, BOTH, "A name that matches nothing passes as long as another one does.",
        "    if not matched:\n", "    if not any(matches.values()):\n"),
    "targets-name-by-name": _wrong(
        TARGETS, BOTH, "In the order of the names, not of the model.",
        "return [path for path in paths if any(path in matched for matched in matches.values())]",
        "return [path for matched in matches.values() for path in paths if path in matched]"),
    "targets-empty-expression": _wrong(
        TARGETS, BOTH, "An expression that matches nothing gives an empty list.",
        "    if not found:\n        raise ValueError(f\"no linear layer matches {targets}\")\n", ""),
    "targets-empty-is-an-error": _wrong(
        TARGETS, HIDDEN, "A model without linear layers is an error for all-linear too.",
        "return [path for path, layer in paths.items() if layer is not head]",
        "found = [path for path, layer in paths.items() if layer is not head]\n"
        "    if not found:\n        raise ValueError('all-linear')\n    return found"),
}
# fmt: on
