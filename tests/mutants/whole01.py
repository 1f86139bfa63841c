"""Whole answers to lab 01, right and wrong, that are no small change of its solution."""

# Right ones.
DECODE_BY_LOOP = """
out = np.empty(codes.shape, dtype=np.float64)
m, top = fmt.mantissa_bits, 2**fmt.exponent_bits - 1
for place, code in np.ndenumerate(codes):
    code = int(code)
    sign, exponent, fraction = code >> (fmt.bits - 1), (code >> m) & top, code % 2**m
    if exponent == top:
        value = np.inf if fraction == 0 else np.nan
    elif exponent == 0:
        value = np.ldexp(fraction, 1 - fmt.bias - m)
    else:
        value = np.ldexp(2**m + fraction, exponent - fmt.bias - m)
    out[place] = -value if sign else value
return out
"""

INFINITY_FROM_X = """
gap = formats.spacing(np.clip(x, -fmt.max, fmt.max), fmt)
first_infinite = fmt.max + formats.spacing(fmt.max, fmt) / 2
return np.where(np.abs(x) >= first_infinite, np.sign(x) * np.inf, np.rint(x / gap) * gap)
"""

BY_FLOOR = """
gap = formats.spacing(np.clip(x, -fmt.max, fmt.max), fmt)
gaps = x / gap
low = np.floor(gaps)
rest = gaps - low
whole = np.where(rest > 0.5, low + 1, np.where(rest < 0.5, low, np.where(low % 2 == 0, low, low + 1)))
rounded = np.where(np.isinf(x), x, whole * gap)
rounded = np.where(np.abs(rounded) > fmt.max, np.copysign(np.inf, x), rounded)
return np.copysign(rounded, x)
"""

CHOOSES_LAST = """
m = fmt.mantissa_bits
f, k = np.frexp(np.abs(x))
e = k - 1 + fmt.bias
sub = (e < 1) | (x == 0)
mantissa = np.where(sub, np.abs(x) / 2.0 ** (1 - fmt.bias - m), (2 * f - 1) * 2**m).astype(np.int64)
code = np.where(sub, mantissa, (e.astype(np.int64) << m) + mantissa)
top = (2**fmt.exponent_bits - 1) << m
code = np.where(np.isinf(x), top, code)
code = np.where(np.isnan(x), top + 1, code)
return code + np.where(np.signbit(x), 2 ** (fmt.bits - 1), 0)
"""

BINOMIAL = """
quanta = x / gap
down = np.floor(quanta)
return (down + rng.binomial(1, quanta - down)) * gap
"""

# Wrong ones.
ALONG_A_LINE = """
out = np.zeros(len(x))
for i, v in enumerate(x):
    k = 1 - fmt.bias if v == 0 else max(np.frexp(v)[1] - 1, 1 - fmt.bias)
    out[i] = 2.0 ** (k - fmt.mantissa_bits)
return out
"""

COPIED_GENERATOR = """
import copy

quanta = x / gap
down = np.floor(quanta)
return (down + (copy.deepcopy(rng).random(x.shape) < quanta - down)) * gap
"""
