"""Answers that go another way than the solution and are as right: {lab: {name: (exercise, code)}}.

Labs whose module has a RIGHT of its own are not here.
"""

from __future__ import annotations

OTHERS = {
    "02-mixed-precision": {
        "shares-by-count": (
            "ex1-shares",
            """
sizes = (values.double().abs() * scale)[values != 0]
if len(sizes) == 0:
    return 0.0, 0.0, 0.0
half, border = fmt.smallest_subnormal / 2, fmt.max + fmt.eps * 2.0 ** (fmt.max_exponent - 1)
lost = int((sizes <= half).sum())
small = int((sizes < fmt.smallest_normal).sum()) - lost
over = int((sizes >= border).sum())
return lost / len(sizes), small / len(sizes), over / len(sizes)
""",
        ),
        "recipe-updates-before-rounding": (
            "ex6-recipe",
            """
loss = loss_of(model)
scaler.scale_loss(loss).backward()
for weight, master in zip(model.parameters(), masters, strict=True):
    master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
model.zero_grad()
scaler.unscale_(masters)
nn.utils.clip_grad_norm_([master for master in masters if master.grad is not None], max_norm)
made = scaler.step(optimizer.step)
scaler.update()
for weight, master in zip(model.parameters(), masters, strict=True):
    if made:
        weight.data.copy_(master.data)
    master.grad = None
return loss.detach()
""",
        ),
    },
    "04-memory-anatomy": {
        "stays-one-by-one": (
            "ex1-stays",
            """
count = model.vocab * model.hidden
if not model.tied:
    count *= 2
for _ in range(model.layers):
    count += model.hidden * model.queries * 2  # query and output
    count += model.hidden * model.keys * 2  # key and value
    count += model.hidden * model.ffn * 3
    count += 2 * model.hidden
count += model.hidden
wide = 4 if master else itemsize
moments = {"sgd": 0, "momentum": 1, "adamw": 2}[optimizer]
out = dict(weights=count * itemsize, master_weights=0, gradients=count * wide, optimizer_states=moments * count * wide)
if master:
    out["master_weights"] = 4 * count
return out
""",
        ),
    },
    "09-quantization": {
        "int8-row-by-row": (
            "ex1-int8-rows",
            """
codes, scales = [], []
for row in x.float():
    top = row.abs().max()
    scales.append(top)
    codes.append(torch.zeros_like(row) if top == 0 else (127 * row / top).round())
return torch.stack(codes).to(torch.int8), torch.stack(scales)
""",
        ),
        "int8-by-a-factor": (
            "ex1-int8-rows",
            """
x = x.float()
absmax = torch.linalg.vector_norm(x, float("inf"), dim=1)
factors = (127 / absmax).masked_fill(absmax == 0, 0)
return (x * factors[:, None]).round().to(torch.int8), absmax
""",
        ),
        "blocks-by-reciprocals": (
            "ex2-blocks",
            """
parts = x.flatten().float().split(block_size)
absmax = torch.stack([part.abs().max() for part in parts])
scaled = torch.cat([part * (1 / top) if top > 0 else part for part, top in zip(parts, absmax)])
codes = (scaled[:, None] - book).abs().argmin(1).tolist()
codes += [0] * (len(codes) % 2)
return torch.tensor([16 * a + b for a, b in zip(codes[::2], codes[1::2])], dtype=torch.uint8).to(x.device), absmax
""",
        ),
    },
    "16-zo-offload": {
        "sweep-tensor-by-tensor": (
            "ex1-sweep",
            """
for i, version in list(enumerate(versions)):
    block = host.upload(i)
    missing = list(updates)[version:]
    for name in sorted(block):
        [nudge(block[name], name, *update) for update in missing]
    compute(i, block)
    if missing and due(i):
        host.download(i, block)
        versions[i] = version + len(missing)
""",
        ),
        "flush-goes-on": (
            "ex2-flush",
            """
count, failed = 0, None
for i in range(len(versions)):
    if versions[i] < len(updates):
        block = host.upload(i)
        for update in updates[versions[i] :]:
            for name, tensor in block.items():
                nudge(tensor, name, *update)
        count += 1
        try:
            host.download(i, block)
            versions[i] = len(updates)
        except Exception as error:
            failed = failed or error
if failed:
    raise failed
return count
""",
        ),
        "waits-by-slot": (
            "ex3-waits",
            """
last, waits = {}, {}
for v in range(n * steps):
    slot, block = ("slot", v % slots), ("block", v % n)
    waits["U", v] = list(last.get(slot, [])) + list(last.get(block, []))
    waits["C", v] = [("U", v)]
    last[slot], last[block] = [("C", v)], []
    if due(v):
        waits["O", v] = [("C", v)]
        last[slot] = last[block] = [("O", v)]
return waits
""",
        ),
    },
}
