"""Wrong answers to lab 01 that look right: each loses exactly the graded cells named here."""

from __future__ import annotations

from . import whole01
from .answers import Answers

LAB = "01-floating-point"
_answers = Answers(LAB)
_wrong = _answers.wrong

BOTH, HIDDEN = ("test", "hidden"), ("hidden",)

_DECODE, _ENCODE, _ROUND, _SUM = (_answers.right(e) for e in ("ex1-decode", "ex4-encode", "ex3-round", "ex6-sum"))


def _changed(code: str, old: str, new: str) -> str:
    """`code` with one piece replaced; a piece that is not there would leave the right answer in place."""
    assert code.count(old) == 1, f"{old!r} occurs {code.count(old)} times"
    return code.replace(old, new)


def _both(exercise: str) -> list[str]:
    return [f"{exercise}-test", f"{exercise}-hidden"]


RIGHT = {
    "decode-by-loop": ("ex1-decode", whole01.DECODE_BY_LOOP),
    "round-infinity-from-x": ("ex3-round", whole01.INFINITY_FROM_X),  # inf times 0 where np.where takes the other
    "round-by-floor": ("ex3-round", whole01.BY_FLOOR),  # inf minus inf, put right in the end
    "encode-chooses-last": ("ex4-encode", whole01.CHOOSES_LAST),  # casts NaN to an integer, and takes it nowhere
    "stochastic-binomial": ("ex5-stochastic", whole01.BINOMIAL),
}

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
    "decode-in-float32": _wrong(
        "ex1-decode",
        BOTH,
        "The values fit float32, and float64 was asked for.",
        "-value, value)",
        "-value, value).astype(np.float32)",
    ),
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
    "spacing-along-a-line": _wrong(
        "ex2-spacing", HIDDEN, "The loop knows one dimension only.", code=whole01.ALONG_A_LINE
    ),
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
    "encode-in-int32": _wrong(
        "ex4-encode",
        BOTH,
        "The codes are right, and int64 was asked for.",
        "return code + (np.signbit(x).astype(np.int64) << (fmt.bits - 1))",
        "return (code + (np.signbit(x).astype(np.int64) << (fmt.bits - 1))).astype(np.int32)",
    ),
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
    "stochastic-rows-alike": _wrong(
        "ex5-stochastic", HIDDEN, "Each row gets the draws of the first.", "x.shape", "x.shape[-1:]"
    ),
    "stochastic-copied-generator": _wrong(
        "ex5-stochastic",
        HIDDEN,
        "The caller's generator stays where it was: each call draws the same numbers again.",
        code=whole01.COPIED_GENERATOR,
    ),
    "stochastic-percents": _wrong(
        "ex5-stochastic",
        HIDDEN,
        "Dice with a hundred sides: what is less than half a percent away never moves.",
        "rng.random(x.shape) < quanta - down",
        "rng.integers(0, 100, x.shape) < np.round(100 * (quanta - down))",
    ),
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
