"""Whole answers to lab 08, wrong and right: too long to make of the solution by replacing a piece."""

HOOK_ON_X = """
def summed(gradient):
    total = gradient.clone()
    group.all_reduce(total)
    return total

x.register_hook(summed)
rows, part = (t.tensor_split(group.world_size)[group.rank] for t in (weight, bias))
return F.linear(x, rows, part)
"""
HOOK_ON_VIEW = """
def summed(gradient):
    total = gradient.clone()
    group.all_reduce(total)
    return total

entered = x.view_as(x)
entered.register_hook(summed)
rows, part = (t.tensor_split(group.world_size)[group.rank] for t in (weight, bias))
return F.linear(entered, rows, part)
"""
WHOLE_AND_SLICE = """
return F.linear(x, weight, bias).tensor_split(group.world_size, -1)[group.rank]
"""
EQUAL_ROWS = """
class Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        group.all_reduce(total)
        return total

each = len(weight) // group.world_size
mine = slice(group.rank * each, (group.rank + 1) * each)
return F.linear(Enter.apply(x), weight[mine], bias[mine])
"""
ONE_FUNCTION = """
class Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.t() + b

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        summed = None
        if ctx.needs_input_grad[0]:
            summed = gradient @ w
            group.all_reduce(summed)
        flat = gradient.reshape(-1, gradient.shape[-1])
        return summed, flat.t() @ x.reshape(-1, x.shape[-1]), flat.sum(0)

n, rank = group.world_size, group.rank
return Columns.apply(x, weight.tensor_split(n)[rank], bias.tensor_split(n)[rank])
"""
ALWAYS_SENDS = ONE_FUNCTION.replace("if ctx.needs_input_grad[0]:", "if True:")
GATHERED = """
n, part = group.world_size, logits.shape[1]
most = torch.tensor([float(part)], dtype=logits.dtype)
group.all_reduce(most, "max")
padded = torch.full((len(logits), int(most)), -torch.inf, dtype=logits.dtype)
padded[:, :part] = logits
parts = torch.empty(n, *padded.shape, dtype=logits.dtype)
group.all_gather(parts, padded)
sizes = torch.zeros(n, dtype=logits.dtype)
sizes[group.rank] = part
group.all_reduce(sizes)
whole = torch.cat([p[:, : int(size)] for p, size in zip(parts, sizes)], 1).requires_grad_()
losses = F.cross_entropy(whole, targets, reduction="none", ignore_index=-100)
gradient, = torch.autograd.grad(losses.sum(), whole)
return losses.detach(), gradient[:, first : first + part]
"""
LOCAL = """
losses = F.cross_entropy(logits, (targets - first).clamp(0, logits.shape[1] - 1), reduction="none")
gradient = logits.softmax(1)
gradient[torch.arange(len(logits)), (targets - first).clamp(0, logits.shape[1] - 1)] -= 1
return losses, gradient
"""
GPIPE = 'return [(kind, k) for kind in "FB" for k in range(micro_batches)]'
FORMULA = """
p, m = len(orders), len(orders[0]) // 2
seconds = (m + p - 1) * (sum(forward) + sum(backward)) / p
return seconds, (p - 1) / (m + p - 1)
"""
SLOWEST = """
p, m = len(orders), len(orders[0]) // 2
seconds = (m + p - 1) * (max(forward) + max(backward))
return seconds, 1 - m * (sum(forward) + sum(backward)) / (p * seconds)
"""
LIBRARY_ORDER = """
names = {"forward": "F", "backward": "B"}
whole = pipeline_schedule.schedule("1f1b", stages, micro_batches)
return [(names[action.kind], action.micro_batch) for action in whole[stage]]
"""
LIBRARY_ORDER_INSIDE = """
names = {"forward": "F", "backward": "B"}
own = pipeline_schedule._one_forward_one_backward(stage, stages, micro_batches)
return [(names[action.kind], action.micro_batch) for action in own]
"""
LIBRARY_BUBBLE_FROM_ELSEWHERE = """
from labkit.show.schedules import Action, bubble, simulate

names = {"F": "forward", "B": "backward"}
ran = simulate([[Action(names[kind], k) for kind, k in order] for order in orders], forward, backward)
return max(r.end for r in ran), bubble(ran)
"""
LIBRARY_BUBBLE = """
names = {"F": "forward", "B": "backward"}
actions = [[pipeline_schedule.Action(names[kind], k) for kind, k in order] for order in orders]
ran = pipeline_schedule.simulate(actions, forward, backward)
return max(r.end for r in ran), pipeline_schedule.bubble(ran)
"""
FOUR_SWEEPS = """
p, ends = len(orders), {}
for _ in range(4):
    for stage in range(p):
        clock = 0.0
        for kind, k in orders[stage]:
            other = ends.get((stage - 1 if kind == "F" else stage + 1, kind, k), 0.0)
            clock = max(clock, other) + (forward if kind == "F" else backward)[stage]
            ends[stage, kind, k] = clock
seconds = max(ends.values())
work = sum((forward if kind == "F" else backward)[s] for s, order in enumerate(orders) for kind, _ in order)
return seconds, 1 - work / (p * seconds)
"""

HOOK_WHERE_NEEDED = HOOK_ON_VIEW.replace(
    "entered.register_hook(summed)", "if entered.requires_grad:\n    entered.register_hook(summed)"
)
IN_PLACE = """
y = F.linear(part, weight.tensor_split(group.world_size, 1)[group.rank])
group.all_reduce(y)
return y if bias is None else y + bias
"""
THREE_MESSAGES = """
peak = logits.amax(1)
group.all_reduce(peak, "max")
e = (logits - peak[:, None]).exp()
total = e.sum(1)
group.all_reduce(total)
hit = torch.arange(first, first + logits.shape[1]) == targets[:, None]
at_target = (logits - peak[:, None]).masked_fill(~hit, 0).sum(1)
group.all_reduce(at_target)
counts = (targets != -100).double()
return (total.log() - at_target) * counts, (e / total[:, None] - hit.double()) * counts[:, None]
"""
BY_TURNS = """
order, done, begun = [], 0, 0
while done < micro_batches:
    if begun < micro_batches and begun - done < stages - stage:
        order.append(("F", begun))
        begun += 1
    else:
        order.append(("B", done))
        done += 1
return order
"""
RECURSIVE = """
import functools

p, place = len(orders), {(s, *action): i for s, order in enumerate(orders) for i, action in enumerate(order)}

@functools.cache
def end(s, kind, k):
    i, source = place[s, kind, k], s + (1 if kind == "B" else -1)
    before = end(s, *orders[s][i - 1]) if i else 0.0
    other = end(source, kind, k) if 0 <= source < p else 0.0
    return max(before, other) + {"F": forward, "B": backward}[kind][s]

seconds = max(end(s, *order[-1]) for s, order in enumerate(orders))
busy = sum(len(order) // 2 * (f + b) for order, f, b in zip(orders, forward, backward))
return seconds, (p * seconds - busy) / (p * seconds)
"""
