"""Wrong answers to lab 01 that look right: each loses exactly the graded cells named here."""

from __future__ import annotations

LAB = "01-floating-point"

_DECODE = """
m = fmt.mantissa_bits
sign = codes >> (fmt.bits - 1)
exponent = (codes >> m) & (2**fmt.exponent_bits - 1)
fraction = (codes & (2**m - 1)) / 2**m
normal = 2.0 ** (exponent - fmt.bias) * (1 + fraction)
subnormal = 2.0 ** (1 - fmt.bias) * fraction
value = np.where(exponent == 0, subnormal, normal)
special = np.where(fraction == 0, np.inf, np.nan)
value = np.where(exponent == 2**fmt.exponent_bits - 1, special, value)
return np.where(sign == 1, -value, value)
"""
_ENCODE = """
m, top = fmt.mantissa_bits, 2**fmt.exponent_bits - 1
magnitude = np.where(np.isfinite(x), np.abs(x), 1.0)
fraction, exponent = np.frexp(magnitude)
exponent = exponent - 1 + fmt.bias
subnormal = (exponent < 1) | (magnitude == 0)
mantissa = np.where(subnormal, magnitude / 2.0 ** (1 - fmt.bias - m), (2 * fraction - 1) * 2**m)
code = np.where(subnormal, 0, exponent) * 2**m + mantissa.astype(np.int64)
code = np.where(np.isinf(x), top << m, code)
code = np.where(np.isnan(x), (top << m) + 1, code)
return code + (np.signbit(x).astype(np.int64) << (fmt.bits - 1))
"""
_ROUND = """
gap = formats.spacing(np.clip(x, -fmt.max, fmt.max), fmt)
rounded = np.rint(x / gap) * gap
return np.where(np.abs(rounded) > fmt.max, np.copysign(np.inf, x), rounded)
"""
_SUM = """
total = torch.zeros((), dtype=torch.float16)
lost = torch.zeros((), dtype=torch.float16)
for v in values:
    y = v - lost
    t = total + y
    lost = (t - total) - y
    total = t
return total
"""


def _changed(code: str, old: str, new: str) -> str:
    """`code` with one piece replaced; a piece that is not there would leave the right answer in place."""
    assert code.count(old) == 1, f"{old!r} occurs {code.count(old)} times"
    return code.replace(old, new)


def _both(exercise: str) -> list[str]:
    return [f"{exercise}-test", f"{exercise}-hidden"]


MUTANTS = {
    "decode-bias-off-by-one": {
        "exercise": "ex1-decode",
        "code": _changed(_DECODE, "(exponent - fmt.bias)", "(exponent - fmt.bias - 1)"),
        "loses": _both("ex1-decode"),
        "why": "The bias is 2^(e-1) - 1, not 2^(e-1): every normal value comes out halved.",
    },
    "decode-hidden-one-everywhere": {
        "exercise": "ex1-decode",
        "code": _changed(_DECODE, "np.where(exponent == 0, subnormal, normal)", "normal"),
        "loses": _both("ex1-decode"),
        "why": "Subnormals are ignored: exponent field 0 is read with the hidden 1, so there is no zero.",
    },
    "decode-subnormal-exponent": {
        "exercise": "ex1-decode",
        "code": _changed(_DECODE, "2.0 ** (1 - fmt.bias)", "2.0 ** (0 - fmt.bias)"),
        "loses": _both("ex1-decode"),
        "why": "Subnormals take the exponent 0 - bias of their field instead of 1 - bias.",
    },
    "decode-nan-as-infinity": {
        "exercise": "ex1-decode",
        "code": _changed(_DECODE, "np.where(fraction == 0, np.inf, np.nan)", "np.inf"),
        "loses": ["ex1-decode-hidden"],
        "why": "Every code with the top exponent field is taken for infinity.",
    },
    "decode-minus-zero-lost": {
        "exercise": "ex1-decode",
        "code": _changed(_DECODE, "-value, value", "0 - value, value"),
        "loses": ["ex1-decode-hidden"],
        "why": "0 - 0.0 is +0.0: the sign of zero is gone.",
    },
    "spacing-rounded-logarithm": {
        "exercise": "ex2-spacing",
        "code": """
            k = np.floor(np.log2(np.maximum(np.abs(x), 2.0 ** (1 - fmt.bias))))
            return 2.0 ** (k - fmt.mantissa_bits)
        """,
        "loses": ["ex2-spacing-hidden"],
        "why": "np.log2 rounds: just below a power of two it gives the power itself, and the gap doubles.",
    },
    "spacing-without-subnormals": {
        "exercise": "ex2-spacing",
        "code": "return 2.0 ** (np.frexp(x)[1] - 1 - fmt.mantissa_bits)",
        "loses": _both("ex2-spacing"),
        "why": "The gap goes on shrinking below the smallest normal number, where no exponents are left.",
    },
    "spacing-eps-times-x": {
        "exercise": "ex2-spacing",
        "code": """
            m = fmt.mantissa_bits
            return np.maximum(np.abs(x) * 2.0**-m, 2.0 ** (1 - fmt.bias - m))
        """,
        "loses": _both("ex2-spacing"),
        "why": "eps·|x| is right at powers of two only; the gap is a staircase.",
    },
    "spacing-of-zero": {
        "exercise": "ex2-spacing",
        "code": """
            exponent = np.frexp(x)[1] - 1
            return 2.0 ** (np.maximum(exponent, 1 - fmt.bias) - fmt.mantissa_bits)
        """,
        "loses": _both("ex2-spacing"),
        "why": "frexp gives zero the exponent 0, so that the gap at 0 comes out as the gap at 1/2.",
    },
    "round-truncates": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.rint(x / gap)", "np.trunc(x / gap)"),
        "loses": _both("ex3-round"),
        "why": "Cutting off is rounding toward zero, biased and twice as wrong.",
    },
    "round-half-away": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.rint(x / gap)", "np.copysign(np.floor(np.abs(x / gap) + 0.5), x)"),
        "loses": _both("ex3-round"),
        "why": "Ties go away from zero, as taught at school, instead of to the even neighbour.",
    },
    "round-double": {
        "exercise": "ex3-round",
        "code": "x = x.astype(np.float32).astype(np.float64)\n" + _ROUND.strip(),
        "loses": ["ex3-round-hidden"],
        "why": "The detour through float32 rounds twice: a value just above a tie lands on it first.",
    },
    "round-infinity-too-early": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.abs(rounded) > fmt.max", "np.abs(x) > fmt.max"),
        "loses": ["ex3-round-hidden"],
        "why": "65519 is beyond 65504 and still rounds down to it; only from 65520 on is it infinity.",
    },
    "round-positive-infinity-only": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.copysign(np.inf, x)", "np.inf"),
        "loses": ["ex3-round-hidden"],
        "why": "Large negative numbers become +infinity.",
    },
    "round-saturates": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.copysign(np.inf, x)", "np.copysign(fmt.max, x)"),
        "loses": _both("ex3-round"),
        "why": "Clamping to the largest number hides the overflow that IEEE rounding reports as infinity.",
    },
    "round-drops-sign-of-zero": {
        "exercise": "ex3-round",
        "code": _changed(_ROUND, "np.copysign(np.inf, x), rounded)", "np.copysign(np.inf, x), rounded + 0.0)"),
        "loses": ["ex3-round-hidden"],
        "why": "-0.0 + 0.0 is +0.0: small negative numbers lose their sign.",
    },
    "encode-keeps-leading-one": {
        "exercise": "ex4-encode",
        "code": _changed(_ENCODE, "(2 * fraction - 1) * 2**m", "fraction * 2**m"),
        "loses": _both("ex4-encode"),
        "why": "frexp's fraction begins with 1/2, not with 1: the hidden bit is written into the mantissa.",
    },
    "encode-flushes-subnormals": {
        "exercise": "ex4-encode",
        "code": _changed(_ENCODE, "magnitude / 2.0 ** (1 - fmt.bias - m)", "0.0"),
        "loses": _both("ex4-encode"),
        "why": "Subnormal numbers become zero.",
    },
    "encode-minus-zero-lost": {
        "exercise": "ex4-encode",
        "code": _changed(_ENCODE, "np.signbit(x).astype(np.int64)", "(x < 0).astype(np.int64)"),
        "loses": _both("ex4-encode"),
        "why": "-0.0 < 0 is false, so that -0.0 gets the code of +0.0.",
    },
    "encode-nan-as-infinity": {
        "exercise": "ex4-encode",
        "code": _changed(_ENCODE, "(top << m) + 1", "top << m"),
        "loses": ["ex4-encode-hidden"],
        "why": "NaN gets the code of infinity; its mantissa must not be zero.",
    },
    "stochastic-coin-flip": {
        "exercise": "ex5-stochastic",
        "code": """
            quanta = x / gap
            down = np.floor(quanta)
            return (down + ((rng.random(x.shape) < 0.5) & (quanta > down))) * gap
        """,
        "loses": _both("ex5-stochastic"),
        "why": "A fair coin is right on average only in the middle between two neighbours.",
    },
    "stochastic-moves-exact-values": {
        "exercise": "ex5-stochastic",
        "code": "return np.floor(x / gap + rng.random(x.shape)) * gap",
        "loses": ["ex5-stochastic-hidden"],
        "why": "Adding the noise rounds in its turn: some exact multiples of the gap move up.",
    },
    "stochastic-wrong-way-below-zero": {
        "exercise": "ex5-stochastic",
        "code": """
            quanta = x / gap
            cut = np.trunc(quanta)
            return (cut + (rng.random(x.shape) < np.abs(quanta - cut))) * gap
        """,
        "loses": ["ex5-stochastic-hidden"],
        "why": "trunc is the upper neighbour of a negative number: going up from there leaves the interval.",
    },
    "stochastic-one-draw-for-all": {
        "exercise": "ex5-stochastic",
        "code": """
            quanta = x / gap
            down = np.floor(quanta)
            return (down + (rng.random() < quanta - down)) * gap
        """,
        "loses": _both("ex5-stochastic"),
        "why": "One random number for the whole array makes all errors the same: nothing averages out.",
    },
    "stochastic-ignores-the-seed": {
        "exercise": "ex5-stochastic",
        "code": """
            quanta = x / gap
            down = np.floor(quanta)
            return (down + (np.random.default_rng().random(x.shape) < quanta - down)) * gap
        """,
        "loses": ["ex5-stochastic-hidden"],
        "why": "A generator of its own ignores the seed: no run can be repeated.",
    },
    "sum-naive": {
        "exercise": "ex6-sum",
        "code": """
            total = torch.zeros((), dtype=torch.float16)
            for v in values:
                total = total + v
            return total
        """,
        "loses": _both("ex6-sum"),
        "why": "The plain running sum stalls at 2048.",
    },
    "sum-in-float32": {
        "exercise": "ex6-sum",
        "code": "return values.float().sum().half()",
        "loses": _both("ex6-sum"),
        "why": "Accumulating in float32 gives the right number the wrong way: the task is fp16 throughout.",
    },
    "sum-by-the-library": {
        "exercise": "ex6-sum",
        "code": "return values.sum()",
        "loses": _both("ex6-sum"),
        "why": "torch.sum does not stall, because it does not compute in fp16 inside.",
    },
    "sum-of-python-numbers": {
        "exercise": "ex6-sum",
        "code": "return torch.tensor(sum(values.tolist()), dtype=torch.float16)",
        "loses": _both("ex6-sum"),
        "why": "Python adds in float64: right number, wrong format.",
    },
    "sum-wrong-sign": {
        "exercise": "ex6-sum",
        "code": _changed(_SUM, "y = v - lost", "y = v + lost"),
        "loses": _both("ex6-sum"),
        "why": "The lost part is added with the wrong sign, so that each loss is counted twice.",
    },
    "sum-simplified-brackets": {
        "exercise": "ex6-sum",
        "code": _changed(_SUM, "(t - total) - y", "t - (total + y)"),
        "loses": _both("ex6-sum"),
        "why": "t - (total + y) is always zero: what an optimizing algebra student writes.",
    },
}
