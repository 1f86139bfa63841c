"""Wrong answers to lab 03 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole03
from .answers import Answers

LAB = "03-training-stability"
_right = Answers(LAB).right

_QUERY = "(q / (alpha * math.sqrt(q.shape[-1]))) @ k.mT"
_MASK = "scores = scores.masked_fill(later, -math.inf)\n"
_VALUE = "    layer.self_attn.in_proj_weight[2 * width :] *= beta\n"
_ALONE = "((2 * m) ** 0.25, (8 * m) ** -0.25)"
_ROOT = "before.square().mean().sqrt()"

BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "softmax-by-where": ("ex1-softmax", whole03.BY_WHERE),
    "attention-scaled-queries": ("ex2-attention", whole03.SCALED_QUERIES),
    "shrink-by-function": ("ex3-shrink", whole03.BY_FUNCTION),
    "update-restored": ("ex6-update", whole03.RESTORED),
}


def _wrong(exercise: str, answers: dict[str, tuple]) -> dict[str, dict]:
    """Mutants of one exercise: name -> (why, which tests it loses, code or (old, new) pieces of the right answer)."""
    made = {}
    for name, (why, tests, *change) in answers.items():
        code = _right(exercise)
        for piece in change:
            old, new = (code, piece) if isinstance(piece, str) else piece
            # A piece that is not there would leave the right answer in place.
            assert old in code, f"{name}: {old!r} does not occur"
            code = code.replace(old, new)
        made[name] = {"exercise": exercise, "code": code, "loses": [f"{exercise}-{t}" for t in tests], "why": why}
    return made


_SOFTMAXES = {
    "softmax-naive": ("Without the shift exp(12) overflows.", BOTH, ("(scores - top)", "scores")),
    "softmax-shift-after-exp": (
        "Dividing by the largest power is the same on paper, but the powers overflow first.",
        BOTH, ("(scores - top).exp()", "scores.exp() / top.exp()"),
    ),
    "softmax-clamped": ("Cut off at 11, all large scores are equal.", BOTH, ("(scores - top)", "scores.clamp(max=11)")),
    "softmax-global-maximum": (
        "With one maximum for all rows, every power of a row far below it is 0.",
        BOTH, ("scores.amax(-1, keepdim=True)", "scores.amax()"),
    ),
    "softmax-of-the-library": (
        "torch's softmax does the exercise, and gives NaN for a row that is masked completely.",
        BOTH, "return torch.softmax(scores, dim=-1)",
    ),
    "softmax-in-float32": (
        "The task is to stay in fp16: the shift needs no wider format.",
        VISIBLE, ("top = scores.amax", "kept, scores = scores.dtype, scores.float()\ntop = scores.amax"),
        ("powers / total.masked_fill(total == 0, 1)", "(powers / total.masked_fill(total == 0, 1)).to(kept)"),
    ),
    "softmax-masked-row-nan": (
        "In a row that is masked completely -inf - (-inf) is NaN.",
        HIDDEN, ("top = top.masked_fill(top == -math.inf, 0)\n", ""),
    ),
    "softmax-masked-row-uniform": (
        "The smallest number in place of -inf makes a masked row attend evenly to what it must not see.",
        HIDDEN, ("top = scores.amax", "scores = scores.clamp(min=torch.finfo(fp16).min)\ntop = scores.amax"),
    ),
    "softmax-hides-nan": (
        "nan_to_num also turns rows that overflowed into zeros, so that nobody notices.",
        HIDDEN, ("powers / total.masked_fill(total == 0, 1)", "(powers / total).nan_to_num(0)"),
    ),
    "softmax-in-place": (
        "The caller's scores are shifted too.",
        HIDDEN, ("powers = (scores - top).exp()", "scores -= top\npowers = scores.exp()"),
    ),
    "softmax-always-fp16": (
        "Scores in another dtype come back in fp16.",
        HIDDEN, ("powers / total.masked_fill(total == 0, 1)", "(powers / total.masked_fill(total == 0, 1)).half()"),
    ),
    "softmax-masked-is-smallest": ("A masked score is level with the smallest real one.", HIDDEN, whole03.CLAMPED),
}  # fmt: skip
_ATTENTIONS = {
    "attention-alpha-not-restored": (
        "Scores that stay α times smaller give another, flatter attention.",
        BOTH, ("scores.float() * alpha", "scores.float()"),
    ),
    "attention-divides-the-product": (
        "The product has overflowed before it is divided.",
        BOTH, (_QUERY, "q @ k.mT / (alpha * math.sqrt(q.shape[-1]))"),
    ),
    "attention-root-after-the-product": (
        "q·k is larger than the score by the root of d, and overflows although the score fits.",
        BOTH, (_QUERY, "(q / alpha) @ k.mT / math.sqrt(q.shape[-1])"),
    ),
    "attention-alpha-twice": (
        "α divides query and key: the score is divided twice, and multiplied back once.",
        BOTH, ("k.mT", "(k / alpha).mT"),
    ),
    "attention-softmax-in-fp16": (
        "The score is enlarged in fp16, where it does not fit.", BOTH, ("scores.float() * alpha", "scores * alpha"),
    ),
    "attention-widened-late": (
        "Widening comes after what overflows.", BOTH, ("scores.float() * alpha", "(scores * alpha).float()"),
    ),
    "attention-line-1": (
        "The other line of the lecture: finite, but its powers are taken in fp16.",
        BOTH, ("scores.float() * alpha", "(scores - scores.amax(-1, keepdim=True)) * alpha"),
    ),
    "attention-all-in-float32": (
        "The products are made in float32, which costs what fp16 was to save.",
        BOTH, ("scores = (q", "q, k, v = q.float(), k.float(), v.float()\nscores = (q"),
        ("return weights.to(q.dtype) @ v", "return (weights @ v).half()"),
    ),
    "attention-of-the-library": (
        "The library's kernel has no use for α: right result, nothing written.",
        BOTH, "return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
    ),
    "attention-without-root": (
        "The root of d is missing: scores are too large and attention too sharp.",
        BOTH, ("alpha * math.sqrt(q.shape[-1])", "alpha"),
    ),
    "attention-sees-the-future": ("There is no mask.", BOTH, (_MASK, "")),
    "attention-masks-the-diagonal": (
        "A position must see itself; the first row has nothing else.", BOTH, (".triu(1)", ".triu(0)"),
    ),
    "attention-mask-of-minus-10000": (
        "A real score below -10000 loses against a masked one, as in the code published with GLM-130B.",
        BOTH, ("-math.inf", "-10000.0"),
    ),
    "attention-mask-of-zero": (
        "A score of 0 is no mask: it gets a weight like any other.", BOTH, ("-math.inf", "0.0"),
    ),
    "attention-masks-the-weights": (
        "Masked after the softmax the weights of a row no longer sum to 1.",
        BOTH, (_MASK, ""), ("return weights", "weights = weights.masked_fill(later, 0)\nreturn weights"),
    ),
    "attention-mask-of-the-smallest": (
        "The smallest number of fp16 is a score too.", HIDDEN, ("-math.inf", "torch.finfo(q.dtype).min"),
    ),
    "attention-mask-of-minus-1e9": (
        "With a large α a real score is smaller in fp32 too.",
        HIDDEN, (_MASK, ""), ("scores.float() * alpha", "(scores.float() * alpha).masked_fill(later, -1e9)"),
    ),
}  # fmt: skip
_SHRINKS = {
    "shrink-by-sum": (
        "The lecture's line: the gradient is right, and the forward pass is rounded.",
        BOTH, "rows = F.embedding(tokens, weight)\nreturn rows * alpha + rows.detach() * (1 - alpha)",
    ),
    "shrink-detaches-the-wrong-half": (
        "The gradient is multiplied by 1 - α.",
        BOTH, "rows = F.embedding(tokens, weight)\nreturn rows + (rows.detach() - rows) * alpha",
    ),
    "shrink-the-rows": ("The embedding itself becomes smaller.", BOTH, "return F.embedding(tokens, weight) * alpha"),
    "shrink-hook-on-the-weight": (
        "The hook on the matrix also shrinks what comes from a tied output, and each call adds another hook.",
        BOTH, ("rows.requires_grad", "rows.requires_grad and weight.is_leaf"), ("    rows.reg", "    weight.reg"),
    ),
    "shrink-one-hook-on-the-weight": (
        "One hook for ever keeps the first α, and shrinks every other use of the matrix.",
        BOTH, ("rows.requires_grad", "rows.requires_grad and not hasattr(weight, 'hook')"),
        ("    rows.reg", "    weight.hook = weight.reg"),
    ),
    "shrink-twice": ("The gradient is scaled twice.", BOTH, ("gradient * alpha", "gradient * alpha * alpha")),
    "shrink-fails-without-gradients": (
        "A tensor without a gradient takes no hook: evaluation fails.",
        VISIBLE, ("if rows.requires_grad:\n    ", ""),
    ),
    "shrink-fails-with-a-frozen-weight": (
        "Gradients are on, but this weight needs none.", VISIBLE, ("rows.requires_grad", "torch.is_grad_enabled()"),
    ),
    "shrink-by-difference": ("-0.0 becomes 0.0, and inf - inf is NaN.", HIDDEN, whole03.BY_DIFFERENCE),
}  # fmt: skip
_CONSTANT_SETS = {
    "constants-glm": ("Square roots for fourth roots: what GLM-130B did under the same name.", BOTH, ("0.25", "0.5")),
    "constants-swapped": (
        "α and β are exchanged.",
        BOTH, (_ALONE, "((8 * m) ** -0.25, (2 * m) ** 0.25)"),
        (_ALONE.replace("m", "n"), "((8 * n) ** -0.25, (2 * n) ** 0.25)"),
    ),
    "constants-count-sub-layers": (
        "The table counts layers; its factors 2 and 8 count the sub-layers already.",
        BOTH, ("n, m = encoder_layers, decoder_layers", "n, m = 2 * encoder_layers, 2 * decoder_layers"),
    ),
    "constants-beta-not-inverted": ("β makes weights smaller: its power is negative.", BOTH, ("** -0.25", "** 0.25")),
    "constants-decoder-beside-encoder": (
        "A decoder with cross-attention has three sub-layers a layer, not two.",
        HIDDEN, ("((3 * m) ** 0.25, (12 * m) ** -0.25)", _ALONE),
    ),
    "constants-sides": ("The fourth power belongs to the encoder's layers.", HIDDEN, ("(n**4 * m)", "(n * m**4)")),
    "constants-for-decoders-only": (
        "An encoder has constants as well.",
        BOTH, "if decoder_layers == 0:\n    raise ValueError\n"
        "return {'decoder': ((2 * decoder_layers) ** 0.25, (8 * decoder_layers) ** -0.25)}",
    ),
    "constants-none-for-a-missing-part": (
        "A part that the model lacks must not be in the result.",
        BOTH, ('return {"encoder": ((2', 'return {"decoder": None, "encoder": ((2'),
        ('return {"decoder": ((2', 'return {"encoder": None, "decoder": ((2'),
    ),
}  # fmt: skip
_LAYERS = {
    "layer-pre-ln": (
        "The norm stands before the branch: Pre-LN.",
        BOTH, ("layer.norm1(alpha * x + attend(layer, x))", "alpha * x + attend(layer, layer.norm1(x))"),
        ("layer.norm2(alpha * x + feed(layer, x))", "alpha * x + feed(layer, layer.norm2(x))"),
    ),
    "layer-alpha-on-the-branch": (
        "α makes the branch louder in place of the stream.",
        BOTH, ("alpha * x + attend", "x + alpha * attend"), ("alpha * x + feed", "x + alpha * feed"),
    ),
    "layer-alpha-once": ("The second sub-layer has no α.", BOTH, ("alpha * x + feed", "x + feed")),
    "layer-alpha-on-the-input": (
        "The branch reads a stream that is α times too loud.",
        BOTH, ("x = layer.norm1(alpha * x + attend", "x = alpha * x\n    x = layer.norm1(x + attend"),
    ),
    "layer-one-norm-for-both": (
        "Both sub-layers use the first norm; before training the two are equal, and nobody notices.",
        HIDDEN, ("layer.norm2", "layer.norm1"),
    ),
    "layer-beta-on-query-and-key": (
        "Query and key keep their size.", BOTH, ("in_proj_weight[2 * width :]", "in_proj_weight[:]"),
    ),
    "layer-beta-on-columns": (
        "The three matrices lie above each other, not side by side: the slice is empty.",
        BOTH, ("in_proj_weight[2 * width :]", "in_proj_weight[:, 2 * width :]"),
    ),
    "layer-beta-not-on-value": ("The value matrix is forgotten: it hides in a packed one.", BOTH, (_VALUE, "")),
    "layer-beta-on-last-matrices-only": (
        "The first feed-forward matrix gets β too.", BOTH, (" layer.linear1, layer.linear2)", " layer.linear2)"),
    ),
    "layer-beta-on-biases": (
        "β belongs to the matrices.",
        BOTH, ("matrix.weight *= beta", "matrix.weight *= beta\n        matrix.bias *= beta"),
    ),
    "layer-beta-at-every-pass": (
        "The weights shrink with every forward pass: β is for the initialization.",
        BOTH, (_VALUE, ""), ("        matrix.weight *= beta", "        pass"),
        ("def forward(x):\n", "def forward(x):\n    for p in (layer.self_attn.in_proj_weight[2 * width :], "
         "layer.self_attn.out_proj.weight, layer.linear1.weight, layer.linear2.weight):\n        p.data.mul_(beta)\n"),
    ),
    "layer-of-width-32": ("The width is built in.", HIDDEN, ("in_proj_weight[2 * width :]", "in_proj_weight[64:]")),
    "layer-new-parameters": ("An optimizer that holds the old ones trains nothing.", HIDDEN, whole03.NEW_PARAMETERS),
    "layer-of-a-copy": (
        "A copy is applied, and the layer never learns.",
        HIDDEN, ("def forward(x):\n", "layer = copy.deepcopy(layer)\n\ndef forward(x):\n"),
    ),
    "layer-freezes": (
        "The scaled matrices are frozen.", HIDDEN, ("weight *= beta", "weight.requires_grad_(False).mul_(beta)"),
    ),
    "layer-without-gradients": (
        "Nothing can be trained through it.", HIDDEN, ("def forward(x):", "@torch.no_grad()\ndef forward(x):"),
    ),
}  # fmt: skip
_UPDATES = {
    "update-sgd": (
        "SGD's first step depends on the size of the gradient, Adam's does not.",
        BOTH, ("optimizer(", "torch.optim.SGD("),
    ),
    "update-always-adam": (
        "The optimizer that was asked for is not used.", BOTH, ("optimizer(", "torch.optim.Adam("),
    ),
    "update-of-the-loss": (
        "The loss may hardly change where the output has turned over.",
        HIDDEN, ("twin(x) - before\n", "loss(twin(x)) - loss(before)\n"), ("before.sq", "loss(before).sq"),
    ),
    "update-absolute": ("Without the output's own size the number says nothing.", BOTH, (f" / {_ROOT}", "")),
    "update-magnitudes": ("Mean, not root mean square.", HIDDEN, (".square().mean().sqrt()", ".abs().mean()")),
    "update-over-the-new-output": (
        "The change is compared with the output after the step.", BOTH, (_ROOT, _ROOT.replace("before", "twin(x)")),
    ),
    "update-with-dropout": ("Two passes with dropout differ by themselves.", BOTH, (".eval()", "")),
    "update-on-the-model-itself": (
        "The measurement trains the model that it judges.", BOTH, ("copy.deepcopy(model).eval()", "model.eval()"),
    ),
    "update-restores-weights-only": (
        "Old gradients count, new ones stay behind, and the model is left in evaluation mode.",
        BOTH, ("copy.deepcopy(model).eval()", "model.eval()"),
        ("twin.zero_grad()", "kept = copy.deepcopy(twin.state_dict())"),
        ("- before\n", "- before\n    model.load_state_dict(kept)\n"),
    ),
    "update-after-the-step": (
        "Both outputs are taken after the step.", BOTH, ("change =", "before = twin(x)\n    change ="),
    ),
    "update-by-formula": ("There are more optimizers than Adam and SGD.", HIDDEN, whole03.BY_FORMULA),
    "update-ends-in-training": ("Evaluation mode is not found again.", HIDDEN, whole03.TRAIN_AT_THE_END),
    "update-one-mode-for-all": ("Each module has a mode of its own.", HIDDEN, whole03.ONE_MODE),
    "update-leaves-new-gradients": ("Where there was no gradient, there is one now.", HIDDEN, whole03.NEW_GRADIENTS),
}  # fmt: skip
MUTANTS = {
    **_wrong("ex1-softmax", _SOFTMAXES),
    **_wrong("ex2-attention", _ATTENTIONS),
    **_wrong("ex3-shrink", _SHRINKS),
    **_wrong("ex4-constants", _CONSTANT_SETS),
    **_wrong("ex5-layer", _LAYERS),
    **_wrong("ex6-update", _UPDATES),
}
