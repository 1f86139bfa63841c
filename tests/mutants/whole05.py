"""Answers to lab 05, wrong ones and two right ones, that share nothing with the solution, for `lab05`."""

KEEPS_THE_GRAPH = """
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = function(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.y.backward(gradient)
        return ctx.x.grad

return Once.apply(x)
"""
TORCHS_CUT = """
length = len(layers) // segments
starts = [k * length for k in range(segments)] + [len(layers)]
for begin, end in zip(starts, starts[1:]):
    def run(x, part=layers[begin:end]):
        for layer in part:
            x = layer(x)
        return x

    x = checkpoint(run, x)
return x
"""
CHUNKS = """
length = -(-len(layers) // segments)
for begin in range(0, len(layers), length):
    x = checkpoint(nn.Sequential(*layers[begin : begin + length]), x)
return x
"""
LARGE_BATCH = """
model.zero_grad()
longest = max(inputs.shape[1] for inputs, _ in micro_batches)
inputs = torch.cat([F.pad(i, (0, longest - i.shape[1])) for i, _ in micro_batches])
targets = torch.cat([F.pad(t, (0, longest - t.shape[1]), value=-100) for _, t in micro_batches])
loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
loss.backward()
return loss.item()
"""
ONE_BACKWARD = """
total = sum(int((targets != -100).sum()) for _, targets in micro_batches)
model.zero_grad()
losses = [F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum") for i, t in micro_batches]
loss = sum(losses) / total
loss.backward()
return loss.item()
"""
MEAN_OF_MEANS = """
model.zero_grad()
loss = 0.0
for inputs, targets in micro_batches:
    part = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) / len(micro_batches)
    part.backward()
    loss += part.item()
return loss
"""
ROW_SHARES = "rows = sum(len(inputs) for inputs, _ in micro_batches)" + MEAN_OF_MEANS.replace(
    "/ len(micro_batches)", "* len(inputs) / rows"
)
MEANS_WITH_SHARES = "total = sum(int((targets != -100).sum()) for _, targets in micro_batches)" + MEAN_OF_MEANS.replace(
    "/ len(micro_batches)", "* int((targets != -100).sum()) / total"
)
HOOKS_STAY_ON = """
from contextlib import nullcontext

weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

def pack(tensor):
    stays = tensor.untyped_storage().data_ptr() in weights or tensor.nbytes < min_bytes
    return tensor if stays else host.put(tensor)

hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda k: k if torch.is_tensor(k) else host.get(k))
hooks.__enter__()
return nullcontext()
"""

# Right ones.
IN_TWO_STEPS = """
sizes = [len(layers) // segments + (1 if k < len(layers) % segments else 0) for k in range(segments)]
parts, layers = [], list(layers)
for size in sizes:
    parts.append(layers[:size])
    layers = layers[size:]


class Run:
    def __init__(self, part):
        self.part = part

    def __call__(self, x):
        for layer in self.part:
            x = layer(x)
        return x


for part in parts:
    x = checkpoint(Run(part), x)
return x
"""
OWN_CONTEXT = """
from contextlib import contextmanager

def pack(tensor):
    own = any(tensor.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in model.parameters())
    return tensor if own or tensor.nbytes < min_bytes else host.put(tensor)

@contextmanager
def context():
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: host.get(k) if isinstance(k, int) else k):
        yield

return context()
"""
