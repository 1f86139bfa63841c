"""Wrong answers to lab 09 that look right: each loses exactly the graded cells named here.

Most are the lab's own solution with a piece or two replaced.
"""

from __future__ import annotations

from .answers import Answers

LAB = "09-quantization"
_wrong = Answers(LAB).wrong

INT8, BLOCKS, READ = "ex1-int8-rows", "ex2-blocks", "ex3-read-back"
NORMAL, DOUBLE, LINEAR = "ex4-normal-float", "ex5-double", "ex6-linear"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)


_BLOCKS_BEGIN_ANEW_IN_EACH_ROW = """
rows = x.float().reshape(-1, x.shape[-1])
padded = F.pad(rows, (0, -rows.shape[1] % block_size)).view(len(rows), -1, block_size)
absmax = padded.abs().amax(2)
divisor = torch.where(absmax > 0, absmax, 1.0)
scaled = (padded / divisor[..., None]).flatten(1)[:, : rows.shape[1]].flatten()
codes = torch.bucketize(scaled, (book[1:] + book[:-1]) / 2)
codes = F.pad(codes, (0, len(codes) % 2)).to(torch.uint8)
return codes[::2] * 16 + codes[1::2], absmax.flatten()
"""
_NORMAL_SYMMETRIC_WITHOUT_ZERO = """
p = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
numbers = torch.special.ndtri(p)
return (numbers / numbers.max()).float()
"""
_NORMAL_TABLE_BY_HEART = """
return torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
"""
_LINEAR_CHECKPOINT = """
from torch.utils.checkpoint import checkpoint

return checkpoint(lambda x: F.linear(x, weight.dequantize(x.dtype)), x, use_reentrant=False)
"""

# fmt: off
MUTANTS = {
    "int8-one-scale-for-all": _wrong(
        INT8, BOTH, "The largest row sets the steps of all the others.",
        "x.abs().amax(1)", "x.abs().max().expand(len(x))"),
    "int8-largest-not-magnitude": _wrong(
        INT8, BOTH, "A negative extreme is overlooked; its code leaves int8 and wraps around.",
        "x.abs().amax(1)", "x.amax(1)"),
    "int8-cuts-off": _wrong(
        INT8, BOTH, "A cast to integers cuts off: errors of a whole step, all of them toward zero.",
        "torch.round(127", "(127"),
    "int8-half-away": _wrong(
        INT8, VISIBLE, "Ties go away from zero. Either way they are half a step off, so only the visible test sees it.",
        "torch.round(127 * x / divisor[:, None])",
        "torch.copysign((127 * x / divisor[:, None]).abs().add(0.5).floor(), x)"),
    "int8-128-steps": _wrong(
        INT8, BOTH, "+128 does not fit int8 and wraps around to -128.",
        "127 * x", "128 * x"),
    "int8-in-its-own-dtype": _wrong(
        INT8, HIDDEN, "In fp16, 127 x overflows from 516 on; in bf16 the quotient has 8 bits itself.",
        "x = x.float()\n", "", "codes, absmax", "codes, absmax.float()"),
    "int8-guard-swallows-small-rows": _wrong(
        INT8, HIDDEN, "A guard against zero that is larger than real numbers makes whole rows zero.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax.clamp(min=1e-8)"),
    "int8-guard-swallows-very-small-rows": _wrong(
        INT8, HIDDEN, "A smaller guard, and float32 holds numbers below it.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax.clamp(min=1e-30)"),
    "int8-scales-in-half": _wrong(
        INT8, BOTH, "Scales that passed through fp16 no longer read the largest number back.",
        "codes, absmax", "codes, absmax.half().float()"),
    "int8-no-guard": _wrong(
        INT8, BOTH, "0 / 0 is NaN, which happens to become 0 as an integer here, and something else elsewhere.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax"),
    "blocks-one-scale-for-all": _wrong(
        BLOCKS, BOTH, "The whole tensor's largest magnitude in every block: one outlier spoils all.",
        "padded.abs().amax(1)", "padded.abs().max().expand(len(padded))"),
    "blocks-largest-not-magnitude": _wrong(
        BLOCKS, BOTH, "Negative extremes are overlooked and cut off at -1.",
        "padded.abs().amax(1)", "padded.amax(1)"),
    "blocks-no-guard": _wrong(
        BLOCKS, BOTH, "0 / 0 is NaN, which bucketize sorts behind the last number.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax"),
    "blocks-guard-swallows-small-ones": _wrong(
        BLOCKS, HIDDEN, "The guard is larger than the numbers of some blocks, which all become zero.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax.clamp(min=1e-12)"),
    "blocks-guard-swallows-very-small-ones": _wrong(
        BLOCKS, HIDDEN, "A smaller guard, and float32 holds numbers below it.",
        "torch.where(absmax > 0, absmax, 1.0)", "absmax.clamp(min=1e-30)"),
    "blocks-rest-dropped": _wrong(
        BLOCKS, BOTH, "What does not fill a block is left out.",
        "F.pad(flat, (0, -len(flat) % block_size))", "flat[: len(flat) // block_size * block_size]"),
    "blocks-padding-stays": _wrong(
        BLOCKS, BOTH, "The padding of the last block gets codes and bytes of its own.",
        ".flatten()[: len(flat)]", ".flatten()"),
    "blocks-padded-with-ones": _wrong(
        BLOCKS, BOTH, "The padding counts for the largest magnitude of the last block.",
        "% block_size)", "% block_size), value=1.0"),
    "blocks-begin-anew-in-each-row": _wrong(
        BLOCKS, HIDDEN, "Blocks end with each row, so that a narrow matrix has more scales than it should.",
        code=_BLOCKS_BEGIN_ANEW_IN_EACH_ROW),
    "blocks-interleaved": _wrong(
        BLOCKS, BOTH, "A block takes every n-th value instead of neighbours.",
        ".view(-1, block_size)", ".view(block_size, -1).t()", "divisor[:, None])", "divisor[:, None]).t()"),
    "blocks-cut-off": _wrong(
        BLOCKS, BOTH, "searchsorted on the book itself takes the next lower number, not the nearest.",
        "torch.bucketize(scaled, middles)", "(torch.searchsorted(book, scaled, right=True) - 1).clamp(min=0)"),
    "blocks-next-above": _wrong(
        BLOCKS, BOTH, "bucketize on the book itself takes the next number above.",
        "scaled, middles", "scaled, book"),
    "blocks-ties-up": _wrong(
        BLOCKS, BOTH, "In the middle between two numbers the upper one is taken.",
        "scaled, middles", "scaled, middles, right=True"),
    "blocks-halves-swapped": _wrong(
        BLOCKS, BOTH, "The first code lands in the low half of the byte.",
        "codes[::2] * 16 + codes[1::2]", "codes[::2] + codes[1::2] * 16"),
    "blocks-scaled-in-16-bits": _wrong(
        BLOCKS, HIDDEN, "The quotient is rounded to 16 bits before the nearest number is looked for.",
        "x.flatten().float()", "x.flatten()", "scaled, middles", "scaled.float(), middles", "[1::2], absmax",
        "[1::2], absmax.float()"),
    "blocks-scales-in-half": _wrong(
        BLOCKS, HIDDEN, "Scales that passed through fp16 are rounded, and below 6e-8 they are zero.",
        "[1::2], absmax", "[1::2], absmax.half().float()"),
    "blocks-zero-is-code-seven": _wrong(
        BLOCKS, HIDDEN, "Seven is the code of zero in NF4; another book has its zero elsewhere.",
        "absmax, 1.0)", "absmax, torch.nan)", "torch.bucketize(scaled, middles)",
        "torch.bucketize(scaled, middles).where(~scaled.isnan(), 7)"),
    "read-halves-swapped": _wrong(
        READ, BOTH, "The low half of a byte is read first.",
        "packed >> 4, packed & 15", "packed & 15, packed >> 4"),
    "read-halves-in-two-rows": _wrong(
        READ, BOTH, "All first halves, then all second ones: the values come back in another order.",
        "packed & 15], 1)", "packed & 15], 0)"),
    "read-uint8-index": _wrong(
        READ, BOTH, "As an index, a uint8 tensor is a mask.",
        "codes.long()", "codes"),
    "read-padding-leaks": _wrong(
        READ, BOTH, "The free half of the last byte comes back as a value.",
        "n = torch.Size(shape).numel()", "n = 2 * len(packed)", "[block]", "[block.clamp(max=len(absmax) - 1)]",
        ".view(shape)", ""),
    "read-scales-repeated-in-turn": _wrong(
        READ, BOTH, "repeat gives a b c a b c where repeat_interleave gives a a b b c c.",
        "absmax[block]", "absmax.repeat(block_size)[:n]"),
    "read-equal-blocks": _wrong(
        READ, HIDDEN, "Cuts the values into equally long blocks, as if the last could not be shorter.",
        "// block_size", "// -(-n // len(absmax))"),
    "read-product-in-16-bits": _wrong(
        READ, HIDDEN, "Number, scale and product are each rounded: three roundings instead of one.",
        "book[codes.long()] * absmax[block]", "book.to(dtype)[codes.long()] * absmax.to(dtype)[block]"),
    "read-always-float32": _wrong(
        READ, HIDDEN, "Ignores the dtype: a bf16 model gets float32 weights, twice as large.",
        ".to(dtype)", ""),
    "read-flat": _wrong(
        READ, HIDDEN, "Ignores the shape: a matrix comes back as a vector.",
        ".view(shape)", ""),
    "normal-symmetric-without-zero": _wrong(
        NORMAL, BOTH, "Sixteen quantiles around zero are symmetric and leave zero out.",
        code=_NORMAL_SYMMETRIC_WITHOUT_ZERO),
    "normal-mirrored-with-two-zeros": _wrong(
        NORMAL, BOTH, "One half mirrored: zero has two codes, one of them lost.",
        "[-half(count - 1), torch.zeros(1, dtype=torch.float64), half(count).flip(0)]",
        "[-half(count - 1), torch.zeros(2, dtype=torch.float64), half(count - 1).flip(0)]"),
    "normal-upside-down": _wrong(
        NORMAL, BOTH, "The half with one number more lies below zero.",
        "-half(count - 1)", "-half(count)", "half(count).flip", "half(count - 1).flip"),
    "normal-same-steps-in-both-halves": _wrong(
        NORMAL, BOTH, "The lower half takes the upper one's steps and leaves one number out: a hole beside zero.",
        "-half(count - 1)", "-half(count)[:-1]"),
    "normal-not-normalised": _wrong(
        NORMAL, BOTH, "The book ends at 1.85 standard deviations instead of 1.",
        "(numbers / numbers.max())", "numbers"),
    "normal-equal-steps": _wrong(
        NORMAL, BOTH, "Equal steps of value, not of probability: a 4-bit integer with a zero.",
        "torch.special.ndtri(p)", "p - 0.5"),
    "normal-delta-of-sixteen": _wrong(
        NORMAL, BOTH, "Leaves 1/32 outside, which is right for sixteen equal intervals and wrong for fifteen.",
        "(1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2", "1 / 2 ** (bits + 1)"),
    "normal-delta-of-fifteen": _wrong(
        NORMAL, BOTH, "Leaves 1/30 outside, which is right for fifteen equal intervals and wrong for sixteen.",
        "(1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2", "1 / (2 ** (bits + 1) - 2)"),
    "normal-delta-of-four-bits": _wrong(
        NORMAL, HIDDEN, "The constant of the published 4-bit table, for every number of bits.",
        "(1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2", "1 - 0.9677083"),
    "normal-table-by-heart": _wrong(
        NORMAL, HIDDEN, "Knows the table and not where it comes from.",
        code=_NORMAL_TABLE_BY_HEART),
    "double-without-the-mean": _wrong(
        DOUBLE, BOTH, "Positive scales use the upper half of a code book with signs, and its coarse end at that.",
        "absmax.mean()", "torch.zeros((), device=absmax.device)"),
    "double-mean-not-put-back": _wrong(
        DOUBLE, BOTH, "The scales come back without their mean, half of them negative.",
        "stored.dequantize() + mean", "stored.dequantize()"),
    "double-mean-in-half": _wrong(
        DOUBLE, HIDDEN, "The mean passed through fp16: every scale is off by its rounding.",
        "absmax.mean()", "absmax.mean().half().float()"),
    "double-blocks-of-64": _wrong(
        DOUBLE, BOTH, "The weights' block size for the scales: four times as many scales of scales.",
        "256", "64"),
    "double-changes-its-input": _wrong(
        DOUBLE, HIDDEN, "Takes the mean off in place, in the caller's tensor.",
        "absmax - mean", "absmax.sub_(mean)"),
    "double-scales-unchanged": _wrong(
        DOUBLE, BOTH, "Counts 8-bit scales and goes on with the 32-bit ones.",
        "stored.dequantize() + mean", "absmax"),
    "double-inner-scales-forgotten": _wrong(
        DOUBLE, BOTH, "4 + 8/64 bits: the scales of the scales and the mean are not counted.",
        " + stored.absmax.nbytes + mean.nbytes", ""),
    "double-mean-not-counted": _wrong(
        DOUBLE, BOTH, "The four bytes of the mean are forgotten.",
        " + mean.nbytes", ""),
    "double-old-scales-counted": _wrong(
        DOUBLE, BOTH, "Counts the scales twice, in 32 bits and in 8.",
        "+ mean.nbytes", "+ mean.nbytes + absmax.nbytes"),
    "double-formula": _wrong(
        DOUBLE, HIDDEN, "The formula for whole blocks: wrong where the last byte or the last block is not full.",
        "8 * total / n", "4 + 8 / 64 + 32 / (64 * 256) + 32 / n"),
    "linear-plain": _wrong(
        LINEAR, BOTH, "Right numbers, but autograd keeps the dense weight until the backward pass.",
        code="return F.linear(x, weight.dequantize(x.dtype))"),
    "linear-saved-dense": _wrong(
        LINEAR, BOTH, "save_for_backward of the dense weight is what the function was to avoid.",
        "ctx.weight = weight", "ctx.save_for_backward(weight.dequantize(x.dtype))",
        "ctx.weight.dequantize(gradient.dtype)", "ctx.saved_tensors[0]"),
    "linear-dense-on-ctx": _wrong(
        LINEAR, BOTH, "An attribute keeps the dense weight alive, and no hook for saved tensors sees it.",
        "ctx.weight = weight", "ctx.dense = weight.dequantize(x.dtype)", "ctx.weight.dequantize(gradient.dtype)",
        "ctx.dense"),
    "linear-dense-in-16-bits": _wrong(
        LINEAR, BOTH, "A 16-bit copy is still four times the codes.",
        "ctx.weight = weight", "ctx.dense = weight.dequantize(torch.float16)",
        "ctx.weight.dequantize(gradient.dtype)", "ctx.dense.to(gradient.dtype)"),
    "linear-dense-in-a-closure": _wrong(
        LINEAR, BOTH, "The class remembers the dense weight of the function around it.",
        "class Product", "dense = weight.dequantize(x.dtype)\n\nclass Product",
        "ctx.weight.dequantize(gradient.dtype)", "dense"),
    "linear-unpacked-codes": _wrong(
        LINEAR, BOTH, "A byte for each code is twice the packed ones.",
        "ctx.weight = weight",
        "ctx.weight, codes = weight, weight.codes\n        ctx.unpacked = torch.stack([codes >> 4, codes & 15])"),
    "linear-keeps-x": _wrong(
        LINEAR, HIDDEN, "The input is kept, as for the gradient of a weight that trains: this one is frozen.",
        "ctx.weight = weight", "ctx.weight = weight\n        ctx.save_for_backward(x)"),
    "linear-checkpoint": _wrong(
        LINEAR, HIDDEN, "Makes the product again on the way back, and keeps the input for that.",
        code=_LINEAR_CHECKPOINT),
    "linear-transposed-gradient": _wrong(
        LINEAR, BOTH, "The gradient goes through the transposed weight: with a square one nothing complains.",
        "ctx.weight.dequantize(gradient.dtype)", "ctx.weight.dequantize(gradient.dtype).t()"),
    "linear-without-transpose": _wrong(
        LINEAR, BOTH, "With a square weight the shape is right and nothing else.",
        "return F.linear(x, weight.dequantize(x.dtype))", "return x @ weight.dequantize(x.dtype)"),
    "linear-no-gradient": _wrong(
        LINEAR, BOTH, "Keeps nothing because no gradient flows.",
        code="with torch.no_grad():\n    return F.linear(x, weight.dequantize(x.dtype))"),
    "linear-in-the-weights-dtype": _wrong(
        LINEAR, HIDDEN, "Reads back in the dtype that the weight had before it was quantized, and rounds twice.",
        "return F.linear(x, weight.dequantize(x.dtype))", "return F.linear(x, weight.dequantize().to(x.dtype))"),
    "linear-in-float32": _wrong(
        LINEAR, HIDDEN, "y comes out in float32, whatever dtype x has.",
        "return F.linear(x, weight.dequantize(x.dtype))",
        "return F.linear(x.float(), weight.dequantize(torch.float32))"),
    "linear-flattens": _wrong(
        LINEAR, HIDDEN, "A batch of sequences comes back as one long list of tokens.",
        "apply(x, weight)", "apply(x.flatten(0, -2), weight)"),
}
