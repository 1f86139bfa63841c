"""Whole answers to lab 10, right and wrong, that are no change of the solution in a line or two."""

SCALED_H = "return self.linear(x) + F.linear(h * (alpha / rank), self.B)"

SEQUENTIAL = """
layer = nn.Sequential()
layer.linear = linear
linear.requires_grad_(False)
layer.A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) / rank)
layer.B = nn.Parameter(torch.zeros_like(linear.weight)[:, :1].repeat(1, rank))
layer.drop = nn.Dropout(dropout)

def forward(x):
    return torch.nn.functional.linear(x, linear.weight, linear.bias) + (layer.drop(x) @ layer.A.T) @ layer.B.T * (
        alpha / rank
    )

layer.forward = forward
return layer
"""
PEFTS = """
class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear
        for p in linear.parameters():
            p.requires_grad = False
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, dtype=linear.weight.dtype)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, dtype=linear.weight.dtype)
        self.A, self.B = self.lora_A.weight, self.lora_B.weight
        nn.init.zeros_(self.B)

    def forward(self, x):
        dropped = F.dropout(x, dropout, self.training)
        return self.linear(x) + self.lora_B(self.lora_A(dropped)) * (alpha / rank)

module = Lora()
del module.lora_A, module.lora_B
module.lora_A = lambda x: F.linear(x, module.A)
module.lora_B = lambda x: F.linear(x, module.B)
return module
"""
ADDMM = """
if merged is layer.merged:
    return
sign = 1 if merged else -1
whole = torch.addmm(layer.weight.data.float(), layer.B.data, layer.A.data, alpha=sign * layer.scaling)
layer.weight.data.copy_(whole.to(layer.weight.dtype))
layer.merged = merged
"""
KEEPS_A_COPY = """
if layer.merged == merged:
    return
with torch.no_grad():
    if merged:
        layer.original = layer.weight.clone()
        layer.weight.copy_(layer.weight + layer.scaling * (layer.B @ layer.A))
    else:
        layer.weight.copy_(layer.original)
layer.merged = merged
"""
LOOPS = """
weights = gradients = states = trained = forward = backward = 0
for out, inp in shapes:
    weights += out * inp * stored
    forward, backward = forward + 2 * tokens * out * inp, backward + 2 * tokens * out * inp
    for rows, columns in ((rank, inp), (out, rank)):
        values = rows * columns
        trained, weights, gradients = trained + values, weights + 4 * values, gradients + 4 * values
        states += 2 * 4 * values + 4
        forward, backward = forward + 2 * tokens * values, backward + 4 * tokens * values
bytes_ = {"weights": weights + frozen * stored, "gradients": gradients, "optimizer_states": states}
return {"trained": trained, "forward": forward, "backward": backward, **bytes_}
"""
ONE_EACH = """
return [
    {"params": [p], "lr": rate * (ratio if ".lora_B." in f".{name}." else 1), "weight_decay": decay * (p.ndim >= 2)}
    for name, p in model.named_parameters()
    if p.requires_grad
]
"""
IN_TURN = """
linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
if isinstance(targets, tuple):
    wanted = [re.compile("(.*[.])?" + re.escape(name)) for name in targets]
else:
    wanted = [re.compile(targets if targets != "all-linear" else "(?!head$).*")]
for pattern, name in zip(wanted, targets if isinstance(targets, tuple) else [targets]):
    if targets != "all-linear" and not any(pattern.fullmatch(path) for path in linear):
        raise ValueError(name)
return [path for path in linear if any(pattern.fullmatch(path) for pattern in wanted)]
"""
TWO_GROUPS = """
fast = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n.split(".")]
slow = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" not in n.split(".")]
groups = [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * ratio}]
return [{**group, "weight_decay": decay} for group in groups if group["params"]]
"""
PEFTS_GROUPS = """
found = {}
for name, p in model.named_parameters():
    if p.requires_grad:
        fast = "lora_B" in name.split(".") or p.dim() == 1
        found.setdefault((ratio * rate if fast else rate, decay if p.dim() > 1 else 0.0), []).append(p)
return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in found.items()]
"""
EMPTY_GROUPS = """
found = {(r, d): [] for r in (rate, ratio * rate) for d in (decay, 0.0)}
for name, p in model.named_parameters():
    if p.requires_grad:
        fast = "lora_B" in name.split(".")
        found[ratio * rate if fast else rate, decay if p.dim() > 1 else 0.0].append(p)
return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in found.items()]
"""
ITERATORS = """
named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
kinds = {(("lora_B" in name.split(".")), p.dim() > 1) for name, p in named}
return [
    {
        "params": [p for name, p in named if ("lora_B" in name.split(".")) == fast],
        "lr": rate * (ratio if fast else 1),
        "weight_decay": decay if matrix else 0.0,
    }
    for fast, matrix in kinds
]
"""

# Pieces of a solution and what takes their place: old, new, old, new …
FORMED_IN_EVALUATION = (
    "h = F.linear(self.dropout(x), self.A)",
    """if not self.training:
            whole = self.linear.weight + alpha / rank * self.B @ self.A
            return F.linear(x, whole, self.linear.bias)
        h = F.linear(self.dropout(x), self.A)""",
)
BIAS_COPIED = (
    "nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))",
    """nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.linear = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.linear.weight = linear.weight
        if linear.bias is not None:
            self.linear.bias = nn.Parameter(linear.bias.clone(), requires_grad=False)""",
)
LINEAR_AFTERWARDS = (
    "found = [path for path in paths if re.fullmatch(targets, path)]",
    "found = [path for path, _ in model.named_modules() if re.fullmatch(targets, path)]",
    "return found",
    "return [path for path in found if path in paths]",
)
