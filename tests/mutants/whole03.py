"""Whole answers to lab 03, right and wrong, that are no small change of its solution."""

from __future__ import annotations

# Right ones.
BY_WHERE = """
dead = torch.isneginf(scores).all(-1, keepdim=True)
top = scores.max(dim=-1, keepdim=True).values
powers = torch.where(dead, torch.zeros_like(scores), torch.exp(scores - torch.where(dead, torch.zeros_like(top), top)))
return torch.where(dead, torch.zeros_like(scores), powers / powers.sum(-1, keepdim=True).clamp_min(1e-30).to(powers))
"""

SCALED_QUERIES = """
length = q.shape[-2]
scores = torch.einsum("hid,hjd->hij", q / alpha / math.sqrt(q.shape[-1]), k)
may_see = torch.arange(length)[None, :] <= torch.arange(length)[:, None]
wide = torch.where(may_see, scores.float() * alpha, -math.inf)
return torch.einsum("hij,hjd->hid", wide.softmax(-1).to(q.dtype), v)
"""

BY_FUNCTION = """
class Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, tokens):
        ctx.save_for_backward(tokens)
        ctx.size = weight.shape
        return weight[tokens]

    @staticmethod
    def backward(ctx, gradient):
        (tokens,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size).index_put_((tokens,), gradient * alpha, accumulate=True), None

return Lookup.apply(weight, tokens)
"""

RESTORED = """
kept = copy.deepcopy(model.state_dict())
gradients = [p.grad for p in model.parameters()]
modes = [(module, module.training) for module in model.modules()]
model.eval()
for p in model.parameters():
    p.grad = None
before = model(x)
loss(before).backward()
optimizer(model.parameters(), lr=learning_rate).step()
with torch.no_grad():
    change = ((model(x) - before).norm() / before.norm()).item()
model.load_state_dict(kept)
for p, gradient in zip(model.parameters(), gradients, strict=True):
    p.grad = gradient
for module, mode in modes:
    module.training = mode
return change
"""

# Wrong ones.
CLAMPED = """
masked = (scores == -math.inf).all(-1, keepdim=True)
finite = scores.clamp(min=torch.finfo(scores.dtype).min)
powers = (finite - finite.amax(-1, keepdim=True)).exp()
return (powers / powers.sum(-1, keepdim=True)).masked_fill(masked, 0)
"""

BY_DIFFERENCE = """
rows = weight[tokens]
return rows.detach() + alpha * (rows - rows.detach())
"""

NEW_PARAMETERS = """
attention = layer.self_attn
scaled = attention.in_proj_weight.detach().clone()
scaled[2 * attention.embed_dim :] *= beta
attention.in_proj_weight = nn.Parameter(scaled)
for matrix in (attention.out_proj, layer.linear1, layer.linear2):
    matrix.weight = nn.Parameter(matrix.weight.detach() * beta)

def forward(x):
    x = layer.norm1(alpha * x + attend(layer, x))
    return layer.norm2(alpha * x + feed(layer, x))

return forward
"""

BY_FORMULA = """
twin = copy.deepcopy(model).eval()
before = twin(x)
parameters = list(twin.parameters())
gradients = torch.autograd.grad(loss(before), parameters)
with torch.no_grad():
    for p, g in zip(parameters, gradients, strict=True):
        p -= learning_rate * (g if optimizer is torch.optim.SGD else g / (g.abs() + 1e-8))
    return ((twin(x) - before).norm() / before.norm()).item()
"""

_MODES = "for module, mode in modes:\n    module.training = mode\n"
TRAIN_AT_THE_END = RESTORED.replace(_MODES, "model.train()\n")
ONE_MODE = RESTORED.replace(_MODES, "model.train(modes[0][1])\n")
NEW_GRADIENTS = RESTORED.replace("    p.grad = gradient\n", "    p.grad = p.grad if gradient is None else gradient\n")
