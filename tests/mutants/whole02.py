"""Wrong answers to exercises 3 and 4 of lab 02, for `lab02`: the right answer with a piece or two of it changed."""

from __future__ import annotations

BOTH, HIDDEN, VISIBLE, SKIPS = ("test", "hidden"), ("hidden",), ("test",), ("hidden-skip",)

_STATE = "scaler.growth_tracker = 0\n    "
_TWICE = 'if scaler.unscaled:\n    raise RuntimeError("the gradients of this step have been unscaled already")\n'
_NARROW = (
    "if any(grad.dtype != torch.float32 for grad in found):\n"
    '    raise ValueError("unscale in fp32: copy the gradients first")\n'
)
_FIRST = 'if not scaler.unscaled:\n    raise RuntimeError("call unscale_ first")\n'
_FINITE = "not all(bool(grad.isfinite().all()) for"
_DIVIDE = "for grad in found:\n    grad.div_(scaler.scale)"

UNSCALE = {
    "unscale-only-infinities": (
        "NaN is no infinity: inf - inf inside backward leaves NaNs, and they pass.",
        BOTH, (_FINITE, "any(bool(grad.isinf().any()) for"),
    ),
    "unscale-compares-the-maximum": (
        "Every comparison with NaN is false, so a NaN is never too large.",
        BOTH, (_FINITE, "any(bool(grad.abs().max() > 3.4e38) for"),
    ),
    "unscale-positive-infinity": (
        "A gradient can overflow to minus infinity too.", BOTH, (_FINITE, "any(bool((grad == float('inf')).any()) for"),
    ),
    "unscale-finite-sum": (
        "The sum of finite numbers can overflow: a good step is thrown away.",
        HIDDEN, ("bool(grad.isfinite().all())", "bool(grad.sum().isfinite())"),
    ),
    "unscale-last-gradient-decides": (
        "Each parameter overwrites the verdict on those before it.",
        BOTH, (f"scaler.found_inf = {_FINITE} grad in found)\n", ""),
        (_DIVIDE, _DIVIDE.replace("grad.div_", "scaler.found_inf = not bool(grad.isfinite().all())\n    grad.div_")),
    ),
    "unscale-verdict-sticks": (
        "After the first overflow every later step counts as overflowed.",
        HIDDEN, (_FINITE, f"scaler.found_inf or {_FINITE}"),
    ),
    "unscale-a-copy": (
        "The quotient is a new tensor: a second copy of all gradients, and the old one stays scaled.",
        VISIBLE, ("found = [", "parameters = list(parameters)\nfound = ["),
        (_DIVIDE, "for p in parameters:\n    p.grad = None if p.grad is None else p.grad / scaler.scale"),
    ),
    "unscale-multiplies": ("The gradients are scaled twice instead of unscaled.", BOTH, ("grad.div_", "grad.mul_")),
    "unscale-twice": ("Clip, then step: both unscale, and the gradients are S times too small.", HIDDEN, (_TWICE, "")),
    "unscale-forgets-that-it-did": ("Nothing records the division.", VISIBLE, ("scaler.unscaled = True\n", "")),
    "unscale-in-fp16": ("An fp16 quotient underflows again: what the scale saved is lost.", HIDDEN, (_NARROW, "")),
    "unscale-refuses-too-late": (
        "It complains when the gradients have been divided already.",
        HIDDEN, (_NARROW, ""), (_DIVIDE, _DIVIDE + f"\n{_NARROW}"),
    ),
    "unscale-walks-twice": (
        "model.parameters() is a generator: the second loop finds it empty and divides nothing.",
        HIDDEN, (_DIVIDE, "for p in parameters:\n    if p.grad is not None:\n        p.grad.div_(scaler.scale)"),
    ),
    "unscale-needs-every-gradient": ("None has no values.", BOTH, (" if p.grad is not None", "")),
    "unscale-returns-on-overflow": (
        "It returns before it has divided, and nobody can finish the step.",
        VISIBLE, (_DIVIDE, f"if scaler.found_inf:\n    return True\n{_DIVIDE}"),
    ),
    "unscale-divides-good-steps-only": (
        "After an overflow all gradients stay scaled.",
        VISIBLE, ("for grad in found:\n", "for grad in () if scaler.found_inf else found:\n"),
    ),
    "unscale-stops-at-the-overflow": (
        "Those behind the first bad gradient stay scaled.",
        VISIBLE, ("    grad.div_", "    if not grad.isfinite().all():\n        break\n    grad.div_"),
    ),
    "unscale-marks-before-it-refuses": (
        "It says that it has divided, and then refuses to.", HIDDEN, (_NARROW, f"scaler.unscaled = True\n{_NARROW}"),
    ),
    "unscale-clears-the-news-first": (
        "A refused second call wipes out what the first has found.",
        HIDDEN, (_TWICE, f"scaler.found_inf = False\n{_TWICE}"),
    ),
    "unscale-refuses-fp16-only": (
        "bf16 rounds the quotient too.", HIDDEN, ("grad.dtype != torch.float32", "grad.dtype == torch.float16"),
    ),
    "unscale-stacks-nothing": (
        "Without any gradient there is nothing to stack.",
        HIDDEN, (f"{_FINITE} grad in found)", "bool(torch.stack([grad.isfinite().all() for grad in found]).all())"),
        ("found_inf = bool", "found_inf = not bool"),
    ),
}  # fmt: skip
FINISH = {
    "finish-without-skip": (
        "The scale is lowered, but the infinite gradients go into the weights.",
        BOTH, ("    scaler.skipped += 1\n", "    optimizer.step()\n    scaler.skipped += 1\n"),
    ),
    "finish-tracker-survives-overflow": (
        "Good steps are counted in all instead of in a row: the scale grows straight back into overflow.",
        BOTH, (f"{_STATE}return False", "return False"),
    ),
    "finish-tracker-survives-growth": (
        "Once the interval is reached, the scale doubles at every step.",
        HIDDEN, (f"{_STATE}grown", "grown"), ("growth_tracker == scaler", "growth_tracker >= scaler"),
    ),
    "finish-grows-once": ("The tracker passes the interval for good.", HIDDEN, (f"{_STATE}grown", "grown")),
    "finish-grows-one-step-late": (
        "The interval is counted one step too long.", BOTH, ("growth_tracker == scaler", "growth_tracker > scaler"),
    ),
    "finish-backs-off-after-growth": (
        "Growth and back-off in one step cancel: the scale only ever falls.",
        BOTH, ("scaler.scale = grown\n", "scaler.scale = grown * scaler.backoff_factor\n"),
    ),
    "finish-fixed-factors": (
        "Halving and doubling are the defaults; the factors are the scaler's.",
        HIDDEN, ("*= scaler.backoff_factor", "/= 2"), ("* scaler.growth_factor", "* 2"),
    ),
    "finish-never-shrinks": ("It overflows again at every later step.", BOTH, ("*= scaler.backoff_factor", "*= 1")),
    "finish-grows-to-infinity": (
        "Python's floats hold 2^128, GradScaler's fp32 does not: times an fp32 loss it is infinite.",
        HIDDEN, ("torch.finfo(torch.float32).max", "torch.finfo(torch.float64).max"),
    ),
    "finish-does-not-count": ("Nobody learns how many steps were thrown away.", BOTH, ("skipped += 1", "skipped += 0")),
    "finish-stays-unscaled": ("The next unscale_ refuses to work.", BOTH, ("scaler.unscaled = False\n", "")),
    "finish-trusts-the-caller": ("Scaled gradients reach the optimizer without a word.", HIDDEN, (_FIRST, "")),
    "finish-complains-too-late": (
        "It raises after the optimizer has read the scaled gradients.",
        HIDDEN, (_FIRST, ""), ("scaler.unscaled = False\n", "ready, scaler.unscaled = scaler.unscaled, False\n"),
        ("optimizer.step()\n", "optimizer.step()\n" + _FIRST.replace("scaler.unscaled", "ready")),
    ),
    "finish-stays-unscaled-after-overflow": (
        "After a skipped step the next unscale_ refuses to work.",
        HIDDEN, ("scaler.unscaled = False\n", ""), ("optimizer.step()", "optimizer.step()\nscaler.unscaled = False"),
    ),
    "finish-clears-the-news": (
        "Who asks afterwards whether the step had overflowed hears that it had not.",
        HIDDEN, ("    scaler.skipped += 1\n", "    scaler.skipped += 1\n    scaler.found_inf = False\n"),
    ),
    "finish-counts-on-at-the-end": (
        "The count starts anew only where the scale has grown.",
        HIDDEN, (f"{_STATE}grown", "grown"), ("growth_tracker == scaler", "growth_tracker >= scaler"),
        ("scaler.scale = grown\n", "scaler.scale, scaler.growth_tracker = grown, 0\n"),
    ),
    "finish-counts-by-remainder": (
        "The right steps grow, but the count never starts anew.",
        HIDDEN, (f"{_STATE}grown", "grown"),
        ("growth_tracker == scaler.growth_interval", "growth_tracker % scaler.growth_interval == 0"),
    ),
}  # fmt: skip
