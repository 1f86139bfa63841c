"""Wrong answers to lab 02 that look right: each loses exactly the graded cells named here.

Each is the lab's own answer with a piece or two of it changed.
"""

from __future__ import annotations

from labkit.grading import Lab
from labkit.grading.lab import region
from labkit.paths import LESSONS

from .whole02 import BOTH, FINISH, HIDDEN, SKIPS, UNSCALE, VISIBLE

LAB = "02-mixed-precision"

_BACKWARD = "scaler.scale_loss(loss).backward()"
_CALL = "scaler.unscale_(masters)"
_CLIP = "nn.utils.clip_grad_norm_(masters, max_norm)"
# Answers that get round `scaler.step`'s refusal of gradients that were not unscaled: by hand, or not at all.
_GRADS = "[m.grad for m in masters if m.grad is not None]"
_CHECKED = f"scaler.unscaled, scaler.found_inf = True, scaling.nonfinite({_GRADS})"
_BY_HAND = f"scaler.unscaled = True\nfor grad in {_GRADS}:\n    grad /= scaler.scale"
_FREED = "    weight.grad = None\n"


def _wrong(exercise: str, answers: dict[str, tuple]) -> dict[str, dict]:
    """Mutants of one exercise: name -> (why, which tests it loses, (old, new) pieces of the right answer)."""
    made, solution = {}, Lab.read(LESSONS / LAB / "lab.ipynb").exercise(exercise).solution
    for name, (why, tests, *pieces) in answers.items():
        code = region(solution.source) if solution else ""
        for old, new in pieces:
            # A piece that is not there would leave the right answer in place.
            assert old in code, f"{name}: {old!r} does not occur"
            code = code.replace(old, new)
        made[name] = {"exercise": exercise, "code": code, "loses": [f"{exercise}-{t}" for t in tests], "why": why}
    return made


_SHARES = {
    "shares-tie-at-zero": ("2^-25 is a tie, and 0 is the even neighbour: it underflows.", HIDDEN, ("<= fmt", "< fmt")),
    "shares-flush-to-zero": (
        "Everything below the smallest normal number is called zero, as if there were no subnormals.",
        BOTH, ("<= fmt.smallest_subnormal / 2", "< fmt.smallest_normal"),
    ),
    "shares-lost-and-subnormal": ("What has become zero is counted as subnormal too.", BOTH, (" & ~lost", "")),
    "shares-infinite-above-max": (
        "Up to 65520 a value rounds down to 65504.",
        BOTH, (">= fmt.max + fmt.eps * 2.0 ** (fmt.max_exponent - 1)", "> fmt.max"),
    ),
    "shares-tie-at-the-top": ("65520 is a tie, and 65504 is odd: it goes to infinity.", HIDDEN, (">= fmt", "> fmt")),
    "shares-count-zeros": ("Zeros count: absent words look like a loss.", BOTH, ("values[values != 0]", "values")),
    "shares-drop-zeros-after-scaling": (
        "A product that fp32 itself rounds to zero leaves the count, so its loss is not seen.",
        HIDDEN, ("values[values != 0].double().abs() * scale", "(values * scale).abs()\nsizes = sizes[sizes != 0]"),
    ),
    "shares-product-in-fp32": ("The product is rounded to fp32 first.", HIDDEN, (".double().abs() *", ".abs() *")),
    "shares-positive-only": ("A negative value lies below every border.", BOTH, (".abs()", "")),
    "shares-without-scale": ("The loss scale is not applied.", BOTH, (" * scale", "")),
    "shares-always-fp16": (
        "A cast to fp16 answers for fp16, whichever format was asked for.",
        HIDDEN, ("sizes <= fmt.smallest_subnormal / 2", "sizes.half() == 0"),
        ("(sizes < fmt.smallest_normal)", "(sizes < 2.0**-14)"), (">= fmt.max + fmt.eps", ">= 65520 + 0 * fmt.eps"),
    ),
    "shares-divided-borders": (
        "A border divided by 3 is rounded to fp32 when fp32 values are compared with it.",
        HIDDEN, (".double().abs() * scale", ".abs()"), ("smallest_subnormal / 2", "smallest_subnormal / 2 / scale"),
        ("smallest_normal)", "smallest_normal / scale)"),
        (">= fmt.max + fmt.eps", ">= fmt.max / scale + fmt.eps / scale"),
    ),
    "shares-of-nothing": ("The mean of no values is NaN.", HIDDEN, ("not sizes.numel()", "False")),
}  # fmt: skip
_WINDOW = {
    "window-keeps-all": ("The smallest value of all decides, always.", BOTH, ("sizes[lost]", "sizes[0]")),
    "window-loses-one-more": (
        "Rounding the allowed count up gives away more than the share that was allowed.",
        HIDDEN, ("int(lose * len(sizes))", "round(lose * len(sizes))"),
    ),
    "window-loses-one-less": ("int(0.29 * 100) is 28.", HIDDEN, ("lost += (lost + 1) / len(sizes) <= lose\n", "")),
    "window-share-of-zeros-too": (
        "The share is taken of all values, zeros included, so that more of the others may be lost.",
        HIDDEN, ("len(sizes)", "values.numel()"), ("sizes[lost]", "sizes[min(lost, sizes.numel() - 1)]"),
    ),
    "window-everything-normal": (
        "Subnormal values are not lost; asking for normal ones moves the lower end by ten powers of two.",
        BOTH, ("zero, _, infinite", "_, zero, infinite"), ("> zero", ">= zero"),
    ),
    "window-tie-below": ("A value on the lower border rounds to zero.", HIDDEN, ("> zero", ">= zero")),
    "window-below-max": ("65519 rounds down to 65504: no overflow.", HIDDEN, ("< infinite", "<= fmt.max")),
    "window-signed": ("Without magnitudes a negative value is the smallest.", BOTH, (".abs()", "")),
    "window-crossed": ("Where the ends cross there is no window.", BOTH, (" if low <= high else None", "")),
    "window-of-one-scale": ("low and high may be equal.", HIDDEN, ("low <= high", "low < high")),
    "window-share-in-fp32": (
        "In fp32 one value of ten is a little more than 0.1 of them.",
        HIDDEN, ("lost = int(lose * len(sizes))\n", "shares = (torch.arange(len(sizes)) / len(sizes)).tolist()\n"),
        ("lost += (lost + 1) / len(sizes) <= lose\n", "lost = max(k for k, s in enumerate(shares) if s <= lose)\n"),
    ),
    "window-rounded-logarithms": (
        "A value just above a power of two has that power's logarithm in fp32.",
        HIDDEN, ("zero, _", "import math\n\nzero, _"), ("values[values != 0].double()", "values[values != 0]"),
        ("next(k for k in range(-300, 300) if smallest * 2.0**k > zero)",
         "math.floor(math.log2(zero) - torch.log2(sizes[lost]).item()) + 1"),
        ("next(k for k in range(300, -300, -1) if largest * 2.0**k < infinite)",
         "math.ceil(math.log2(infinite) - torch.log2(sizes[-1]).item()) - 1"),
    ),
    "window-always-fp16": (
        "The borders of fp16 serve no other format.", HIDDEN, ("gradients.borders(fmt)", "2.0**-25, 2.0**-14, 65520.0"),
    ),
}  # fmt: skip
_MASTERS = {
    "masters-of-rounded-weights": (
        "Converted first, copied second: the masters begin with fp16's eleven bits.",
        BOTH, ("masters = [", "model.half()\nmasters = ["),
    ),
    "masters-are-the-weights": (
        ".float() of an fp32 tensor is the tensor itself, so that half() rounds the masters too.",
        BOTH, ("nn.Parameter(p.detach().float().clone())", "p.float()"),
    ),
    "masters-alias": (
        "Masters and weights are the same memory: there is no second copy at all.",
        BOTH, ("masters = [", "model.half()\nmasters = ["), (".float().clone()", ""),
    ),
    "masters-weights-stay-fp32": (
        "Weights that are rounded but stored in fp32: twice the bytes, and no fp16 forward.",
        BOTH, ("model.half()", "for p in model.parameters():\n    p.data = p.data.half().float()"),
    ),
    "masters-of-a-copy": (
        "A copy is converted; the caller's model stays in fp32.",
        BOTH, ("model.half()", "import copy\nmodel = copy.deepcopy(model).half()"),
    ),
    "masters-part-of-a-graph": (
        "clone() is an operation: its result is no leaf, and an optimizer refuses it.",
        HIDDEN, ("nn.Parameter(p.detach().float().clone())", "p.float().clone()"),
    ),
    "masters-untie": (
        "Module by module, a shared weight becomes two.", HIDDEN,
        ("model.half()", "for module in model.modules():\n"
        "    for name, p in list(module.named_parameters(recurse=False)):\n"
        "        setattr(module, name, nn.Parameter(p.detach().half()))"),
    ),
    "masters-of-what-trains": (
        "A frozen weight has no master, and all behind it get another's.",
        HIDDEN, ("in model.parameters()]", "in model.parameters() if p.requires_grad]"),
    ),
    "masters-in-the-weights-format": ("Those of bf16 weights are bf16.", HIDDEN, (".float().clone()", ".clone()")),
}  # fmt: skip
_RECIPE = {
    "recipe-without-skip": (
        "Infinite gradients go into moments and masters, and stay there.",
        SKIPS, ("if scaler.step(optimizer.step):\n    with", "optimizer.step()\nif True:\n    with"),
    ),
    "recipe-zeros-instead-of-skip": (
        "A step with gradients of zero is no skipped step: moments decay, momentum moves the weights.",
        SKIPS, (_CALL, f"bad = {_CALL}\nscaler.found_inf = False\nfor master in masters if bad else ():\n"
        "    master.grad = None if master.grad is None else torch.zeros_like(master)"),
        ("scaler.update()", "scaler.found_inf = bad\nscaler.update()"),
    ),
    "recipe-skip-keeps-the-scale": (
        "Returning early leaves out scaler.update(): the same scale overflows for ever.",
        SKIPS, (_CALL, f"if {_CALL}:\n    optimizer.zero_grad()\n    return loss.item()"),
    ),
    "recipe-skip-keeps-the-gradients": (
        "Returning early leaves infinite gradients behind.",
        SKIPS, (_CALL, f"if {_CALL}:\n    scaler.update()\n    return loss.item()"),
    ),
    "recipe-only-infinities": (
        "A step whose gradients are NaN is made.",
        SKIPS, (_CALL, f"{_CALL}\n"
        "scaler.found_inf = any(bool(m.grad.isinf().any()) for m in masters if m.grad is not None)"),
    ),
    "recipe-scaled-loss": (
        "The loss in the log is S times too large and jumps with the scale.",
        VISIBLE, (_BACKWARD, "loss = scaler.scale_loss(loss)\nloss.backward()"),
    ),
    "recipe-clips-before-unscaling": (
        "The norm of scaled gradients is S times too large: every step is clipped to next to nothing.",
        BOTH, (f"{_CALL}\n{_CLIP}", f"{_CLIP}\n{_CALL}"),
    ),
    "recipe-clips-nothing": ("max_norm is not used.", BOTH, (_CLIP, "")),
    "recipe-unscales-in-fp16": (
        "Divided before it is copied, a small gradient underflows after all.",
        HIDDEN, ("weight.grad.float()", "(weight.grad / scaler.scale).float()"), (_CALL, _CHECKED),
    ),
    "recipe-unscales-twice": (
        "Divided by hand and by the scaler: the gradients are S times too small, and AdamW hides it.",
        BOTH, ("weight.grad.float()", "weight.grad.float() / scaler.scale"),
    ),
    "recipe-never-unscales": ("AdamW forgives a constant factor, clipping does not.", BOTH, (_CALL, _CHECKED)),
    "recipe-forgets-to-unscale": (
        "Scaled gradients go to the optimizer, and nothing looks for infinities: the step refuses.",
        BOTH + SKIPS, (_CALL, ""),
    ),
    "recipe-looks-for-nothing": (
        "Divided by hand, and nobody asks whether a gradient is infinite or NaN.", SKIPS, (_CALL, _BY_HAND),
    ),
    "recipe-scales-after-backward": (
        "Scaling what backward has already rounded to zero saves nothing.",
        HIDDEN + SKIPS, (_BACKWARD, "loss.backward()"), ("grad.float()", "grad.float() * scaler.scale"),
    ),
    "recipe-updates-the-scale-first": (
        "The gradients are divided by another scale than the loss was multiplied with.",
        HIDDEN + SKIPS, ("scaler.update()\n", ""), (_CALL, f"scaler.update()\n{_CALL}"),
    ),
    "recipe-never-updates-the-scale": ("After one overflow all overflow.", VISIBLE + SKIPS, ("scaler.update()", "")),
    "recipe-never-rounds": ("The model never hears what the masters learn.", VISIBLE, ("weight.copy_(master)", "pass")),
    "recipe-rounds-the-masters": (
        "Masters that are rounded to fp16 after every step lose updates like fp16 weights.",
        HIDDEN, ("weight.copy_(master)", "master.copy_(weight.copy_(master))"),
    ),
    "recipe-masters-from-the-weights": (
        "Read anew from fp16 weights at each step, the masters remember nothing.",
        HIDDEN + SKIPS, (_FREED, f"{_FREED}    master.data.copy_(weight.data)\n"),
    ),
    "recipe-gradients-pile-up": ("backward adds to the gradients that are there.", VISIBLE + SKIPS, (_FREED, "")),
    "recipe-masters-keep-gradients": ("They lie about in fp32.", VISIBLE + SKIPS, ("optimizer.zero_grad()", "")),
    "recipe-zeros-for-no-gradient": (
        "A gradient of zeros is not no gradient: weight decay moves what took no part.",
        BOTH, ("None if weight.grad is None", "torch.zeros_like(master) if weight.grad is None"),
    ),
    "recipe-forward-in-fp32": (
        "In fp32 the recipe is not needed, and neither time nor activations are saved.",
        BOTH + SKIPS, ("loss = loss_of", "model.float()\nloss = loss_of"), ("return", "model.half()\nreturn"),
    ),
    "recipe-two-forwards": (
        "The loss for the log comes from a second forward pass.",
        HIDDEN, ("scaler.scale_loss(loss)", "scaler.scale_loss(loss_of(model))"),
    ),
}  # fmt: skip

MUTANTS = {
    **_wrong("ex1-shares", _SHARES),
    **_wrong("ex2-window", _WINDOW),
    **_wrong("ex3-unscale", UNSCALE),
    **_wrong("ex4-finish", FINISH),
    **_wrong("ex5-masters", _MASTERS),
    **_wrong("ex6-recipe", _RECIPE),
}
