"""Whole answers to lab 12, right and wrong, that are no small change of its solution."""

from __future__ import annotations

# Right ones.
CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint

base = checkpoint(lambda t: F.linear(t, codes.dequantize(t.dtype)), x, use_reentrant=False)
return base + F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype)) * scaling
"""

REENTRANT = """
from torch.utils.checkpoint import checkpoint

base = checkpoint(lambda t: torch.matmul(t, codes.dequantize(t.dtype).mT), x, use_reentrant=True)
return torch.add(base, x.to(A.dtype).matmul(A.mT).matmul(B.mT).to(x.dtype), alpha=scaling)
"""

ON_THE_CONTEXT = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes):
        ctx.codes = codes
        return x @ codes.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.codes.dequantize(gradient.dtype), None

return Product.apply(x, codes) + scaling * (x @ A.to(x.dtype).T @ B.to(x.dtype).T)
"""

ALL_IN_ONE = """
def rows(t):
    return t.reshape(-1, t.shape[-1]).float()

class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B):
        h = x @ A.to(x.dtype).T
        ctx.save_for_backward(x, A, B, h)
        return x @ codes.dequantize(x.dtype).T + scaling * h @ B.to(x.dtype).T

    @staticmethod
    def backward(ctx, g):
        x, A, B, h = ctx.saved_tensors
        to_h = scaling * g @ B.to(g.dtype)
        to_x = g @ codes.dequantize(g.dtype) + to_h @ A.to(g.dtype) if ctx.needs_input_grad[0] else None
        return to_x, rows(to_h).T @ rows(x), scaling * rows(g).T @ rows(h)

return Product.apply(x, A, B)
"""

BY_MODULES = """
for parameter in model.parameters():
    parameter.requires_grad = False
trained = {}
for path, module in model.named_modules():
    if path.rpartition(".")[2] in ("lora_A", "lora_B"):
        module.float().requires_grad_(True)
        trained |= {id(p): p for p in module.parameters()}
return torch.optim.AdamW([{"params": list(trained.values())}], lr=rate)
"""

CEIL = """
import math

found = {"weights": 2 * rest, "gradients": 0, "optimizer_states": 0}
for out, inputs in shapes:
    codes, scales = math.ceil(out * inputs / 2), math.ceil(out * inputs / 64)
    adapter = rank * inputs + out * rank
    found["weights"] += codes + scales + 4 * math.ceil(scales / 256) + 4 + 4 * adapter
    found["gradients"] += 4 * adapter
    found["optimizer_states"] += 2 * 4 * adapter
return found
"""

BY_HAND = """
kept = list(prompt)
while kept and len(kept) + len(answer) + 1 > room:
    kept.pop(0)
if not kept:
    raise ValueError("too long")
ids = kept + list(answer) + [end]
labels = [-100 if place < len(kept) else token for place, token in enumerate(ids)]
return ids, labels
"""

GATHERED = """
asked = labels[:, 1:] != -100
logs = logits.float().log_softmax(-1)[:, :-1][asked]
return -logs.gather(1, labels[:, 1:][asked][:, None]).mean()
"""

SLICES = """
if sum(lengths) > width:
    raise ValueError(f"{sum(lengths)} > {width}")
positions, seen, at = torch.zeros(width, dtype=torch.long), torch.eye(width, dtype=torch.bool), 0
for length in lengths:
    positions[at : at + length] = torch.arange(length)
    seen[at : at + length, at : at + length] = torch.ones(length, length).tril().bool()
    at += length
return positions, seen
"""

OWNERS = """
total = sum(lengths)
if total > width:
    raise ValueError("they do not fit")
owner = torch.full((width,), -1)
owner[:total] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
positions, at = torch.zeros(width, dtype=torch.int64), 0
for length in lengths:
    positions[at : at + length] = torch.arange(length)
    at += length
seen = (owner[:, None] == owner[None]).tril() & (owner >= 0)
return positions, seen | torch.eye(width, dtype=torch.bool)
"""

# Wrong ones.
HALF_KEPT = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        dense = codes.dequantize(x.dtype)
        ctx.save_for_backward(dense.bfloat16())
        return F.linear(x, dense)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.saved_tensors[0].to(gradient.dtype)

h = F.linear(x, A.to(x.dtype))
return Product.apply(x) + scaling * F.linear(h, B.to(x.dtype))
"""

PIECES = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        dense = codes.dequantize(x.dtype)
        ctx.pieces = [piece.clone() for piece in dense.chunk(2)]
        return F.linear(x, dense)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ torch.cat(ctx.pieces)

h = F.linear(x, A.to(x.dtype))
return Product.apply(x) + scaling * F.linear(h, B.to(x.dtype))
"""

REMEMBERED = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if not hasattr(codes, "dense"):
            codes.dense = codes.dequantize(x.dtype)
        return F.linear(x, codes.dense)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ codes.dense.to(gradient.dtype)

h = F.linear(x, A.to(x.dtype))
return Product.apply(x) + scaling * F.linear(h, B.to(x.dtype))
"""

FORMED = """
return F.linear(x, codes.dequantize(x.dtype) + scaling * (B @ A).to(x.dtype))
"""

IN_VAIN = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B):
        ctx.save_for_backward(x, A, B)
        h = x @ A.to(x.dtype).T
        return x @ codes.dequantize(x.dtype).T + scaling * h @ B.to(x.dtype).T

    @staticmethod
    def backward(ctx, g):
        x, A, B = ctx.saved_tensors
        h, to_h = x @ A.to(x.dtype).T, scaling * g @ B.to(g.dtype)
        to_x = g @ codes.dequantize(g.dtype) + to_h @ A.to(g.dtype)
        to_A = to_h.flatten(0, -2).T.float() @ x.flatten(0, -2).float()
        return to_x, to_A, scaling * g.flatten(0, -2).T.float() @ h.flatten(0, -2).float()

return Product.apply(x, A, B)
"""

AS_ONE = """
trained = sum(rank * (rows + columns) for rows, columns in shapes)
values = sum(rows * columns for rows, columns in shapes)
blocks = -(-values // 64)
weights = 2 * rest + 4 * trained + -(-values // 2) + blocks + 4 * -(-blocks // 256) + 4
return {"weights": weights, "gradients": 4 * trained, "optimizer_states": 8 * trained}
"""

ANSWER_CUT = """
ids = [*prompt, *answer, end][:room]
if room <= len(answer) + 1:
    raise ValueError("too long")
return ids, [-100] * len(prompt) + ids[len(prompt):]
"""

ROW_MEANS = """
means = [F.cross_entropy(row[:-1].float(), own[1:], ignore_index=-100) for row, own in zip(logits, labels)]
return torch.stack(means).mean()
"""

PADDING_TOGETHER = """
if sum(lengths) > width:
    raise ValueError("the conversations do not fit")
sizes = torch.tensor([*lengths, width - sum(lengths)], dtype=torch.int64)
number = torch.arange(len(sizes)).repeat_interleave(sizes)
positions = torch.arange(width) - (sizes.cumsum(0) - sizes)[number]
positions[sum(lengths):] = 0
return positions, (number[:, None] == number).tril()
"""

PADDING_WITH_THE_LAST = """
if sum(lengths) > width:
    raise ValueError("the conversations do not fit")
sizes = torch.tensor(lengths or [0], dtype=torch.int64)
sizes[-1] += width - sum(lengths)
number = torch.arange(len(sizes)).repeat_interleave(sizes)
positions = torch.arange(width) - (sizes.cumsum(0) - sizes)[number]
positions[sum(lengths):] = 0
return positions, (number[:, None] == number).tril()
"""

CUT = """
sizes = torch.tensor([*lengths, *[1] * max(0, width - sum(lengths))], dtype=torch.int64)
number = torch.arange(len(sizes)).repeat_interleave(sizes)[:width]
starts = sizes.cumsum(0) - sizes
positions = torch.arange(width) - starts[number]
return positions, (number[:, None] == number).tril()
"""

UPDATE_FORMED = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B):
        ctx.save_for_backward(x, A, B)
        return F.linear(x, codes.dequantize(x.dtype)) + F.linear(x, scaling * (B @ A).to(x.dtype))

    @staticmethod
    def backward(ctx, g):
        x, A, B = ctx.saved_tensors
        to_h = scaling * g.float() @ B
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = g @ codes.dequantize(g.dtype) + g @ (scaling * B @ A).to(g.dtype)
        to_A = to_h.flatten(0, -2).T @ x.flatten(0, -2).float()
        to_B = scaling * g.flatten(0, -2).T.float() @ (x.float() @ A.T).flatten(0, -2)
        return to_x, to_A, to_B

return Product.apply(x, A, B)
"""

GRADIENT_FORMED = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B):
        ctx.save_for_backward(x, A, B)
        return F.linear(x, codes.dequantize(x.dtype)) + scaling * F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    @staticmethod
    def backward(ctx, g):
        x, A, B = ctx.saved_tensors
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = g @ codes.dequantize(g.dtype) + scaling * g @ B.to(g.dtype) @ A.to(g.dtype)
        whole = scaling * g.flatten(0, -2).T.float() @ x.flatten(0, -2).float()
        return to_x, B.T @ whole, whole @ A.T

return Product.apply(x, A, B)
"""
