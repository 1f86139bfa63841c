"""Answers that go another way than the solution and are as right: {lab: {name: (exercise, code)}}.

Labs whose module has a RIGHT of its own are not here.
"""

from __future__ import annotations

OTHERS = {
    "00-start-here": {
        "batch-filled-row-by-row": (
            "ex1-padded-batch",
            """
if any(len(row) == 0 for row in sequences):
    raise ValueError("no empty rows")
kept = [torch.tensor(row)[-max_length:] for row in sequences]
input_ids = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=pad_id)
attention_mask = torch.zeros_like(input_ids)
for place, row in enumerate(kept):
    attention_mask[place, : len(row)] = 1
return input_ids, attention_mask, attention_mask.sum(1) - 1
""",
        ),
        "scores-by-gather": (
            "ex2-class-scores",
            """
index = last.view(-1, 1, 1).expand(-1, 1, logits.shape[-1])
chosen = logits.gather(1, index).squeeze(1).index_select(1, torch.as_tensor(label_ids, device=logits.device))
powers = (chosen - chosen.amax(1, keepdim=True)).exp()
probabilities = powers / powers.sum(1, keepdim=True)
return probabilities, probabilities.argmax(1)
""",
        ),
    },
    "01-floating-point": {
        "decode-by-loop": (
            "ex1-decode",
            """
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
""",
        ),
    },
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
    },
    "03-training-stability": {
        "softmax-by-where": (
            "ex1-softmax",
            """
dead = torch.isneginf(scores).all(-1, keepdim=True)
top = scores.max(dim=-1, keepdim=True).values
powers = torch.where(dead, torch.zeros_like(scores), torch.exp(scores - torch.where(dead, torch.zeros_like(top), top)))
return torch.where(dead, torch.zeros_like(scores), powers / powers.sum(-1, keepdim=True).clamp_min(1e-30).to(powers))
""",
        ),
        "attention-scaled-queries": (
            "ex2-attention",
            """
length = q.shape[-2]
scores = torch.einsum("hid,hjd->hij", q / alpha / math.sqrt(q.shape[-1]), k)
may_see = torch.arange(length)[None, :] <= torch.arange(length)[:, None]
wide = torch.where(may_see, scores.float() * alpha, -math.inf)
return torch.einsum("hij,hjd->hid", wide.softmax(-1).to(q.dtype), v)
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
    "05-compute-for-memory": {
        "sequence-in-two-steps": (
            "ex2-sequence",
            """
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
""",
        ),
    },
    "06-data-parallel": {
        "reduce-scatter-in-a-copy": (
            "ex1-reduce-scatter",
            """
rank, n = group.rank, group.world_size
sums = [part.clone() for part in tensor.tensor_split(n)]
for step in range(n - 1):
    leaving, arriving = (rank - 1 - step) % n, (rank - 2 - step) % n
    buffer = torch.zeros_like(sums[arriving])
    group.exchange(sums[leaving], (rank + 1) % n, buffer, (rank - 1) % n)
    sums[arriving] += buffer
return sums[rank]
""",
        ),
    },
    "07-zero": {
        "bytes-by-category": (
            "ex1-bytes",
            """
def count(sharded, padded):
    total = 0
    for sizes in units:
        size = sum(sizes)
        share = (size + world_size - 1) // world_size
        total += share if sharded else share * world_size if padded else size
    return total


low = 2 if mixed else 4
return {
    "weights": low * count(stage == 3, stage > 0),
    "gradients": low * count(stage >= 2, stage > 0),
    "master_weights": 4 * count(stage >= 1, False) if mixed else 0,
    "optimizer_states": 8 * count(stage >= 1, False),
}
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
