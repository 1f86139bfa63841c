"""Whole answers to lab 06 that go another way than the solution and are as right, for `lab06`."""

IN_A_COPY = """
rank, n = group.rank, group.world_size
sums = [part.clone() for part in tensor.tensor_split(n)]
for step in range(n - 1):
    leaving, arriving = (rank - 1 - step) % n, (rank - 2 - step) % n
    buffer = torch.zeros_like(sums[arriving])
    group.exchange(sums[leaving], (rank + 1) % n, buffer, (rank - 1) % n)
    sums[arriving] += buffer
return sums[rank]
"""
SCATTER_BY_KEYWORD = """
rank, n = group.rank, group.world_size
own = tensor.tensor_split(n)
partial = own[(rank - 1) % n].clone()
for step in range(1, n):
    mine = own[(rank - 1 - step) % n]
    arriving = torch.empty_like(mine)
    group.exchange(leaving=partial, to=(rank + 1) % n, arriving=arriving, source=(rank - 1) % n)
    partial = arriving + mine
return partial
"""
REDUCE_BY_KEYWORD = """
rank, n = group.rank, group.world_size
parts = tensor.tensor_split(n)
parts[rank].copy_(reduce_scatter(group=group, tensor=tensor))
for step in range(n - 1):
    leaving, arriving = parts[(rank - step) % n], parts[(rank - step - 1) % n]
    group.exchange(leaving, (rank + 1) % n, arriving=arriving, source=(rank - 1) % n)
"""
AUTOGRAD_GRAD = """
parameters, total = list(model.parameters()), 0.0
sums = [torch.zeros_like(p) for p in parameters]
for x, y in micro_batches:
    loss = ((model(x) - y) ** 2).mean() / len(micro_batches)
    total = total + loss
    for s, gradient in zip(sums, torch.autograd.grad(loss, parameters)):
        s += gradient
for p, s in zip(parameters, sums):
    p.grad = s
average(parameters)
"""
