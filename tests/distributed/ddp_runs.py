"""What ranks run to compare data-parallel methods with one process on the whole batch, and mutants that must differ."""

from __future__ import annotations

from dataclasses import dataclass

import reducer_runs
import torch
import torch.distributed as dist
from collective_runs import here
from micro import Letters, micro_llama
from reducer_runs import Mutant, on_all_ranks

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.memory.accumulation import Accumulated
from labkit.methods import FirstOrder, FullFineTuning
from labkit.parallel.ddp import DDP, Bucketed, NaiveDDP, TorchDDP
from labkit.parallel.reducer_watch import watched_backward
from labkit.training import train

TASK = Letters()
ROWS = (12, 7, 1)  # shares that are equal, uneven, and empty on all ranks but one
UNCLIPPED = {"max_grad_norm": 1e9}  # clipping hides a factor on all gradients
TINY = {"bucket_mib": 0.004, "first_bucket_mib": 0.001}  # MiB: some twenty buckets; the last one is small


@dataclass
class AccumulatedDDP(Bucketed, Accumulated):
    """Both: micro-batches of the whole batch, shared among ranks."""

    name: str = "accumulated-ddp"


METHODS = {
    "ddp-naive torch": lambda: NaiveDDP(**UNCLIPPED),
    "ddp-naive ring": lambda: NaiveDDP(collective="ring", **UNCLIPPED),
    "ddp torch": lambda: DDP(**UNCLIPPED, **TINY),
    "ddp ring": lambda: DDP(collective="ring", **UNCLIPPED, **TINY),
    "torch.ddp": lambda: TorchDDP(**UNCLIPPED),
    "accumulated": lambda: AccumulatedDDP(micro_batch_size=3, collective="ring", **UNCLIPPED, **TINY),
}


def batches():
    """Of each size once."""
    starts = [sum(ROWS[:place]) for place in range(len(ROWS))]
    return [TASK.batch(TASK.train[a : a + n]).to(here()) for a, n in zip(starts, ROWS, strict=True)]


def whole(alone, model, batch) -> tuple[float, list[torch.Tensor]]:
    """The loss and gradients of one process that has the whole batch, at the weights that `model` has."""
    alone.load_state_dict(model.state_dict())
    alone.zero_grad()
    loss = TASK.loss(alone, batch)
    loss.backward()
    return loss.item(), [p.grad for p in alone.parameters()]


def check(method) -> list[str]:
    """All that is wrong with a data-parallel method, from a start that differs between ranks."""
    wrong, model = [], micro_llama(seed=dist.get_rank()).to(here()).train()
    alone = micro_llama().to(here()).train()
    method.prepare(model, TASK, len(ROWS))
    for batch in batches():
        loss, gradients = whole(alone, model, batch)
        found = method.step(batch).item()
        if abs(found - loss) > 1e-5 * loss:
            wrong.append(f"loss of {len(batch.labels)} rows is {found}, of one process {loss}")
        scale = torch.cat([g.flatten() for g in gradients]).abs().max()
        away = max(float((p.grad - g).abs().max() / scale) for p, g in zip(model.parameters(), gradients, strict=True))
        if away > 1e-5:
            wrong.append(f"gradient of {len(batch.labels)} rows is {away:.2g} away from one process's")
        if not on_all_ranks(p.grad for p in model.parameters()):
            wrong.append(f"gradient of {len(batch.labels)} rows differs between ranks")
    if not on_all_ranks(model.parameters()):
        wrong.append("weights differ between ranks")
    method.close()
    return wrong


def methods() -> list[str]:
    """Every method is one process's, on every kind of batch."""
    return [f"{name}: {line}" for name, make in METHODS.items() for line in check(make())]


@dataclass
class MutantDDP(DDP):
    fault: str = ""

    def build_reducer(self, model):
        return Mutant(model, self.fault, bucket_mib=self.bucket_mib, first_bucket_mib=self.first_bucket_mib)

    def join(self, model):
        if self.fault != "no broadcast":
            return super().join(model)
        self.reducer = self.build_reducer(model)
        self.reducer.sync = False

    def _loss(self, batch):
        if self.fault != "no weight":
            return super()._loss(batch)
        share = batch.labels.tensor_split(self.world_size)[self.rank]  # the mean of means
        rows = slice(self.rank * len(share), self.rank * len(share) + len(share)) if len(share) else slice(0, 1)
        part = type(batch)(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])
        return FirstOrder._loss(self, part)


CAUGHT_BY = {
    "no all-reduce": "differs between ranks",
    "no division": "away from one process's",
    "no broadcast": "weights differ between ranks",
    "last bucket": "differs between ranks",
    "stale": "away from one process's",
    "no weight": "loss of",
}


def mutants() -> dict[str, list[str]]:
    """What is found wrong with each; "" does nothing wrong."""
    return {fault: check(MutantDDP(fault=fault, **UNCLIPPED, **TINY)) for fault in ("", *CAUGHT_BY)}


def bytes_per_rank() -> list[str]:
    """Predicted equals measured; activations are a share's; the ring sends what the formula says."""
    wrong, n = [], dist.get_world_size()
    batch = TASK.batch(TASK.train[: 4 * n]).to(here())
    alone, reference = FullFineTuning(), Ledger()
    alone.prepare(micro_llama().to(here()).train(), TASK, 3)
    alone.step(batch)
    alone.measured_step(batch, reference)
    for name, make in METHODS.items():
        if name == "accumulated":
            continue
        method, ledger, model = make(), Ledger(), micro_llama().to(here()).train()
        method.prepare(model, TASK, 3)
        ledger.predicted = method.predicted_bytes()
        method.step(batch)
        method.measured_step(batch, ledger)
        wrong += [f"{name}: {c} off by {ledger.residual(c)} bytes" for c in ledger.predicted if ledger.residual(c)]
        share = ledger.measured["activations"] / reference.measured["activations"]
        if not 0.9 / n < share < 1.5 / n:  # what does not grow with the rows stays
            wrong.append(f"{name}: activations are {share:.2f} of one process's")
        count = sum(p.numel() for p in model.parameters())
        sent = torch.tensor(method.observed().get("sent_bytes", 0), device=here())
        dist.all_reduce(sent)
        if sent.item() != (2 * (n - 1) * 4 * count if "ring" in name else 0):
            wrong.append(f"{name}: all ranks sent {sent.item()}")
        method.close()
    return wrong


def training() -> dict[str, list[float]]:
    """Losses of whole runs through `train`, with clipping, and what one process makes of the same."""
    runs = {"one process": FullFineTuning(), "ddp": DDP(collective="ring", **TINY), "torch.ddp": TorchDDP()}
    losses = {}
    for name, method in runs.items():
        model = micro_llama().to(here())
        run = train(model, TASK, method, steps=6, batch_size=10, progress=False)
        losses[name] = run.losses
        losses[f"{name}: sent"] = run.traces.get("sent_bytes", [])
    return losses


def refused_methods() -> list[str]:
    """What cannot be is said."""
    try:
        TorchDDP(collective="ring")
        return ["torch's DDP took our ring"]
    except LabError:
        return []


def watched() -> list[str]:
    """A watched backward pass averages the same gradients, tells every average once and leaves nothing behind."""
    wrong = []
    for name in reducer_runs.KINDS:
        nets = reducer_runs.Net(), reducer_runs.Net()
        first, second = (reducer_runs.KINDS[name](net) for net in nets)
        reducer_runs.loss_of(nets[0], 0).backward()
        first.finish()
        told = watched_backward(second, reducer_runs.loss_of(nets[1], 0))
        wrong += [f"{name}: {said}" for said in [reducer_runs.differ(*nets)] if said]
        if [one.bytes for one in told.sent] != [n * size for n, size in second.sizes()]:
            wrong.append(f"{name}: averages of {[one.bytes for one in told.sent]} bytes")
        if any(not 0 <= one.begun <= one.done for one in told.sent) or told.backward_ms <= 0:
            wrong.append(f"{name}: {told}")
        # One bucket is complete with the last gradient, which is still within autograd; one by one begins after it.
        if (told.early == 0) != name.startswith("naive") or (name.startswith("one") and len(told.sent) != 1):
            wrong.append(f"{name}: {told.early} averages began in the backward pass")
        if "start" in vars(second.averager):
            wrong.append(f"{name}: still watched")
        first.close()
        second.close()
    return wrong


CHECKS = (methods, watched, mutants, bytes_per_rank, training, refused_methods)


def everything() -> dict:
    """All checks of reducers and of methods, in one launch."""
    return {check.__name__: check() for check in (*reducer_runs.CHECKS, *CHECKS)}


def beyond_two() -> dict:
    """Those whose results depend on the number of ranks."""
    reducers = (reducer_runs.gradients, reducer_runs.unused, reducer_runs.traffic_and_bytes, reducer_runs.replicas)
    return {check.__name__: check() for check in (*reducers, methods, training)}
