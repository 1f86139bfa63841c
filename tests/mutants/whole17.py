"""Whole answers to lab 17 that are not the solution with a piece replaced."""

from __future__ import annotations

PLAN_PER_TENSOR = """\
sizes = [hidden * hidden] * 4 + [4 * hidden * hidden] * 2
lora = layers * 2 * (rank * hidden + hidden * rank)
rest = vocabulary * hidden + positions * hidden
held = {"weights": -(-(2 * (layers * sum(sizes) + rest) + 4 * lora) // n), "gradients": -(-4 * lora // n)}
held["optimizer_states"] = 2 * held["gradients"]
held["gathered"] = 2 * rest + 2 * sum(sizes) * min(n, 2)
return held"""

CHOICE_SORTED = """\
from statistics import mean
found = []
for recipe in dict.fromkeys((row["method"], row["world_size"]) for row in rows):
    mine = [row for row in rows if (row["method"], row["world_size"]) == recipe]
    if all(row["step_ms"] is not None for row in mine) and max(row["peak_mib"] for row in mine) <= room:
        energy = mean(1e3 * row["joules_per_step"] / row["step_ms"] / row["tokens_per_s"] for row in mine)
        if mean(row["tokens_per_s"] for row in mine) * seconds >= tokens:
            found.append((energy, mean(row["accuracy"] for row in mine), recipe))
if not found:
    return None
least = max(accuracy for _, accuracy, _ in found) - give
return next(recipe for _, accuracy, recipe in sorted(found) if accuracy >= least)"""

WRAP_BY_HAND = """\
for p in model.parameters():
    p.data, p.requires_grad = p.data.bfloat16(), False
from peft import inject_adapter_in_model
net = inject_adapter_in_model(LoraConfig(**ADAPTER), model)
for p in net.parameters():
    p.data = p.data.float() if p.requires_grad else p.data
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for name, module in list(net.named_modules()):
    if name.rpartition(".")[0] == "model.layers":
        fully_shard(module, mesh=mesh, mp_policy=policy)
fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
trained = filter(lambda p: p.requires_grad, net.parameters())
return net, torch.optim.AdamW(trained, lr=RATE, weight_decay=0)"""

TORCHS_STATE = """\
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
found = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    found = {"base_model.model." + k.replace(".default", ""): v.float() for k, v in found.items() if "lora_" in k}
    targets = {name.split(".")[-3] for name in found}
    r = min(min(t.shape) for t in found.values())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "target_modules": list(targets)}
    write(found, {**config, "lora_alpha": lora_alpha})
dist.barrier()"""

WITH_SHARD_BATCH = """\
from labkit.parallel.data import shard_batch
optimizer = make(list(filter(lambda p: p.requires_grad, net.parameters())), rate or 2e-3)
losses = []
for batch in batches:
    share = shard_batch(batch, rank, n)
    count = len(share.batch.labels)
    calls = -(-(-(-len(batch.labels) // n)) // most)
    optimizer.zero_grad()
    mean = 0
    for call in range(calls):
        rows = list(range(call, count, calls))
        weight = share.weight * len(rows) / count
        loss = weight * task.loss(net, piece(share.batch, rows or [0]))
        loss.backward()
        mean = mean + loss.detach()
    optimizer.step()
    dist.all_reduce(mean)
    losses.append(float(mean) / n)
return losses"""
