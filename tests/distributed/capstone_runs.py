"""What runs in ranks for the tests of FSDP2 with LoRA: many checks a launch, since a launch takes seconds."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from decoders import llama, opt
from peft import LoraConfig, get_peft_model
from zero_checks import TASK, batches, model, rates

from labkit.ledger import Ledger
from labkit.parallel import fsdp_checkpoint
from labkit.parallel.fsdp_lora import MODULES, FsdpLora
from labkit.parallel.jobs.capstone import Recipe, capstone
from labkit.parallel.sharded_weights import allocate, fill, is_adapter, plain_name, skeleton

RANK, ALPHA, STEPS = 4, 16.0, 6
TARGETS = ("q", "v", "down")


def made(config, steps=STEPS, **more):
    """A method on a skeleton whose weights are those of `model(config)`."""
    whole, options = model(config), {"warmup": 0.5, "rank": RANK, "lora_alpha": ALPHA, "targets": TARGETS}
    method = FsdpLora(weights="float32", **{**options, "learning_rate": 3e-3, "weight_decay": 0.01, **more})
    method._read = lambda: whole.state_dict() if dist.get_rank() == 0 else None
    net = skeleton(config, torch.float32).train()
    assert all(p.is_meta for p in net.parameters()) and not any(b.is_meta for b in net.buffers())
    method.prepare(net, TASK, steps)
    return method, net


def adapters(net) -> dict:
    """Whole tensors by name."""
    return {name: p.full_tensor().detach().clone() for name, p in net.named_parameters() if p.requires_grad}


def reference(config, start: dict, sizes: int = 8):
    """One process, peft alone: losses, and adapters after STEPS steps from the same start."""
    kind = "opt" if config.model_type == "opt" else "llama"
    plain = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[MODULES[kind][name] for name in TARGETS])
    net = get_peft_model(model(config).train(), plain).get_base_model()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(start[name])
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1.0, weight_decay=0.01), []
    for batch, rate in zip(batches(sizes, STEPS), rates(STEPS), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = TASK.loss(net, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in trained.items()}


def values() -> dict[str, str]:
    """What is wrong, by case; nothing where losses, adapters and bytes are the reference's and the formula's."""
    cases = {"llama": (llama(2, initializer_range=0.15), 8, {}), "opt": (opt(2), 8, {})}
    cases["7 rows"] = (llama(2, initializer_range=0.15), 7, {})
    cases["checkpointed"] = (llama(2, initializer_range=0.15), 8, {"checkpointed": True})
    return {name: wrong(*case) for name, case in cases.items()}


def values_and_birth() -> tuple[dict, dict]:
    """Both in one launch."""
    return values(), born_in_shards()


def wrong(config, size: int, more: dict) -> str:
    """The first thing that is wrong, in words."""
    method, net = made(config, **more)
    start, ledger = adapters(net), Ledger(predicted=method.predicted_bytes())
    if any(v.any() for name, v in start.items() if "lora_B" in name) or not all(
        v.any() for name, v in start.items() if "lora_A" in name
    ):
        return "LoRA starts with B = 0 and A at random"
    steps = batches(size, STEPS)
    found = [method.step(batch).item() for batch in steps[:-1]] + [method.measured_step(steps[-1], ledger).item()]
    losses, expected = reference(config, start, size)
    if not torch.allclose(torch.tensor(found), torch.tensor(losses), atol=2e-5):
        return f"losses {found}, not {losses}"
    for name, value in adapters(net).items():
        if not torch.allclose(value, expected[name], atol=2e-5):
            return f"{name} is off by {(value - expected[name]).abs().max()}"
    for name, size_ in ledger.predicted.items():
        if ledger.measured[name] != size_:
            return f"{name}: {ledger.measured[name]} bytes, not {size_}"
    return _bytes(net, ledger, sum(v.numel() for v in expected.values()))


def _bytes(net, ledger: Ledger, trained: int) -> str:
    """An N-th of everything, padding apart; nothing frozen has a gradient or a moment."""
    ranks, whole = dist.get_world_size(), sum(p.numel() for p in net.parameters())
    rows = sum(p.numel() // p.shape[0] for p in net.parameters())  # what padding may add, in values
    if not 4 * whole / ranks <= ledger.measured["weights"] < 4 * (whole / ranks + rows):
        return f"weights of a rank: {ledger.measured['weights']} bytes of {4 * whole}"
    if ledger.measured["optimizer_states"] > 9 * trained / ranks + 8 * rows:
        return f"states of a rank: {ledger.measured['optimizer_states']} bytes for {trained} trained values"
    return ""


def born_in_shards() -> dict:
    """Weights from rank 0 and at random: what each rank holds, put together, and what it ever held."""
    from torch.distributed.fsdp import fully_shard

    config, found = llama(2, initializer_range=0.15), {}
    whole = model(config).state_dict()
    for state in (whole if dist.get_rank() == 0 else None, None):
        net = skeleton(config, torch.float32)
        for layer in net.model.layers:
            fully_shard(layer)
        fully_shard(net)
        assert all(p.is_meta for p in net.parameters())
        allocate(net, torch.device("cpu"))
        assert net.lm_head.weight is net.model.embed_tokens.weight
        fill(net, state, seed=3)
        kind = "random" if "read" in found else "read"
        found[kind] = {name: p.full_tensor() for name, p in net.named_parameters()}
        found[f"{kind} rows"] = [p.to_local().shape[0] for p in net.parameters()]
    found["whole"] = whole
    return found


def missing_weight() -> None:
    """A checkpoint of another model, which rank 0 alone can see."""
    config = llama(2)
    net = skeleton(config, torch.float32)
    state = model(config).state_dict() if dist.get_rank() == 0 else None
    if state is not None:
        del state["model.layers.1.mlp.up_proj.weight"]
    allocate(net, torch.device("cpu"))
    fill(net, state)


RECIPE = {"model": "tiny", "dtype": "float32", "steps": 9, "batch": 8, "tests": 48, "learning_rate": 5e-3}


def first(folder: str) -> tuple[dict, dict]:
    """A whole training, and one that is stopped after 4 steps."""
    straight = capstone(Recipe(**RECIPE, out=str(Path(folder) / "straight")))
    return straight, capstone(Recipe(**RECIPE, stop=4, out=str(Path(folder) / "cut")))


def more(folder: str, stop: int) -> dict:
    """The stopped one goes on."""
    return capstone(Recipe(**RECIPE, stop=stop, resume=str(Path(folder) / "cut")))


def last(folder: str):
    """Goes on to the end, then generates; and what the sharded model answers to a sentence."""
    found, place = more(folder, 0), str(Path(folder) / "cut")
    found |= capstone(Recipe(**RECIPE, resume=place, generate="A film of rare beauty. It was"))
    return found, *logits(folder)


def logits(folder: str):
    """The sharded model with the saved adapters, asked about a sentence."""
    from labkit import models

    method = FsdpLora(weights="float32", base="tiny")
    net = skeleton(models.config("tiny"), torch.float32)
    method.prepare(net, TASK, RECIPE["steps"])
    fsdp_checkpoint.load(method, Path(folder) / "cut")
    ids = models.tokenizer("tiny")("A film of rare beauty.", return_tensors="pt")
    with torch.no_grad():
        return net.eval()(**ids).logits, {plain_name(n) for n, _ in net.named_parameters() if not is_adapter(n)}
