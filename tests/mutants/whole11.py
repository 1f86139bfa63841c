"""Whole answers to lab 11, right and wrong, that are no change of the solution in a line or two."""

CHANGE_BY_CHORD = """
a, b = before.double(), after.double()
apart = torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1)
known = [k for k in range(len(a)) if a[k].any() and b[k].any()]
lengths = torch.linalg.vector_norm(b, dim=-1) - torch.linalg.vector_norm(a, dim=-1)
return float(lengths.abs().mean()), float(apart[known].square().sum(1).mean() / 2)
"""
CHANGE_BY_TORCH = """
before, after = before.double(), after.double()
known = before.any(1) & after.any(1)
turns = 1 - torch.cosine_similarity(before[known], after[known])
return float((after.norm(dim=1) - before.norm(dim=1)).abs().mean()), float(turns.mean())
"""
NORM_ROW_BY_ROW = """
a, b = a.detach(), b.detach()
gram = a @ a.t()
wa = weight.detach() @ a.t()
total = squares + 2 * scaling * torch.einsum("or,or->o", wa, b)
total = total + scaling**2 * torch.einsum("or,rs,os->o", b, gram, b)
return total.relu() ** 0.5
"""
NORM_LOOP = """
a, b = a.detach(), b.detach()
return torch.stack([(row + scaling * mine @ a).norm() for row, mine in zip(weight, b)])
"""
FORWARD_THIN_NORM = """
h = x @ a.t()
u = x @ weight.t() + scaling * (h @ b.t())
with torch.no_grad():
    total = weight.square().sum(1) + 2 * scaling * ((weight @ a.t()) * b).sum(1)
    norm = (total + scaling**2 * ((b @ (a @ a.t())) * b).sum(1)).clamp(min=0).sqrt()
    zero = norm == 0
scale = (m / (norm + zero)).masked_fill(zero, 1)
u = u * scale
return u if bias is None else u.add(bias)
"""
FORWARD_AS_PEFT = """
norm = (weight + scaling * b.detach() @ a.detach()).norm(dim=1)
scale = torch.where(norm == 0, torch.ones_like(m), m / norm.masked_fill(norm == 0, 1))
base = torch.nn.functional.linear(x, weight, bias)
plain = base if bias is None else base - bias
return base + (scale - 1) * plain + scale * scaling * ((x @ a.T) @ b.T)
"""
FORWARD_NORM_DETACHED = """
whole = weight + scaling * b @ a
norm = whole.norm(dim=1).detach()
scale = torch.where(norm > 0, m / torch.where(norm > 0, norm, 1.0), 1.0)
y = scale * (x @ weight.t() + scaling * (x @ a.t()) @ b.t())
return y if bias is None else y + bias
"""
MERGE_BY_NORMALIZE = """
whole = weight.detach() + scaling * b.detach() @ a.detach()
norm = whole.norm(dim=1)
c = (m.detach() / norm).masked_fill(norm == 0, 1)
return torch.diag(c) @ whole, c
"""
UNMERGE_ON_A_COPY = """
lost = factors == 0
found = merged.detach() / factors.detach().masked_fill(lost, 1)[:, None] - scaling * b.detach() @ a.detach()
found[lost] = 0
return found
"""
NORM_BY_ALL_PAIRS = """
a, b = a.detach(), b.detach()
pairs = 2 * scaling * (weight @ a.t()) @ b.t() + scaling**2 * (b @ (a @ a.t())) @ b.t()
return (squares + pairs.diagonal()).clamp(min=0).sqrt()
"""
FORWARD_NEEDS_LABKIT = """
from labkit.adapters.dora import _DoraProduct
norm = (weight + scaling * b.detach() @ a.detach()).norm(dim=1)
return _DoraProduct.apply(x, weight, bias, a, b, m, m.detach() / norm, 1 / norm, scaling, 0.0)
"""
FORWARD_ON_CTX = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b):
        ctx.whole = weight + scaling * (b @ a)
        ctx.save_for_backward(x, a, b)
        return x @ ctx.whole.t()

    @staticmethod
    def backward(ctx, gradient):
        x, a, b = ctx.saved_tensors
        flat, rows = gradient.flatten(0, -2), x.flatten(0, -2)
        return gradient @ ctx.whole, scaling * (flat @ b).t() @ rows, scaling * flat.t() @ (rows @ a.t())

with torch.no_grad():
    norm = (weight + scaling * (b @ a)).norm(dim=1)
    safe = torch.where(norm > 0, norm, 1.0)
y = torch.where(norm > 0, m / safe, 1.0) * Product.apply(x, a, b)
return y if bias is None else y + bias
"""
