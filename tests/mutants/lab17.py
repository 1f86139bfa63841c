"""Wrong answers to lab 17 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole17
from .answers import Answers

LAB = "17-capstone"
_wrong = Answers(LAB).wrong

PLAN, CHOICE, WRAP, SAVE, TRAINING = "ex1-plan", "ex2-choice", "ex3-wrap", "ex4-save", "ex5-training"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "plan-per-tensor": (PLAN, whole17.PLAN_PER_TENSOR),
    "choice-sorted": (CHOICE, whole17.CHOICE_SORTED),
    "wrap-by-hand": (WRAP, whole17.WRAP_BY_HAND),
    "save-torchs-state": (SAVE, whole17.TORCHS_STATE),
    "training-with-shard-batch": (TRAINING, whole17.WITH_SHARD_BATCH),
}
_OWN_CALLS = ("range(0, -(-total // n), most)", "range(0, len(mine), most)")

# fmt: off
MUTANTS = {
    "plan-head-twice": _wrong(
        PLAN, BOTH, "Counts the head beside the table of words.",
        "(vocabulary + positions) * hidden", "(2 * vocabulary + positions) * hidden"),
    "plan-narrow-adapters": _wrong(
        PLAN, HIDDEN, "Adapters in bf16.", "(2 * frozen + 4 * adapters) / n", "2 * (frozen + adapters) / n"),
    "plan-everything-trains": _wrong(
        PLAN, BOTH, "Gradients and moments of all weights.",
        '"gradients": 4 * adapters / n,\n    "optimizer_states": 8 * adapters / n',
        '"gradients": 4 * frozen / n,\n    "optimizer_states": 8 * frozen / n'),
    "plan-masters": _wrong(
        PLAN, BOTH, "Master weights beside adapters that are fp32 already.", "8 * adapters", "12 * adapters"),
    "plan-not-sharded": _wrong(
        PLAN, HIDDEN, "Adapters are small: every rank has them whole.",
        "(2 * frozen + 4 * adapters) / n", "2 * frozen / n + 4 * adapters"),
    "plan-one-layer": _wrong(
        PLAN, BOTH, "Forgets the layer that is on its way.", "(2 if n > 1 else 1)", "1"),
    "plan-always-two": _wrong(
        PLAN, HIDDEN, "One rank gathers ahead as well.", "(2 if n > 1 else 1)", "2"),
    "plan-gathers-a-share": _wrong(
        PLAN, BOTH, "Divides what is gathered.",
        "2 * (outside + (2 if n > 1 else 1) * layer)", "2 * (outside + (2 if n > 1 else 1) * layer) / n"),
    "plan-layers-only": _wrong(
        PLAN, BOTH, "What is in no layer is not gathered.", "(outside + (2", "((2"),
    "plan-gathers-adapters": _wrong(
        PLAN, HIDDEN, "Adapters are gathered too, and only frozen weights are asked.",
        "(2 if n > 1 else 1) * layer", "(2 if n > 1 else 1) * (layer + 4 * rank * hidden)"),
    "plan-attention-only": _wrong(
        PLAN, BOTH, "Forgets the feed-forward part's width.", "12 * hidden", "6 * hidden"),
    "choice-joules-a-step": _wrong(
        CHOICE, BOTH, "Compares joules of steps of different sizes.",
        ' / (row["tokens_per_s"] * row["step_ms"] / 1e3)', ""),
    "choice-no-accuracy": _wrong(
        CHOICE, BOTH, "The greenest, however bad.", "accuracy >= best - give", "True"),
    "choice-most-accurate": _wrong(
        CHOICE, BOTH, "The best, whatever it costs.",
        "min(good, key=good.get, default=None)", "max(left, key=left.get, default=None)"),
    "choice-mean-peak": _wrong(
        CHOICE, HIDDEN, "Looks at the first seed's peak only.",
        'any(row["step_ms"] is None or row["peak_mib"] > room for row in found)',
        'found[0]["step_ms"] is None or found[0]["peak_mib"] > room'),
    "choice-best-seed": _wrong(
        CHOICE, HIDDEN, "The best seed stands for a recipe.",
        '    if tokens / rate', '    accuracy = max(row["accuracy"] for row in found)\n    if tokens / rate'),
    "choice-planned": _wrong(
        CHOICE, BOTH, "Takes plans for measurements.", 'row["step_ms"] is None or ', ""),
    "choice-best-of-all": _wrong(
        CHOICE, BOTH, "Measures accuracy against recipes that are too slow.",
        "    if tokens / rate <= seconds:\n        left[recipe] = accuracy, sum(joules) / len(joules)",
        "    every = left.setdefault(None, [0])\n    every[0] = max(every[0], accuracy)\n"
        "    if tokens / rate <= seconds:\n        left[recipe] = accuracy, sum(joules) / len(joules)",
        "best = max((accuracy for accuracy, _ in left.values()), default=0)",
        "best = left.pop(None, [0])[0]"),
    "choice-not-in-time": _wrong(
        CHOICE, BOTH, "Forgets the time.", "if tokens / rate <= seconds", "if True"),
    "choice-raises": _wrong(
        CHOICE, HIDDEN, "Nothing fits: an error.",
        "min(good, key=good.get, default=None)", "min(good, key=good.get)"),
    "choice-ratio-of-means": _wrong(
        CHOICE, HIDDEN, "All seeds' joules over all seeds' tokens, where each seed has its own.",
        'joules = [row["joules_per_step"] / (row["tokens_per_s"] * row["step_ms"] / 1e3) for row in found]',
        'joules = [sum(row["joules_per_step"] for row in found)\n'
        '              / sum(row["tokens_per_s"] * row["step_ms"] / 1e3 for row in found)]'),
    "choice-first-seeds-energy": _wrong(
        CHOICE, HIDDEN, "The first seed's energy stands for a recipe.", "sum(joules) / len(joules)", "joules[0]"),
    "choice-planned-rows-dropped": _wrong(
        CHOICE, HIDDEN, "Drops planned rows, and keeps the recipe by its other seeds.",
        "for row in rows:", 'for row in (row for row in rows if row["step_ms"] is not None):'),
    "choice-peak-below": _wrong(
        CHOICE, HIDDEN, "A peak of just the room does not fit.", '"peak_mib"] > room', '"peak_mib"] >= room'),
    "choice-time-below": _wrong(
        CHOICE, HIDDEN, "Just in time is late.", "tokens / rate <= seconds", "tokens / rate < seconds"),
    "choice-mean-of-times": _wrong(
        CHOICE, HIDDEN, "The mean of the seeds' times, not the time at their mean rate.",
        "tokens / rate <= seconds",
        'sum(tokens / row["tokens_per_s"] for row in found) / len(found) <= seconds'),
    "choice-fastest-seed": _wrong(
        CHOICE, HIDDEN, "The fastest seed's rate stands for a recipe.",
        "tokens / rate <= seconds", 'tokens / max(row["tokens_per_s"] for row in found) <= seconds'),
    "choice-first-seeds-rate": _wrong(
        CHOICE, HIDDEN, "The first seed's rate stands for a recipe.",
        "tokens / rate <= seconds", 'tokens / found[0]["tokens_per_s"] <= seconds'),
    "wrap-root-only": _wrong(
        WRAP, BOTH, "One group: all layers are gathered at once.",
        "for layer in model.model.layers:\n    fully_shard(layer, mesh=mesh, mp_policy=policy)\n", ""),
    "wrap-layers-only": _wrong(
        WRAP, BOTH, "The tables of words stay whole.", "fully_shard(net, mesh=mesh, mp_policy=policy)\n", ""),
    "wrap-each-matrix": _wrong(
        WRAP, BOTH, "Each part of a layer is a group.",
        "for layer in model.model.layers:\n",
        "for layer in model.model.layers:\n    fully_shard(layer.mlp, mesh=mesh, mp_policy=policy)\n"),
    "wrap-keeps-layers": _wrong(
        WRAP, BOTH, "Layers stay gathered from forward to backward.",
        "fully_shard(layer, mesh=mesh, mp", "fully_shard(layer, mesh=mesh, reshard_after_forward=False, mp"),
    "wrap-optimizer-first": _wrong(
        WRAP, BOTH, "The optimizer knows the parameters from before sharding.",
        "policy = Mixed",
        "early = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=RATE)\npolicy = Mixed",
        "torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)", "early"),
    "wrap-everything-trains": _wrong(
        WRAP, BOTH, "Nothing is frozen.", "policy = Mixed", "net.requires_grad_(True)\npolicy = Mixed"),
    "wrap-narrow-adapters": _wrong(
        WRAP, BOTH, "All in bf16, adapters too.",
        "get_peft_model(model.to(torch.bfloat16), LoraConfig(**ADAPTER))",
        "get_peft_model(model, LoraConfig(**ADAPTER)).to(torch.bfloat16)"),
    "wrap-fp32-base": _wrong(
        WRAP, BOTH, "Frozen weights stay fp32; only what is gathered is bf16.", "model.to(torch.bfloat16)", "model"),
    "wrap-no-policy": _wrong(
        WRAP, BOTH, "Adapters are gathered, and compute, in fp32.",
        "MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)", "MixedPrecisionPolicy()"),
    "wrap-reduces-bf16": _wrong(
        WRAP, BOTH, "Gradients are reduced as they come.", ", reduce_dtype=torch.float32", ""),
    "wrap-default-adapters": _wrong(
        WRAP, BOTH, "peft's own rank and targets.", "LoraConfig(**ADAPTER)", 'LoraConfig(task_type="CAUSAL_LM")'),
    "wrap-alpha": _wrong(
        WRAP, BOTH, "peft's own scale.", "LoraConfig(**ADAPTER)", 'LoraConfig(**{**ADAPTER, "lora_alpha": 8})'),
    "wrap-replicated": _wrong(
        WRAP, BOTH, "Nothing is sharded: the model as it is.",
        "    fully_shard(layer, mesh=mesh, mp_policy=policy)\n", "    pass\n",
        "fully_shard(net, mesh=mesh, mp_policy=policy)\n", ""),
    "wrap-decay": _wrong(
        WRAP, BOTH, "AdamW's own decay.", ", weight_decay=0.0", ""),
    "wrap-slow": _wrong(WRAP, BOTH, "AdamW's own rate.", "lr=RATE", "lr=1e-3"),
    "wrap-optimizer-of-all": _wrong(
        WRAP, BOTH, "The optimizer has the frozen weights too.",
        "trained = [p for p in net.parameters() if p.requires_grad]", "trained = net.parameters()"),
    "save-own-rows": _wrong(
        SAVE, ("test", "hidden"), "Rank 0's rows only.", "p.full_tensor()", "p.to_local()"),
    "save-rank-0-gathers": _wrong(
        SAVE, BOTH, "Only rank 0 asks for whole tensors: the others never come.",
        'if ".lora_" in name:', 'if ".lora_" in name and rank == 0:', "r = next(",
        'if rank:\n    return dist.barrier()\nr = next('),
    "save-everybody-writes": _wrong(
        SAVE, BOTH, "All ranks write one file.", "if rank == 0:\n    write", "if True:\n    write"),
    "save-no-barrier": _wrong(
        SAVE, BOTH, "Others go on before the file is there.", "dist.barrier()", "pass"),
    "save-barrier-first": _wrong(
        SAVE, BOTH, "Waits before it writes.",
        "if rank == 0:\n    write(tensors, config | {\"target_modules\": sorted(targets)})\ndist.barrier()",
        "dist.barrier()\nif rank == 0:\n    write(tensors, config | {\"target_modules\": sorted(targets)})"),
    "save-default": _wrong(
        SAVE, BOTH, "Names with the adapter's own name.", 'name.replace(".default", "")', "name"),
    "save-model-names": _wrong(
        SAVE, BOTH, "Names of the model, not peft's.", '"base_model.model." + ', ""),
    "save-whole-model": _wrong(
        SAVE, BOTH, "Writes the frozen weights as well.",
        'if ".lora_" in name:', "if True:", "targets.add(name.split(\".lora_\")[0].split(\".\")[-1])",
        'if ".lora_" in name:\n            targets.add(name.split(".lora_")[0].split(".")[-1])'),
    "save-bf16": _wrong(SAVE, BOTH, "Writes half of every value.", ".float()", ".bfloat16()"),
    "save-rank-8": _wrong(
        SAVE, BOTH, "The rank that most adapters have.", '"r": r', '"r": 8'),
    "save-these-targets": _wrong(
        SAVE, HIDDEN, "The lesson's targets.", "sorted(targets)", '["q_proj", "v_proj"]'),
    "save-alpha": _wrong(
        SAVE, HIDDEN, "The lesson's scale.", '"lora_alpha": lora_alpha', '"lora_alpha": 16'),
    "training-sum": _wrong(
        TRAINING, BOTH, "Counts n times as much as it should.", "len(rows) * n / total", "len(rows) * n * n / total"),
    "training-mean-of-means": _wrong(
        TRAINING, BOTH, "Every piece counts the same.",
        "len(rows) * n / total", "1 / len(range(0, -(-total // n), most))"),
    "training-forgets-n": _wrong(
        TRAINING, BOTH, "FSDP2 divides by n once more.", "(len(rows) * n / total)", "(len(rows) / total)",
        "loss.detach() / n", "loss.detach()"),
    "training-own-calls": _wrong(
        TRAINING, BOTH, "Calls the net as often as its own rows need: others wait.", *_OWN_CALLS),
    "training-all-at-once": _wrong(
        TRAINING, BOTH, "The whole share at once.", "n / total)", "n / total)",
        "range(0, -(-total // n), most)", "range(0, -(-total // n), total)", "start + most", "start + total"),
    "training-whole-batch": _wrong(
        TRAINING, BOTH, "Every rank computes every row.",
        "range(rank, total, n)", "range(total)", "range(0, -(-total // n), most)", "range(0, total, most)",
        "len(rows) * n / total", "len(rows) / total", "loss.detach() / n", "loss.detach() / n"),
    "training-no-zeros": _wrong(
        TRAINING, BOTH, "Gradients add up from step to step.", "    optimizer.zero_grad()\n", ""),
    "training-steps-often": _wrong(
        TRAINING, BOTH, "A step for every piece.",
        "        mean += loss.detach() / n\n    optimizer.step()\n    optimizer.zero_grad()\n",
        "        mean += loss.detach() / n\n        optimizer.step()\n        optimizer.zero_grad()\n"),
    "training-last-piece": _wrong(
        TRAINING, BOTH, "Clears the gradients before every piece.",
        "        loss.backward()", "        optimizer.zero_grad()\n        loss.backward()"),
    "training-one-backward": _wrong(
        TRAINING, BOTH, "One backward pass for all pieces of a batch: all of their activations are kept.",
        "        loss.backward()\n        mean += loss.detach() / n\n", "        mean = mean + loss / n\n",
        "    optimizer.step()\n", "    (mean * n).backward()\n    mean = mean.detach()\n    optimizer.step()\n"),
    "training-last-step-left-out": _wrong(
        TRAINING, BOTH, "Steps when the next batch begins, so that the last batch trains nothing.",
        "    optimizer.step()\n    optimizer.zero_grad()\n", "",
        "    total, mean", "    if losses:\n        optimizer.step()\n        optimizer.zero_grad()\n    total, mean"),
    "training-local-loss": _wrong(
        TRAINING, BOTH, "Returns this rank's own loss.", "    dist.all_reduce(mean)\n", "    mean *= n\n"),
    "training-new-optimizer": _wrong(
        TRAINING, BOTH, "Moments begin anew in every step.",
        "    total, mean", "    optimizer = make(optimizer.param_groups[0]['params'], rate)\n"
        "    total, mean"),
    "training-rate-of-models": _wrong(
        TRAINING, BOTH, "The rate of a whole model: adapters hardly move.", "5e-3 if", "1e-5 if"),
    "training-high-rate": _wrong(
        TRAINING, BOTH, "A rate at which it forgets.", "5e-3 if", "5e-2 if"),
    "training-ignores-rate": _wrong(
        TRAINING, BOTH, "Always its own rate.", "5e-3 if rate is None else rate", "5e-3"),
}
