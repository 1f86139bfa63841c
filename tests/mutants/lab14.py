"""Wrong answers to lab 14 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole14
from .answers import Answers

LAB = "14-zeroth-order"
_answers = Answers(LAB)
_wrong = _answers.wrong

ESTIMATE, MEAN, TAU, STEP, PRICE = "ex1-estimate", "ex2-mean", "ex3-tau", "ex4-step", "ex5-price"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

_NORMAL = "torch.randn(x.shape, generator=generator, dtype=torch.promote_types(x.dtype, torch.float32))"
_TOTAL = "total.add_(u, alpha=x.numel() * (float(f(x + tau * u)) - here) / tau / n)"

RIGHT = {
    "estimate-by-normal": (ESTIMATE, whole14.NORMAL_RIGHT),
    "mean-divided-at-the-end": (MEAN, whole14.STACKED_WEIGHTS),
    "tau-by-a-loop": (TAU, whole14.NEXT_UP),
    "step-by-alpha": (STEP, whole14.BY_ALPHA),
    "step-product-first": (STEP, whole14.PRODUCT_FIRST),
    "step-slope-in-float32": (STEP, whole14.FLOAT32_SLOPE),
    "step-slope-stays-a-tensor": (STEP, whole14.TENSOR_SLOPE),
    "step-restored-in-finally": (STEP, whole14.FINALLY),
    "price-by-pairs": (PRICE, whole14.BY_PAIRS),
}

# fmt: off
MUTANTS = {
    "estimate-no-two": _wrong(
        ESTIMATE, BOTH, "Divided by τ and not by 2τ.", "/ (2 * tau)", "/ tau"),
    "estimate-not-divided": _wrong(
        ESTIMATE, BOTH, "The difference is not divided at all.",
        "(ahead - behind) / (2 * tau) * z",
        "(ahead - behind) * z"),
    "estimate-halves-only": _wrong(
        ESTIMATE, BOTH, "(…) / 2 * τ is not (…) / (2 τ).", "/ (2 * tau)", "/ 2 * tau"),
    "estimate-fresh-direction": _wrong(
        ESTIMATE, BOTH, "A fresh direction for the second value.",
        "behind = ", f"z = {_NORMAL}\nbehind = "),
    "estimate-forward": _wrong(
        ESTIMATE, BOTH, "A forward difference.", "(x - tau * z)", "x", "/ (2 * tau)", "/ tau"),
    "estimate-factor-d": _wrong(
        ESTIMATE, BOTH, "The sphere's factor d on normal directions.",
        "/ (2 * tau) * z", "/ (2 * tau) * z * x.numel()"),
    "estimate-uphill-down": _wrong(
        ESTIMATE, BOTH, "The sign is wrong.", "(ahead - behind)", "(behind - ahead)"),
    "estimate-uniform": _wrong(
        ESTIMATE, BOTH, "Uniform entries in ±√3, of variance 1, which are not normal.",
        _NORMAL, f"({_NORMAL.replace('randn', 'rand')} - 0.5) * 12**0.5"),
    "estimate-signs": _wrong(
        ESTIMATE, BOTH, "Entries ±1, where normal ones are asked for.",
        f"z = {_NORMAL}", f"z = {_NORMAL}.sign()"),
    "estimate-of-length-one": _wrong(
        ESTIMATE, BOTH, "z is divided by its length, without the factor d.",
        f"z = {_NORMAL}", f"z = {_NORMAL}\nz = z / z.norm()"),
    "estimate-not-times-z": _wrong(
        ESTIMATE, BOTH, "The slope alone, in every entry.", "/ (2 * tau) * z", "/ (2 * tau) * torch.ones_like(z)"),
    "estimate-sign-of-z": _wrong(
        ESTIMATE, BOTH, "The slope times the sign of z.", "/ (2 * tau) * z", "/ (2 * tau) * z.sign()"),
    "estimate-in-place": _wrong(
        ESTIMATE, BOTH, "x is moved there and back, which changes its last bits.", code=whole14.IN_PLACE),
    "estimate-not-moved-back": _wrong(
        ESTIMATE, BOTH, "x is left at the second point.",
        "behind = float(f((x - tau * z).to(x.dtype)))", "x -= tau * z\nbehind = float(f(x))"),
    "estimate-own-generator": _wrong(
        ESTIMATE, BOTH, "Drawn from torch's own generator.", "generator=generator, ", ""),
    "estimate-seeded-anew": _wrong(
        ESTIMATE, BOTH, "Seeded anew in each call: the same direction for ever.",
        "generator=generator", "generator=torch.Generator().manual_seed(0)"),
    "estimate-drawn-narrow": _wrong(
        ESTIMATE, BOTH, "z is drawn in the dtype of x.", "dtype=torch.promote_types(x.dtype, torch.float32)",
        "dtype=x.dtype"),
    "estimate-asked-wide": _wrong(
        ESTIMATE, BOTH, "f is asked in float32, though the weights are bfloat16.", "f((x + tau * z).to(x.dtype))",
        "f(x + tau * z)"),
    "estimate-always-double": _wrong(
        ESTIMATE, BOTH, "z is float64 for every x.", "torch.promote_types(x.dtype, torch.float32)", "torch.float64"),
    "estimate-values-subtracted-narrow": _wrong(
        ESTIMATE, HIDDEN, "bfloat16 values are subtracted and divided before they become floats.",
        "ahead = float(f((x + tau * z).to(x.dtype)))", "ahead = f((x + tau * z).to(x.dtype))",
        "behind = float(f((x - tau * z).to(x.dtype)))", "behind = f((x - tau * z).to(x.dtype))",
        "return (ahead - behind) / (2 * tau) * z", "return float((ahead - behind) / (2 * tau)) * z"),
    "estimate-for-vectors-only": _wrong(
        ESTIMATE, BOTH, "Right for vectors only.", "torch.randn(x.shape,", "torch.randn(len(x),"),
    "estimate-step-rounded": _wrong(
        ESTIMATE, BOTH, "τz is rounded to bfloat16 before it is added.",
        "(x + tau * z)", "(x + (tau * z).to(x.dtype))", "(x - tau * z)", "(x - (tau * z).to(x.dtype))"),
    "estimate-direction-rounded": _wrong(
        ESTIMATE, BOTH, "z is rounded to bfloat16 and made float32 again.",
        f"z = {_NORMAL}", f"z = {_NORMAL}.to(x.dtype)\nz = z.to(torch.promote_types(x.dtype, torch.float32))"),
    "estimate-flat-direction": _wrong(
        ESTIMATE, BOTH, "A flat z, which is added to a vector only.", "torch.randn(x.shape,", "torch.randn(x.numel(),"),
    "estimate-float16-not-widened": _wrong(
        ESTIMATE, HIDDEN, "Only bfloat16 is widened: z is float16 for a float16 x.",
        "torch.promote_types(x.dtype, torch.float32)", "torch.float32 if x.dtype == torch.bfloat16 else x.dtype"),
    "estimate-values-in-float32": _wrong(
        ESTIMATE, BOTH, "float64 values are rounded to float32 before they are subtracted.",
        "float(f((x + tau * z).to(x.dtype)))", "torch.as_tensor(f((x + tau * z).to(x.dtype))).float()",
        "float(f((x - tau * z).to(x.dtype)))", "torch.as_tensor(f((x - tau * z).to(x.dtype))).float()"),
    "mean-seeded-anew": _wrong(
        MEAN, HIDDEN, "Each direction sets the generator to a seed of its own: every call has the same ones.",
        "for _ in range(n):", "for i in range(n):\n    generator.manual_seed(i)"),
    "mean-own-generators": _wrong(
        MEAN, HIDDEN, "Each direction has a generator of its own, and none is the one that is given.",
        "for _ in range(n):", "for i in range(n):\n    generator = torch.Generator().manual_seed(i)"),
    "mean-generator-set-back": _wrong(
        MEAN, HIDDEN, "The generator is set back in the end: the next call has the same directions.",
        "for _ in range(n):", "state = generator.get_state()\nfor _ in range(n):",
        "return total", "generator.set_state(state)\nreturn total"),
    "mean-same-direction": _wrong(
        MEAN, BOTH, "Every direction is the same: the generator is set back.",
        "for _ in range(n):", "state = generator.get_state()\nfor _ in range(n):\n    generator.set_state(state)"),
    "mean-one-direction": _wrong(
        MEAN, BOTH, "One direction for all n.",
        "for _ in range(n):\n    u = torch.randn(x.shape, generator=generator, dtype=x.dtype)\n    u /= u.norm()",
        "u = torch.randn(x.shape, generator=generator, dtype=x.dtype)\nu /= u.norm()\nfor _ in range(n):"),
    "mean-is-a-sum": _wrong(
        MEAN, BOTH, "The sum in the place of the mean.", "/ tau / n)", "/ tau)"),
    "mean-no-factor": _wrong(
        MEAN, BOTH, "Without the factor d, the mean is ∇f / d.", "x.numel() * ", ""),
    "mean-root-of-d": _wrong(
        MEAN, BOTH, "√d in the place of d.", "x.numel() * ", "x.numel() ** 0.5 * "),
    "mean-f-asked-each-time": _wrong(
        MEAN, BOTH, "f(x) is asked for each direction: 2n queries.", "- here)", "- float(f(x)))"),
    "mean-of-slopes": _wrong(
        MEAN, BOTH, "The mean slope times the mean direction.", code=whole14.ADVERSE_SUM) | {"at_least": True},
    "mean-not-normalized": _wrong(
        MEAN, BOTH, "Normal directions with the sphere's factor d.", "u /= u.norm()\n", "pass\n"),
    "mean-from-a-cube": _wrong(
        MEAN, BOTH, "Points of a cube, divided by their length: corners are preferred.",
        "torch.randn(x.shape, generator=generator, dtype=x.dtype)",
        "2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1"),
    "mean-along-signs": _wrong(
        MEAN, BOTH, "Corners of a cube.", "u /= u.norm()", "u = u.sign() / x.numel() ** 0.5"),
    "mean-one-side-only": _wrong(
        MEAN, BOTH, "Only the half of the sphere where the first entry is positive.",
        "u /= u.norm()", "u[0].abs_()\nu /= u.norm()"),
    "mean-list-of-directions": _wrong(
        MEAN, BOTH, "All directions are held at once.", code=whole14.LIST_OF_POINTS),
    "mean-central": _wrong(
        MEAN, BOTH, "Central differences.", "(float(f(x + tau * u)) - here) / tau",
        "(float(f(x + tau * u)) - float(f(x - tau * u))) / tau / 2"),
    "mean-nothing-refused": _wrong(
        MEAN, BOTH, "No directions give a mean of 0.", "if n < 1:", "if False:"),
    "mean-zero-passes": _wrong(
        MEAN, BOTH, "n = 0 passes.", "if n < 1:", "if n < 0:"),
    "mean-forgets-tau": _wrong(
        MEAN, BOTH, "Not divided by τ.", "/ tau / n", "/ n"),
    "tau-whole-spacing": _wrong(
        TAU, BOTH, "eps is the whole spacing, u the half.", "eps / 2", "eps"),
    "tau-square-root": _wrong(
        TAU, BOTH, "The root of a forward difference.", "** (1 / 3)", "** 0.5"),
    "tau-integer-root": _wrong(
        TAU, BOTH, "1 // 3 is 0.", "** (1 / 3)", "** (1 // 3)"),
    "tau-no-three": _wrong(
        TAU, BOTH, "The 3 is missing.", "3 * u", "u"),
    "tau-no-value": _wrong(
        TAU, BOTH, "|f| is taken for 1.", " * abs(value)", ""),
    "tau-sign-of-the-value": _wrong(
        TAU, BOTH, "A negative value has a complex root.", "abs(value)", "value") | {"at_least": True},
    "tau-sign-of-the-derivative": _wrong(
        TAU, HIDDEN, "A negative derivative has a complex root.", "abs(third)", "third") | {"at_least": True},
    "tau-always-float32": _wrong(
        TAU, BOTH, "u of float32 for every dtype.", "torch.finfo(x.dtype)", "torch.finfo(torch.float32)"),
    "tau-floor-forgotten": _wrong(
        TAU, BOTH, "Weights may stand still.", "return max(best, 2.0**power)", "return best"),
    "tau-rounding-forgotten": _wrong(
        TAU, BOTH, "Only the weights' spacing.", "return max(best, 2.0**power)", "return 2.0**power"),
    "tau-smaller-of-two": _wrong(
        TAU, BOTH, "The smaller of the two.", "max(best", "min(best"),
    "tau-not-rounded": _wrong(
        TAU, BOTH, "The sum stays in float32, where everything moves.", ".to(x.dtype)", ""),
    "tau-all-must-move": _wrong(
        TAU, BOTH, "Not even 1 % may stay.", "<= 0.01 * x.numel()", "<= 0"),
    "tau-less-than-one-percent": _wrong(
        TAU, BOTH, "Less than 1 %, where at most 1 % is said.", "<= 0.01", "< 0.01"),
    "tau-most-may-stay": _wrong(
        TAU, BOTH, "Half of them may stay.", "0.01", "0.5"),
    "tau-by-the-largest-weight": _wrong(
        TAU, BOTH, "A bound by the largest weight and the mean direction.", code=whole14.HALF_SPACING),
    "tau-step-rounded": _wrong(
        TAU, BOTH, "τz is rounded before it is added.", "(x + 2.0**power * z)", "(x + (2.0**power * z).to(x.dtype))"),
    "tau-by-no-derivative": _wrong(
        TAU, HIDDEN, "A third derivative of 0 divides by 0.", "third == 0", "False"),
    "tau-no-error": _wrong(
        TAU, BOTH, "Where nothing moves, τ* is returned.",
        "raise ValueError(\"More than 1 % of the weights never move.\")", "return best"),
    "tau-never-one": _wrong(
        TAU, HIDDEN, "The last power, 1, is not tried.", "range(-60, 1)", "range(-60, 0)"),
    "tau-beyond-one": _wrong(
        TAU, HIDDEN, "Powers above 1 are tried too.", "range(-60, 1)", "range(-60, 30)"),
    "tau-from-two-to-minus-30": _wrong(
        TAU, HIDDEN, "Powers below 2⁻³⁰ are not tried.", "range(-60, 1)", "range(-30, 1)"),
    "tau-moving-at-the-best": _wrong(
        TAU, HIDDEN, "τ* is returned if weights move there, though it is below τ₀.",
        "2.0**power * z", "max(best, 2.0**power) * z"),
    "tau-added-in-float32": _wrong(
        TAU, HIDDEN, "A float64 x is added in float32.",
        "(x + 2.0**power * z)", "(x.float() + 2.0**power * z.float())"),
    "tau-rows-counted": _wrong(
        TAU, HIDDEN, "1 % of a matrix's rows, not of its entries.", "x.numel()", "len(x)"),
    "tau-by-logarithms": _wrong(
        TAU, HIDDEN, "A value of 0 has no logarithm.", "(3 * u * abs(value) / abs(third)) ** (1 / 3)",
        "math.exp(math.log(3 * u * abs(value) / abs(third)) / 3)"),
    "step-autograd-left-off": _wrong(
        STEP, BOTH, "Autograd is switched off for good.", "with torch.no_grad():",
        "torch.set_grad_enabled(False)\nif True:"),
    "step-autograd-left-off-after-an-error": _wrong(
        STEP, BOTH, "An error leaves autograd off.", "with torch.no_grad():", "torch.set_grad_enabled(False)\nif True:",
        "return slope", "torch.set_grad_enabled(True)\nreturn slope"),
    "step-drifts": _wrong(
        STEP, BOTH, "Moved there and back: x is not x any more, and an error leaves it perturbed.",
        code=whole14.DRIFTING),
    "step-drifts-but-restores": _wrong(
        STEP, BOTH, "Moved there and back; only an error takes the copy.", code=whole14.DRIFTING_RESTORED),
    "step-restored-after-the-second-only": _wrong(
        STEP, HIDDEN, "Only an error in the second call restores the weights.", code=whole14.SECOND_ONLY),
    "step-autograd-on": _wrong(
        STEP, BOTH, "Autograd is on while the parameters are written.",
        "with torch.no_grad():", "with torch.enable_grad():"),
    "step-not-restored": _wrong(
        STEP, BOTH, "The update starts at the second point.",
        "move(-rate * slope)",
        "for p, z in zip(parameters, directions, strict=True):\n        p.copy_(p + -rate * slope * z)"),
    "step-uphill": _wrong(
        STEP, BOTH, "The step goes uphill.", "move(-rate * slope)", "move(rate * slope)"),
    "step-no-two": _wrong(
        STEP, BOTH, "Divided by τ and not by 2τ.", "/ (2 * tau)", "/ tau"),
    "step-second-move-from-the-first": _wrong(
        STEP, BOTH, "The second point is x itself.", "move(-tau)", "move(0.0)"),
    "step-two-tau": _wrong(
        STEP, BOTH, "The second point lies at x - 2τz.", "move(-tau)", "move(-2 * tau)"),
    "step-stays-after-an-error": _wrong(
        STEP, BOTH, "An error leaves the weights perturbed.",
        "except BaseException:\n        move(0.0)\n        raise", "finally:\n        pass"),
    "step-error-swallowed": _wrong(
        STEP, BOTH, "The error is swallowed.", "        raise\n", "        return 0.0\n"),
    "step-with-autograd": _wrong(
        STEP, BOTH, "Autograd is on while the loss is computed.", "ahead = float(loss())",
        "with torch.enable_grad():\n            ahead = float(loss())"),
    "step-replaced": _wrong(
        STEP, BOTH, "The parameters get other storages.", "p.copy_(x + by * z)", "p.data = x + by * z"),
    "step-first-parameter-only": _wrong(
        STEP, BOTH, "Only the first parameter moves.", "zip(parameters, old, directions, strict=True)",
        "[(parameters[0], old[0], directions[0])]"),
    "step-no-update": _wrong(
        STEP, BOTH, "The slope is found, and nothing learns.", "move(-rate * slope)", "move(0.0)"),
    "step-asked-three-times": _wrong(
        STEP, BOTH, "The loss is asked at x as well.", "old = [p.detach().clone() for p in parameters]",
        "old = [p.detach().clone() for p in parameters]\nwith torch.no_grad():\n    loss()"),
    "step-returns-a-tensor": _wrong(
        STEP, BOTH, "A tensor is returned.", "return slope", "return torch.tensor(slope)"),
    "step-returns-the-loss": _wrong(
        STEP, BOTH, "The loss is returned.", "return slope", "return ahead"),
    "price-by-the-dimension": _wrong(
        PRICE, BOTH, "d ‖H‖ in the place of the trace.", "float(H.trace())",
        "len(v) * float(torch.linalg.matrix_norm(H, 2))"),
    "price-d": _wrong(
        PRICE, BOTH, "d in the place of the trace.", "float(H.trace())", "len(v)"),
    "price-no-two": _wrong(
        PRICE, BOTH, "2 vᵀHv is forgotten.", " + 2 * along\n", "\n"),
    "price-all-divided": _wrong(
        PRICE, BOTH, "All of it is divided by n: with many directions a step would be for nothing.",
        "once / n + (n - 1) / n * along", "once / n"),
    "price-not-divided": _wrong(
        PRICE, BOTH, "n changes nothing.", "once / n + (n - 1) / n * along", "once"),
    "price-pairs-not-counted": _wrong(
        PRICE, BOTH, "vᵀHv is added whole.", "(n - 1) / n * along", "along"),
    "price-whole-promise": _wrong(
        PRICE, BOTH, "The decrease is the slope's promise, without what bends back.", "rate * square / 2",
        "rate * square"),
    "price-half-the-rate": _wrong(
        PRICE, BOTH, "The largest value of a parabola lies at a/b, not at a/2b.", "rate = square / bent",
        "rate = square / bent / 2"),
    "price-gradient-descent": _wrong(
        PRICE, BOTH, "Gradient descent's step.", "rate = square / bent", "rate = square / along"),
    "price-tensors": _wrong(
        PRICE, BOTH, "Tensors, where floats are asked for.", "return rate, rate * square / 2",
        "return torch.tensor(rate), torch.tensor(rate * square / 2)"),
    "price-norm-along": _wrong(
        PRICE, BOTH, "‖H‖ vᵀv in the place of vᵀHv.", "float(v @ H @ v)",
        "float(torch.linalg.matrix_norm(H, 2)) * float(v @ v)"),
    "price-norm-of-h": _wrong(
        PRICE, BOTH, "Frobenius' norm in the place of the trace.", "float(H.trace())", "float(H.norm())"),
}
# fmt: on
