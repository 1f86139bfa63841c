"""What a sharded training has to satisfy, as checks that run in ranks: the real stages pass, mutants must not.

References are written anew from torch's parts: one process that runs every rank's share one after the other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from decoders import llama
from micro import Letters
from torch import Tensor
from transformers import AutoModelForCausalLM

from labkit.ledger import Ledger
from labkit.numerics.products import products_in
from labkit.parallel.group import device
from labkit.parallel.zero import Zero
from labkit.parallel.zero_formula import bytes_by_category, traffic_per_step
from labkit.training import order

TASK = Letters()
RATE, DECAY, STEPS = 3e-3, 0.01, 6
SETTINGS = {"learning_rate": RATE, "weight_decay": DECAY, "warmup": 0.5}


def wide():
    """Four layers, wide enough that padding is nothing and that a layer is a small part of the whole."""
    return llama(4, vocab_size=512, hidden_size=128, intermediate_size=320, initializer_range=0.05)


def model(config=None, seed: int = 0):
    """The same weights on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config or llama(2, initializer_range=0.15))


def batches(size: int = 8, steps: int = STEPS):
    return [TASK.batch(examples) for examples in order(TASK, size, 0, steps)]


def rates(steps: int = STEPS) -> list[float]:
    """The schedule of the methods: up for half of the steps, then down to zero."""
    rise = round(SETTINGS["warmup"] * steps)
    return [RATE * min((s + 1) / rise, max(0.0, (steps - s) / (steps - rise))) for s in range(steps)]


def shares(batch, world_size: int):
    """The rows of every rank, cut by torch rather than by ours."""
    parts = [t.tensor_split(world_size) for t in (batch.input_ids, batch.attention_mask, batch.labels)]
    return [type(batch)(*part) for part in zip(*parts, strict=True)]


def reference(net, size: int = 8, clip: float | None = None, dtype=torch.float32):
    """Losses and weights of one process: shares one after the other, mean of gradients in fp32, AdamW on masters."""
    world, losses = dist.get_world_size(), []
    masters = [torch.nn.Parameter(p.detach().clone()) for p in net.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=RATE, weight_decay=DECAY, fused=True)
    for p in net.parameters():
        p.data = p.data.to(dtype)
    for batch, rate in zip(batches(size), rates(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        total, loss = [torch.zeros_like(m) for m in masters], torch.zeros(())
        for part in shares(batch, world):
            net.zero_grad()
            if len(part.labels):
                with products_in("fp32" if dtype == torch.float32 else "bf16", "cpu"):
                    mean = TASK.loss(net, part) * (len(part.labels) * world / len(batch.labels))
                    mean.backward()
                loss += mean.detach()
                for sum_, p in zip(total, net.parameters(), strict=True):
                    sum_ += p.grad
        for master, sum_ in zip(masters, total, strict=True):
            master.grad = (sum_ / world).to(dtype).float()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(masters, clip)
        optimizer.step()
        with torch.no_grad():
            for p, master in zip(net.parameters(), masters, strict=True):
                p.copy_(master)
        losses.append((loss / world).item())
    return losses, list(net.parameters())


def trained(method, config=None, size: int = 8):
    """Losses and whole weights of a method, and the same model object."""
    net = model(config)
    method.prepare(net.train(), TASK, STEPS)
    losses = [method.step(batch).item() for batch in batches(size)]
    method.close()
    return losses, list(net.parameters())


def check_values(make: Callable[[], Zero], dtype=torch.float32, clip: float | None = None, size: int = 8, config=None):
    """Losses and weights are the reference's: to the bit on two ranks without clipping, else to rounding."""
    losses, weights = trained(make(), config, size)
    expected, wanted = reference(model(config), size, clip, dtype)
    others = [weight.detach().clone() for weight in weights]
    for weight in others:
        dist.broadcast(weight, 0)
    exact = dist.get_world_size() == 2 and clip is None and size % 2 == 0
    close = (
        torch.equal
        if exact
        else lambda a, b: torch.allclose(a, b, rtol=0, atol=3e-5 if a.dtype == torch.float32 else 5e-3)
    )
    assert all(close(w, v) for w, v in zip(weights, wanted, strict=True)), "other weights than one process"
    assert losses == expected if exact else torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=2e-3)
    moved = [(w.float() - p).abs().max() for w, p in zip(weights, model(config).parameters(), strict=True)]
    assert all(distance > 0 for distance in moved), "some weights were not updated"
    same = all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
    assert same, "ranks have different weights"


def live_bytes() -> int:
    """Bytes of all storages that any tensor of this process holds, found by the garbage collector.

    Gloo's threads let go of a collective's tensors a moment after it has ended: the least of a few looks counts.
    """
    found = []
    for _ in range(4):
        time.sleep(0.03)
        gc.collect()
        found.append(_live_bytes())
    return min(found)


def _live_bytes() -> int:
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and type(thing).__name__ != "FakeTensor":
            grads = [thing.grad] if thing.is_leaf and thing.grad is not None else []
            for tensor in (thing, *grads):
                storage = tensor.untyped_storage()
                found[storage._cdata] = storage.nbytes()
    return sum(found.values())


@contextmanager
def watching(net, peak: dict[str, int]) -> Iterator[None]:
    """Most bytes that all weights of the model have at once, looked at whenever a layer computes, either way."""
    storages = {id(p): p for p in net.parameters()}.values()

    def look(*_) -> None:
        sizes = {(s := p.untyped_storage())._cdata: s.nbytes() for p in storages}
        peak["weights"] = max(peak.get("weights", 0), sum(sizes.values()))

    hooks = [layer.register_forward_hook(look) for layer in net.model.layers]
    hooks += [m.register_full_backward_hook(look) for m in net.modules() if type(m) is torch.nn.Linear]
    yield
    for hook in hooks:
        hook.remove()


class Problems(list):
    """What is wrong, said at the end: a rank that stopped in the middle would leave the others waiting for it."""

    def need(self, holds: bool, what: str) -> None:
        if not holds:
            self.append(what)

    def near(self, found: float, wanted: float, what: str) -> None:
        self.need(abs(found - wanted) <= 0.03 * wanted, f"{what}: {found} bytes, formula {wanted:.0f}")

    def tell(self) -> None:
        assert not self, "; ".join(self)


def check_bytes(make: Callable[[], Zero], stage: int) -> None:
    """Everything alive, found without asking the method, is the formula's within 3 %; so is what the method says."""
    gc.collect()
    gc.freeze()  # modules and what else is there already is looked at no more, which takes seconds
    world, net, data, said = dist.get_world_size(), model(wide()), batches(2 * dist.get_world_size(), 3), Problems()
    count, layer = sum(p.numel() for p in net.parameters()), sum(p.numel() for p in net.model.layers[0].parameters())
    before = live_bytes() - 4 * count
    method = make()
    method.prepare(net.train(), TASK, 3)
    size = 4 if method.weights == "float32" else 2
    formula = bytes_by_category(stage, count, world, size, size, 8 if size == 4 else 12)
    if not method.hold_weights:
        formula["weights"] = 0.0  # made of the masters whenever they are gathered
    states = formula["weights"] + formula["optimizer_states"]
    method.step(data[0])
    said.near(live_bytes() - before, states, "standing")
    reached: dict[str, int] = {}
    update = method.optimizer.step
    method.optimizer.step = lambda: (reached.update(gradients=live_bytes() - before), update())  # type: ignore
    with watching(net, reached):
        method.step(data[1])
    del method.optimizer.step
    said.near(reached["gradients"], states + formula["gradients"], "with gradients")
    most = size * count if stage < 3 else size * (count - 2 * layer)
    said.need(reached["weights"] <= 1.03 * most, f"{reached['weights']} bytes of weights at once, {most} allowed")
    ledger = Ledger(predicted=method.predicted_bytes())
    method.measured_step(data[2], ledger)
    said += ledger_problems(ledger, method, formula)
    seen, root = method.observed(), count - 4 * layer
    most = 1.03 * size * (count if stage == 1 else max(2 * layer, 2 * root + layer))
    said.need(seen["gradients_in_flight_bytes"] <= most, f"more than {most} bytes of whole gradients at once")
    method.close()
    said.tell()


def ledger_problems(ledger: Ledger, method: Zero, formula: dict[str, float]) -> Problems:
    """Unless the method's own count is its own prediction to the byte, and the formula's within 3 %."""
    said, predicted = Problems(), ledger.predicted
    for name, count in predicted.items():
        said.need(ledger.measured[name] == count, f"{name}: {ledger.measured[name]} bytes, predicted {count}")
    for name in ("weights", "gradients"):
        said.near(predicted[name], formula[name], name)
    states = predicted["optimizer_states"] + predicted.get("master_weights", 0)
    said.near(states, formula["optimizer_states"], "states")
    said.need(ledger.measured["activations"] > 0, "no activations")
    said.need(method.observed()["gathered_bytes"] == method.gathered_bytes(), "other gathered bytes than predicted")
    return said


def written() -> int:
    """Bytes that this process has handed to the kernel, sockets included."""
    with open("/proc/self/io") as file:  # noqa: PTH123
        return int(next(line for line in file if line.startswith("wchar")).split()[1])


def check_traffic(make: Callable[[], Zero], stage: int) -> None:
    """Bytes sent are the prediction's to the byte where counted, and the formula's within 3 % as the kernel counts."""
    world, net, data, said = dist.get_world_size(), model(wide()), batches(8, 3), Problems()
    count, layer = sum(p.numel() for p in net.parameters()), sum(p.numel() for p in net.model.layers[0].parameters())
    method = make()
    method.prepare(net.train(), TASK, 3)
    method.step(data[0])
    dist.barrier()
    before = written()
    method.step(data[1])
    passed = written() - before
    size = 4 if method.weights == "float32" else 2
    formula = traffic_per_step(stage, count, world, size, size, kept=count - 4 * layer)
    seen = method.observed()
    sent = seen["all_gather_bytes"] + seen["reduce_scatter_bytes"]
    said.need(sent == method.predicted_traffic(), f"{sent} bytes sent, {method.predicted_traffic()} predicted")
    said.near(sent, formula, "sent")
    if dist.get_backend() == "gloo":
        said.near(passed, formula, "written to sockets")
    method.close()
    said.tell()


def verdict(check: Callable, *args, **kwargs) -> str:
    """Empty where a check passed, else what it said. Collectives stay in step: checks fail on every rank or none."""
    try:
        check(*args, **kwargs)
    except AssertionError as error:
        found = str(error) or "failed"
    else:
        found = ""
    failed = torch.tensor(float(bool(found)), device=device())
    dist.all_reduce(failed)
    return found if found or not failed else "failed on another rank"
